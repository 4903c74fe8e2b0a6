"""The agent's life as a table: in a phase, an event leads to a phase and to effects. Pure.

The rules:
- the table is the machine: `step` finds the first row whose phase, event and condition fit; the diagram in
  docs/agent-states.md is drawn from the same rows (`python -m edge_runtime.session`);
- an event that no row takes changes nothing (a late reply, a receipt told twice);
- the state is saved before its effects are performed, and every effect may be performed twice: a device that lost
  power in between does them again at the next look;
- one thing at a time: while an update waits for its receipt the device asks for no more work;
- time, chance and names come in with the event.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from edge_runtime import backoff
from wire_contract.messages import Receipt, RetryWindow, TaskOffer, TurnedAway

REPLY_S = 300.0
GIVE_UP_S = 7 * 86_400.0


class Phase(Enum):
    """What the device is about."""

    RESTING = "resting"
    CHECKING_IN = "checking_in"
    FETCHING = "fetching"
    TRAINING = "training"
    SENDING = "sending"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the session remembers. `not_before` (Unix seconds) is when the phase acts again."""

    phase: Phase = Phase.RESTING
    not_before: float = 0.0
    attempts: int = 0
    nonce: str = ""
    offer: TaskOffer | None = None
    update_id: str = ""
    give_up_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Looked:
    """The agent looked at clock and sensors. `nonce` (32 hex) and `draw` (uniform [0, 1)) are there to be used."""

    now: float
    may_train: bool
    may_send: bool
    nonce: str
    draw: float


@dataclass(frozen=True, slots=True)
class Offered:
    """A verified offer for the check-in with this nonce."""

    now: float
    offer: TaskOffer


@dataclass(frozen=True, slots=True)
class SentAway:
    """A verified "no work now"."""

    now: float
    reply: TurnedAway
    draw: float


@dataclass(frozen=True, slots=True)
class BaseHeld:
    """The offer's base version is on the disk and checked."""

    now: float


@dataclass(frozen=True, slots=True)
class BaseUnreachable:
    """The base version could not be fetched this time."""

    now: float
    draw: float
    reason: str


@dataclass(frozen=True, slots=True)
class BaseGone:
    """The offer's base version is not to be had any more, or was refused."""

    now: float
    draw: float
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A condition fell during training; a checkpoint is kept."""

    now: float
    reason: str


@dataclass(frozen=True, slots=True)
class NotKept:
    """The trained update could not be put into the outbox (a full disk); the checkpoint is kept."""

    now: float
    draw: float
    reason: str


@dataclass(frozen=True, slots=True)
class CannotTrain:
    """The plan cannot be done here (too little text, an unknown rule)."""

    now: float
    draw: float
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateQueued:
    """The update is in the durable outbox."""

    now: float
    update_id: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A verified receipt for the update that waits."""

    now: float
    receipt: Receipt
    draw: float


@dataclass(frozen=True, slots=True)
class Undeliverable:
    """The update that waits can never be sent (a packet over the broker's limit), or is not in the outbox any more."""

    now: float
    draw: float
    reason: str


Event = (
    Looked
    | Offered
    | SentAway
    | BaseHeld
    | BaseUnreachable
    | BaseGone
    | Interrupted
    | NotKept
    | CannotTrain
    | UpdateQueued
    | Answered
    | Undeliverable
)


@dataclass(frozen=True, slots=True)
class AskForWork:
    """Publish a check-in with this nonce."""

    nonce: str


@dataclass(frozen=True, slots=True)
class FetchBase:
    """Get and check the offer's base version; ends in BaseHeld, BaseUnreachable or BaseGone."""

    offer: TaskOffer


@dataclass(frozen=True, slots=True)
class Train:
    """Train, or go on from the checkpoint; ends in Interrupted, NotKept, CannotTrain or UpdateQueued."""

    offer: TaskOffer


@dataclass(frozen=True, slots=True)
class DropTraining:
    """Delete the checkpoint."""


@dataclass(frozen=True, slots=True)
class SendUpdate:
    """Publish pieces of the update: all of them, or the chunks named, and the init if asked for."""

    update_id: str
    everything: bool = True
    missing: tuple[int, ...] = ()
    with_init: bool = False


@dataclass(frozen=True, slots=True)
class AskStatus:
    """Publish a status query, rather than the whole update again."""

    update_id: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Deal with the kept vector as the verdict says and empty the outbox."""

    update_id: str
    verdict: str


Effect = AskForWork | FetchBase | Train | DropTraining | SendUpdate | AskStatus | Settle
Effects = tuple[Effect, ...]


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


def _due(state: State, event: Looked) -> bool:
    return event.now >= state.not_before


def _expired(state: State, event: Looked) -> bool:
    return state.offer is not None and event.now >= state.offer.deadline


def _within(window: RetryWindow, draw: float) -> float:
    return window.earliest + draw * max(0, window.latest - window.earliest)


def _offer_of(state: State) -> TaskOffer:
    if state.offer is None:
        raise ValueError(f"a phase after an offer holds one, got {state.phase}")
    return state.offer


def _rest(not_before: float) -> State:
    return State(phase=Phase.RESTING, not_before=not_before)


def _keep(state: State, **changes: Any) -> State:
    return msgspec.structs.replace(state, **changes)


def _ask(state: State, event: Looked) -> tuple[State, Effects]:
    asked = State(phase=Phase.CHECKING_IN, nonce=event.nonce, not_before=event.now + REPLY_S, attempts=state.attempts)
    return asked, (AskForWork(event.nonce),)


def _no_reply(state: State, event: Looked) -> tuple[State, Effects]:
    waiting = _rest(event.now + backoff.wait(state.attempts, event.draw))
    return _keep(waiting, attempts=state.attempts + 1), ()


def _take_offer(state: State, event: Offered) -> tuple[State, Effects]:
    return State(phase=Phase.FETCHING, offer=event.offer), (FetchBase(event.offer),)


def _sent_away(state: State, event: SentAway) -> tuple[State, Effects]:
    return _rest(_within(event.reply.retry, event.draw)), ()


def _fetch_again(state: State, event: Looked) -> tuple[State, Effects]:
    return state, (FetchBase(_offer_of(state)),)


def _later(state: State, event: BaseUnreachable | NotKept) -> tuple[State, Effects]:
    again = event.now + backoff.wait(state.attempts, event.draw)
    return _keep(state, not_before=again, attempts=state.attempts + 1), ()


def _base_gone(state: State, event: BaseGone) -> tuple[State, Effects]:
    return _rest(event.now), (DropTraining(),)


def _begin(state: State, event: BaseHeld) -> tuple[State, Effects]:
    offer = _offer_of(state)
    return State(phase=Phase.TRAINING, offer=offer), (Train(offer),)


def _train(state: State, event: Looked) -> tuple[State, Effects]:
    return state, (Train(_offer_of(state)),)


def _lease_over(state: State, event: Looked) -> tuple[State, Effects]:
    return _rest(_within(_offer_of(state).retry, event.draw)), (DropTraining(),)


def _cannot(state: State, event: CannotTrain) -> tuple[State, Effects]:
    return _rest(_within(_offer_of(state).retry, event.draw)), (DropTraining(),)


def _stay(state: State, event: Any) -> tuple[State, Effects]:
    return state, ()


def _queued(state: State, event: UpdateQueued) -> tuple[State, Effects]:
    waiting = State(phase=Phase.SENDING, offer=state.offer, update_id=event.update_id, give_up_at=event.now + GIVE_UP_S)
    return waiting, ()


def _send(state: State, event: Looked) -> tuple[State, Effects]:
    # Half of the longest wait at least: a status query before the aggregator had a chance to look is noise.
    again = event.now + (0.5 + 0.5 * event.draw) * backoff.longest_wait(state.attempts)
    first = state.attempts == 0
    effect: Effect = SendUpdate(state.update_id) if first else AskStatus(state.update_id, event.nonce)
    return _keep(state, attempts=state.attempts + 1, not_before=again), (effect,)


def _send_missing(state: State, event: Answered) -> tuple[State, Effects]:
    again = event.now + (0.5 + 0.5 * event.draw) * backoff.longest_wait(state.attempts)
    receipt = event.receipt
    effect = SendUpdate(state.update_id, everything=False, missing=receipt.missing, with_init=receipt.init_missing)
    return _keep(state, not_before=again), (effect,)


def _settle(state: State, event: Answered) -> tuple[State, Effects]:
    return _rest(_within(_offer_of(state).retry, event.draw)), (Settle(state.update_id, event.receipt.verdict),)


def _give_up(state: State, event: Looked) -> tuple[State, Effects]:
    # Nobody has heard of an update that was never sent, so its vector returns to the residual and is not lost.
    verdict = "unanswered" if state.attempts else "stale"
    return _rest(event.now), (Settle(state.update_id, verdict),)


def _undeliverable(state: State, event: Undeliverable) -> tuple[State, Effects]:
    return _rest(_within(_offer_of(state).retry, event.draw)), (Settle(state.update_id, "undeliverable"),)


R, C, F, T, S = Phase.RESTING, Phase.CHECKING_IN, Phase.FETCHING, Phase.TRAINING, Phase.SENDING

TRANSITIONS: tuple[Transition, ...] = (
    Transition(R, Looked, "every condition holds, retry window open",
               lambda s, e: e.may_train and e.may_send and _due(s, e), C, _ask, (AskForWork,)),
    Transition(C, Looked, "no reply within five minutes", _due, R, _no_reply),
    Transition(C, Offered, "", _always, F, _take_offer, (FetchBase,)),
    Transition(C, SentAway, "", _always, R, _sent_away),
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
    Transition(S, Looked, "no answer in seven days", lambda s, e: e.now >= s.give_up_at, R, _give_up, (Settle,)),
    Transition(S, Looked, "the link is unmetered, the wait is over",
               lambda s, e: e.may_send and _due(s, e), S, _send, (SendUpdate, AskStatus)),
    Transition(S, Answered, "incomplete",
               lambda s, e: e.receipt.verdict == "incomplete", S, _send_missing, (SendUpdate,)),
    Transition(S, Answered, "a verdict", _always, R, _settle, (Settle,)),
    Transition(S, Undeliverable, "", _always, R, _undeliverable, (Settle,)),
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


def diagram(rows: Iterable[Transition] = TRANSITIONS) -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.RESTING.value}"]
    for row in rows:
        label = row.event.__name__ + (f": {row.when}" if row.when else "")
        effects = " / " + ", ".join(effect.__name__ for effect in row.effects) if row.effects else ""
        # Mermaid ends a label at a colon or a semicolon that follows another.
        lines.append(f"    {row.phase.value} --> {row.target.value}: {label.replace(':', ',')}{effects}")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return docs/agent-states.md."""
    return (
        "# The agent's states\n\n"
        "Drawn from the table in `edge_runtime/session.py` by `python -m edge_runtime.session`; a test compares.\n"
        "An arrow says: the event, its condition / the effects. An event without an arrow changes nothing.\n\n"
        f"```mermaid\n{diagram()}```\n"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
