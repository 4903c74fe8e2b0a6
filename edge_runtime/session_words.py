"""The words of the session: its phases, what it remembers, what happens to it (events), what it wants (effects).

`session` has the table that says which event leads where.
"""

from dataclasses import dataclass
from enum import Enum

import msgspec

from wire_contract.messages import EvaluationOffer, EvaluationReport, Receipt, TaskOffer, TurnedAway


class Phase(Enum):
    """What the device is about."""

    RESTING = "resting"
    CHECKING_IN = "checking_in"
    FETCHING = "fetching"
    TRAINING = "training"
    SENDING = "sending"
    EVALUATING = "evaluating"
    REPORTING = "reporting"


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the session remembers. `not_before` (Unix seconds) is when the phase acts again; `update_id` is that
    of the update, or of the evaluation report, whose receipt is awaited; `lacking` is how many of its chunks the last
    receipt asked for (-1: none did), and `answered_at` when that one was issued."""

    phase: Phase = Phase.RESTING
    not_before: float = 0.0
    attempts: int = 0
    nonce: str = ""
    offer: TaskOffer | None = None
    update_id: str = ""
    give_up_at: float = 0.0
    evaluation: EvaluationOffer | None = None
    report: EvaluationReport | None = None
    lacking: int = -1
    answered_at: int = -1

    @property
    def lease_until(self) -> float | None:
        """When the lease of the work in hand ends (Unix seconds); None where none is in hand, or it is done."""
        lease = self.offer or self.evaluation
        return float(lease.deadline) if lease and self.phase in (Phase.TRAINING, Phase.EVALUATING) else None


@dataclass(frozen=True, slots=True)
class Looked:
    """The agent looked at clock and sensors. `nonce` (32 hex) and `draw` (uniform [0, 1)) are there to be used.

    `trusted`: whether the wall clock can be believed. By one that cannot, no lease ends and nothing is given up.
    """

    now: float
    may_train: bool
    may_send: bool
    nonce: str
    draw: float
    trusted: bool = True


@dataclass(frozen=True, slots=True)
class Offered:
    """A verified offer for the check-in with this nonce."""

    now: float
    offer: TaskOffer


@dataclass(frozen=True, slots=True)
class EvaluationAsked:
    """A verified evaluation offer for the check-in with this nonce."""

    now: float
    offer: EvaluationOffer


@dataclass(frozen=True, slots=True)
class ReportMade:
    """The version was scored: this is what leaves the device."""

    now: float
    report: EvaluationReport


@dataclass(frozen=True, slots=True)
class Declined:
    """The offer is not taken (the ledger, an unknown rule): nothing is trained for it. `not_before` (Unix seconds):
    when the ledger would let the device take part, if time alone changes that."""

    now: float
    draw: float
    reason: str
    not_before: float = 0.0


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
    | Declined
    | EvaluationAsked
    | ReportMade
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
class GoOn:
    """Publish the pieces of the update that no broker has taken since this process began."""

    update_id: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Deal with the kept vector as the verdict says, empty the outbox, and note the verdict in the ledger."""

    update_id: str
    verdict: str


@dataclass(frozen=True, slots=True)
class ScoreVersion:
    """Get the version and score it; ends in BaseUnreachable, BaseGone, Interrupted, CannotTrain or ReportMade."""

    offer: EvaluationOffer


@dataclass(frozen=True, slots=True)
class SendReport:
    """Publish the evaluation report."""

    report: EvaluationReport


Effect = (
    AskForWork | FetchBase | Train | DropTraining | SendUpdate | AskStatus | GoOn | Settle | ScoreVersion | SendReport
)
Effects = tuple[Effect, ...]
