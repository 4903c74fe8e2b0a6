"""A slow or full disk: new work is turned away clearly, nothing acknowledged is lost, and it goes on by itself."""

import threading
import time

import pytest
import sqlalchemy as sa

from cloud_aggregator import operator_view as view
from cloud_aggregator.adapters import mqtt
from cloud_aggregator.adapters.incoming import Grouping, Incoming
from cloud_aggregator.back_pressure import BackPressure, Limits
from cloud_aggregator.errors import StorageFull
from cloud_aggregator.ports import Message
from tests.cloud_aggregator.fleet import Aggregator, phones, update_id_of
from wire_contract.messages import TurnedAway


def test_a_backlog_above_the_bound_is_slow_until_it_has_halved():
    pressure = BackPressure(Limits(backlog_s=10.0, reserve_bytes=0))
    assert pressure.now().name == ""
    pressure.committed(2.0, waiting_groups=4)
    assert pressure.now().name == ""
    pressure.committed(2.0, waiting_groups=6)
    assert pressure.now().name == "storage slow"
    pressure.committed(2.0, waiting_groups=4)
    assert pressure.now().name == "storage slow"
    pressure.committed(2.0, waiting_groups=2)
    assert pressure.now().name == ""


def test_one_slow_commit_among_fast_ones_is_no_slow_disk():
    pressure = BackPressure(Limits(backlog_s=10.0, reserve_bytes=0))
    for seconds in (0.1, 0.1, 5.0):
        pressure.committed(seconds, waiting_groups=5)
    assert pressure.now().name == ""
    for _ in range(20):
        pressure.committed(5.0, waiting_groups=5)
    assert pressure.now().name == "storage slow"


def test_less_room_than_the_reserve_is_full_and_unknown_room_is_not():
    pressure = BackPressure(Limits(reserve_bytes=1000))
    pressure.measured_room(None)
    assert pressure.now().name == ""
    pressure.measured_room(999)
    assert (pressure.now().name, pressure.now().told) == (
        "storage full",
        "999 bytes are left, 1000 are kept in reserve",
    )
    pressure.measured_room(1000)
    assert pressure.now().name == ""


@pytest.mark.parametrize("slow", [True, False])
def test_under_pressure_no_new_lease_is_given_but_a_live_one_is(tmp_path, slow):
    aggregator = Aggregator(tmp_path / "d").found()
    holder, newcomer = phones(aggregator, 2)
    lease = holder.lease().lease
    pressure = aggregator.service.pressure
    if slow:
        pressure.committed(9.0, waiting_groups=99)
    else:
        pressure.failed_full("the database failed: full")
    aggregator.take(newcomer.check_in_message(), holder.check_in_message())
    if not slow:
        pressure.failed_full("the database failed: full")
    aggregator.turn()
    assert holder.replies()[-1].lease == lease
    away = newcomer.replies()[-1]
    assert isinstance(away, TurnedAway)
    assert away.reason.startswith("storage slow: " if slow else "storage full: ")
    assert (away.retry.earliest, away.retry.latest) == (away.issued_at + 10_800, away.issued_at + 21_600)
    with aggregator.database.reading() as records:
        shown = view.status_view(records, 0, pressure.now())
    if slow:
        assert shown["health"].startswith("storage slow, new work is turned away: a group takes")
        assert shown["storage"]["state"] == "storage slow"


class Disk:
    """A disk of the tests that has no more room than the database takes now, until it is emptied."""

    def __init__(self, aggregator):
        self.engine = aggregator.database._engine
        self.full = True
        self.engine.dispose()
        sa.event.listen(self.engine, "connect", self._limit)

    def _limit(self, connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages if self.full else 1 << 30}")

    def empty(self):
        self.full = False
        self.engine.dispose()


def test_a_full_disk_refuses_new_work_loses_none_and_goes_on_by_itself(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    stored, late, newcomer = phones(aggregator, 3)
    updates = {phone: phone.update(phone.lease(), sealed=bytes(range(256)) * 200, chunk_bytes=32_768)
               for phone in (stored, late)}  # fmt: skip
    aggregator.take(*updates[stored])
    disk = Disk(aggregator)
    check_in = newcomer.check_in_message()
    group = [*updates[late], check_in]
    with pytest.raises(StorageFull) as failure:
        aggregator.take(*group)
    # The check-in is answered though nothing can be stored; the update is not acknowledged.
    assert failure.value.answered == [check_in]
    away = newcomer.replies()[-1]
    assert (away.nonce, away.reason.split(":")[0]) == (newcomer.last_nonce, "storage full")
    assert aggregator.update_row(update_id_of(updates[late])) is None
    assert aggregator.update_row(update_id_of(updates[stored])).state == "received"
    with aggregator.database.reading() as records:
        shown = view.status_view(records, 0, aggregator.service.pressure.now())
        assert (
            bytes(records.sealed_bytes(aggregator.update_row(update_id_of(updates[stored])).id))
            == bytes(range(256)) * 200
        )
    assert shown["health"].startswith("storage full, new work is turned away: the database failed")
    disk.empty()
    aggregator.take(*updates[late])
    assert aggregator.update_row(update_id_of(updates[late])).state == "received"
    assert aggregator.service.pressure.now().name == ""
    assert aggregator.events()["storage full"] == 1
    aggregator.turn()
    assert sum(len(phone.receipts()) for phone in (stored, late)) == 2


def test_an_unsigned_check_in_gets_no_answer_from_a_full_disk(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    one, two = phones(aggregator, 2)
    stolen = type(one.check_in_message())(one.check_in_message().topic, two.check_in_message().payload)
    large = one.update(one.lease(), sealed=bytes(60_000), chunk_bytes=32_768)
    sent = len(aggregator.wire.sent)
    Disk(aggregator)
    with pytest.raises(StorageFull) as failure:
        aggregator.take(stolen, *large)
    assert failure.value.answered == []
    assert len(aggregator.wire.sent) == sent


def test_the_room_is_what_disk_and_limit_leave(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    assert aggregator.database.room_bytes() > 0
    Disk(aggregator)
    assert aggregator.database.room_bytes() < 1_000_000


def test_a_group_is_closed_by_its_number_or_its_time():
    incoming = Incoming(Grouping(updates=2, seconds=0.05))
    for number in range(5):
        incoming.put(number)
    assert incoming.group() == [0, 1, 2, 3]
    assert incoming.waiting == 1
    assert incoming.group() == [4]


def test_what_waited_while_a_group_was_stored_is_not_kept_waiting_again():
    incoming = Incoming(Grouping(updates=2, seconds=60.0))
    for number in range(5):
        incoming.put(number)
    assert incoming.group() == [0, 1, 2, 3]
    # An hour later the last one's time is long over; were it counted from now, this would take a minute.
    arrived, item = incoming._items.popleft()
    incoming._items.append((arrived - 3600, item))
    taken = []
    thread = threading.Thread(target=lambda: taken.extend(incoming.group()), daemon=True)
    thread.start()
    thread.join(10)
    assert taken == [4]


def test_whoever_puts_more_than_may_be_held_waits_until_a_group_is_taken():
    incoming = Incoming(Grouping(updates=1, seconds=0.01), held=4)
    put = []

    def fill():
        for number in range(9):
            incoming.put(number)
            put.append(number)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while len(put) < 4 and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.05)
    assert (len(put), incoming.waiting) == (4, 4)
    taken = []
    while len(taken) < 9:
        taken += incoming.group()
        assert incoming.waiting <= 4
    assert taken == list(range(9))
    thread.join(10)


class Full:
    """An intake without room until `room` is set: it answers check-ins, as the service does, and stores nothing."""

    def __init__(self):
        self.room = threading.Event()
        self.answered, self.groups = [], []

    def take_group(self, messages):
        self.groups.append(len(messages))
        if not self.room.is_set():
            asked = [message for message in messages if message.topic.endswith("/req")]
            self.answered += asked
            raise StorageFull("full", answered=asked)


class Connection:
    """What is acknowledged, by message number."""

    def __init__(self):
        self.acknowledged = []

    def ack(self, mid, _qos):
        self.acknowledged.append(mid)


def test_a_check_in_behind_updates_that_find_no_room_is_answered(monkeypatch):
    monkeypatch.setattr(mqtt, "RETRY_SECONDS", 0.01)
    intake, connection = Full(), Connection()
    transport = mqtt.MqttTransport("mqtt://127.0.0.1", "full", grouping=Grouping(updates=4, seconds=0.01))
    thread = threading.Thread(target=transport._take_in, args=(intake,), daemon=True)
    thread.start()

    def bring(mid, topic):
        transport._incoming.put(mqtt._Incoming(Message(topic, b""), mid, connection))

    def until(done):
        end = time.monotonic() + 10
        while not done() and time.monotonic() < end:
            time.sleep(0.005)

    for mid in (1, 2, 3):
        bring(mid, "fl/v1/up/0/x")
    until(lambda: intake.groups)
    for mid in range(4, 12):
        bring(mid, "fl/v1/dev/x/req")
    until(lambda: len(connection.acknowledged) == 8)
    assert connection.acknowledged == list(range(4, 12))
    assert len(intake.answered) == 8
    intake.room.set()
    until(lambda: len(connection.acknowledged) == 11)
    assert connection.acknowledged[8:] == [1, 2, 3]
    assert max(intake.groups) <= 8
    transport.close()
    thread.join(10)


def test_closing_lets_everybody_go_and_what_was_not_taken_is_not_given_out():
    incoming = Incoming(Grouping(), held=1)
    incoming.put(1)
    waits = threading.Thread(target=incoming.put, args=(2,), daemon=True)
    waits.start()
    incoming.close()
    waits.join(10)
    assert not waits.is_alive()
    assert incoming.group() == []
