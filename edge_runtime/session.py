"""The agent's life as a table: in a phase, an event leads to a phase and to effects. Pure.

The rules:
- the table is the machine: `step` finds the first row whose phase, event and condition fit; the diagram in
  docs/agent-states.md is drawn from the same rows (`python -m edge_runtime.session_diagram`);
- an event that no row takes changes nothing (a late reply, a receipt told twice);
- the state is saved before its effects are performed, and every effect may be performed twice: a device that lost
  power in between does them again at the next look;
- one thing at a time: while an update waits for its receipt the device asks for no more work;
- no wait is longer than a month, so that one that a wrong clock wrote can be told from it (`due`); who is to wait for
  longer asks in between. Whoever got no work, or could not do it, waits for a minute at least: by a clock that runs
  ahead a window is over when it is told;
- time, chance and names come in with the event.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_runtime import backoff
from edge_runtime.session_words import (
    Answered,
    AskForWork,
    AskStatus,
    BaseGone,
    BaseHeld,
    BaseUnreachable,
    CannotTrain,
    Declined,
    DropTraining,
    Effect,
    Effects,
    EvaluationAsked,
    Event,
    FetchBase,
    GoOn,
    Interrupted,
    Looked,
    NotKept,
    Offered,
    Phase,
    ReportMade,
    ScoreVersion,
    SendReport,
    SendUpdate,
    SentAway,
    Settle,
    State,
    Train,
    Undeliverable,
    UpdateQueued,
)
from wire_contract.messages import EvaluationOffer, RetryWindow, TaskOffer

__all__ = (
    "Answered",
    "AskForWork",
    "AskStatus",
    "BaseGone",
    "BaseHeld",
    "BaseUnreachable",
    "CannotTrain",
    "Declined",
    "DropTraining",
    "Effect",
    "Effects",
    "EvaluationAsked",
    "Event",
    "FetchBase",
    "GIVE_UP_S",
    "GoOn",
    "Interrupted",
    "LONGEST_WAIT_S",
    "Looked",
    "NotKept",
    "Offered",
    "Phase",
    "REPLY_S",
    "SHORTEST_WAIT_S",
    "ReportMade",
    "ScoreVersion",
    "SendReport",
    "SendUpdate",
    "SentAway",
    "Settle",
    "State",
    "TRANSITIONS",
    "Train",
    "Transition",
    "Undeliverable",
    "UpdateQueued",
    "due",
    "step",
)
REPLY_S = 300.0
GIVE_UP_S = 7 * 86_400.0
# No retry window or backoff is longer: a later moment was written by a clock that was wrong then.
LONGEST_WAIT_S = 31 * 86_400.0
SHORTEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: in `phase`, on `event`, where `holds`, go to `target`. `when` says the condition in words."""

    phase: Phase
    event: type[Any]
    when: str
    holds: Callable[[State, Any], bool]
    target: Phase
    does: Callable[[State, Any], tuple[State, Effects]]
    effects: tuple[type[Any], ...] = ()


def _always(state: State, event: Any) -> bool:
    return True


def due(state: State, now: float) -> bool:
    """Whether the phase may act again."""
    return now >= state.not_before or state.not_before - now > LONGEST_WAIT_S


def _due(state: State, event: Looked) -> bool:
    return due(state, event.now)


def _expired(state: State, event: Looked) -> bool:
    return event.trusted and state.offer is not None and event.now >= state.offer.deadline


def _within(window: RetryWindow, draw: float) -> float:
    return window.earliest + draw * max(0, window.latest - window.earliest)


def _evaluation_of(state: State) -> EvaluationOffer:
    if state.evaluation is None:
        raise ValueError(f"a phase after an evaluation offer holds one, got {state.phase}")
    return state.evaluation


def _offer_of(state: State) -> TaskOffer:
    if state.offer is None:
        raise ValueError(f"a phase after an offer holds one, got {state.phase}")
    return state.offer


def _rest(not_before: float, now: float) -> State:
    return State(phase=Phase.RESTING, not_before=min(not_before, now + LONGEST_WAIT_S))


def _rest_without_work(not_before: float, now: float) -> State:
    return _rest(max(not_before, now + SHORTEST_WAIT_S), now)


def _keep(state: State, **changes: Any) -> State:
    return msgspec.structs.replace(state, **changes)


def _ask(state: State, event: Looked) -> tuple[State, Effects]:
    asked = State(phase=Phase.CHECKING_IN, nonce=event.nonce, not_before=event.now + REPLY_S, attempts=state.attempts)
    return asked, (AskForWork(event.nonce),)


def _no_reply(state: State, event: Looked) -> tuple[State, Effects]:
    waiting = _rest(event.now + backoff.wait(state.attempts, event.draw), event.now)
    return _keep(waiting, attempts=state.attempts + 1), ()


def _take_offer(state: State, event: Offered) -> tuple[State, Effects]:
    return State(phase=Phase.FETCHING, offer=event.offer), (FetchBase(event.offer),)


def _declined(state: State, event: Declined) -> tuple[State, Effects]:
    again = max(event.not_before, _within(_offer_of(state).retry, event.draw))
    return _rest_without_work(again, event.now), (DropTraining(),)


def _evaluation_declined(state: State, event: Declined) -> tuple[State, Effects]:
    again = max(event.not_before, _within(_evaluation_of(state).retry, event.draw))
    return _rest_without_work(again, event.now), ()


def _take_evaluation(state: State, event: EvaluationAsked) -> tuple[State, Effects]:
    return State(phase=Phase.EVALUATING, evaluation=event.offer), (ScoreVersion(event.offer),)


def _evaluate(state: State, event: Looked) -> tuple[State, Effects]:
    return state, (ScoreVersion(_evaluation_of(state)),)


def _evaluation_over(state: State, event: Looked | CannotTrain | BaseGone) -> tuple[State, Effects]:
    return _rest_without_work(_within(_evaluation_of(state).retry, event.draw), event.now), ()


def _reported(state: State, event: ReportMade) -> tuple[State, Effects]:
    waiting = State(
        phase=Phase.REPORTING, evaluation=state.evaluation, report=event.report, update_id=event.report.report_id,
        give_up_at=float(_evaluation_of(state).deadline),
    )  # fmt: skip
    return waiting, ()


def _send_report(state: State, event: Looked) -> tuple[State, Effects]:
    if state.report is None:
        raise ValueError("a device that reports holds a report")
    again = event.now + (0.5 + 0.5 * event.draw) * backoff.longest_wait(state.attempts)
    return _keep(state, attempts=state.attempts + 1, not_before=again), (SendReport(state.report),)


def _report_answered(state: State, event: Answered) -> tuple[State, Effects]:
    rest = _rest(_within(_evaluation_of(state).retry, event.draw), event.now)
    return rest, (Settle(state.update_id, event.receipt.verdict),)


def _sent_away(state: State, event: SentAway) -> tuple[State, Effects]:
    return _rest_without_work(_within(event.reply.retry, event.draw), event.now), ()


def _fetch_again(state: State, event: Looked) -> tuple[State, Effects]:
    return state, (FetchBase(_offer_of(state)),)


def _later(state: State, event: BaseUnreachable | NotKept) -> tuple[State, Effects]:
    again = event.now + backoff.wait(state.attempts, event.draw)
    return _keep(state, not_before=again, attempts=state.attempts + 1), ()


def _base_gone(state: State, event: BaseGone) -> tuple[State, Effects]:
    # The world moved on; the next offer names what is announced now.
    return _rest_without_work(event.now, event.now), (DropTraining(),)


def _begin(state: State, event: BaseHeld) -> tuple[State, Effects]:
    offer = _offer_of(state)
    return State(phase=Phase.TRAINING, offer=offer), (Train(offer),)


def _train(state: State, event: Looked) -> tuple[State, Effects]:
    return state, (Train(_offer_of(state)),)


def _lease_over(state: State, event: Looked) -> tuple[State, Effects]:
    return _rest(_within(_offer_of(state).retry, event.draw), event.now), (DropTraining(),)


def _cannot(state: State, event: CannotTrain) -> tuple[State, Effects]:
    return _rest_without_work(_within(_offer_of(state).retry, event.draw), event.now), (DropTraining(),)


def _stay(state: State, event: Any) -> tuple[State, Effects]:
    return state, ()


def _queued(state: State, event: UpdateQueued) -> tuple[State, Effects]:
    waiting = State(phase=Phase.SENDING, offer=state.offer, update_id=event.update_id, give_up_at=event.now + GIVE_UP_S)
    return waiting, ()


def _send(state: State, event: Looked) -> tuple[State, Effects]:
    # Half of the longest wait at least: a status query before the aggregator had a chance to look is noise.
    again = event.now + (0.5 + 0.5 * event.draw) * backoff.longest_wait(state.attempts)
    asked = AskStatus(state.update_id, event.nonce)
    # An aggregator that is away for the night finds the rest of the update with the broker in the morning.
    ways: tuple[Effects, ...] = ((SendUpdate(state.update_id),), (asked,), (asked, GoOn(state.update_id)))
    return _keep(state, attempts=state.attempts + 1, not_before=again), ways[min(state.attempts, 2)]


def _send_missing(state: State, event: Answered) -> tuple[State, Effects]:
    receipt, lacking = event.receipt, len(event.receipt.missing)
    # Progress is no reason to wait longer: a link that breaks twenty times still brings an update to its end.
    attempts = 1 if state.lacking < 0 or lacking < state.lacking else state.attempts
    again = event.now + (0.5 + 0.5 * event.draw) * backoff.longest_wait(attempts)
    effect = SendUpdate(state.update_id, everything=False, missing=receipt.missing, with_init=receipt.init_missing)
    asked = _keep(state, not_before=again, attempts=attempts, lacking=lacking, answered_at=receipt.issued_at)
    return asked, (effect,)


def _settle(state: State, event: Answered) -> tuple[State, Effects]:
    rest = _rest(_within(_offer_of(state).retry, event.draw), event.now)
    return rest, (Settle(state.update_id, event.receipt.verdict),)


def _give_up(state: State, event: Looked) -> tuple[State, Effects]:
    # Nobody has heard of an update that was never sent, so its vector returns to the residual and is not lost.
    verdict = "unanswered" if state.attempts else "stale"
    return _rest(event.now, event.now), (Settle(state.update_id, verdict),)


def _undeliverable(state: State, event: Undeliverable) -> tuple[State, Effects]:
    rest = _rest(_within(_offer_of(state).retry, event.draw), event.now)
    return rest, (Settle(state.update_id, "undeliverable"),)


R, C, F, T, S = Phase.RESTING, Phase.CHECKING_IN, Phase.FETCHING, Phase.TRAINING, Phase.SENDING
E, P = Phase.EVALUATING, Phase.REPORTING

TRANSITIONS: tuple[Transition, ...] = (
    Transition(R, Looked, "every condition holds, retry window open",
               lambda s, e: e.may_train and e.may_send and _due(s, e), C, _ask, (AskForWork,)),
    Transition(C, Looked, "no reply within five minutes", _due, R, _no_reply),
    Transition(C, Offered, "", _always, F, _take_offer, (FetchBase,)),
    Transition(C, SentAway, "", _always, R, _sent_away),
    Transition(C, EvaluationAsked, "", _always, E, _take_evaluation, (ScoreVersion,)),
    Transition(F, Declined, "", _always, R, _declined, (DropTraining,)),
    Transition(F, Looked, "the lease is over", _expired, R, _lease_over, (DropTraining,)),
    Transition(F, Looked, "the link is unmetered, the wait is over",
               lambda s, e: e.may_send and _due(s, e), F, _fetch_again, (FetchBase,)),
    Transition(F, BaseHeld, "", _always, T, _begin, (Train,)),
    Transition(F, BaseUnreachable, "", _always, F, _later),
    Transition(F, BaseGone, "", _always, R, _base_gone, (DropTraining,)),
    Transition(T, Looked, "the lease is over", _expired, R, _lease_over, (DropTraining,)),
    Transition(T, Looked, "every training condition holds",
               lambda s, e: e.may_train and _due(s, e), T, _train, (Train,)),
    Transition(T, Interrupted, "", _always, T, _stay),
    Transition(T, NotKept, "", _always, T, _later),
    Transition(T, CannotTrain, "", _always, R, _cannot, (DropTraining,)),
    Transition(T, UpdateQueued, "", _always, S, _queued),
    Transition(S, Looked, "no answer in seven days",
               lambda s, e: e.trusted and e.now >= s.give_up_at, R, _give_up, (Settle,)),
    Transition(S, Looked, "the link is unmetered, the wait is over",
               lambda s, e: e.may_send and _due(s, e), S, _send, (SendUpdate, AskStatus, GoOn)),
    # A broker redelivers what was not acknowledged when the link broke: what it asks for was sent since.
    Transition(S, Answered, "incomplete, told before",
               lambda s, e: e.receipt.verdict == "incomplete" and e.receipt.issued_at == s.answered_at, S, _stay),
    Transition(S, Answered, "incomplete",
               lambda s, e: e.receipt.verdict == "incomplete", S, _send_missing, (SendUpdate,)),
    Transition(S, Answered, "a verdict", _always, R, _settle, (Settle,)),
    Transition(S, Undeliverable, "", _always, R, _undeliverable, (Settle,)),
    Transition(E, Looked, "the lease is over",
               lambda s, e: e.trusted and e.now >= _evaluation_of(s).deadline, R, _evaluation_over),
    Transition(E, Looked, "every condition holds, the wait is over",
               lambda s, e: e.may_train and e.may_send and _due(s, e), E, _evaluate, (ScoreVersion,)),
    Transition(E, Declined, "", _always, R, _evaluation_declined),
    Transition(E, BaseUnreachable, "", _always, E, _later),
    Transition(E, NotKept, "", _always, E, _later),
    Transition(E, BaseGone, "", _always, R, _evaluation_over),
    Transition(E, Interrupted, "", _always, E, _stay),
    Transition(E, CannotTrain, "", _always, R, _evaluation_over),
    Transition(E, ReportMade, "", _always, P, _reported),
    Transition(P, Looked, "the lease is over", lambda s, e: e.trusted and e.now >= s.give_up_at, R, _evaluation_over),
    Transition(P, Looked, "the link is unmetered, the wait is over",
               lambda s, e: e.may_send and _due(s, e), P, _send_report, (SendReport,)),
    Transition(P, Answered, "a verdict", _always, R, _report_answered, (Settle,)),
)  # fmt: skip


def step(state: State, event: Event) -> tuple[State, Effects]:
    """Return the next state and what to do. An event that no row takes leaves both as they are."""
    for row in TRANSITIONS:
        if row.phase is state.phase and isinstance(event, row.event) and row.holds(state, event):
            after, effects = row.does(state, event)
            if after.phase is not row.target:
                raise ValueError(f"the row {row.phase.value} on {row.event.__name__} leads to {row.target.value}")
            return after, effects
    return state, ()
