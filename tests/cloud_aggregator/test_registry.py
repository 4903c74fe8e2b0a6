"""Numbers of versions: they rise, an undo takes a new one, staleness counts steps. And the gate before a release."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.errors import EvaluationFailed, Refused
from cloud_aggregator.ports import Score, VersionFile
from cloud_aggregator.registry import Registered, advance, first, release, undo
from cloud_aggregator.release_gate import Hold, Release, judge


@given(st.lists(st.sampled_from(["step", "release", "undo"]), max_size=30))
def test_both_tracks_only_ever_rise_and_no_number_is_used_twice(moves):
    registry = first("00", 1)
    weights = {1: "00"}
    used = [1]
    for count, move in enumerate(moves):
        before = registry
        try:
            if move == "step":
                registry = advance(registry, f"{count + 1:02x}")
                used.append(registry.training.version)
                weights[registry.training.version] = registry.training.sha256
            elif move == "release":
                registry = release(registry)
            else:
                registry = undo(registry, Registered(1, "00", 0))
                used.append(registry.refresh.version)
        except Refused:
            assert registry == before
            continue
        assert registry.training.version >= before.training.version
        assert registry.refresh.version >= before.refresh.version
        assert registry.highest == max(used)
        if move == "release":
            assert registry.refresh.sha256 == weights[registry.refresh.version]
    assert len(set(used)) == len(used)
    assert registry.training.ordinal == sum(move == "step" for move in moves)


def test_a_release_needs_a_version_that_is_newer():
    with pytest.raises(Refused, match="1 is not newer than refresh 1"):
        release(first("00", 1))
    undone = undo(release(advance(first("00", 1), "01")), Registered(1, "00", 0))
    with pytest.raises(Refused, match="2 is not newer than refresh 3"):
        release(undone)
    assert release(advance(undone, "02")).refresh.version == 4


def test_an_undo_to_what_is_there_already_is_refused():
    with pytest.raises(Refused, match="already has the weights"):
        undo(first("00", 1), Registered(1, "00", 0))


class Scores:
    """An evaluator of the tests: a score for each version, or a failure."""

    def __init__(self, **scores):
        self.scores = scores

    def score(self, version):
        score = self.scores[f"v{version.version}"]
        if score is None:
            raise EvaluationFailed("the text is empty")
        return Score("top3", score, "words", 100)


def file_of(version):
    return VersionFile(version, Path("m"), Path("v"), b"")


def gate(tolerance=0.2, **scores):
    evaluator = Scores(**scores) if scores else None
    return judge(file_of(2), file_of(1), evaluator, tolerance)


def test_without_a_text_it_is_released_and_says_so():
    assert gate() == Release("no held-out text configured")


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [(25.0, 27.0, Release), (25.0, 24.8, Release), (25.0, 24.7, Hold), (25.0, float("nan"), Hold)],
)
def test_a_candidate_may_be_worse_by_the_tolerance_only(before, after, kind):
    verdict = gate(v1=before, v2=after)
    assert isinstance(verdict, kind)
    assert "of version 1" in verdict.reason


def test_an_evaluation_that_fails_holds_the_release():
    assert gate(v1=25.0, v2=None) == Hold("the evaluation failed: the text is empty")
