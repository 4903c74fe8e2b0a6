"""From a version that was fetched to one that is believed: slots A and B of a track, as a table. Pure.

A is what was confirmed last, B what was installed after it. The rules:
- B is used as soon as it is installed, and is on trial; the version that may not be gone below (`floor`) stays A's;
- a boot is a start of a process that uses the version. It is counted, durably, before the file is opened, and again
  when the version came up: so `BOOTS` starts in a row that did not come up end in A, whatever killed them;
- after `BOOTS` boots that came up B's health is judged (`model_health`); then B is confirmed, which raises the floor,
  or the device goes back to A by itself, and B's bytes are never installed again, under whatever number they come;
- the first version of a device has no A: it is confirmed when it came up once, and if it does not, there is none;
- bytes that were confirmed here before, an undo, are not tried again, and end a trial;
- a trial whose file was lost goes back without blame: the version is fetched again;
- what was found of one version says nothing about another: an event names the file that it is about, and is refused
  when another process has installed the next one meanwhile;
- training versions are tried by the training itself: they are settled at once.

The arrows of docs/activation.md are drawn from `TABLE`; a step that it does not list is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

BOOTS: Final = 3
MOST_BAD: Final = 64


class Stage(Enum):
    """Where a track stands."""

    EMPTY = "empty"
    SETTLED = "settled"
    TRIAL = "trial"


@dataclass(frozen=True, slots=True)
class Slot:
    """What a track holds.

    `current`, `previous`: hashes of files ("" for none); `version`, `sha256`: the newest that was taken, on trial or
    not; `floor`, `floor_sha256`: the highest that was confirmed. On trial: boots `begun`, and how many `came_up`.
    `bad`: hashes that are never installed again, newest first; `said`: what the last trial came to, for the person.
    """

    current: str = ""
    previous: str = ""
    version: int = 0
    sha256: str = ""
    floor: int = 0
    floor_sha256: str = ""
    on_trial: bool = False
    begun: int = 0
    came_up: int = 0
    bad: tuple[str, ...] = ()
    said: str = ""

    @property
    def stage(self) -> Stage:
        """Where it stands."""
        if self.on_trial:
            return Stage.TRIAL
        return Stage.SETTLED if self.current else Stage.EMPTY

    @property
    def boots_wanted(self) -> int:
        """How many boots have to come up before a trial can end well."""
        return BOOTS if self.previous else 1

    @property
    def ready(self) -> bool:
        """Whether it is on trial, and its health is to be judged now."""
        return self.on_trial and self.came_up >= self.boots_wanted


@dataclass(frozen=True, slots=True)
class Installed:
    """A version's file is here, whole and checked. `tried`: its track has no trials."""

    sha256: str
    version: int
    tried: bool = False


@dataclass(frozen=True, slots=True)
class BootBegun:
    """A process is about to open the version."""


@dataclass(frozen=True, slots=True)
class CameUp:
    """It opened, and answered. `sha256`: the file that did, "" for whichever is there."""

    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Healthy:
    """Its health was judged, or the person vouches for it. `said`: what was measured; `sha256` as in `CameUp`."""

    said: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """A rule of `model_health` or of `model_check` is broken; `reason` is its stable name, `sha256` as in `CameUp`."""

    reason: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """The file on trial is gone or has rotted."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The person wants the version before."""


Event = Installed | BootBegun | CameUp | Healthy | Unhealthy | Lost | RolledBack


class StepRefused(Exception):  # noqa: N818 - an answer, not a fault
    """The table has no such step; `reason` is a stable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """One arrow: in `stage`, `event`, if `when` holds, leads to `target`."""

    stage: Stage
    event: type[Event]
    when: str
    target: Stage


def _rows(stage: Stage, event: type[Event], *targets: tuple[str, Stage]) -> tuple[Row, ...]:
    return tuple(Row(stage, event, when, target) for when, target in targets)


_E, _S, _T = Stage.EMPTY, Stage.SETTLED, Stage.TRIAL
TABLE: Final = (
    *_rows(_E, Installed, ("", _T), ("training", _S)),
    *_rows(_S, Installed, ("new bytes", _T), ("bytes confirmed before, or training", _S)),
    *_rows(_T, Installed, ("newer bytes", _T), ("the bytes of A", _S)),
    *_rows(_T, BootBegun, ("", _T), ("three did not come up", _S), ("three did not come up, no A", _E)),
    *_rows(_T, CameUp, ("", _T), ("no A", _S)),
    *_rows(_T, Healthy, ("", _S)),
    *_rows(_T, Unhealthy, ("", _S), ("no A", _E)),
    *_rows(_T, Lost, ("", _S), ("no A", _E)),
    *_rows(_T, RolledBack, ("", _S), ("no A", _E)),
    *_rows(_S, RolledBack, ("there is a previous one", _S)),
)
_ARROWS: Final = frozenset((row.stage, row.event, row.target) for row in TABLE)


def step(slot: Slot, event: Event) -> Slot:
    """Return what an event makes of a slot. Raises `StepRefused`."""
    if isinstance(event, CameUp | Healthy | Unhealthy) and event.sha256 not in ("", slot.current):
        raise StepRefused("another_version", f"{event.sha256[:16]} was tried, and {slot.current[:16]} is there now")
    after = _STEPS[type(event)](slot, event)
    if (slot.stage, type(event), after.stage) not in _ARROWS:
        raise StepRefused("no_such_step", f"a track that is {slot.stage.value} takes no {type(event).__name__}")
    return after


def _install(slot: Slot, event: Installed) -> Slot:
    if event.sha256 in slot.bad:
        raise StepRefused("rolled_back", f"version {event.version} is known here: it was rolled back")
    if event.version < slot.version:
        # Another process took a newer one between `trust.accept` and here.
        raise StepRefused("lower_version", f"version {slot.version} was taken, got {event.version}")
    confirmed = slot.previous if slot.on_trial else slot.current
    again = event.sha256 in ((confirmed,) if slot.on_trial else (slot.current, slot.previous))
    named = replace(slot, current=event.sha256, version=event.version, sha256=event.sha256)
    if event.sha256 == slot.current and slot.on_trial:
        # Another number for what is being tried.
        return named
    if event.tried or (again and event.sha256):
        previous = "" if slot.on_trial else slot.previous if event.sha256 == slot.current else slot.current
        return _settled(replace(named, previous=previous), slot.said)
    return replace(named, previous=confirmed, on_trial=True, begun=0, came_up=0)


def _begin(slot: Slot, event: BootBegun) -> Slot:
    if slot.begun - slot.came_up >= BOOTS:
        return _back(slot, "did_not_come_up")
    return replace(slot, begun=slot.begun + 1)


def _came_up(slot: Slot, event: CameUp) -> Slot:
    # A start is forgiven when a later one came up: only starts in a row make a crash loop.
    up = replace(slot, came_up=slot.came_up + 1, begun=slot.came_up + 1)
    return up if slot.previous or not slot.on_trial else _settled(up, "the first version came up")


def _confirm(slot: Slot, event: Healthy) -> Slot:
    return _settled(slot, event.said)


def _settled(slot: Slot, said: str) -> Slot:
    floor = (slot.version, slot.sha256)
    if slot.floor > slot.version:
        floor = (slot.floor, slot.floor_sha256)
    return replace(slot, on_trial=False, begun=0, came_up=0, floor=floor[0], floor_sha256=floor[1], said=said)


def _fail(slot: Slot, event: Unhealthy) -> Slot:
    return _back(slot, event.reason)


def _back(slot: Slot, reason: str, *, blame: bool = True) -> Slot:
    bad = (slot.current, *(each for each in slot.bad if each != slot.current))[:MOST_BAD] if blame else slot.bad
    return replace(
        slot, current=slot.previous, previous="", version=slot.floor, sha256=slot.floor_sha256,
        on_trial=False, begun=0, came_up=0, bad=bad, said=f"version {slot.version} rolled back: {reason}",
    )  # fmt: skip


def _lose(slot: Slot, event: Lost) -> Slot:
    return _back(slot, "file_lost", blame=False)


def _roll_back(slot: Slot, event: RolledBack) -> Slot:
    if slot.on_trial:
        return _back(slot, "by_hand")
    if not slot.previous:
        raise StepRefused("no_previous", "the track holds no previous version")
    # It was confirmed, so the floor stays where it is.
    return replace(_back(slot, "by_hand"), version=slot.version, sha256=slot.sha256)


_STEPS: Final[dict[type[Event], Callable[..., Slot]]] = {
    Installed: _install, BootBegun: _begin, CameUp: _came_up, Healthy: _confirm, Unhealthy: _fail, Lost: _lose,
    RolledBack: _roll_back,
}  # fmt: skip
