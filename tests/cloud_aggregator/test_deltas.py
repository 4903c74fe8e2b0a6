"""Which deltas there are and which of them stay; then pieces over the broker, through the service's own passes."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.config import DownlinkSettings
from cloud_aggregator.deltas import Pair, choose, history_of, hops_between, unneeded
from cloud_aggregator.model_chunks import DAY_S, MAX_BYTES_A_SECOND, MAX_REQUESTS_A_SECOND, BrokerBytes
from cloud_aggregator.ports import Message
from tests.cloud_aggregator.fleet import NOW, Aggregator, Phone, make_bundle, phones, run_step
from wire_contract import delta, envelope
from wire_contract.messages import ModelChunk, ModelDenied, ModelRequest, decode_message, encode_message
from wire_contract.topics import DeviceTopic, build_topic


def test_an_announced_file_is_offered_from_the_last_files_of_either_track_and_no_others():
    history = history_of(["t9", "t8", "t7", "t6"], ["t7", "t4", "t2"], 2)
    assert history.targets == ("t9", "t7")
    for base in ("t8", "t7", "t4", "t2"):
        assert history.offers(Pair(base, "t9"))
    for pair in (Pair("t6", "t9"), Pair("t9", "t9"), Pair("t9", "t8"), Pair("x", "t9"), Pair("t8", "x")):
        assert not history.offers(pair)
    assert history.offers(Pair("t9", "t7"))
    assert not history_of(["t9", "t8"], ["t9"], 0).offers(Pair("t8", "t9"))


def test_an_undo_that_repeats_a_file_makes_no_pair_of_a_file_with_itself():
    history = history_of(["a", "c", "b", "a"], [], 8)
    assert history.training == ("a", "c", "b")
    assert hops_between(history, Pair("b", "a")) == (Pair("b", "c"), Pair("c", "a"))


def test_a_chain_goes_over_neighbours_and_a_single_hop_is_no_chain():
    history = history_of(["e", "d", "c", "b", "a"], [], 8)
    assert hops_between(history, Pair("b", "e")) == (Pair("b", "c"), Pair("c", "d"), Pair("d", "e"))
    assert hops_between(history, Pair("d", "e")) == ()
    assert hops_between(history, Pair("x", "e")) == ()
    assert hops_between(history, Pair("e", "b")) == ()


def test_the_smallest_is_sent_and_nothing_that_is_no_smaller_than_the_file():
    assert choose([b"xxx", b"xx"], 100) == b"xx"
    assert choose([b"xxx"], 3) is None and choose([], 3) is None


@given(st.lists(st.sampled_from("abcdefgh"), max_size=8), st.lists(st.sampled_from("abcdefgh"), max_size=8),
       st.integers(1, 4))  # fmt: skip
def test_what_stays_is_bounded_and_holds_all_that_is_offered(training, refreshes, versions):
    history = history_of(training, refreshes, versions)
    cached = {Pair(a, b) for a in "abcdefgh" for b in "abcdefgh"}
    stays = cached - unneeded(cached, [history])
    assert len(stays) <= 6 * versions + 2
    assert {pair for pair in cached if history.offers(pair)} <= stays


def test_each_device_has_its_bytes_a_day_and_all_of_them_together_theirs_a_second():
    sent = BrokerBytes()
    assert sent.take("a", 600, 1000, NOW) is None
    assert sent.take("a", 600, 1000, NOW) == "too_much"
    assert sent.take("b", 600, 1000, NOW) is None
    assert sent.take("a", 600, 1000, NOW + DAY_S) is None
    assert sent.take("c", MAX_BYTES_A_SECOND, 1 << 30, NOW + DAY_S) == "later"
    assert sent.take("c", MAX_BYTES_A_SECOND, 1 << 30, NOW + DAY_S + 1) is None


class Ready:
    """`ports.Deltas` of the tests: deltas that are there, and pairs that are being made."""

    def __init__(self):
        self.files, self.making = {}, set()

    def path(self, pair):
        return self.files.get(pair)

    def begin(self, population, pair):
        pass

    def makes(self, pair):
        return pair in self.making

    def prepare(self, population):
        pass

    def troubles(self):
        return []

    def close(self):
        pass


class Asking:
    """A phone that asks for pieces of version 2, and the aggregator's files."""

    def __init__(self, folder, **downlink):
        self.aggregator = Aggregator(folder).found(downlink=DownlinkSettings(**downlink))
        fleet = phones(self.aggregator, 4)
        run_step(self.aggregator, fleet)
        self.aggregator.turn()
        self.phone = fleet[0]
        self.deltas = self.aggregator.service.deltas = Ready()
        self.wanted = self.aggregator.manifest().sha256
        self.held = make_bundle().manifest.sha256
        self.file = self.aggregator.blobs.get(self.wanted)

    def ask(self, phone=None, **changes):
        """Send one request and return what came of it: pieces, or one denial."""
        phone = phone or self.phone
        values = {"device": phone.id, "nonce": phone.nonce(), "sent_at": NOW, "wanted": self.wanted,
                  "held": self.held, "first": 0, "count": 4, **changes}  # fmt: skip
        body = encode_message(ModelRequest(**values))
        topic = build_topic(DeviceTopic(phone.id, "req"))
        self.aggregator.wire.sent.clear()
        self.aggregator.take(Message(topic, envelope.sign(phone.key, "request", body)))
        self.aggregator.turn(1)
        at = build_topic(DeviceTopic(phone.id, "down/model"))
        pieces = [decode_message(data, ModelChunk) for topic, data, _ in self.aggregator.wire.sent if topic == at]
        denials = phone.answers("down/task", "task", ModelDenied)
        assert len(denials) <= 1 and not (pieces and denials)
        if denials:
            assert denials[0].nonce == values["nonce"] and denials[0].retry.earliest > NOW
            return denials[0].code
        return pieces


@pytest.fixture
def asking(tmp_path):
    return Asking(tmp_path / "data", mqtt="files")


def test_a_delta_comes_as_pieces_that_join_to_it(asking, tmp_path):
    found = delta.encode(make_bundle().model, asking.file, asking.aggregator.manifest())
    path = tmp_path / "delta"
    path.write_bytes(found)
    asking.deltas.files[Pair(asking.held, asking.wanted)] = path
    pieces = asking.ask()
    assert b"".join(piece.data for piece in pieces) == found
    assert {(p.wanted, p.held, p.size_bytes) for p in pieces} == {(asking.wanted, asking.held, len(found))}
    assert asking.ask(first=1) == "past_the_end"


def test_a_long_file_comes_in_pieces_of_48_kib_four_at_a_time(asking, tmp_path):
    whole = bytes(range(256)) * 1000
    path = tmp_path / "long"
    path.write_bytes(whole)
    asking.deltas.files[Pair(asking.held, asking.wanted)] = path
    first, rest = asking.ask(), asking.ask(first=4)
    assert [p.index for p in first + rest] == [0, 1, 2, 3, 4, 5]
    assert [len(p.data) for p in first + rest] == [49_152] * 5 + [256_000 - 5 * 49_152]
    assert b"".join(p.data for p in first + rest) == whole
    assert [p.index for p in asking.ask(first=2, count=1)] == [2]


def test_a_whole_file_comes_only_where_the_operator_allows_files(asking, tmp_path):
    (piece,) = asking.ask(held="")
    assert hashlib.sha256(piece.data).hexdigest() == asking.wanted
    careful = Asking(tmp_path / "careful")
    assert careful.ask(held="") == "deltas_only"
    assert careful.ask() == "no_delta"
    assert Asking(tmp_path / "off", mqtt="off").ask() == "off"


def test_what_is_not_announced_not_made_yet_or_not_there_is_denied_by_name(asking):
    assert asking.ask(wanted="ab" * 32) == "not_announced"
    assert asking.ask(held="ab" * 32) == "no_delta"
    asking.deltas.making.add(Pair(asking.held, asking.wanted))
    assert asking.ask() == "later"


def test_a_device_that_has_had_its_bytes_today_is_told_so_and_another_is_served(tmp_path):
    asking = Asking(tmp_path / "data", mqtt="files", mqtt_bytes_a_day=1000)
    assert len(asking.ask(held="")) == 1
    assert asking.ask(held="") == "too_much"
    other = Phone(2, asking.aggregator)
    assert len(asking.ask(other, held="")) == 1


def test_a_file_that_vanishes_in_this_moment_stops_no_pass(asking, tmp_path):
    asking.deltas.files[Pair(asking.held, asking.wanted)] = tmp_path / "gone"
    assert asking.ask() == "later"


def test_a_request_that_another_device_signed_is_not_answered(asking):
    other = Phone(2, asking.aggregator)
    assert asking.ask(device=other.id) == []


def test_a_request_that_is_played_again_is_not_answered_and_takes_none_of_the_devices_bytes(tmp_path):
    asking = Asking(tmp_path / "data", mqtt="files", mqtt_bytes_a_day=1500)
    nonce = "ab" * 16
    assert len(asking.ask(held="", sent_at=NOW - 5, nonce=nonce)) == 1
    assert asking.ask(held="", sent_at=NOW - 5, nonce=nonce) == []
    assert asking.ask(held="", sent_at=NOW - 6) == []
    assert len(asking.ask(held="", sent_at=NOW - 5, nonce="cd" * 16)) == 1
    assert asking.ask(held="", sent_at=NOW - 5, nonce=nonce) == []
    assert asking.ask(held="", sent_at=NOW) == "too_much"


def test_a_device_that_always_names_the_same_second_is_remembered_in_bounded_memory():
    sent = BrokerBytes()
    request = ModelRequest(device="ab" * 16, nonce="0" * 32, sent_at=NOW, wanted="ab" * 32, held="", first=0, count=4)
    asked = [sent.is_next(msgspec.structs.replace(request, nonce=f"{i:032x}")) for i in range(1000)]
    assert sum(asked) == MAX_REQUESTS_A_SECOND and len(sent.asked[request.device][1]) == MAX_REQUESTS_A_SECOND
    assert sent.is_next(msgspec.structs.replace(request, sent_at=NOW + 1))
