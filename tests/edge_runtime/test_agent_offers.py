"""What an agent does with offers beside plain training: evaluations, rules that it does not know, and its ledger."""

import dataclasses

import msgspec
import pytest

from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.agent import Agent, Ports
from edge_runtime.config import LedgerSettings
from edge_runtime.eligibility import Reading
from edge_runtime.ledger import OwnTerms
from edge_runtime.time_question import AGAIN_S
from tests.edge_runtime.fakes import GOOD, FakeClock, FakeTransport, World
from wire_contract.messages import EVALUATION_BUCKET, LocalRule


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home")
    yield made
    made.agent.abandon()


def holding_out(world, share=0.5, **changes):
    world.settings = msgspec.structs.replace(world.settings, held_out_share=share, **changes)
    world.kill()
    world.type_text()


def participations(world):
    store = StateStore(world.home / "state.db")
    try:
        return LedgerRows(store, OwnTerms()).rows()
    finally:
        store.close()


def refusals(reports):
    return [name for report in reports for name in report.refused]


def test_an_evaluation_that_is_asked_for_ends_in_counts_and_a_receipt(world):
    holding_out(world)
    world.aggregator.asks_evaluation = True
    reports = world.night()
    (report,) = world.aggregator.evaluations
    assert report.words > 0 and report.hits1 <= report.hits3 <= report.words
    assert {count % EVALUATION_BUCKET for count in (report.words, report.hits1, report.hits3)} == {0}
    assert [verdict for each in reports for verdict in each.receipts] == ["accepted"]
    assert world.agent.state.phase.value == "resting" and world.aggregator.updates == {}
    (row,) = participations(world)
    assert (row.kind, row.update_id, row.verdict) == ("evaluate", report.report_id, "accepted")
    assert row.examples == report.words


def test_a_device_that_holds_out_too_little_reports_no_words_at_all(world):
    holding_out(world, share=0.0)
    world.aggregator.asks_evaluation = True
    world.night()
    (report,) = world.aggregator.evaluations
    assert (report.words, report.hits1, report.hits3) == (0, 0, 0)


def test_a_report_whose_receipt_is_lost_is_sent_again_with_the_same_id(world):
    holding_out(world)
    world.aggregator.asks_evaluation = world.aggregator.mute_receipts = True
    world.night()
    world.kill()
    world.clock.time += 30
    world.aggregator.mute_receipts = False
    world.night()
    assert len(world.aggregator.evaluations) >= 2
    assert len({(each.report_id, each.words, each.hits3) for each in world.aggregator.evaluations}) == 1
    assert world.agent.state.phase.value == "resting"


def test_an_evaluation_that_a_cable_interrupts_is_made_another_time(world):
    holding_out(world)
    world.aggregator.asks_evaluation = True
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 2
    report = world.agent.turn()
    assert report.phase == "evaluating" and report.interrupted
    world.sensors.good_reads = None
    world.night()
    assert len(world.aggregator.evaluations) == 1


def test_a_plan_with_an_unknown_rule_is_declined_by_its_name_before_anything_is_fetched(world):
    world.aggregator.plan = msgspec.structs.replace(
        world.aggregator.plan, rules=(LocalRule(name="telepathy", value=1.0),)
    )
    world.type_text()
    world.aggregator.move_on()
    fetched = len(world.downloads.requests)
    reports = world.night()
    assert "plan_refused" in refusals(reports) and world.aggregator.updates == {}
    assert not [path for path, _ in world.downloads.requests[fetched:] if "/models/" in path]
    assert world.agent.state.phase.value == "resting" and participations(world) == ()


def test_the_capabilities_at_check_in_name_every_local_rule(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    named = world.aggregator.check_ins[0].capabilities
    assert {"rule:sgd", "rule:momentum", "rule:proximal", "rule:clip", "rule:freeze", "task:evaluate"} <= set(named)


@pytest.mark.parametrize("rule", [
    LocalRule(name="momentum", value=0.9),
    LocalRule(name="proximal", value=0.01),
    LocalRule(name="clip", value=1.0),
    LocalRule(name="schedule-cosine", value=0.1),
    LocalRule(name="max-steps", value=2.0),
])  # fmt: skip
def test_a_plan_with_a_known_rule_ends_in_another_update_than_plain_steps(world, tmp_path, rule):
    plain = World(tmp_path / "plain")
    for each, rules in ((world, (rule,)), (plain, ())):
        each.aggregator.plan = msgspec.structs.replace(each.aggregator.plan, rules=rules, epochs=2)
        each.type_text()
        each.night()
    (ours,), (theirs,) = world.aggregator.updates, plain.aggregator.updates
    a, b = world.aggregator.vector(ours), plain.aggregator.vector(theirs)
    assert a.indices.tolist() != b.indices.tolist() or a.values.tolist() != b.values.tolist()
    plain.agent.abandon()


def test_a_separation_in_the_plan_keeps_the_device_away_until_enough_versions_have_passed(world):
    world.aggregator.plan = msgspec.structs.replace(world.aggregator.plan, separation_versions=2)
    world.type_text()
    taken = []
    for _ in range(4):
        before = len(world.aggregator.updates)
        world.night()
        taken.append(len(world.aggregator.updates) - before)
        world.aggregator.move_on()
        world.clock.time += 1300
    assert taken == [1, 0, 1, 0]


def test_the_owners_days_between_two_trainings_hold_whatever_the_aggregator_offers(world):
    world.settings = msgspec.structs.replace(world.settings, ledger=LedgerSettings(minimum_days=2.0))
    world.kill()
    world.type_text()
    world.night()
    world.clock.time += 86_400
    reports = world.night()
    assert "took_part" in refusals(reports) and len(world.aggregator.updates) == 1
    world.clock.time += 86_400 + 1300
    world.night()
    assert len(world.aggregator.updates) == 2


def test_a_disk_without_three_times_the_model_trains_when_there_is_room(world):
    world.type_text()
    room = world.agent.room

    class Crowded:
        full = True

        def for_training(self):
            return not self.full and room.for_training()

        def give_back(self):
            room.give_back()

    world.agent.room = crowded = Crowded()
    reports = world.night()
    assert "no_room" in refusals(reports) and world.agent.state.phase.value == "training"
    crowded.full = False
    world.clock.time += 60
    world.night()
    assert len(world.aggregator.updates) == 1


def test_a_personal_copy_is_made_at_night_when_there_is_nothing_else_to_do(world):
    holding_out(world, share=0.2, personal=True)
    world.aggregator.turn_away = "enough"
    told = [report.personal for report in world.night() if report.personal]
    assert told
    assert len(told) == 1, "it is made once, and again only with another version or more words"
    assert (world.home / "personal").is_dir()


def test_no_personal_copy_is_made_while_somebody_uses_the_device(world):
    holding_out(world, share=0.2, personal=True)
    world.sensors.readings = dataclasses.replace(GOOD, idle_s=Reading(1.0))
    assert not any(report.personal for report in world.night())


class NoClockChip:
    """A board that starts in 1970, without network time: it believes an answer that came at once and nothing else."""

    def __init__(self, inner):
        self.inner, self.ahead = inner, None

    def now(self):
        return self.inner.time if self.ahead is None else self.inner.time + self.ahead

    def elapsed(self):
        return self.inner.time

    def trusted(self):
        return self.ahead is not None

    def prove(self, server_time, *, fresh):
        if fresh:
            self.ahead = server_time - self.inner.time


@pytest.fixture
def clockless(tmp_path):
    made = World(tmp_path / "home")
    policy = msgspec.structs.replace(made.settings.policy, night_start="23:00", night_end="06:00")
    made.settings = msgspec.structs.replace(made.settings, policy=policy)
    made.type_text()
    board = FakeClock(40.0)
    board_clock = NoClockChip(board)
    made.agent.abandon()
    transport = FakeTransport(made.broker, "device", made.fuse)
    ports = Ports(board_clock, made.sensors, transport, made.downloads, made.trainer(), made.entropy)
    made.agent = Agent(made.home, made.settings, ports)
    made.board, made.board_clock = board, board_clock
    yield made
    made.agent.abandon()


def test_a_device_without_any_clock_asks_the_aggregator_for_the_time_and_then_trains(clockless):
    clockless.aggregator.turn_away = "it names no capability"
    first = clockless.agent.turn()
    assert "clock" in first.reason and not first.training_steps
    clockless.aggregator.work()
    assert clockless.aggregator.check_ins[-1].capabilities == ()
    clockless.agent.turn()
    assert clockless.board_clock.trusted()
    assert abs(clockless.board_clock.now() - clockless.clock.time) < 5
    clockless.aggregator.turn_away = ""
    assert [v for r in clockless.night() for v in r.receipts] == ["accepted"]


def test_an_answer_that_waited_in_the_queue_tells_no_time(clockless):
    clockless.aggregator.turn_away = "it names no capability"
    clockless.agent.turn()
    clockless.aggregator.work()
    clockless.board.time += AGAIN_S
    asked = len(clockless.aggregator.check_ins)
    assert clockless.agent.turn().connected, "it comes for an answer, and finds the old one first"
    assert not clockless.board_clock.trusted()
    clockless.aggregator.work()
    assert len(clockless.aggregator.check_ins) == asked + 1
    clockless.agent.turn()
    assert clockless.board_clock.trusted(), "the answer to the second question came at once"


def test_without_an_answer_the_time_is_asked_for_once_an_hour(clockless):
    for _ in range(61):
        clockless.agent.turn()
        clockless.board.time += 60.0
    clockless.aggregator.turn_away = "it names no capability"
    clockless.aggregator.work()
    assert len(clockless.aggregator.check_ins) == 2


def test_an_evaluation_beyond_the_owners_times_a_week_is_declined_and_no_word_is_scored(world):
    holding_out(world, ledger=LedgerSettings(most_a_week=1))
    world.aggregator.asks_evaluation = True
    world.night()
    assert len(world.aggregator.evaluations) == 1
    world.clock.time += 1300
    reports = world.night()
    assert "took_part" in refusals(reports) and len(world.aggregator.evaluations) == 1
    assert world.agent.state.phase.value == "resting" and len(participations(world)) == 1


def test_a_device_that_is_to_wait_for_months_does_not_ask_with_every_turn(world):
    world.settings = msgspec.structs.replace(world.settings, ledger=LedgerSettings(minimum_days=90.0))
    world.kill()
    world.type_text()
    world.night()
    world.clock.time += 1300
    asked = len(world.aggregator.check_ins)
    for _ in range(20):
        world.clock.time += 30
        world.night()
    assert len(world.aggregator.check_ins) == asked + 1


@pytest.mark.parametrize("ahead_s", [3600.0, 40 * 86_400.0])
def test_a_clock_that_runs_ahead_of_the_aggregators_asks_at_most_once_a_minute(world, ahead_s):
    world.type_text()
    world.aggregator.turn_away = "enough"
    behind = FakeClock(world.clock.time - ahead_s)
    world.aggregator.clock = behind.twin()
    for _ in range(30):
        for clock in (world.clock, behind):
            clock.time += 10
        world.night()
    assert 2 <= len(world.aggregator.check_ins) <= 6


def test_a_version_that_the_device_refuses_is_not_fetched_again_and_again(world):
    world.type_text()
    world.aggregator.move_on()
    path = f"/v1/models/{world.aggregator.manifest.sha256}"
    world.downloads.files[path] = bytes(len(world.downloads.files[path]))
    for _ in range(30):
        world.clock.time += 60
        world.night()
    fetched = [each for each, _ in world.downloads.requests if each == path]
    assert len(fetched) == 1 and len(world.aggregator.check_ins) <= 3
    world.downloads.files[path] = world.aggregator.model
    world.clock.time += 3600
    world.night()
    assert [update.header.base_version for update in world.aggregator.updates.values()] == [2]


def test_by_a_clock_that_cannot_be_believed_no_example_grows_too_old(tmp_path):
    made = World(tmp_path / "home")
    made.type_text()
    words = made.agent.count_words()
    made.agent.abandon()
    clock = NoClockChip(FakeClock(made.clock.time + 60 * 86_400.0))
    clock.prove = lambda server_time, *, fresh: None
    transport = FakeTransport(made.broker, "device", made.fuse)
    made.agent = Agent(
        made.home, made.settings, Ports(clock, made.sensors, transport, made.downloads, made.trainer(), made.entropy)
    )
    made.aggregator.clock.clock.time = clock.now()
    made.night()
    assert made.aggregator.updates and made.agent.count_words() == words
    made.agent.abandon()
