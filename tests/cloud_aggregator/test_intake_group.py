"""A group of messages leaves the rows that its messages would leave one by one; nothing is counted twice."""

import itertools
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_aggregator.adapters import schema
from cloud_aggregator.ingest import take_messages
from tests.cloud_aggregator.fleet import NOW, Aggregator, Phone, big_update, phones, update_id_of
from wire_contract.messages import Chunk, encode_message
from wire_contract.topics import UpdateTopic, build_topic

IGNORED = {"updates": {"id"}, "requests": {"id"}, "events": {"id"}, "meta": set()}
TABLES = ("updates", "chunks", "leases", "requests", "devices")


class Rolled(Exception):  # noqa: N818 - it only ends a transaction
    """Takes back what a trial wrote."""


@pytest.fixture(scope="module")
def deliveries():
    """An aggregator whose rows stay as they are, and messages of all kinds for it."""
    with tempfile.TemporaryDirectory() as folder:
        aggregator = Aggregator(Path(folder) / "d").found()
        fleet = phones(aggregator, 4)
        offers = {phone: phone.lease() for phone in fleet}
        one, two, three, four = fleet
        small, large = one.update(offers[one], chunk_bytes=32_768), big_update(two, offers[two])
        wrong = big_update(three, offers[three])
        lie = Chunk(update_id=update_id_of(wrong), index=1, data=bytes(1024))
        other = one.update(offers[one], chunk_bytes=32_768, examples=9)
        messages = [
            *small, *large, *wrong, *other,
            type(small[0])(wrong[2].topic, encode_message(lie)),
            four.check_in_message(), four.check_in_message(), four.status_message("ab" * 16), four.report_message(),
            four.report_message(online=False), Phone(9, aggregator).check_in_message(),
            four.update(offers[four], lease="00" * 16)[0], type(small[0])("fl/v1/nothing", b""),
            type(small[0])(build_topic(UpdateTopic(0, four.id, "cd" * 16, 0)), b"no chunk"),
            type(small[0])(build_topic(UpdateTopic(0, four.id, update_id_of(large), 0)), large[1].payload),
        ]  # fmt: skip
        yield aggregator, messages
        aggregator.database.close()


def rows_after(aggregator, groups):
    """What the tables hold after these groups, told without the rows' numbers; then all is taken back."""
    found = {}
    try:
        with aggregator.database.transaction() as records:
            for group in groups:
                take_messages(records, group, NOW)
            connection = records._connection
            for name in TABLES:
                table = schema.metadata.tables[name]
                columns = [column for column in table.c if column.name not in IGNORED.get(name, set())]
                found[name] = sorted(map(repr, connection.execute(sa.select(*columns))))
            sealed = sa.select(schema.updates.c.update_id, schema.sealed_updates.c.data)
            sealed = sealed.join_from(
                schema.sealed_updates, schema.updates, schema.sealed_updates.c.id == schema.updates.c.id
            )
            found["sealed"] = sorted(map(repr, connection.execute(sealed)))
            found["events"] = records.count_events()
            raise Rolled
    except Rolled:
        return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_grouping_of_any_delivery_leaves_the_same_rows(deliveries, data):
    aggregator, messages = deliveries
    order = data.draw(st.lists(st.sampled_from(range(len(messages))), min_size=1, max_size=24))
    cuts = data.draw(st.sets(st.integers(1, len(order)), max_size=4))
    chosen = [messages[at] for at in order]
    bounds = [0, *sorted(cuts), len(chosen)]
    groups = [chosen[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    assert rows_after(aggregator, groups) == rows_after(aggregator, [[message] for message in chosen])


def test_an_update_of_one_group_is_one_row_and_one_row_of_sealed_bytes(aggregator, phone):
    messages = phone.update(phone.lease(), chunk_bytes=32_768)
    statements = []
    engine = aggregator.database._engine
    sa.event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: statements.append(statement))
    aggregator.take(*messages)
    inserts = [s.split("(")[0].strip() for s in statements if s.startswith("INSERT")]
    assert sorted(inserts) == ["INSERT INTO meta", "INSERT INTO sealed_updates", "INSERT INTO updates"]


def test_another_update_under_a_taken_lease_has_one_row_however_often_it_comes(aggregator):
    phone, neighbour = phones(aggregator, 2)
    offer, other_offer = phone.lease(), neighbour.lease()
    aggregator.take(*phone.update(offer))
    conflict = phone.update(offer, examples=9)[0]
    aggregator.take(conflict, conflict)
    aggregator.take(conflict, *neighbour.update(other_offer))
    assert aggregator.events() == {"conflict": 3}
    assert aggregator.update_row(update_id_of(neighbour.update(other_offer))).state == "received"
    with aggregator.database.reading() as records:
        assert records.count_refused_at_door(phone.id) == 1


def test_ids_of_updates_rise_and_none_is_given_twice(aggregator):
    fleet = phones(aggregator, 3)
    offers = [phone.lease() for phone in fleet]
    aggregator.take(*fleet[0].update(offers[0]))
    first = aggregator.update_row(update_id_of(fleet[0].update(offers[0]))).id
    with aggregator.database._engine.begin() as connection:
        connection.execute(sa.delete(schema.updates))
    aggregator.take(*fleet[1].update(offers[1]), *fleet[2].update(offers[2]))
    ids = [aggregator.update_row(update_id_of(p.update(o))).id for p, o in zip(fleet[1:], offers[1:], strict=True)]
    assert first < ids[0] < ids[1]


def test_a_chunk_under_another_devices_update_is_an_event_and_nothing_else(aggregator):
    owner, stranger = phones(aggregator, 2)
    messages = big_update(owner, owner.lease())
    aggregator.take(messages[0])
    topic = build_topic(UpdateTopic(0, stranger.id, update_id_of(messages), 0))
    aggregator.take(type(messages[0])(topic, messages[1].payload))
    with aggregator.database.reading() as records:
        assert records.chunk_sizes(update_id_of(messages)) == {}
    assert aggregator.events()["malformed chunk"] == 1
    aggregator.take(*messages[1:])
    assert aggregator.update_row(update_id_of(messages)).state == "received"


def test_the_questions_of_every_pass_are_served_by_an_index(aggregator):
    """A pass must not read every update there ever was."""
    asked = []
    engine = aggregator.database._engine
    sa.event.listen(
        engine, "before_cursor_execute", lambda _c, _k, statement, values, *_: asked.append((statement, values))
    )
    with aggregator.database.reading() as records:
        records.received_updates(9)
        records.count_updates("received")
        records.count_updates("open")
        records.accepted_unused("ab" * 8)
        records.updates_of_version("ab" * 8, 3)
        records.unpublished_receipts(9)
        records.unfinished_bytes("ab" * 16, claimed=False)
        records.count_refused_at_door("ab" * 16)
        records.updates_of(["ab" * 16])
    with engine.connect() as connection:
        for statement, values in list(asked):
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            told = " / ".join(row[3] for row in plan)
            assert "SCAN" not in told.replace("SCAN updates USING", ""), (statement, told)
