"""A stage of the story played on a disk that refuses the n-th operation, and judged.

Each stage begins from the disk that the one before left. The fault strikes once; or from then on nothing can be made or
written until there is room again, some steps later. Whatever the disk says, the device may raise or report by the
port's names and no others, and goes on; in the end everything must be as without a fault (`crash_story.compare`).
"""

import errno
import shutil
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.ports import StorageFailed, StorageFull
from tests.edge_runtime.crash_states import Tree
from tests.edge_runtime.crash_story import STAGES, Outcome, Story, Verdict, compare, in_child, lay_out
from tests.edge_runtime.recorded_disk import Operation, contents, recording

FULL_STEPS = 3
FURTHER_EVERY = 4
NEEDS_ROOM = ("create", "write", "make_folder")
NAMES = {"storage_full", "storage_failed"}


@dataclass(frozen=True)
class Fault:
    """`code` (errno) happens instead of the stage's operation number `at`; if it `lasts`, to all that needs room."""

    code: int
    at: int
    lasts: bool = False

    @property
    def name(self) -> str:
        """What the table says."""
        return errno.errorcode[self.code] + (" until there is room" if self.lasts else " once")


class FaultyStage:
    """In a child: one stage with a fault in it, and for one fault in four the next."""

    def __init__(self, story: Story, root: Path, fault: Fault) -> None:
        self._story, self._root, self._fault = story, root, fault
        self._count = 0
        self._attempts_left = FULL_STEPS
        self._struck: Operation | None = None
        self._raised = False

    def before(self, operation: Operation) -> int:
        """Return the error that the disk answers with."""
        self._count += 1
        if self._struck is None and self._count > self._fault.at:
            self._struck = operation
            return self._fault.code
        lasts = self._struck is not None and self._fault.lasts and self._attempts_left > 0
        return self._fault.code if lasts and operation.kind in NEEDS_ROOM else 0

    def attempt(self, step: Callable[[Story], None]) -> bool:
        """Do one step; return whether it was not stopped by a name of the port. The story does it again then."""
        if self._struck is not None:
            self._attempts_left -= 1
        try:
            step(self._story)
        except (StorageFull, StorageFailed):
            self._raised = True
            return False
        return True

    def run(self, tree: Tree, reference: dict[int, Outcome]) -> dict[str, Any]:
        """Play, and return the verdict, whether the device said something, and where the fault struck."""
        story, verdict, stage = self._story, Verdict(), self._story.stage
        home = self._root / "home"
        story.refused.clear()
        lay_out(tree, self._root)
        with recording(self._root, self.before):
            story.home = home
            story.attempt = self.attempt
            while stage and not self.attempt(lambda story: story.open_after_cut(home, verdict)):
                pass
            try:
                further = self._fault.at % FURTHER_EVERY == 0
                story.play(stage + further)
                for number in range(stage, min(stage + further + 1, len(STAGES))):
                    compare(verdict, STAGES[number].name, story.outcomes[number], reference[number])
            except Exception as e:  # noqa: BLE001 - whatever else comes is the device's fault
                trace = "".join(traceback.format_exception(e)[-3:])
                verdict.note("lost", f"stage {STAGES[story.stage].name!r}: {trace}")
        struck = self._struck
        return {
            "verdict": vars(verdict),
            "said": self._raised or bool(story.refused & NAMES),
            "point": [struck.site, struck.kind, struck.by] if struck is not None else [],
        }


@dataclass
class FaultReport:
    """What the faults came to. `said`: how many the device named, by raising or in a turn's report."""

    verdict: Verdict = field(default_factory=Verdict)
    faults: int = 0
    said: int = 0
    by_point: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    by_name: Counter[str] = field(default_factory=Counter)
    unsaid: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, fault: Fault, told: dict[str, Any], stage: str) -> None:
        """Count one fault's child; an empty answer is a child that died."""
        self.faults += 1
        self.by_name[fault.name] += 1
        if not told:
            self.verdict.note("lost", f"{fault.name} at {fault.at} of {stage!r}: the child died")
            return
        found = Verdict(**told["verdict"])
        point = tuple(told["point"])
        found.problems = [f"{fault.name} at {fault.at} ({point}): {problem}" for problem in found.problems]
        self.verdict.add(found)
        self.said += told["said"]
        self.by_point[point] += 1
        if not told["said"]:
            self.unsaid[point] += 1


def run_faults(
    folder: Path,
    *,
    stages: range | None = None,
    every: int = 1,
    kinds: tuple[tuple[int, bool], ...] = ((errno.ENOSPC, False), (errno.EIO, False), (errno.ENOSPC, True)),
) -> FaultReport:
    """Fault each `every`-th operation of each stage in each of the ways `kinds` (code, lasts); return what came."""
    calm = folder / "calm"
    calm.mkdir()
    reference = Story(calm / "home")
    reference.play()
    reference.close()
    report, whole = FaultReport(), folder / "whole"
    whole.mkdir()
    story = Story(whole / "home")
    for stage in range(len(STAGES)):
        if stage in (stages or range(len(STAGES))):
            tree = contents(whole)
            for code, lasts in kinds:
                _fault_stage(story, folder / "child", tree, reference.outcomes, (code, lasts, every), report)
        story.play(stage)
    story.close()
    return report


def _fault_stage(
    story: Story,
    root: Path,
    tree: Tree,
    reference: dict[int, Outcome],
    how: tuple[int, bool, int],
    report: FaultReport,
) -> None:
    code, lasts, every = how
    at = 0
    while True:
        fault = Fault(code, at, lasts)
        root.mkdir()
        try:
            told = in_child(lambda fault=fault: FaultyStage(story, root, fault).run(tree, reference))  # type: ignore[misc]
        finally:
            shutil.rmtree(root)
        if told and not told["point"]:
            return
        report.add(fault, told, STAGES[story.stage].name)
        at += every
