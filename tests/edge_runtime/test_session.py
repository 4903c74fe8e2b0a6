import dataclasses
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import session, session_diagram
from edge_runtime.session import Phase, State, step
from wire_contract.messages import (
    EvaluationOffer,
    EvaluationReport,
    Plan,
    Receipt,
    RetryWindow,
    TaskOffer,
    TurnedAway,
)

NOW = 1_800_000_000.0
WINDOW = RetryWindow(earliest=int(NOW) + 100, latest=int(NOW) + 200)
OFFER = TaskOffer(
    device="d" * 32, population="keyboard", task="0" * 16, lease="1" * 32, nonce="2" * 32, base_version=3,
    base_sha256="a" * 64, layout_fingerprint="b" * 64, plan=Plan(), seed=1, sealing_key=b"k" * 32, shard=0,
    issued_at=int(NOW), deadline=int(NOW) + 3600, retry=WINDOW,
)  # fmt: skip
EVALUATION = EvaluationOffer(
    device="d" * 32, population="keyboard", task="3" * 16, lease="4" * 32, nonce="2" * 32, version=4,
    version_sha256="c" * 64, issued_at=int(NOW), deadline=int(NOW) + 3600, retry=WINDOW,
)  # fmt: skip
REPORT = EvaluationReport(
    device="d" * 32, task="3" * 16, lease="4" * 32, report_id="f" * 32, version=4, words=120, hits1=20, hits3=40,
    sent_at=int(NOW),
)  # fmt: skip
LOOK = session.Looked(NOW, may_train=True, may_send=True, nonce="2" * 32, draw=0.5)


def receipt(verdict, **changes):
    return Receipt(device="d" * 32, update_id="e" * 32, verdict=verdict, reason="", issued_at=int(NOW), **changes)


def state(phase, **changes):
    evaluates = phase in (Phase.EVALUATING, Phase.REPORTING)
    offer = None if evaluates or phase in (Phase.RESTING, Phase.CHECKING_IN) else OFFER
    held = {"update_id": "e" * 32, "give_up_at": NOW + 9e5} if phase is Phase.SENDING else {}
    if evaluates:
        held = {"evaluation": EVALUATION}
    if phase is Phase.REPORTING:
        held |= {"report": REPORT, "update_id": REPORT.report_id, "give_up_at": NOW + 3600}
    return State(phase=phase, **{"offer": offer, **held, **changes})


def test_a_night_walks_through_every_phase_in_order():
    events = [
        LOOK,
        session.Offered(NOW, OFFER),
        session.BaseHeld(NOW),
        session.UpdateQueued(NOW, "e" * 32),
        LOOK,
        session.Answered(NOW, receipt("accepted"), 0.5),
    ]
    at, phases, done = State(), [], []
    for event in events:
        at, effects = step(at, event)
        phases.append(at.phase.value)
        done += [type(effect).__name__ for effect in effects]
    assert phases == ["checking_in", "fetching", "training", "sending", "sending", "resting"]
    assert done == ["AskForWork", "FetchBase", "Train", "SendUpdate", "Settle"]
    assert at.not_before == NOW + 150


def test_a_device_that_was_turned_away_rests_until_a_moment_inside_the_window():
    reply = TurnedAway(device="d" * 32, nonce="2" * 32, reason="enough", issued_at=int(NOW), retry=WINDOW)
    rested, effects = step(state(Phase.CHECKING_IN), session.SentAway(NOW, reply, 0.25))
    assert effects == () and rested.not_before == NOW + 125
    assert step(rested, dataclasses.replace(LOOK, now=NOW + 124)) == (rested, ())
    assert step(rested, dataclasses.replace(LOOK, now=NOW + 125))[1]


def test_without_power_or_link_no_work_is_asked_for():
    for change in ({"may_train": False}, {"may_send": False}):
        assert step(State(), dataclasses.replace(LOOK, **change)) == (State(), ())


def test_an_update_is_sent_once_and_then_only_asked_about():
    sending, effects = step(state(Phase.SENDING), LOOK)
    assert effects == (session.SendUpdate("e" * 32),)
    waits = []
    for _ in range(12):
        sending, effects = step(sending, dataclasses.replace(LOOK, now=sending.not_before))
        assert isinstance(effects[0], session.AskStatus)
        assert effects[1:] == ((session.GoOn("e" * 32),) if sending.attempts > 2 else ())
        waits.append(sending.not_before)
    steps = [later - earlier for earlier, later in itertools.pairwise(waits)]
    assert steps == sorted(steps) and steps[-1] == 0.75 * 600


def test_an_incomplete_receipt_asks_for_what_is_missing_and_nothing_else():
    sending = state(Phase.SENDING, attempts=1)
    after, effects = step(sending, session.Answered(NOW, receipt("incomplete", missing=(2, 5)), 0.5))
    assert effects == (session.SendUpdate("e" * 32, everything=False, missing=(2, 5), with_init=False),)
    assert after.phase is Phase.SENDING


def test_fewer_missing_chunks_than_the_last_time_shorten_the_wait_and_no_progress_does_not():
    sending = state(Phase.SENDING, attempts=6, lacking=10)
    same, _ = step(sending, session.Answered(NOW, receipt("incomplete", missing=tuple(range(10))), 0.5))
    fewer, _ = step(sending, session.Answered(NOW, receipt("incomplete", missing=tuple(range(9))), 0.5))
    assert (same.attempts, same.lacking, fewer.attempts, fewer.lacking) == (6, 10, 1, 9)
    assert fewer.not_before < same.not_before


def test_an_incomplete_receipt_that_comes_again_sends_nothing_again():
    sending = state(Phase.SENDING, attempts=1)
    answer = session.Answered(NOW, receipt("incomplete", missing=(2, 5)), 0.5)
    after, effects = step(sending, answer)
    assert effects and step(after, answer) == (after, ())


def test_by_a_clock_that_cannot_be_believed_no_lease_ends_and_nothing_is_given_up():
    late = dataclasses.replace(LOOK, now=NOW + 9e8, may_train=False, may_send=False, trusted=False)
    for phase in Phase:
        assert step(state(phase), late)[0].phase is (Phase.RESTING if phase is Phase.CHECKING_IN else phase)


def test_a_wait_that_a_wrong_clock_wrote_does_not_last_for_years():
    assert session.due(State(not_before=NOW + 32 * 86_400), NOW)
    assert not session.due(State(not_before=NOW + 30 * 86_400), NOW)


def test_a_lease_that_is_over_drops_the_training():
    late = dataclasses.replace(LOOK, now=NOW + 3600)
    for phase in (Phase.FETCHING, Phase.TRAINING):
        after, effects = step(state(phase), late)
        assert after.phase is Phase.RESTING and effects == (session.DropTraining(),)


def test_an_interrupted_training_goes_on_when_conditions_hold_again():
    stopped, effects = step(state(Phase.TRAINING), session.Interrupted(NOW, "unplugged"))
    assert effects == () and step(stopped, dataclasses.replace(LOOK, may_train=False)) == (stopped, ())
    assert step(stopped, LOOK)[1] == (session.Train(OFFER),)


def test_training_needs_no_link_and_sending_no_power():
    assert step(state(Phase.TRAINING), dataclasses.replace(LOOK, may_send=False))[1] == (session.Train(OFFER),)
    assert step(state(Phase.SENDING), dataclasses.replace(LOOK, may_train=False))[1]


def test_after_seven_days_without_an_answer_the_update_is_given_up():
    waiting, _ = step(state(Phase.TRAINING), session.UpdateQueued(NOW, "e" * 32))
    sent, _ = step(waiting, LOOK)
    late = dataclasses.replace(LOOK, now=NOW + 7 * 86_400, may_send=False)
    after, effects = step(sent, late)
    assert after.phase is Phase.RESTING and effects == (session.Settle("e" * 32, "unanswered"),)


def test_an_update_that_could_never_be_sent_in_seven_days_returns_to_the_residual():
    waiting, _ = step(state(Phase.TRAINING), session.UpdateQueued(NOW, "e" * 32))
    late = dataclasses.replace(LOOK, now=NOW + 7 * 86_400, may_send=False)
    after, effects = step(waiting, late)
    assert after.phase is Phase.RESTING and effects == (session.Settle("e" * 32, "stale"),)


def test_an_evaluation_walks_from_the_offer_to_the_receipt_of_its_report():
    events = [
        LOOK,
        session.EvaluationAsked(NOW, EVALUATION),
        session.Interrupted(NOW, "unplugged"),
        LOOK,
        session.ReportMade(NOW, REPORT),
        LOOK,
        session.Answered(NOW, receipt("accepted"), 0.5),
    ]
    at, done = State(), []
    for event in events:
        at, effects = step(at, event)
        done += effects
    sent = [session.SendReport(REPORT), session.Settle(REPORT.report_id, "accepted")]
    assert done[1:] == [session.ScoreVersion(EVALUATION)] * 2 + sent
    assert at == State(not_before=NOW + 150)


def test_an_evaluation_that_is_declined_rests_until_the_ledger_would_let_it():
    event = session.Declined(NOW, 0.5, "three times a week", not_before=NOW + 9000)
    assert step(state(Phase.EVALUATING), event) == (State(not_before=NOW + 9000), ())


def test_a_report_without_a_receipt_is_sent_again_until_the_lease_is_over():
    at = state(Phase.REPORTING)
    sent = 0
    while at.phase is Phase.REPORTING:
        at, effects = step(at, dataclasses.replace(LOOK, now=max(NOW, at.not_before)))
        sent += effects == (session.SendReport(REPORT),)
    assert 3 < sent < 20 and at.phase is Phase.RESTING


def test_an_offer_that_is_declined_leaves_the_device_at_rest_until_its_window():
    after, effects = step(state(Phase.FETCHING), session.Declined(NOW, 0.5, "took part yesterday"))
    assert (after, effects) == (State(not_before=NOW + 150), (session.DropTraining(),))


def test_the_diagram_in_the_docs_is_drawn_from_this_table():
    assert Path("docs/agent-states.md").read_text() == session_diagram.page(), (
        "python -m edge_runtime.session_diagram > docs/agent-states.md"
    )


# Why each pair that no row takes changes nothing.
STILL = {
    Phase.RESTING: "replies, receipts and ends of work that came after the session had moved on",
    Phase.CHECKING_IN: "there is no work yet that could end",
    Phase.FETCHING: "nothing is trained or sent yet; a second offer for the same check-in is the same lease",
    Phase.TRAINING: "the base is held; receipts are for updates that do not exist yet",
    Phase.SENDING: "one thing at a time: offers and training wait for the receipt",
    Phase.EVALUATING: "nothing is trained or sent; a second offer for the same check-in is the same lease",
    Phase.REPORTING: "one thing at a time: offers wait for the report's receipt",
}
EVENTS = {
    session.Looked: LOOK,
    session.Offered: session.Offered(NOW, OFFER),
    session.SentAway: session.SentAway(
        NOW, TurnedAway(device="d" * 32, nonce="2" * 32, reason="", issued_at=1, retry=WINDOW), 0.1
    ),
    session.BaseHeld: session.BaseHeld(NOW),
    session.BaseUnreachable: session.BaseUnreachable(NOW, 0.1, ""),
    session.BaseGone: session.BaseGone(NOW, 0.1, ""),
    session.Interrupted: session.Interrupted(NOW, ""),
    session.NotKept: session.NotKept(NOW, 0.1, ""),
    session.CannotTrain: session.CannotTrain(NOW, 0.1, ""),
    session.UpdateQueued: session.UpdateQueued(NOW, "e" * 32),
    session.Answered: session.Answered(NOW, receipt("accepted"), 0.1),
    session.Undeliverable: session.Undeliverable(NOW, 0.1, ""),
    session.EvaluationAsked: session.EvaluationAsked(NOW, EVALUATION),
    session.ReportMade: session.ReportMade(NOW, REPORT),
    session.Declined: session.Declined(NOW, 0.1, ""),
}


@pytest.mark.parametrize("phase", Phase)
def test_an_event_that_no_row_takes_changes_nothing(phase):
    assert STILL[phase]
    taken = {row.event for row in session.TRANSITIONS if row.phase is phase}
    assert session.Looked in taken
    for kind, event in EVENTS.items():
        if kind not in taken:
            assert step(state(phase), event) == (state(phase), ())


@given(
    st.lists(st.sampled_from(list(EVENTS.values())), max_size=30),
    st.lists(st.floats(0, 86_400), min_size=30, max_size=30),
)
def test_no_sequence_of_events_breaks_the_table(events, gaps):
    at, now = State(), NOW
    for event, gap in zip(events, gaps, strict=False):
        now += gap
        at, effects = step(at, dataclasses.replace(event, now=now))
        rows = [row for row in session.TRANSITIONS if row.target is at.phase]
        for effect in effects:
            assert any(type(effect) in row.effects for row in rows)
        evaluates = at.phase in (Phase.EVALUATING, Phase.REPORTING)
        assert (at.offer is None) == (evaluates or at.phase in (Phase.RESTING, Phase.CHECKING_IN))
        assert (at.evaluation is not None) == evaluates


@given(
    st.sampled_from([
        (Phase.CHECKING_IN, session.SentAway), (Phase.FETCHING, session.Declined), (Phase.FETCHING, session.BaseGone),
        (Phase.TRAINING, session.CannotTrain), (Phase.EVALUATING, session.Declined),
        (Phase.EVALUATING, session.CannotTrain), (Phase.EVALUATING, session.BaseGone),
    ]),
    st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.floats(0, 1, exclude_max=True), st.floats(0, 1e12),
)  # fmt: skip
def test_who_got_no_work_asks_again_after_a_minute_at_least_and_a_month_at_most(row, earliest, latest, draw, until):
    phase, kind = row
    window = RetryWindow(earliest=earliest, latest=latest)
    held = state(phase)
    if held.offer is not None:
        held = msgspec.structs.replace(held, offer=msgspec.structs.replace(OFFER, retry=window))
    if held.evaluation is not None:
        held = msgspec.structs.replace(held, evaluation=msgspec.structs.replace(EVALUATION, retry=window))
    event = dataclasses.replace(EVENTS[kind], now=NOW, draw=draw)
    if kind is session.Declined:
        event = dataclasses.replace(event, not_before=until)
    if kind is session.SentAway:
        event = dataclasses.replace(event, reply=msgspec.structs.replace(event.reply, retry=window))
    after, _ = step(held, event)
    assert after.phase is Phase.RESTING
    assert NOW + session.SHORTEST_WAIT_S <= after.not_before <= NOW + session.LONGEST_WAIT_S
    assert not session.due(after, NOW + session.SHORTEST_WAIT_S / 2)
    assert session.due(after, NOW + session.LONGEST_WAIT_S)


def test_no_window_of_a_settled_update_lasts_longer_than_a_month():
    far = msgspec.structs.replace(OFFER, retry=RetryWindow(earliest=1 << 40, latest=1 << 40))
    for phase, event in (
        (Phase.SENDING, session.Answered(NOW, receipt("accepted"), 0.5)),
        (Phase.SENDING, session.Undeliverable(NOW, 0.5, "too large")),
        (Phase.TRAINING, dataclasses.replace(LOOK, now=NOW + 3600)),
    ):
        after, _ = step(state(phase, offer=far), event)
        assert after == State(not_before=event.now + session.LONGEST_WAIT_S)
