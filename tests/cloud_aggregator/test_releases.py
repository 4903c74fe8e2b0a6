"""Releases by hand and by schedule: through the gate, and back again under a higher number."""

import pytest

from cloud_aggregator.errors import NotFound, Refused
from cloud_aggregator.ports import Score
from cloud_aggregator.service import Gate
from tests.cloud_aggregator.fleet import NOW, POPULATION, Aggregator, announced, make_bundle, phones, run_step
from wire_contract import envelope
from wire_contract.manifest import decode_manifest


class Scores:
    """An evaluator of the tests: better with every version, or worse."""

    def __init__(self, slope):
        self.slope, self.asked = slope, []

    def score(self, version):
        self.asked.append(version.version)
        assert version.model.is_file()
        assert version.vocabulary.is_file()
        return Score("top3", 25.0 + self.slope * version.version, "words", 100)


def test_a_release_announces_the_training_version_to_keyboards(aggregator):
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()
    release = aggregator.service.release(POPULATION, NOW + 5)
    assert (release.outcome, release.version, release.previous) == ("released", 2, 1)
    assert release.reason == "no held-out text configured"
    refresh = aggregator.manifest("refresh")
    assert (refresh.version, refresh.kind) == (2, "refresh")
    assert refresh.sha256 == aggregator.manifest("training").sha256
    (announcement,) = announced(aggregator.wire, "pop/toy/refresh")
    assert decode_manifest(envelope.verify(announcement.signed_manifest, "manifest", aggregator.keys.public)) == refresh


def test_nothing_newer_is_no_release(aggregator):
    with pytest.raises(Refused, match="not newer"):
        aggregator.service.release(POPULATION, NOW)


def test_a_worse_version_is_held_and_keyboards_keep_theirs(tmp_path):
    scores = Scores(-1.0)
    aggregator = Aggregator(tmp_path / "d", gate=Gate(scores, 0.2)).found()
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()
    release = aggregator.service.release(POPULATION, NOW + 5)
    assert release.outcome == "held"
    assert "worse by more than 0.2 points" in release.reason
    assert sorted(scores.asked) == [1, 2]
    assert aggregator.manifest("refresh").version == 1
    assert announced(aggregator.wire, "pop/toy/refresh") == []


def test_an_undo_is_a_higher_number_with_the_old_weights_and_training_goes_on(aggregator):
    fleet = phones(aggregator, 4)
    run_step(aggregator, fleet)
    aggregator.turn()
    aggregator.service.release(POPULATION, NOW + 5)
    planned = aggregator.service.undo(POPULATION, NOW + 6, dry_run=True)
    assert aggregator.manifest("refresh").version == 2
    undone = aggregator.service.undo(POPULATION, NOW + 6)
    assert planned.version == undone.version == 3
    refresh = aggregator.manifest("refresh")
    assert (refresh.version, refresh.undo_of, refresh.sha256) == (3, 2, make_bundle().manifest.sha256)
    fleet[0].rest()
    offers = run_step(aggregator, fleet)
    assert all(offer.base_version == 2 for offer in offers.values())
    report = aggregator.turn()
    assert report.staleness == {0: 4}
    assert report.steps == ((POPULATION, 4),)
    aggregator.restart()
    assert aggregator.service.release(POPULATION, NOW + 9).version == 4


def test_there_is_nothing_to_undo_before_the_second_refresh(aggregator):
    with pytest.raises(Refused, match="no earlier refresh"):
        aggregator.service.undo(POPULATION, NOW)
    with pytest.raises(NotFound, match="version 9 was never a refresh"):
        aggregator.service.undo(POPULATION, NOW, version=9)


def test_a_due_release_runs_once_however_late(aggregator):
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()
    aggregator.service.set_schedule(POPULATION, "0 6 * * 0", "UTC", NOW)
    report = aggregator.turn(40 * 86_400)
    assert report.released == ((POPULATION, 2),)
    again = aggregator.turn(60)
    assert again.released == again.held == ()
    with aggregator.database.reading() as records:
        assert records.schedule(POPULATION).last_run == NOW + 40 * 86_400
        assert records.releases(POPULATION)[0].cause == "schedule"


def test_a_due_release_with_nothing_newer_says_so_and_waits_for_the_next_time(aggregator):
    aggregator.service.set_schedule(POPULATION, "0 6 * * 0", "UTC", NOW)
    report = aggregator.turn(8 * 86_400)
    assert report.held == ((POPULATION, "training version 1 is not newer than refresh 1"),)
    assert aggregator.turn(60).held == ()
