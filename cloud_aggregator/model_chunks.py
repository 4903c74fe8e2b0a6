"""Pieces of a version over the broker, for a device that cannot reach the HTTP side.

The rules:
- only what a track announces now; a delta if the settings allow any, a whole file only if they allow files;
- at most four pieces an answer, each no longer than a chunk of an update: the broker holds little for one device, and a
  device asks for more when it has these;
- each device has so many bytes a day, and all of them together so many a second; both are counted in memory, so a
  restart forgives what was used;
- a request is answered once, and an older one of the same device not at all: whoever plays requests again must not use
  up the device's bytes. A device whose clock went back is not answered until it has caught up, or after a restart;
- a piece is read from the file on the disk and not signed: the device believes the whole by the manifest's hash;
- every denial is signed, and says when to ask again.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from cloud_aggregator.answers import Outgoing, task_message
from cloud_aggregator.deltas import Pair
from cloud_aggregator.errors import AggregatorError, NotFound
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.population import Population
from cloud_aggregator.ports import Blobs, Deltas
from wire_contract.messages import MAX_CHUNK_BYTES, ModelChunk, ModelDenied, ModelRequest, RetryWindow, encode_message
from wire_contract.topics import DeviceTopic, build_topic

DAY_S: Final = 86_400
SOON_S: Final = 60
LATER_S: Final = 3_600
MAX_BYTES_A_SECOND: Final = 4 * 1024 * 1024
# Of one device: windows of pieces that come faster exceed the bytes a second.
MAX_REQUESTS_A_SECOND: Final = 32

Code = Literal["no_delta", "later", "deltas_only", "off", "not_announced", "past_the_end", "too_much"]


@dataclass(slots=True)
class BrokerBytes:
    """What went over the broker: to each device on the day of the last answer, to all in its second.

    `asked`: each device's latest request, as its second and the nonces in that second.
    """

    asked: dict[str, tuple[int, frozenset[str]]] = field(default_factory=dict)
    day: int = 0
    used: dict[str, int] = field(default_factory=dict)
    second: int = 0
    in_second: int = 0

    def is_next(self, request: ModelRequest) -> bool:
        """Whether a request is later than all of its device's before it; then it is noted as the latest."""
        second, nonces = self.asked.get(request.device, (0, frozenset()))
        if request.sent_at < second:
            return False
        if request.sent_at > second:
            nonces = frozenset()
        if request.nonce in nonces or len(nonces) >= MAX_REQUESTS_A_SECOND:
            return False
        self.asked[request.device] = (request.sent_at, nonces | {request.nonce})
        return True

    def take(self, device: str, size_bytes: int, limit_bytes: int, now: int) -> Code | None:
        """Count `size_bytes` for a device; or return why not, if that were more than `limit_bytes` today."""
        if now // DAY_S != self.day:
            self.day, self.used = now // DAY_S, {}
        if now != self.second:
            self.second, self.in_second = now, 0
        used = self.used.get(device, 0) + size_bytes
        if used > limit_bytes:
            return "too_much"
        if self.in_second + size_bytes > MAX_BYTES_A_SECOND:
            return "later"
        self.used[device] = used
        self.in_second += size_bytes
        return None


def answer_model_request(
    population: Population,
    request: ModelRequest,
    deltas: Deltas,
    blobs: Blobs,
    sent: BrokerBytes,
    keys: ServiceKeys,
    now: int,
) -> list[Outgoing]:
    """Return the pieces that a verified request asks for, or the one denial."""
    if not sent.is_next(request):
        return []
    pieces: list[ModelChunk] | Code
    try:
        found = _file(population, request, deltas, blobs)
        pieces = found if isinstance(found, str) else _pieces(found, request, population, sent, now)
    except (AggregatorError, OSError):
        # Deleted in this moment, or the disk fails: no reason to stop the pass for everybody else.
        pieces = "later"
    if isinstance(pieces, str):
        return [_denial(request, pieces, keys, now)]
    topic = build_topic(DeviceTopic(request.device, "down/model"))
    return [Outgoing(topic, encode_message(piece)) for piece in pieces]


def _file(population: Population, request: ModelRequest, deltas: Deltas, blobs: Blobs) -> Path | Code:
    """Return the file whose pieces are wanted, or the code of the denial."""
    allowed = population.settings.downlink.mqtt
    if allowed == "off":
        return "off"
    if request.wanted not in (population.registry.training.sha256, population.registry.refresh.sha256):
        return "not_announced"
    if not request.held:
        return _blob(blobs, request.wanted) or "not_announced" if allowed == "files" else "deltas_only"
    pair = Pair(request.held, request.wanted)
    deltas.begin(population.name, pair)
    making = deltas.makes(pair)
    return deltas.path(pair) or ("later" if making else "no_delta")


def _blob(blobs: Blobs, sha256: str) -> Path | None:
    try:
        return blobs.path(sha256)
    except NotFound:
        return None


def _pieces(
    path: Path, request: ModelRequest, population: Population, sent: BrokerBytes, now: int
) -> list[ModelChunk] | Code:
    """Return the pieces, or the code of the denial; nothing is read that may not go out."""
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        start = request.first * MAX_CHUNK_BYTES
        wanted = min(request.count * MAX_CHUNK_BYTES, size_bytes - start)
        if wanted <= 0:
            return "past_the_end"
        denied = sent.take(request.device, wanted, population.settings.downlink.mqtt_bytes_a_day, now)
        if denied:
            return denied
        file.seek(start)
        data = file.read(wanted)
    return [
        ModelChunk(
            wanted=request.wanted,
            held=request.held,
            size_bytes=size_bytes,
            index=request.first + at // MAX_CHUNK_BYTES,
            data=data[at : at + MAX_CHUNK_BYTES],
        )
        for at in range(0, len(data), MAX_CHUNK_BYTES)
    ]


def _denial(request: ModelRequest, code: Code, keys: ServiceKeys, now: int) -> Outgoing:
    wait_s = SOON_S if code in ("no_delta", "later", "past_the_end") else LATER_S
    retry = RetryWindow(earliest=now + wait_s, latest=now + 2 * wait_s)
    denied = ModelDenied(device=request.device, nonce=request.nonce, code=code, issued_at=now, retry=retry)
    return task_message(denied, keys)
