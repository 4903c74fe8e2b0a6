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
from edge_runtime.jobs import JobResult, LongJob, ShortJob, UsedUp
from wire_contract.manifest import Manifest

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
    """The device's clocks: the wall clock for the night window and deadlines, the elapsed one for every duration."""

    def now(self) -> float:
        """Return Unix seconds by the wall clock, which may jump; never below a time that was proved (`floor`)."""

    def elapsed(self) -> float:
        """Return seconds since the device started, suspended time included (CLOCK_BOOTTIME): it never jumps back."""

    def trusted(self) -> bool:
        """Whether the wall clock can be believed: synchronized, or proved by a signed message since the start."""

    def prove(self, server_time: float, *, fresh: bool) -> None:
        """A signed message says that it was `server_time` (Unix seconds) when it was made.

        `fresh`: it answers a question that was just asked, so that is the time; else it is at least as late.
        """


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

    @property
    def limit_bytes(self) -> int:
        """How many bytes topic and payload of a publish may have here; the last broker's, if not connected."""

    def publish(self, message: Outgoing) -> None:
        """Hand a message to the window; waits for room in it. Raises `Unreachable`, and `TooLarge` if the broker's
        limits forbid it, now and for ever: nothing of it was sent then."""

    def flush(self, timeout_s: float) -> None:
        """Return when the broker has taken everything. Raises `Unreachable` after `timeout_s` without a single
        acknowledgement; what was queued is forgotten, `acknowledged` still says what got through."""

    def acknowledged(self) -> tuple[str, ...]:
        """Return the topics of publishes that the broker has taken since the last call, also after `Unreachable`."""

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


class Trainer(Protocol):
    """Where numpy and the interpreter are: in a process of its own on a device, in this one in a simulation.

    One job at a time. A long job goes on while the agent looks after everything else; `stop` asks it to end between two
    steps, and its result still comes. After any job the state on the disk may be newer than what the agent remembers.
    """

    @property
    def runtime(self) -> str:
        """Which interpreter, for reports: `litert 2.3.0`; found without loading it."""

    @property
    def busy(self) -> bool:
        """Whether a long job was begun and its result was not fetched yet."""

    def begin(self, job: LongJob, may_go_on: Callable[[], bool]) -> None:
        """Begin a long job. A trainer in this process asks `may_go_on` between steps, and is done on return."""

    def poll(self) -> JobResult | None:
        """Return the long job's result once it is there. Never waits, never raises."""

    def stop(self) -> None:
        """A condition fell: end the long job now, in a way that another night can go on. Returns at once."""

    def do(self, job: ShortJob) -> JobResult:
        """Do a short job and wait for it; not while a long one runs. Never raises: `Died` is a result."""

    def take_used(self) -> UsedUp:
        """Return what jobs took since the last call."""

    def close(self) -> None:
        """End the trainer and let go of its files; it can be used again. Never raises."""


class ModelRuntime(Protocol):
    """The interpreter."""

    @property
    def name(self) -> str:
        """Which one, for reports: `litert 2.3.0`."""

    def template(self, manifest: Manifest, read: Callable[[], bytes]) -> SignatureRunner:
        """Return the runner of a template's pure signatures, shared by all versions of it; `read` gives any version."""

    def version(self, manifest: Manifest, read: Callable[[], bytes], name: str = "") -> SignatureRunner:
        """Return the runner of one version's own file, for the signatures that use the weights inside.

        `name` tells apart files that are no announced version: a personal copy has the manifest of its base.
        """

    def checked(self, sha256: str) -> bool:
        """Whether what this hash names, a template or a version's promises, has passed `model_check` here."""

    def mark_checked(self, sha256: str) -> None:
        """Remember that they have."""
