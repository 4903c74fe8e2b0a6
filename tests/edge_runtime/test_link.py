"""The link's own rules over a transport in memory: when it connects, what a broken upload costs, what outlives it."""

import math
from dataclasses import dataclass, field

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime import backoff
from edge_runtime.identity import Identity
from edge_runtime.link import LIMIT_BYTES, Link, LinkMemory, encode_memory, read_memory
from edge_runtime.ports import Outgoing, StorageFull, TooLarge, Unreachable
from tests.edge_runtime.fakes import Entropy, FakeClock
from wire_contract import envelope
from wire_contract.messages import DeviceReport, decode_message

WHO = Identity(Ed25519PrivateKey.from_private_bytes(b"d" * 32))
TEN_PM = 1_800_000_000.0


@dataclass
class ScriptedTransport:
    """Takes messages while `takes` lasts (None: for ever), each in `seconds_each` of the clock; then it breaks."""

    clock: FakeClock
    takes: int | None = None
    seconds_each: float = 0.0
    limit_bytes: int = 1 << 20
    up: bool = True
    connected: bool = False
    wills: list[Outgoing] = field(default_factory=list)
    arrived: list[Outgoing] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def connect(self, will, subscriptions):
        if not self.up:
            raise Unreachable("down")
        self.wills.append(will)
        self.connected = True

    def publish(self, message):
        if self.takes == 0:
            self.connected = False
            raise Unreachable("cut")
        if self.takes is not None:
            self.takes -= 1
        self.clock.time += self.seconds_each
        self.arrived.append(message)
        self.taken.append(message.topic)

    def flush(self, timeout_s):
        if not self.connected:
            raise Unreachable("cut")

    def acknowledged(self):
        taken, self.taken = tuple(self.taken), []
        return taken

    def receive(self, timeout_s):
        return []

    def drop(self):
        self.connected = False

    disconnect = drop


class Bench:
    def __init__(self, **more):
        self.clock = FakeClock(TEN_PM)
        self.transport = ScriptedTransport(self.clock)
        self.kept = []
        self.link = self.new_process(**more)

    def new_process(self, **more):
        memory = read_memory(self.kept[-1] if self.kept else None)
        self.link = Link(
            self.transport, WHO, "keyboard", "litert 2", self.clock, Entropy(1), memory=memory,
            remember=lambda memory: self.kept.append(encode_memory(memory)), **more,
        )  # fmt: skip
        return self.link


@pytest.fixture
def bench():
    return Bench()


def pieces(count=10, size=20_000, update="ee" * 16):
    prefix = f"fl/v1/up/0/{WHO.device}/{update}"
    return [(f"{prefix}/init", b"i" * 300), *((f"{prefix}/{i}", bytes([i]) * size) for i in range(count))]


def fail_to_connect(bench, draw):
    with pytest.raises(Unreachable):
        bench.link.keep(True, (0, 0))
    bench.link.lose(draw)


def test_a_broken_upload_knows_what_got_through_and_the_rest_is_all_that_is_lacking(bench):
    bench.link.keep(True, (0, 0))
    bench.transport.takes = 4
    with pytest.raises(Unreachable):
        bench.link.send(pieces(), lambda: True)
    bench.link.lose(0.0)
    assert bench.link.lacking(pieces()) == pieces()[4:]
    bench.transport.takes = None
    bench.link.keep(True, (0, 0))
    assert bench.link.send(bench.link.lacking(pieces()), lambda: True)
    assert [message.topic for message in bench.transport.arrived] == [topic for topic, _ in pieces()]
    assert bench.link.lacking(pieces()) == []


def test_what_the_aggregator_asks_for_is_sent_whatever_the_broker_had_acknowledged(bench):
    bench.link.keep(True, (0, 0))
    bench.link.send(pieces(), lambda: True)
    assert bench.link.send(pieces()[3:5], lambda: True)
    assert [message.topic for message in bench.transport.arrived[-2:]] == [topic for topic, _ in pieces()[3:5]]
    bench.transport.takes = 0
    with pytest.raises(Unreachable):
        bench.link.send(pieces()[5:7], lambda: True)
    # The broker lost these: its older acknowledgement counts no more.
    assert bench.link.lacking(pieces()) == pieces()[5:7]


def test_nothing_is_lacking_of_an_update_whose_sending_this_process_did_not_begin(bench):
    bench.link.keep(True, (0, 0))
    assert bench.link.lacking(pieces()) == []
    bench.link.send(pieces()[:3], lambda: True)
    assert bench.link.lacking(pieces(update="dd" * 16)) == []
    bench.link.send(pieces(update="dd" * 16)[:2], lambda: True)
    assert bench.link.lacking(pieces()) == []


def test_between_two_pieces_a_fallen_condition_stops_the_upload(bench):
    bench.link.keep(True, (0, 0))
    left = [3]

    def may_go_on():
        left[0] -= 1
        return left[0] >= 0

    assert bench.link.send(pieces(), may_go_on) is False
    assert len(bench.transport.arrived) == 3 and bench.link.lacking(pieces()) == pieces()[3:]


def test_an_update_with_one_piece_too_large_is_refused_before_any_of_it_is_sent(bench):
    bench.link.keep(True, (0, 0))
    bench.transport.limit_bytes = 20_050
    with pytest.raises(TooLarge, match="20050 bytes"):
        bench.link.send(pieces(), lambda: True)
    assert bench.transport.arrived == []


def test_the_next_updates_chunks_follow_the_rate_that_an_upload_had_also_after_a_restart(bench):
    assert bench.link.chunk_bytes(32_768) == 32_768
    bench.link.keep(True, (0, 0))
    # 20 kB in ten seconds each: 2 kB/s, of which a quarter of a minute carries 30 kB.
    bench.transport.seconds_each = 10.0
    bench.link.send(pieces(), lambda: True)
    assert bench.link.chunk_bytes(32_768) == 16_384
    assert bench.new_process().chunk_bytes(32_768) == 16_384


def test_the_brokers_packet_limit_bounds_the_next_updates_chunks_also_while_it_is_away(bench):
    bench.link.keep(True, (0, 0))
    bench.transport.limit_bytes = 10_000
    bench.link.send(pieces(size=5000), lambda: True)
    bench.link.drop()
    assert bench.link.limit_bytes == 10_000 and bench.link.chunk_bytes(32_768) == 8192
    assert bench.new_process().chunk_bytes(32_768) == 8192


def test_waits_grow_to_ten_minutes_and_outlive_the_process(bench):
    bench.transport.up = False
    waits = []
    for _ in range(9):
        fail_to_connect(bench, 0.999)
        waits.append(read_memory(bench.kept[-1]).not_before - bench.clock.time)
        bench.new_process()
        bench.link.keep(True, (0, 0))  # Not yet: it does not even try.
        bench.clock.time += waits[-1]
    assert [round(wait) for wait in waits] == [5, 10, 20, 40, 80, 160, 320, 599, 599]


def test_a_connection_that_opens_and_breaks_at_once_is_no_success(bench):
    bench.transport.takes = 0
    waits = []
    for _ in range(6):
        bench.link.keep(True, (0, 0))
        with pytest.raises(Unreachable):
            bench.link.report((1, 1))
            bench.link.flush()
        bench.link.lose(0.999)
        waits.append(read_memory(bench.kept[-1]).not_before - bench.clock.time)
        bench.clock.time += waits[-1]
    assert [round(wait) for wait in waits] == [5, 10, 20, 40, 80, 160]
    bench.transport.takes = None
    bench.link.keep(True, (0, 0))
    bench.link.report((1, 1))
    bench.link.flush()
    assert read_memory(bench.kept[-1]).attempts == 0


def test_a_wait_that_a_wrong_clock_set_years_ahead_does_not_hold(bench):
    bench.kept.append(encode_memory(LinkMemory(attempts=3, not_before=TEN_PM + 10 * 365 * 86_400)))
    bench.new_process().keep(True, (0, 0))
    assert bench.link.connected


def test_when_the_night_opens_each_device_waits_for_its_own_moment_and_later_ones_do_not_wait():
    bench = Bench(spread_s=900.0)
    mine = backoff.night_start(WHO.device, TEN_PM, 900.0)
    assert TEN_PM < mine < TEN_PM + 900
    for moment, connected in ((TEN_PM, False), (mine - 1, False), (mine, True)):
        bench.clock.time = moment
        bench.new_process(spread_s=900.0).keep(True, (0, 0), opened_at=TEN_PM)
        assert bench.link.connected is connected
    bench.link.drop()
    bench.clock.time = TEN_PM + 900
    bench.new_process(spread_s=900.0).keep(True, (0, 0), opened_at=TEN_PM)
    assert bench.link.connected
    bench.link.drop()
    bench.new_process(spread_s=900.0).keep(True, (0, 0), opened_at=None)
    assert bench.link.connected


def test_will_and_report_of_one_connection_share_a_nonce_and_the_next_has_another(bench):
    nonces = []
    for _ in range(2):
        bench.link.keep(True, (0, 0))
        bench.link.report((1, 1))
        bench.link.leave((1, 1))
        will, online, offline = bench.transport.wills[-1], *bench.transport.arrived[-2:]
        reports = [
            decode_message(envelope.verify(message.payload, "report", WHO.public_key), DeviceReport)
            for message in (will, online, offline)
        ]
        assert [report.online for report in reports] == [False, True, False]
        assert will.retain and online.retain and offline.retain
        assert len({report.nonce for report in reports}) == 1
        nonces.append(reports[0].nonce)
    assert nonces[0] != nonces[1]


def test_a_full_disk_costs_the_memory_and_not_the_link(bench):
    def full(memory):
        raise StorageFull("no room")

    link = Link(bench.transport, WHO, "keyboard", "litert 2", bench.clock, Entropy(1), remember=full)
    bench.transport.up = False
    with pytest.raises(Unreachable):
        link.keep(True, (0, 0))
    link.lose(0.5)
    assert link.notes.refused == ["storage_full", "unreachable"]
    link.keep(True, (0, 0))
    bench.clock.time += 3
    bench.transport.up = True
    link.keep(True, (0, 0))
    assert link.connected


@pytest.mark.parametrize("data", [None, b"", b"\xc1", b"\x80", b"\x81\xa8attempts\xa1x"])
def test_a_memory_that_cannot_be_read_is_a_new_one(data):
    assert read_memory(data) == LinkMemory(limit_bytes=LIMIT_BYTES)


@pytest.mark.parametrize("broken", [
    {"rate": math.inf}, {"rate": math.nan}, {"rate": -1.0}, {"rate": 1e300}, {"attempts": -1}, {"limit_bytes": -1},
])  # fmt: skip
def test_a_memory_with_a_value_that_cannot_be_is_a_new_one(broken):
    assert read_memory(msgspec.msgpack.encode(broken)) == LinkMemory()
