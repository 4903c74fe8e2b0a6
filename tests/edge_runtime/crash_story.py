"""A device's life in twelve stages, played with or without a power cut, and the judge of what a cut may not do.

The story enrols, installs a version, takes text in, trains with an interruption, sends, is told each verdict, installs
the next version from a delta, keeps a personal copy, and forgets. At any moment `cut` forks: in the child the device is
opened over what a power cut left on the disk, with broker and aggregator as they are at that moment, and the story goes
on for this stage and the next. The judge compares with a life without a cut:

- lost: something that was acknowledged is gone: the enrolment, a version, a sentence, an update, a returned vector;
- doubled: the aggregator counted more updates than in the life without a cut;
- half_activated: a slot names a file that is not whole, or the keyboard's copy is neither the old nor the new one;
- identical: every update says, to the bit, what it says without a cut, and so does what is left on the device.
"""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime import identity
from edge_runtime.adapters import personal_copy
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.adapters.vectors import Vectors
from edge_runtime.identity import NotEnrolled
from edge_runtime.session import Phase
from tests.edge_runtime.crash_states import Tree
from tests.edge_runtime.fakes import Fuse, World
from wire_contract import delta
from wire_contract.patch import patch, read_tensors

MOST_STEPS = 60
SENTENCES = 150
# Six steps, of which the cable leaves time for two.
ROWS, READS_BEFORE_THE_CABLE = 96, 3
VISIBLE = ("publish", "flush", "ack", "connect")


@dataclass(frozen=True)
class Outcome:
    """What a stage came to: the updates that the aggregator counted in it, and what the device holds after it."""

    plains: tuple[str, ...]
    residual: str
    version: int
    sentences: int
    copy: str


@dataclass
class Verdict:
    """The judge's counts over any number of cuts; `problems` says the first few in words."""

    lost: int = 0
    doubled: int = 0
    half_activated: int = 0
    identical: bool = True
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Verdict") -> None:
        self.lost += other.lost
        self.doubled += other.doubled
        self.half_activated += other.half_activated
        self.identical = self.identical and other.identical
        self.problems += other.problems[: 20 - len(self.problems)]

    def note(self, kind: str, problem: str) -> None:
        if kind == "identical":
            self.identical = False
        else:
            setattr(self, kind, getattr(self, kind) + 1)
        self.problems.append(f"{kind}: {problem}")


class VisibleFuse(Fuse):
    """Counts what the world sees of the device, and tells each such moment before it."""

    def __init__(self, moment: Callable[[], None]) -> None:
        super().__init__()
        self.seen = 0
        self.moment = moment

    def burn(self) -> None:
        super().burn()
        if sys._getframe(1).f_code.co_name in VISIBLE:
            self.moment()
            self.seen += 1


class StoryWorld(World):
    """A world that its story knows before the device has enrolled."""

    def __init__(self, story: "Story", folder: Path, fuse: Fuse) -> None:
        story.world = self
        super().__init__(folder, fuse=fuse)


@dataclass(frozen=True)
class Stage:
    """`prepare` is done once, by the aggregator's side; `step` again and again until `done`."""

    name: str
    prepare: Callable[["Story"], None]
    step: Callable[["Story"], None]
    done: Callable[["Story"], bool]


class Stuck(Exception):  # noqa: N818
    """A stage does not end."""


class Story:
    """One life. `moment` is called before everything that the world sees the device do."""

    def __init__(self, home: Path, moment: Callable[[], None] = lambda: None) -> None:
        self.home = home
        self.fuse = VisibleFuse(moment)
        self.world: World
        self.stage = 0
        self.prepared = -1
        self.acknowledged: set[str] = set()
        self.copies: list[bytes] = []
        self.versions_seen: dict[str, int] = {"training": 0, "refresh": 0}
        self.hashes: set[str] = set()
        self.judged_before = 0
        self.outcomes: dict[int, Outcome] = {}
        # How a step is done; on a disk that fails, whoever plays puts something else here.
        self.attempt: Callable[[Callable[[Story], None]], object] = lambda step: step(self)
        self.interruptions = 0
        self.refused: set[str] = set()
        self.device = ""
        self.copied_of = ""
        self._kept: list[Any] = []

    def play(self, last: int | None = None) -> None:
        """Play from the current stage to `last` (None: the end). Raises `Stuck`."""
        last = len(STAGES) - 1 if last is None else min(last, len(STAGES) - 1)
        while self.stage <= last:
            stage = STAGES[self.stage]
            if self.prepared < self.stage:
                self.prepared = self.stage
                self.judged_before = self.judged() if hasattr(self, "world") else 0
                stage.prepare(self)
            for _ in range(MOST_STEPS):
                if stage.done(self):
                    break
                self.attempt(stage.step)
            else:
                agent = self.world.agent
                raise Stuck(f"stage {stage.name!r} did not end: {agent.state.phase}, {agent.updates_waiting()}")
            while self.stage not in self.outcomes:
                self.attempt(lambda story: story.outcomes.update({story.stage: story.outcome()}))
            self.stage += 1

    def close(self) -> None:
        """Let go of the files; the story is over."""
        self.world.agent.abandon()

    def judged(self) -> int:
        return sum(update.plain is not None for update in self.world.aggregator.updates.values())

    def outcome(self) -> Outcome:
        updates = [u for u in self.world.aggregator.updates.values() if u.plain is not None]
        manifest = self.world.aggregator.manifest
        store = StateStore(self.home / "state.db")
        try:
            residual = Vectors(self.home / "vectors", store).residual(manifest.layout_fingerprint, manifest.parameters)
        finally:
            store.close()
        slots = self.world.agent.slots
        held = self.world.agent.current()
        copy = personal_copy.read(self.home, held.manifest.sha256) if held is not None else None
        return Outcome(
            tuple(hashlib.sha256(u.plain or b"").hexdigest()[:16] for u in updates[self.judged_before :]),
            hashlib.sha256(residual.vector.tobytes()).hexdigest()[:16] if residual is not None else "",
            slots.slot("refresh").version,
            len(self.world.agent.examples.sentences()),
            hashlib.sha256(copy).hexdigest()[:16] if copy is not None else "",
        )

    def note_versions(self) -> None:
        """Remember what the device has now said that it holds."""
        for track in ("training", "refresh"):
            slot = self.world.agent.slots.slot(track)
            self.versions_seen[track] = max(self.versions_seen[track], slot.version)

    def open_after_cut(self, home: Path, verdict: Verdict) -> None:
        """Open a new agent over what was left, and look at it before it does anything."""
        # The old one would close its files, which are the living run's.
        self._kept.append(getattr(self.world, "agent", None))
        self.home = self.world.home = home
        try:
            found = identity.load_enrolled(home).device
        except NotEnrolled:
            if "enrolled" in self.acknowledged:
                verdict.note("lost", "the enrolment")
            enrol(self)
            return
        if "enrolled" in self.acknowledged and found != self.device:
            verdict.note("lost", "the device's key")
        agent = self.world.open()
        for track in ("training", "refresh"):
            slot = agent.slots.slot(track)
            if slot.current and (slot.current not in self.hashes or agent.slots.held(slot.current) is None):
                verdict.note("half_activated", f"the {track} slot names {slot.current[:16]}")
            if slot.version < self.versions_seen[track]:
                verdict.note("lost", f"{track} version {self.versions_seen[track]} was installed, found {slot.version}")
        if "first" in self.acknowledged and agent.current() is None:
            verdict.note("lost", "the keyboard's version")
        count = len(agent.examples.sentences()) if "first" in self.acknowledged else 0
        typed = "typed" in self.acknowledged
        if "first" in self.acknowledged and "forgetting" not in self.acknowledged:
            whole = len(set(texts(self))) if typed else 0
            if (typed and count < whole) or (not typed and 0 < count < len(texts(self))):
                verdict.note("lost", f"sentences: {count} are left")
        held = agent.current()
        copy = personal_copy.read(home, held.manifest.sha256) if held is not None else None
        if copy is not None and copy not in self.copies:
            verdict.note("half_activated", "the personal copy is none that was made")
        kept = "copied" in self.acknowledged and "forgetting" not in self.acknowledged
        if kept and copy is None and held is not None and held.manifest.sha256 == self.copied_of:
            verdict.note("lost", "the personal copy")
        if "forgotten" in self.acknowledged and copy is not None:
            verdict.note("lost", "what was forgotten came back: the personal copy")


def enrol(story: Story) -> None:
    world = story.world
    who = identity.load_or_make(story.home, world.entropy)
    identity.save_enrolled(story.home, world.aggregator.enrolled(who))
    story.device = who.device
    world.agent = world.open()
    story.acknowledged.add("enrolled")


def first_enrol(story: Story) -> None:
    if hasattr(story, "world"):
        enrol(story)
        return
    world = StoryWorld(story, story.home, story.fuse)
    story.device = world.agent.identity.device
    story.acknowledged.add("enrolled")


def first_version(story: Story) -> None:
    story.hashes.add(story.world.aggregator.manifest.sha256)
    story.world.agent.fetch_refresh()
    story.note_versions()
    story.acknowledged.add("first")


def texts(story: Story) -> list[str]:
    rng = np.random.default_rng(5)
    words = story.world.aggregator.vocabulary.decode().split("\n")[4:-1]
    return [" ".join(words[min(i, 595)] for i in rng.zipf(1.3, 12).clip(1, 596) - 1) for _ in range(SENTENCES)]


def type_text(story: Story) -> None:
    world = story.world
    if not world.agent.examples.count_words():
        world.agent.examples.add_many(texts(story), world.clock.time)
    story.acknowledged.add("typed")


def turn(story: Story) -> None:
    world = story.world
    if story.interruptions:
        world.sensors.good_reads = READS_BEFORE_THE_CABLE
    report = world.agent.turn()
    world.sensors.good_reads = None
    story.interruptions -= report.interrupted
    story.refused |= set(report.refused)
    story.note_versions()
    world.aggregator.work()
    if story.judged() > story.judged_before:
        # One update a stage: whatever more is counted in it is counted twice.
        world.aggregator.turn_away = "enough"
    world.clock.time += 400


def settled(story: Story) -> bool:
    agent = story.world.agent
    # One that was just opened has not looked at its disk.
    return (
        story.judged() > story.judged_before
        and agent.updates_waiting() == ()
        and agent.state.phase is Phase.RESTING
        and agent.slots.slot("refresh").version == story.world.aggregator.manifest.version
    )


def next_version(story: Story) -> None:
    aggregator = story.world.aggregator
    before, old = aggregator.model, aggregator.manifest
    aggregator.move_on(("training", "refresh"), "refresh")
    story.hashes.add(aggregator.manifest.sha256)
    path = f"/v1/populations/keyboard/deltas/{old.sha256}/{aggregator.manifest.sha256}"
    story.world.downloads.files[path] = delta.encode(before, aggregator.model, aggregator.manifest)


def training(verdict: str, *, interruptions: int = 0, moves_on: bool = True) -> Callable[[Story], None]:
    def prepare(story: Story) -> None:
        world = story.world
        world.aggregator.verdict, world.aggregator.turn_away = verdict, ""
        world.aggregator.plan = msgspec.structs.replace(world.aggregator.plan, rows=ROWS)
        story.interruptions = interruptions
        world.clock.time += 2000
        if moves_on:
            next_version(story)

    return prepare


def keep_copy(number: int) -> Callable[[Story], None]:
    def step(story: Story) -> None:
        held = story.world.agent.current()
        assert held is not None
        share = np.float32(1.02 + 0.01 * number)
        tensors = {name: value * share for name, value in read_tensors(held.data, held.manifest).items()}
        made = patch(held.data, held.manifest, tensors)
        if made not in story.copies:
            story.copies.append(made)
        personal_copy.write(story.home, held, tensors)
        story.copied_of = held.manifest.sha256
        story.acknowledged |= {"copied", f"copied {number}"}

    return step


def before_forgetting(story: Story) -> None:
    training("accepted", moves_on=False)(story)
    story.world.aggregator.mute_receipts = True


def forget(story: Story) -> None:
    if story.judged() == story.judged_before:
        turn(story)
        return
    story.acknowledged.add("forgetting")
    word = texts(story)[0].split()[0]
    story.world.agent.forget_word(word)
    story.world.aggregator.mute_receipts = False
    story.acknowledged.add("forgotten")


def restart(story: Story) -> None:
    """Stop the agent as a service is stopped, and start it again."""
    story.world.agent.close()
    story.world.open()
    story.acknowledged.add("restarted")


def nothing(story: Story) -> None:
    """The aggregator's side has nothing to do."""


def has(what: str) -> Callable[[Story], bool]:
    return lambda story: what in story.acknowledged


STAGES = (
    Stage("enrol", nothing, first_enrol, has("enrolled")),
    Stage("first version", nothing, first_version, has("first")),
    Stage("text", nothing, type_text, has("typed")),
    Stage("interrupted training, accepted", training("accepted", interruptions=1, moves_on=False), turn, settled),
    Stage("delta installed, stale", training("stale"), turn, settled),
    Stage("returned and accepted", training("accepted", interruptions=2), turn, settled),
    Stage("refused", training("malformed", moves_on=False), turn, settled),
    Stage("restarted", nothing, restart, has("restarted")),
    Stage("personal copy", nothing, keep_copy(1), has("copied 1")),
    Stage("personal copy again", nothing, keep_copy(2), has("copied 2")),
    Stage("forgotten while it waits", before_forgetting, forget, has("forgotten")),
    Stage("trained on the rest", training("accepted", interruptions=1), turn, settled),
)


def cut(
    story: Story,
    tree: Tree,
    home_root: Path,
    reference: dict[int, Outcome],
    quiet: Callable[[], None],
    *,
    further: int = 1,
) -> Verdict:
    """Return the judge's word on a power cut now that leaves `tree`; this process's story is not touched.

    `home_root` is an empty folder for the child; `quiet` makes the recording in the child stop; the child plays this
    stage and `further` ones.
    """

    def child() -> dict[str, Any]:
        quiet()
        story.fuse.moment = lambda: None
        return vars(go_on(story, tree, home_root, reference, further))

    told = in_child(child)
    return Verdict(**told) if told else Verdict(lost=1, identical=False, problems=["lost: the child that went on died"])


def in_child(do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `do` returns in a fork of this process; empty if the child died of it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            os.write(write, json.dumps(do()).encode())
        except BaseException:  # noqa: BLE001 - the parent counts a child that says nothing
            traceback.print_exc()
        finally:
            # No destructor, no buffer: they are the parent's.
            os._exit(0)
    os.close(write)
    told = b""
    while part := os.read(read, 1 << 16):
        told += part
    os.close(read)
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(told) if told else {}
    return found


def lay_out(tree: Tree, root: Path) -> None:
    """Write these files below `root`."""
    for name, data in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)


def go_on(story: Story, tree: Tree, root: Path, reference: dict[int, Outcome], further: int) -> Verdict:
    """In the child: lay the disk out, open the device, play this stage and `further` ones, and judge."""
    verdict = Verdict()
    home = root / story.home.name
    home.mkdir(parents=True)
    lay_out(tree, root)
    stage = story.stage
    try:
        story.open_after_cut(home, verdict)
        story.play(stage + further)
    except Exception as e:  # noqa: BLE001 - whatever comes is the device's fault
        trace = "".join(traceback.format_exception(e)[-3:])
        verdict.note("lost", f"stage {STAGES[story.stage].name!r} after a cut in {STAGES[stage].name!r}: {trace}")
        return verdict
    for number in range(stage, min(stage + further + 1, len(STAGES))):
        compare(verdict, STAGES[number].name, story.outcomes[number], reference[number])
    return verdict


def compare(verdict: Verdict, name: str, found: Outcome, expected: Outcome) -> None:
    """Note where a stage's outcome differs from the one without a cut."""
    if len(found.plains) > len(expected.plains):
        verdict.note("doubled", f"{name}: {len(found.plains)} updates were counted, not {len(expected.plains)}")
    elif len(found.plains) < len(expected.plains):
        verdict.note("lost", f"{name}: {len(found.plains)} updates were counted, not {len(expected.plains)}")
    elif found.plains != expected.plains:
        verdict.note("identical", f"{name}: an update says something else")
    if found.residual != expected.residual:
        verdict.note("identical" if found.residual else "lost", f"{name}: the residual is another")
    if found.version != expected.version:
        verdict.note("half_activated", f"{name}: version {found.version}, not {expected.version}")
    if found.sentences != expected.sentences:
        verdict.note("lost", f"{name}: {found.sentences} sentences, not {expected.sentences}")
    if found.copy != expected.copy:
        verdict.note("half_activated", f"{name}: another personal copy")
