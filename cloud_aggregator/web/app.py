"""The HTTP side: what devices fetch, and the operator's API (see `web.operator_api`).

    POST /v1/enrol                                   an `Enrolment`, answered by the signed `Enrolled`
    GET  /v1/models/{sha256}                         a version's file; Range, ETag
    GET  /v1/vocabularies/{sha256}
    GET  /v1/index-sets/{sha256}                     the values that `shared` updates speak of
    GET  /v1/bases/{sha256}                          the axes that `topk` updates of such a plan are in
    GET  /v1/templates/{template_sha256}             the exporter-signed manifest of a template (older devices)
    GET  /v1/populations/{population}/templates/{template_sha256}   the same, of this population
    GET  /v1/trust/metadata/{name}                   the signed repository's metadata: timestamp.json, 7.snapshot.json
    GET  /v1/trust/targets/{folder}/{sha256}.{name}  what they name: signed manifests
    GET  /v1/populations/{p}/{training|refresh}      the announced signed manifest
    GET  /v1/populations/{p}/deltas/{base}/{target}  the way from one version's file to an announced one; Range, ETag
    GET  /v1/health                                  200 while the service answers
Bodies are MessagePack or plain bytes, errors one line of text. Model bytes go over HTTP because the downlink is a
hundred times the uplink: the broker must not carry it.
"""

import asyncio
import time
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from cloud_aggregator import trust
from cloud_aggregator.deltas import Pair
from cloud_aggregator.errors import AggregatorError, InvalidSetting, InvalidToken, NotFound, Refused, StorageFailed
from cloud_aggregator.service import Service
from cloud_aggregator.web.operator_api import operator_routes
from wire_contract.errors import ContractError
from wire_contract.messages import Enrolment, decode_message
from wire_contract.trust_roles import METADATA_PATH, TARGETS_PATH

MAX_ENROLMENT_BYTES = 4096
# Less than a device waits for the first byte.
DELTA_WAIT_S = 10.0
DELTA_POLL_S = 0.1
IMMUTABLE = "public, max-age=31536000, immutable"
STATUS = {InvalidToken: 403, NotFound: 404, Refused: 409, InvalidSetting: 422, StorageFailed: 503}

Hash = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Path(pattern="^[a-z0-9][a-z0-9-]{0,39}$")]
TrackName = Annotated[str, Path(pattern="^(training|refresh)$")]


def make_app(service: Service, operator_token: str) -> FastAPI:
    """Return the application over a running service; `operator_token` opens the operator's API."""
    app = FastAPI(title="edge-federation aggregator", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(AggregatorError)
    async def tell_error(_request: Request, error: AggregatorError) -> Response:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
        hint = error.hint if isinstance(error, Refused) else ""
        return PlainTextResponse(f"{error}\n", status, headers={"X-Hint": hint} if hint else None)

    @app.exception_handler(ContractError)
    async def tell_contract_error(_request: Request, error: ContractError) -> Response:
        return PlainTextResponse(f"{error}\n", 400)

    @app.exception_handler(StarletteHTTPException)
    async def tell_http_error(_request: Request, error: StarletteHTTPException) -> Response:
        return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def tell_wrong_request(request: Request, error: RequestValidationError) -> Response:
        # A path that breaks its pattern names nothing; anything else is a wrong value.
        if any(part["loc"][0] == "path" for part in error.errors()):
            return PlainTextResponse(f"no {request.url.path[:200]!r}\n", 404)
        told = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in error.errors())
        return PlainTextResponse(f"{told}\n", 422)

    @app.get("/v1/health")
    def health() -> Response:
        return PlainTextResponse("ok\n")

    @app.post("/v1/enrol")
    async def enrol(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_ENROLMENT_BYTES:
                return PlainTextResponse(f"an enrolment has at most {MAX_ENROLMENT_BYTES} bytes\n", 413)
        message = decode_message(bytes(body), Enrolment)
        answer = await _in_thread(service, message)
        return Response(answer, media_type="application/msgpack")

    @app.api_route("/v1/models/{sha256}", methods=["GET", "HEAD"])
    def model(sha256: Hash, request: Request) -> Response:
        return _blob(service, sha256, request)

    @app.api_route("/v1/vocabularies/{sha256}", methods=["GET", "HEAD"])
    def vocabulary(sha256: Hash, request: Request) -> Response:
        return _blob(service, sha256, request)

    @app.api_route("/v1/index-sets/{sha256}", methods=["GET", "HEAD"])
    def index_set(sha256: Hash, request: Request) -> Response:
        return _blob(service, sha256, request)

    @app.api_route("/v1/bases/{sha256}", methods=["GET", "HEAD"])
    def basis(sha256: Hash, request: Request) -> Response:
        return _blob(service, sha256, request)

    @app.get("/v1/templates/{sha256}")
    def template(sha256: Hash) -> Response:
        return _template(service, sha256, "")

    @app.get("/v1/populations/{population}/templates/{sha256}")
    def template_of(population: str, sha256: Hash) -> Response:
        return _template(service, sha256, population)

    @app.get(METADATA_PATH + "/{name}")
    def trust_metadata(name: str) -> Response:
        with service.database.reading() as records:
            data = trust.metadata_file(records, name)
        # A version says one thing, but a holder may add a signature to it.
        kept = "no-cache" if name == "timestamp.json" else "public, max-age=86400"
        return Response(data, media_type="application/json", headers={"Cache-Control": kept})

    @app.get(TARGETS_PATH + "/{path:path}")
    def trust_target(path: str) -> Response:
        with service.database.reading() as records:
            data = trust.target_file(records, path)
        return Response(data, media_type="application/msgpack", headers={"Cache-Control": IMMUTABLE})

    @app.get("/v1/populations/{population}/{track}")
    def announced(population: Name, track: TrackName) -> Response:
        with service.database.reading() as records:
            found = records.announcement(population, "training" if track == "training" else "refresh")
        if found is None:
            raise NotFound(f"population {population} announces no {track} version")
        return Response(found.signed_manifest, media_type="application/msgpack", headers={"Cache-Control": "no-cache"})

    @app.api_route("/v1/populations/{population}/deltas/{base}/{target}", methods=["GET", "HEAD"])
    async def delta(population: Name, base: Hash, target: Hash, request: Request) -> Response:
        path = await _delta(service, population, Pair(base, target))
        if path is None:
            # Not to be remembered on the way: it may be made later.
            raise StarletteHTTPException(404, f"no delta from {base} to {target}", {"Cache-Control": "no-store"})
        return _immutable(path, f"{base}-{target}", request)

    app.include_router(operator_routes(service, operator_token))
    return app


async def _in_thread(service: Service, message: Enrolment) -> bytes:
    return await run_in_threadpool(service.enrol, message, service.clock.now())


async def _delta(service: Service, population: str, pair: Pair) -> FilePath | None:
    deltas = service.deltas
    await run_in_threadpool(deltas.begin, population, pair)
    end = time.monotonic() + DELTA_WAIT_S
    # Whoever waits here holds no thread: a fleet that asks for a new delta at once must not stop the other routes.
    while deltas.makes(pair) and time.monotonic() < end:
        await asyncio.sleep(DELTA_POLL_S)
    return await run_in_threadpool(deltas.path, pair)


def _template(service: Service, sha256: str, population: str) -> Response:
    with service.database.reading() as records:
        signed = records.template(sha256, population)
    if signed is None:
        raise NotFound(f"no template {sha256}")
    return Response(signed, media_type="application/msgpack")


def _blob(service: Service, sha256: str, request: Request) -> Response:
    # A name is its content's hash, so a resumed download can never mix two files.
    return _immutable(service.blobs.path(sha256), sha256, request)


def _immutable(path: FilePath, name: str, request: Request) -> Response:
    tag = f'"{name}"'
    headers = {"ETag": tag, "Cache-Control": IMMUTABLE}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, media_type="application/octet-stream", headers=headers)
