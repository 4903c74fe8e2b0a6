"""The outside world of a device, by name: what the agent needs and never reaches for by itself.

The rules:
- an adapter turns every foreign exception into one of the errors below, sorted by what the agent does next;
- a fake in a test and the phone in a pocket implement the same protocol;
- nothing here imports numpy: arrays cross `SignatureRunner` as opaque values, so that the idle supervisor stays small.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge_runtime.eligibility import Readings

Entropy = Callable[[int], bytes]
"""`entropy(n)` returns n unpredictable bytes: `os.urandom` on a device, a seeded stream in a simulation."""

Arrays = Mapping[str, Any]


class PortError(Exception):
    """Base of what a port raises."""


class Unreachable(PortError):  # noqa: N818 - named for what the other side is
    """A broker or server does not answer, or the link broke: try again later."""


class NotThere(PortError):  # noqa: N818
    """The server answers that what was asked for does not exist: ask for something else."""


class TooLarge(PortError):  # noqa: N818
    """More bytes than the other side or a limit of ours allows: sending or fetching it again will not help."""


class StorageFull(PortError):  # noqa: N818
    """The disk has no room; nothing was half-written. Go on, and try again when room was made."""


class StorageFailed(PortError):  # noqa: N818
    """The disk or a file on it is broken in another way; the message says which."""


class Forgotten(PortError):  # noqa: N818
    """The person had it forgotten meanwhile: nothing was written, and what was in memory is not to be used."""


class RuntimeFailed(PortError):  # noqa: N818
    """The interpreter cannot load a model or run a signature: this version is of no use here."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message that came; `handle` is the transport's own and goes back to `ack`."""

    topic: str
    payload: bytes
    handle: object = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish at QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Download:
    """An open download: `start` is where the bytes really begin (0 where the server cannot resume)."""

    start: int
    chunks: Iterator[bytes]


class Clock(Protocol):
    """The device's wall clock."""

    def now(self) -> float:
        """Return Unix seconds."""


class Sensors(Protocol):
    """What the training conditions are judged by."""

    def read(self, now: float) -> Readings:
        """Return every reading, unknown where there is none."""


class Transport(Protocol):
    """One session with the broker. Nothing is sent or read unless a method is called: there is no thread behind it."""

    @property
    def connected(self) -> bool:
        """Whether the session stands, as far as is known."""

    def connect(self, will: Outgoing, subscriptions: Sequence[str]) -> None:
        """Open the session, leave the will, subscribe. Raises `Unreachable`."""

    def publish(self, message: Outgoing) -> None:
        """Queue a message for the window. Raises `TooLarge` if the broker's limits forbid it, now and for ever."""

    def flush(self, timeout_s: float) -> None:
        """Return when the broker has taken everything queued. Raises `Unreachable`; what was queued is forgotten."""

    def receive(self, timeout_s: float) -> list[Received]:
        """Return what has come; wait at most `timeout_s` for a first message. Raises `Unreachable`."""

    def ack(self, received: Received) -> None:
        """Tell the broker that a message was dealt with; from an older connection it is dropped silently."""

    def tend(self) -> None:
        """Keep the session alive during long work. Never raises."""

    def disconnect(self) -> None:
        """Leave politely: the broker does not publish the will. Never raises."""

    def drop(self) -> None:
        """Let go of the connection as a killed process would."""


class Downloads(Protocol):
    """HTTP, for model bytes, vocabularies and manifests."""

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        """Open `url` from byte `start`. Raises `Unreachable`, `NotThere`, `TooLarge`; the iterator does, too."""


class SignatureRunner(Protocol):
    """An open model file."""

    def run(self, name: str, inputs: Arrays) -> dict[str, Any]:
        """Run one signature; the returned arrays are the caller's own. Raises `RuntimeFailed`."""


class ModelRuntime(Protocol):
    """The interpreter."""

    @property
    def name(self) -> str:
        """Which one, for reports: `litert 2.3.0`."""

    def template(self, template_sha256: str, read: Callable[[], bytes]) -> SignatureRunner:
        """Return the runner of a template's pure signatures, shared by all versions of it; `read` gives any version."""

    def version(self, sha256: str, read: Callable[[], bytes]) -> SignatureRunner:
        """Return the runner of one version's own file, for the signatures that use the weights inside."""

    def checked(self, sha256: str) -> bool:
        """Whether these very bytes have passed `model_check` in this process."""

    def mark_checked(self, sha256: str) -> None:
        """Remember that they have."""
