"""What the service needs from the world; adapters implement these, tests use small fakes of them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloud_aggregator.deltas import Pair
from cloud_aggregator.records import Records
from wire_contract.manifest import GoldenVector

Entropy = Callable[[int], bytes]


class Clock(Protocol):
    """Unix seconds. The service itself takes `now` as an argument; only the shell around it asks a clock."""

    def now(self) -> float: ...


class Database(Protocol):
    """Durable records. What one `transaction` wrote is there after a power cut once the block has ended."""

    def transaction(self) -> AbstractContextManager[Records]:
        """Enter a transaction; an exception inside rolls all of it back. Raises `StorageFailed`."""

    def reading(self) -> AbstractContextManager[Records]:
        """Enter a block that only reads, beside a running service too; it sees one moment of the database."""

    def room_bytes(self) -> int | None:
        """Return how many bytes it may still grow by; None if nobody knows. Raises `StorageFailed`."""


class Blobs(Protocol):
    """Content-addressed bytes: model files and vocabularies."""

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its SHA-256 as hex. Raises `StorageFailed`."""

    def get(self, sha256: str) -> bytes:
        """Return the bytes. Raises `NotFound`, or `StorageFailed` where they no longer hash to their name."""

    def path(self, sha256: str) -> Path:
        """Return the file of these bytes. Raises `NotFound`."""

    def drop(self, sha256: str) -> None:
        """Delete these bytes if they are there. Raises `StorageFailed`."""


class DeltaCache(Protocol):
    """Deltas by the pair of files that they lie between; empty bytes say that the pair has no delta worth sending."""

    def path(self, pair: Pair) -> Path | None:
        """Return the file of a delta, or None if there is none."""

    def put(self, pair: Pair, data: bytes) -> Path:
        """Store a delta whole and return its file. Raises `StorageFailed`."""

    def pairs(self) -> set[Pair]:
        """Return what is here."""

    def drop(self, pair: Pair) -> None:
        """Delete a delta if it is there. Raises `StorageFailed`."""


class Deltas(Protocol):
    """Who makes deltas, beside the service: nobody who asks is kept waiting."""

    def prepare(self, population: str) -> None:
        """Begin to make what devices will ask for first, now that a track of the population announces another file."""

    def path(self, pair: Pair) -> Path | None:
        """Return a delta's file if it is here."""

    def begin(self, population: str, pair: Pair) -> None:
        """Have a delta made that is not here, if a device of the population can need it."""

    def makes(self, pair: Pair) -> bool:
        """Whether a delta that was begun is not yet made."""

    def troubles(self) -> list[str]:
        """Return what has failed since the last call; nothing was lost by it."""

    def close(self) -> None:
        """Give up what is being made."""


class Transport(Protocol):
    """The connection to the broker, outward. It never blocks: while the broker is gone, messages wait in memory, and
    what must not be lost is in the database and published again after a restart."""

    def publish(self, topic: str, payload: bytes, *, retain: bool, done: Callable[[], None] | None = None) -> None:
        """Hand over a message; `done` is called, on any thread, once the broker has acknowledged it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message that the broker delivered."""

    topic: str
    payload: bytes


class Intake(Protocol):
    """Who takes messages in: returns only after they are durable, and only then are they acknowledged.

    Raises `StorageFailed` if they were not stored; only what its `answered` names is acknowledged then.
    """

    def take_group(self, messages: Sequence[Message]) -> None: ...


@dataclass(frozen=True, slots=True)
class VersionFile:
    """What an evaluator needs of a version: number, model file, vocabulary file (None for a model of arrays) and the
    signed manifest's bytes."""

    version: int
    model: Path
    vocabulary: Path | None
    signed_manifest: bytes


@dataclass(frozen=True, slots=True)
class Score:
    """What an evaluator found: a percentage with its name (`top3`, of a model of arrays `accuracy`), on how many of
    what (`words`, `examples`), and what the version answers to the golden questions, if they were asked."""

    name: str
    percent: float
    counted: str = ""
    count: int = 0
    golden_vectors: tuple[GoldenVector, ...] = ()


class Evaluator(Protocol):
    """Scores a version on text, or examples, that nobody trained on."""

    def score(self, version: VersionFile) -> Score:
        """Return a version's score. Raises `EvaluationFailed`."""
