"""What a message that came means: the session's next event, a version for the keeper, or nothing.

The rules:
- what the aggregator says is signed with the key that was pinned at enrolment; an announcement is only bytes until
  `trust` accepts it, and a piece of a version until the whole hashes right;
- what is signed says what time it is at least (`Clock.prove`): a device without a clock of its own learns it so;
- a reply counts once, for the request whose nonce it repeats, and a receipt only for an update that was sent;
- whatever else comes changes nothing.
"""

from collections.abc import Callable
from typing import Protocol

from edge_runtime import session
from edge_runtime.identity import Identity
from edge_runtime.ports import Received
from edge_runtime.turn_report import Notes
from edge_runtime.version_keeper import VersionKeeper
from wire_contract import envelope
from wire_contract.messages import (
    Enrolled,
    EvaluationOffer,
    ModelAnnouncement,
    ModelChunk,
    ModelDenied,
    Receipt,
    TaskOffer,
    TaskReply,
    TurnedAway,
    decode_message,
)
from wire_contract.topics import DeviceTopic, ModelTopic, parse_topic

Draw = Callable[[], float]


class Prove(Protocol):
    """Takes the time that a signed message was made at, and whether it answers a question of ours (`ports.Clock`)."""

    def __call__(self, server_time: float, *, fresh: bool) -> None:
        """See `ports.Clock.prove`."""


class Inbox:
    """One agent's reading of its messages. `draw` gives a uniform number in [0, 1), only when one is used.

    `prove` takes the time that a signed message was issued at; `just_asked` says whether the question with this nonce
    left a moment ago, for an answer may have waited for hours in the broker's queue.
    """

    def __init__(
        self,
        identity: Identity,
        enrolled: Enrolled,
        keeper: VersionKeeper,
        draw: Draw,
        prove: Prove,
        just_asked: Callable[[str], bool],
    ) -> None:
        self._device = identity.device
        self._enrolled = enrolled
        self._keeper = keeper
        self._draw = draw
        self._prove = prove
        self._just_asked = just_asked

    def read(self, received: Received, state: session.State, notes: Notes, now: float) -> session.Event | None:
        """Return the event that a message is in this state, if any. Raises `ContractError`, `StorageFull`."""
        pinned = self._enrolled.aggregator_key
        match parse_topic(received.topic):
            case ModelTopic(population, track) if population == self._enrolled.population:
                announced = decode_message(received.payload, ModelAnnouncement)
                self._keeper.announce(track, announced.signed_manifest, announced.trust)
            case DeviceTopic(device, "down/task") if device == self._device:
                body = envelope.verify(received.payload, "task", pinned)
                reply: TaskOffer | EvaluationOffer | TurnedAway | ModelDenied = decode_message(body, TaskReply)  # type: ignore[arg-type]
                return self._reply_event(reply, state, notes, now)
            case DeviceTopic(device, "down/model") if device == self._device:
                self._keeper.take_chunk(decode_message(received.payload, ModelChunk))
            case DeviceTopic(device, "down/rcpt") if device == self._device:
                receipt = decode_message(envelope.verify(received.payload, "receipt", pinned), Receipt)
                self._prove(receipt.issued_at, fresh=False)
                if receipt.device == self._device and receipt.update_id == state.update_id:
                    if not state.attempts:
                        # Nobody can have judged what was never sent: somebody else spoke in this update's name.
                        notes.refused.append("receipt_before_sending")
                        return None
                    notes.receipts.append(receipt.verdict)
                    return session.Answered(now, receipt, self._draw())
        return None

    def _reply_event(
        self,
        reply: TaskOffer | EvaluationOffer | TurnedAway | ModelDenied,
        state: session.State,
        notes: Notes,
        now: float,
    ) -> session.Event | None:
        if isinstance(reply, ModelDenied):
            if reply.device == self._device:
                self._keeper.chunks.deny(reply, self._draw())
            return None
        if reply.device != self._device:
            return None
        self._prove(reply.issued_at, fresh=self._just_asked(reply.nonce))
        if reply.nonce != state.nonce:
            # An old reply that the broker, or somebody on it, plays again; or one that was asked for its time alone.
            return None
        if isinstance(reply, TurnedAway):
            notes.turned_away = reply.reason
            return session.SentAway(now, reply, self._draw())
        if reply.population != self._enrolled.population or now >= reply.deadline:
            notes.refused.append("offer_over")
            return None
        if isinstance(reply, EvaluationOffer):
            return session.EvaluationAsked(now, reply)
        return session.Offered(now, reply)
