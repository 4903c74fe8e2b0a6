"""What devices and strangers may leave in the database is bounded in bytes and in days."""

import msgspec
import pytest

from cloud_aggregator.ports import Message
from tests.cloud_aggregator.fleet import Aggregator, big_update, phones, submit, update_id_of
from wire_contract.messages import Chunk, encode_message
from wire_contract.topics import UpdateTopic, build_topic


@pytest.fixture
def aggregator(tmp_path, database_url):
    """This file's stories over each database."""
    made = Aggregator(tmp_path / "data", database_url=database_url).found()
    yield made
    made.database.close()


def chunk_message(phone, update_id, index, data):
    body = encode_message(Chunk(update_id=update_id, index=index, data=data))
    return Message(build_topic(UpdateTopic(0, phone.id, update_id, index)), body)


def stored_bytes(aggregator):
    """All update bytes in the database, whole or not, counted past the program's own bookkeeping."""
    with aggregator.database._engine.connect() as connection:
        return connection.exec_driver_sql(
            "select (select coalesce(sum(length(data)), 0) from chunks)"
            " + (select coalesce(sum(length(data)), 0) from sealed_updates)"
        ).scalar_one()


def fill_with_strangers_chunks(aggregator, phone, ids=4):
    """400 chunks of 48 KiB that no signed init asks for, 19 MB."""
    data = bytes(48 * 1024)
    messages = [chunk_message(phone, f"{i % ids:032x}", i // ids, data) for i in range(400)]
    # 16 MiB is 341 of them and 16 KiB: not a byte of room is left.
    aggregator.take(*messages, chunk_message(phone, "ee" * 16, 0, bytes(16 * 1024)))


def test_chunks_that_no_signed_init_asks_for_are_bounded_and_take_no_room_from_a_real_update(aggregator, phone):
    fill_with_strangers_chunks(aggregator, phone)
    assert stored_bytes(aggregator) == 16 * 1024 * 1024
    assert aggregator.events()["too much unfinished"] > 0
    receipt, _ = submit(aggregator, phone, phone.update(phone.lease()))
    assert receipt.verdict == "accepted"


def test_refusals_do_not_make_stored_bytes_uncounted(aggregator, phone):
    """Each round an init refused at the door for the id under which chunks lie: the bound still holds."""
    offer = phone.lease()
    for round_number in range(3):
        fill_with_strangers_chunks(aggregator, phone, ids=4 + round_number)
        for i in range(4 + round_number):
            topic = build_topic(UpdateTopic(0, phone.id, f"{i:032x}", None))
            aggregator.take(Message(topic, b"bad"), Message(topic, phone.update(offer)[0].payload))
    aggregator.turn()
    assert stored_bytes(aggregator) <= 16 * 1024 * 1024


def test_chunks_without_an_init_go_after_a_day_and_what_is_open_stays(aggregator, phone):
    fill_with_strangers_chunks(aggregator, phone)
    messages = big_update(phone, phone.lease())
    aggregator.take(*messages[:2])
    aggregator.turn(86_400 + 1)
    assert stored_bytes(aggregator) == 1024
    assert aggregator.update_row(update_id_of(messages)).state == "open"


def test_refused_and_unfinished_rows_go_after_their_days_and_accepted_ones_stay(aggregator):
    accepted, refused, unfinished = phones(aggregator, 3)
    updates = {
        accepted: accepted.update(accepted.lease()),
        refused: refused.update(refused.lease(), layout_fingerprint="ab" * 32),
        unfinished: big_update(unfinished, unfinished.lease())[:-1],
    }
    for messages in updates.values():
        aggregator.take(*messages)
    aggregator.turn()
    aggregator.turn(29 * 86_400)
    assert all(aggregator.update_row(update_id_of(messages)) for messages in updates.values())
    aggregator.turn(2 * 86_400)
    kept = [phone for phone in updates if aggregator.update_row(update_id_of(updates[phone]))]
    assert kept == [accepted]
    assert stored_bytes(aggregator) == sum(
        len(msgspec.msgpack.decode(message.payload)["data"]) for message in updates[accepted][1:]
    )
