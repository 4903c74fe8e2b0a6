"""What the simulator and its device worker processes say to each other over a pipe: framed MessagePack, one reply each.

A frame is a 4-byte little-endian length and that many bytes. The worker is our own child, so a broken frame is a crash
of the child, not an attack: it ends the run with `WorkerDied`.
"""

import struct
from typing import IO

import msgspec

from fleet_simulator.nights import Visit

_LENGTH = struct.Struct("<I")


class WorkerDied(Exception):  # noqa: N818
    """A worker process ended or answered out of form; the message holds what it last wrote on stderr."""


class Resident(msgspec.Struct, frozen=True):
    """One device that lives in a worker: its number, home folder, seed for its keys, one-use token and what it learns
    from: its person's texts, or the path of a `.npz` of arrays."""

    number: int
    home: str
    label: str
    key_seed: bytes
    token: str
    texts: tuple[str, ...] = ()
    arrays: str = ""


class MoveIn(msgspec.Struct, frozen=True, tag=True):
    """Set up: enrol these devices at the aggregator's URL and give them their examples."""

    server_url: str
    population: str
    now: float
    residents: tuple[Resident, ...]


class MovedIn(msgspec.Struct, frozen=True, tag=True):
    """Device ids in the order of the residents, how many words or arrays the stores took, and words left out."""

    devices: tuple[str, ...]
    words_stored: int
    words_unknown: int
    runtime: str


class AskForWork(msgspec.Struct, frozen=True, tag=True):
    """First half of a tick: play these fates at this time; let eligible devices check in."""

    now: float
    visits: tuple[Visit, ...]
    freed: tuple[int, ...]


class Asked(msgspec.Struct, frozen=True, tag=True):
    """How many check-ins and finished uploads the aggregator must have before its turn, and why others stayed away."""

    check_ins: int
    reasons: dict[str, int]


class Work(msgspec.Struct, frozen=True, tag=True):
    """Second half: the answers are out; train, and send what may be sent. Freed devices send what waited."""


class Worked(msgspec.Struct, frozen=True, tag=True):
    """What the devices did: updates and check-ins that the aggregator will have, steps, interruptions, kills, bytes."""

    updates_sent: int
    late_check_ins: int
    training_steps: int
    trained: int
    interrupted: int
    resumed: int
    killed: int
    turned_away: int
    update_bytes: tuple[int, ...]


class HearReceipts(msgspec.Struct, frozen=True, tag=True):
    """The aggregator had its turn: wait for the receipts of what was sent."""


class Heard(msgspec.Struct, frozen=True, tag=True):
    """Verdicts by name."""

    verdicts: dict[str, int]


class HeldOutPerson(msgspec.Struct, frozen=True):
    """One person nobody trained on: what they typed before (for their own device) and what is scored."""

    user: str
    head: tuple[str, ...]
    tail: tuple[str, ...]


class Score(msgspec.Struct, frozen=True, tag=True):
    """Score these persons with the first and the last version, and with a personal copy of the last."""

    first: str
    last: str
    words_a_person: int
    persons: tuple[HeldOutPerson, ...]


class Hits(msgspec.Struct, frozen=True):
    """Words scored, and of them how many stood first and among the first three suggestions."""

    words: int = 0
    top1: int = 0
    top3: int = 0

    def plus(self, other: "Hits") -> "Hits":
        return Hits(self.words + other.words, self.top1 + other.top1, self.top3 + other.top3)

    def percent3(self) -> float:
        """Top-3 recall in percent."""
        return 100.0 * self.top3 / self.words if self.words else 0.0

    def percent1(self) -> float:
        """Top-1 recall in percent."""
        return 100.0 * self.top1 / self.words if self.words else 0.0


class Suggestions(msgspec.Struct, frozen=True):
    """One place in a held-out sentence: what was typed, the word that came, and both models' three suggestions."""

    typed: str
    came: str
    first: tuple[str, ...]
    last: tuple[str, ...]


class Scored(msgspec.Struct, frozen=True, tag=True):
    """Hits of the three, persons whose own copy the gate accepted, and the sentence that gained most."""

    before: Hits
    after: Hits
    personal: Hits
    accepted: int
    sentence: tuple[Suggestions, ...]
    gain: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Close everything and end."""


class Left(msgspec.Struct, frozen=True, tag=True):
    """The worker's own CPU seconds and peak memory in MiB."""

    cpu_seconds: float
    peak_mib: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker met an exception that is not part of the play."""

    error: str


Command = MoveIn | AskForWork | Work | HearReceipts | Score | Leave
Reply = MovedIn | Asked | Worked | Heard | Scored | Left | Failed


def write_frame(stream: IO[bytes], message: Command | Reply) -> None:
    """Write one message and flush it."""
    body = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def _read_body(stream: IO[bytes]) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise WorkerDied("the pipe ended")
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        raise WorkerDied("the pipe ended inside a message")
    return body


def read_command(stream: IO[bytes]) -> Command:
    """Read the next command in a worker. Raises `WorkerDied` at the end of the pipe."""
    command: Command = msgspec.msgpack.decode(_read_body(stream), type=Command)
    return command


def read_reply(stream: IO[bytes]) -> Reply:
    """Read a worker's answer. Raises `WorkerDied` at the end of the pipe."""
    reply: Reply = msgspec.msgpack.decode(_read_body(stream), type=Reply)
    return reply
