"""Whether a training version may become a refresh: the candidate is held against the current refresh.

The rules:
- both versions are scored on the same held-out words; the candidate may be worse by at most the tolerance;
- without a held-out text nothing can be judged: it is released, and the reason says so;
- an evaluation that fails holds the release: no number is no consent.
The fleet's own reports do not name versions that broke on a device yet, so they decide nothing here.
"""

from dataclasses import dataclass

from cloud_aggregator.errors import EvaluationFailed
from cloud_aggregator.ports import Evaluator, VersionFile
from wire_contract.lineage import Measure
from wire_contract.manifest import GoldenVector

_SHOWN = {"top3": "top-3", "accuracy": "accuracy"}


@dataclass(frozen=True, slots=True)
class Release:
    """Go on, and why; what was measured on the way, and what the version must answer on a device, go out with it."""

    reason: str
    evaluation: tuple[Measure, ...] = ()
    golden_vectors: tuple[GoldenVector, ...] = ()


@dataclass(frozen=True, slots=True)
class Hold:
    """Do not release, and why."""

    reason: str


def judge(
    candidate: VersionFile,
    current: VersionFile,
    evaluator: Evaluator | None,
    tolerance_points: float,
) -> Release | Hold:
    """Return the verdict on `candidate`, `tolerance_points` in points of top-3."""
    if evaluator is None:
        return Release("no held-out text configured")
    try:
        before, after = evaluator.score(current), evaluator.score(candidate)
    except EvaluationFailed as e:
        return Hold(f"the evaluation failed: {e}")
    change = after.percent - before.percent
    told = f"{_SHOWN[after.name]} {after.percent:.2f} against {before.percent:.2f} of version {current.version}"
    if not change >= -tolerance_points:
        return Hold(f"{told}: worse by more than {tolerance_points} points")
    measured = {after.name: after.percent, f"{after.name}_before": before.percent, after.counted: float(after.count)}
    measures = tuple(Measure(name=name, value=value) for name, value in measured.items() if name)
    return Release(told, measures, after.golden_vectors)
