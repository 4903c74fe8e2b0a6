"""A story played on a recorded disk, cut at every operation and at everything that the world sees, and judged.

At each moment the states that a power cut may leave are made (`crash_states`); each that was not judged yet with the
same view of the world is laid out for a forked child (`crash_story.cut`). `most` bounds how many of one moment are
judged: with all and without all that is pending always, the others drawn by `seed`.
"""

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.edge_runtime.crash_states import Disk, Tree
from tests.edge_runtime.crash_story import STAGES, Outcome, Story, Verdict, cut
from tests.edge_runtime.recorded_disk import Lies, Operation, RecordedDisk, contents, honest, recording

# Of so many states the next stage is played, too.
FURTHER = 0.25


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one, until the block ends.

    What is tried there is the order of what was written, which the log has; a disk would only be slower.
    """
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as made:
        yield Path(made)


@dataclass
class Report:
    """What the cuts of one story came to.

    `moments` and `by_point` (states judged) are by the last operation's call site, kind and writer; where nothing of a
    point's states was new, the same had been judged with the same view of the world. `missed`: files that the log
    does not explain.
    """

    verdict: Verdict = field(default_factory=Verdict)
    points: int = 0
    legal_states: int = 0
    operations: int = 0
    moments: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    by_point: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    by_stage: Counter[str] = field(default_factory=Counter)
    all_points: frozenset[tuple[str, str, str]] = frozenset()
    missed: tuple[str, ...] = ()


class PowerCuts:
    """Cuts one story. `stages` (None: all) says in which; `every` takes each n-th
    moment only, and a stage's first; `lies` is the disk's."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        most: int,
        stages: range | None = None,
        every: int = 1,
        lies: Lies = honest,
    ) -> None:
        self._lies = lies
        self._folder = folder
        self._rng = random.Random(seed)
        self._most = most
        self._stages = stages or range(len(STAGES))
        self._every = every
        self._model = Disk()
        self._moments, self._in_stage = 0, -1
        self._applied = 0
        self._judged: set[int] = set()
        self._seen_at = -1
        self._reference: dict[int, Outcome] = {}
        self.report = Report()

    def run(self, on_point: Callable[[Report], None] = lambda report: None) -> Report:
        """Play the story without cuts, then with; return what came of it."""
        self._on_point = on_point
        calm = self._folder / "calm"
        calm.mkdir()
        story = Story(calm / "home")
        story.play()
        story.close()
        self._reference = story.outcomes
        root = self._folder / "cut"
        root.mkdir()
        with recording(root, self._before, self._lies) as self._disk:
            self._story = Story(root / "home", self._moment)
            self._story.play()
            self._moment()
            self._replay(len(self._disk.log))
            self.report.missed = self.missed(contents(root))
            self._story.close()
        report = self.report
        report.operations = len(self._disk.log)
        report.all_points = frozenset((done.site, done.kind, done.by) for done in self._disk.log)
        if self._story.outcomes != self._reference:
            report.verdict.note("identical", "the recorded life differs from the one that was not recorded")
        return report

    def missed(self, left: Tree) -> tuple[str, ...]:
        """Return the files that the log does not explain."""
        now = self._model.now()
        return tuple(sorted(name for name in now.keys() | left.keys() if now.get(name) != left.get(name)))

    def _replay(self, until: int) -> None:
        for operation in self._disk.log[self._applied : until]:
            self._model.apply(operation)
        self._applied = until

    def _before(self, operation: Operation) -> int:
        self._cut_here(operation)
        return 0

    def _moment(self) -> None:
        self._cut_here(None)

    def _cut_here(self, coming: Operation | None) -> None:
        if not hasattr(self, "_story") or not hasattr(self._story, "world"):
            return
        # Before it has a source of chance, the world is being made.
        if not hasattr(self._story.world, "entropy"):
            return
        log = self._disk.log
        self._replay(len(log))
        story, report = self._story, self.report
        if story.stage not in self._stages:
            return
        self._moments += 1
        first, self._in_stage = self._in_stage != story.stage, story.stage
        if self._moments % self._every and not first:
            return
        last = log[-1] if log else None
        point = (last.site, last.kind, last.by) if last is not None else ("nothing yet", "", "")
        report.moments[point] += 1
        if story.fuse.seen != self._seen_at:
            self._seen_at, self._judged = story.fuse.seen, set()
        states = list(self._model.states())
        report.legal_states += len(states)
        others = states[2:]
        for how, tree in states[:2] + self._rng.sample(others, min(len(others), self._most - 2)):
            key = hash(frozenset((path, hash(data)) for path, data in tree.items()))
            if key not in self._judged:
                self._judged.add(key)
                self._judge(how, tree, point)

    def _judge(self, how: str, tree: Tree, point: tuple[str, str, str]) -> None:
        root = self._folder / "child"
        root.mkdir()
        try:
            # What carries over to the next stage, the residual, is compared at the end of this one.
            further = int(self._rng.random() < FURTHER)
            verdict = cut(self._story, tree, root, self._reference, self._quiet, further=further)
        finally:
            shutil.rmtree(root)
        report = self.report
        verdict.problems = [f"{how}, after {' '.join(point)}: {problem}" for problem in verdict.problems]
        report.verdict.add(verdict)
        report.points += 1
        report.by_stage[STAGES[self._story.stage].name] += 1
        report.by_point[point] += 1
        self._on_point(report)

    def _quiet(self) -> None:
        disk: RecordedDisk = self._disk
        disk.active = False
