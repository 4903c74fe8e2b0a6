"""The operator's API: the same nouns and verbs as the command, behind one bearer token.

The token stands in a file that only the service's user reads; it is compared in constant time. Every answer is a JSON
object. Looking a device up takes the beginning of its id or its label; changing one takes the whole id, so that no
label stands in the way. Nothing of an update's content can be had here.
"""

import hmac
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response

from cloud_aggregator import operator_view as view
from cloud_aggregator.errors import InvalidSetting
from cloud_aggregator.service import Service

MAX_BODY_BYTES = 16_384

Limit = Annotated[int, Query(ge=0, le=100_000)]


class MintBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST tokens: what the token is for."""

    population: str | None = None
    label: str = ""
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    valid_seconds: Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)] = 7 * 86_400


class LabelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST devices/{device}/label."""

    label: Annotated[str, msgspec.Meta(max_length=80)]


class ReleaseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST releases and releases/undo; `version` is what an undo goes back to."""

    population: str | None = None
    version: int | None = None
    dry_run: bool = False


class ScheduleBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PUT schedule; an empty `cron` means only by hand."""

    cron: Annotated[str, msgspec.Meta(max_length=80)]
    time_zone: Annotated[str, msgspec.Meta(max_length=60)] = "UTC"
    population: str | None = None


class EvaluationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST evaluations; without a `version` it is the announced refresh."""

    population: str | None = None
    version: int | None = None
    devices: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 20
    minimum_words: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 50
    most_words: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 2000
    valid_seconds: Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)] = 7 * 86_400


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request has at most {MAX_BODY_BYTES} bytes")
    return bytes(body) or b"{}"


Body = Annotated[bytes, Depends(_read_body)]


def _parse(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError) as e:
        raise InvalidSetting(f"the request's body: {e}") from e


def operator_routes(service: Service, token: str) -> APIRouter:
    """Return the routes under /v1/operator; `token` opens them."""

    def allow(authorization: Annotated[str, Header()] = "") -> None:
        wanted = f"Bearer {token}".encode()
        if not hmac.compare_digest(authorization.encode("utf-8", "replace"), wanted):
            raise HTTPException(401, "the operator's token is needed", {"WWW-Authenticate": "Bearer"})

    routes = APIRouter(prefix="/v1/operator", dependencies=[Depends(allow)])

    def now() -> int:
        return int(service.clock.now())

    @routes.get("/status")
    def status() -> dict[str, Any]:
        with service.database.reading() as records:
            return view.status_view(records, now(), service.pressure.now(), service.kernel)

    @routes.get("/devices")
    def devices(limit: Limit = 20) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.device_list(records, limit)

    @routes.get("/devices/{device}")
    def device(device: str) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.device_view(view.find_device(records, device))

    @routes.post("/devices/{device}/revoke")
    def revoke(device: str) -> dict[str, Any]:
        service.revoke(device, now())
        with service.database.reading() as records:
            return view.device_view(view.find_device(records, device))

    @routes.post("/devices/{device}/label")
    def label(device: str, body: Body) -> dict[str, Any]:
        wanted: LabelBody = _parse(body, LabelBody)
        service.label(device, wanted.label)
        with service.database.reading() as records:
            return view.device_view(view.find_device(records, device))

    @routes.post("/tokens")
    def mint(body: Body) -> dict[str, Any]:
        wanted: MintBody = _parse(body, MintBody)
        with service.database.reading() as records:
            population = view.one_population(records, wanted.population)
        moment = now()
        token = service.mint_token(population, wanted.label, moment, uses=wanted.uses, valid_s=wanted.valid_seconds)
        return {
            "token": token,
            "population": population,
            "uses": wanted.uses,
            "expires_at": view.iso(moment + wanted.valid_seconds),
            "server": service.addresses.model_url,
        }

    @routes.get("/rounds")
    def rounds(limit: Limit = 20) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.round_list(records, limit)

    @routes.get("/rounds/{round_id}")
    def round_show(round_id: str) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.round_show(records, round_id)

    @routes.get("/releases")
    def releases(limit: Limit = 20) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.release_list(records, limit)

    @routes.get("/releases/{release}")
    def release_show(release: str) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.release_show(records, release)

    @routes.post("/releases")
    def release_now(body: Body) -> dict[str, Any]:
        wanted: ReleaseBody = _parse(body, ReleaseBody)
        with service.database.reading() as records:
            population = view.one_population(records, wanted.population)
        if wanted.dry_run:
            candidate = service.candidate(population)
            size = candidate.candidate.model.stat().st_size
            return {
                "population": population,
                "version": candidate.candidate.version,
                "previous": candidate.current.version,
                "outcome": "planned",
                "reason": f"would be judged against version {candidate.current.version}",
                "bytes": size,
                "devices": candidate.devices,
            }
        return view.release_view(service.release(population, now()))

    @routes.post("/releases/undo")
    def undo(body: Body) -> dict[str, Any]:
        wanted: ReleaseBody = _parse(body, ReleaseBody)
        with service.database.reading() as records:
            population = view.one_population(records, wanted.population)
        release = service.undo(population, now(), version=wanted.version, dry_run=wanted.dry_run)
        shown = view.release_view(release)
        return {**shown, "outcome": "planned"} if wanted.dry_run else shown

    @routes.get("/evaluations")
    def evaluations(limit: Limit = 20) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.evaluation_list(records, limit, now())

    @routes.get("/evaluations/{evaluation}")
    def evaluation_show(evaluation: str) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.evaluation_show(records, evaluation, now())

    @routes.post("/evaluations")
    def evaluation_ask(body: Body) -> dict[str, Any]:
        wanted: EvaluationBody = _parse(body, EvaluationBody)
        with service.database.reading() as records:
            population = view.one_population(records, wanted.population)
        asked = service.ask_evaluation(
            population, now(), version=wanted.version, devices=wanted.devices, minimum_words=wanted.minimum_words,
            most_words=wanted.most_words, valid_s=wanted.valid_seconds,
        )  # fmt: skip
        return view.evaluation_view(asked, 0, now())

    @routes.get("/schedule")
    def schedule(population: str | None = None) -> dict[str, Any]:
        with service.database.reading() as records:
            return view.schedule_show(records, population)

    @routes.put("/schedule")
    def set_schedule(body: Body) -> dict[str, Any]:
        wanted: ScheduleBody = _parse(body, ScheduleBody)
        with service.database.reading() as records:
            population = view.one_population(records, wanted.population)
        return view.schedule_view(service.set_schedule(population, wanted.cron, wanted.time_zone, now()))

    @routes.get("/alive")
    def alive() -> Response:
        return Response(status_code=204)

    return routes
