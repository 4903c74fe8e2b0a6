"""What messages mean to a device, and what those mean that are not for it: no event, and no other harm."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime import session
from edge_runtime.identity import Identity
from edge_runtime.inbox import Inbox
from edge_runtime.ports import Received
from edge_runtime.turn_report import Notes
from tests.edge_runtime.test_session import NOW, WINDOW, state
from wire_contract import envelope
from wire_contract.errors import ContractError, Unsupported, Untrusted
from wire_contract.messages import Enrolled, Receipt, StatusQuery, TurnedAway, encode_message
from wire_contract.topics import DeviceTopic, ModelTopic, build_topic

AGGREGATOR = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
WHO = Identity(Ed25519PrivateKey.from_private_bytes(b"d" * 32))
OTHER = "e" * 32
ASKED = "2" * 32


class Keeper:
    """A version keeper that notes what it is told."""

    def __init__(self):
        self.told = []

    def announce(self, track, signed):
        self.told.append((track, signed))


class Desk:
    """An inbox and what it told its clock and its keeper."""

    def __init__(self):
        enrolled = Enrolled(
            device=WHO.device, population="keyboard", aggregator_key=envelope.public_bytes(AGGREGATOR),
            manifest_key=b"m" * 32, broker_url="", model_url="", shard=0, issued_at=1,
        )  # fmt: skip
        self.proved, self.keeper, self.notes = [], Keeper(), Notes()
        self.inbox = Inbox(WHO, enrolled, self.keeper, lambda: 0.5, self.prove, lambda nonce: nonce == ASKED)

    def prove(self, server_time, *, fresh):
        self.proved.append((server_time, fresh))

    def read(self, topic, payload, at):
        return self.inbox.read(Received(build_topic(topic), payload, 0), at, self.notes, NOW)

    def down(self, leaf, kind, message, at, key=AGGREGATOR):
        signed = envelope.sign(key, kind, encode_message(message))
        return self.read(DeviceTopic(WHO.device, leaf), signed, at)


@pytest.fixture
def desk():
    return Desk()


def turned_away(nonce=ASKED, device=WHO.device, issued_at=int(NOW)):
    return TurnedAway(device=device, nonce=nonce, reason="enough", issued_at=issued_at, retry=WINDOW)


def receipt(update_id="e" * 32, device=WHO.device):
    return Receipt(device=device, update_id=update_id, verdict="accepted", reason="", issued_at=int(NOW) - 7)


CHECKING = state(session.Phase.CHECKING_IN, nonce=ASKED)


def test_a_reply_that_came_at_once_tells_the_time_and_one_that_did_not_says_at_least(desk):
    assert isinstance(desk.down("down/task", "task", turned_away(), CHECKING), session.SentAway)
    assert desk.down("down/task", "task", turned_away(nonce="f" * 32, issued_at=int(NOW) - 9), CHECKING) is None
    assert desk.proved == [(int(NOW), True), (int(NOW) - 9, False)]


def test_a_receipt_never_tells_the_time_for_nobody_knows_how_long_it_waited(desk):
    sending = state(session.Phase.SENDING, attempts=1)
    assert isinstance(desk.down("down/rcpt", "receipt", receipt(), sending), session.Answered)
    assert desk.proved == [(int(NOW) - 7, False)] and desk.notes.receipts == ["accepted"]


def test_a_receipt_for_what_was_not_sent_or_for_another_is_no_event(desk):
    assert desk.down("down/rcpt", "receipt", receipt(), state(session.Phase.SENDING)) is None
    assert desk.notes.refused == ["receipt_before_sending"]
    sending = state(session.Phase.SENDING, attempts=1)
    assert desk.down("down/rcpt", "receipt", receipt(update_id="1" * 32), sending) is None
    assert desk.down("down/rcpt", "receipt", receipt(device=OTHER), sending) is None
    assert desk.notes.receipts == []


def test_a_reply_to_another_device_is_no_event_and_tells_no_time(desk):
    assert desk.down("down/task", "task", turned_away(device=OTHER), CHECKING) is None
    assert desk.proved == []


def test_a_kind_of_message_that_no_reply_has_is_refused_by_name(desk):
    query = StatusQuery(device=WHO.device, update_id="e" * 32, nonce=ASKED, sent_at=1)
    with pytest.raises(ContractError):
        desk.down("down/task", "task", query, CHECKING)
    unknown = envelope.sign(AGGREGATOR, "task", b"\x81\xa4type\xadof-the-future")
    with pytest.raises(Unsupported):
        desk.read(DeviceTopic(WHO.device, "down/task"), unknown, CHECKING)
    assert desk.proved == []


def test_what_another_key_or_for_another_purpose_was_signed_is_refused_before_it_is_read(desk):
    with pytest.raises(Untrusted):
        desk.down("down/task", "task", turned_away(), CHECKING, key=WHO.key)
    with pytest.raises(ContractError):
        desk.down("down/task", "receipt", turned_away(), CHECKING)
    assert desk.proved == []


def test_topics_of_others_are_passed_over(desk):
    for topic in (DeviceTopic(OTHER, "down/task"), DeviceTopic(OTHER, "down/rcpt"), ModelTopic("other", "training")):
        assert desk.read(topic, b"\xc1 whatever", CHECKING) is None
    assert desk.keeper.told == [] and desk.notes.refused == []
