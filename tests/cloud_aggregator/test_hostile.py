"""What one device, one stranger or one odd message must not be able to do to everybody else."""

from contextlib import contextmanager
from dataclasses import replace

import msgspec
import pytest

from cloud_aggregator import operator_view as view
from cloud_aggregator.errors import InvalidSetting, InvalidToken, NotFound, StorageFailed
from cloud_aggregator.ingest import MAX_QUERIES
from cloud_aggregator.population import found
from cloud_aggregator.ports import Message
from tests.cloud_aggregator.fleet import (
    NOW,
    POPULATION,
    Aggregator,
    Phone,
    announced,
    make_bundle,
    phones,
    settings,
)
from wire_contract.messages import TaskOffer, TurnedAway


def test_one_device_cannot_make_a_round_by_asking_again_and_again(aggregator, phone):
    aggregator.take(*phone.update(phone.lease()))
    aggregator.turn()
    told = phone.replies()[-1].retry
    for seconds in (0, 1, 600, 298):
        aggregator.clock.value += seconds
        aggregator.take(phone.check_in_message())
        report = aggregator.turn()
        away = phone.replies()[-1]
        assert isinstance(away, TurnedAway)
        assert (away.retry, away.nonce) == (told, phone.last_nonce)
        assert (report.offers, report.turned_away) == (0, 1)
    with aggregator.database.reading() as records:
        assert records.count_leases(records.populations()[0].task, phone.id) == 1
    assert aggregator.clock.value < told.earliest
    aggregator.clock.value = told.earliest
    assert isinstance(phone.lease(), TaskOffer)


def test_a_device_that_was_turned_away_waits_too_and_a_restart_does_not_forget_it(aggregator, phone):
    aggregator.take(phone.check_in_message(examples=0))
    aggregator.turn()
    told = phone.replies()[-1].retry
    aggregator.restart()
    aggregator.clock.value += 60
    aggregator.take(phone.check_in_message())
    aggregator.turn()
    assert isinstance(phone.replies()[-1], TurnedAway)
    assert phone.replies()[-1].retry == told
    aggregator.clock.value = told.earliest
    assert phone.lease()


def test_asking_early_widens_nobodys_window(aggregator):
    early, *others = phones(aggregator, 10)
    aggregator.take(*early.update(early.lease()))
    for phone in others[:8]:
        phone.lease()
    aggregator.take(early.check_in_message(), others[8].check_in_message())
    aggregator.turn()
    # One group of eight is welcome after 900 s; the one that is turned away is the first of the next.
    assert others[8].replies()[-1].retry.latest == NOW + 3 * 900


def test_the_devices_own_date_does_not_open_the_window(aggregator, phone):
    aggregator.take(*phone.update(phone.lease()))
    aggregator.take(phone.check_in_message(sent_at=NOW + 80_000))
    aggregator.turn()
    assert isinstance(phone.replies()[-1], TurnedAway)


def test_a_window_from_a_clock_that_was_wrong_locks_nobody_out(aggregator, phone):
    aggregator.clock.value = NOW + 400 * 86_400
    aggregator.take(*phone.update(phone.lease()))
    aggregator.turn()
    aggregator.clock.value = NOW
    assert phone.lease()


def labelled(aggregator, phone, label):
    token = aggregator.service.mint_token(POPULATION, "", NOW)
    aggregator.service.enrol(msgspec.structs.replace(phone.enrolment(token), label=label), NOW)


def test_no_label_reads_like_an_id_wherever_it_comes_from(aggregator):
    a, b = Phone(1, aggregator), Phone(2, aggregator)
    for bad in (b.id, b.id.upper(), f" {b.id}\n"):
        with pytest.raises(InvalidSetting, match="32 hex digits"):
            labelled(aggregator, a, bad)
        with pytest.raises(InvalidSetting, match="32 hex digits"):
            aggregator.service.mint_token(POPULATION, bad, NOW)
    with aggregator.database.reading() as records:
        assert records.devices() == []
        # The tokens were not used up by what was refused.
        assert [token.uses_left for token in records.tokens()] == [1] * 3
    a.enrol()
    with pytest.raises(InvalidSetting, match="32 hex digits"):
        aggregator.service.label(a.id, b.id)


def test_a_device_is_found_by_its_whole_id_whatever_the_labels_are(aggregator):
    a, b = phones(aggregator, 2)
    # As an older version of this program stored it.
    with aggregator.database.transaction() as records:
        records.replace_device(replace(records.device(b.id), label=a.id))
    with aggregator.database.reading() as records:
        assert view.find_device(records, a.id).device == a.id
        assert view.find_device(records, b.id).device == b.id
    aggregator.service.revoke(a.id, NOW)
    with aggregator.database.reading() as records:
        assert [d.device for d in records.devices() if d.revoked_at is not None] == [a.id]
    with pytest.raises(NotFound, match="no device of id"):
        aggregator.service.revoke(b.id[:8], NOW)


def test_what_a_terminal_would_act_on_is_not_stored(aggregator):
    phone = Phone(1, aggregator)
    labelled(aggregator, phone, "x\x1b[2J\x1b]0;owned\x07\nFAKE  row\u202e\x9b1m")
    aggregator.take(phone.report_message(runtime="lite\x1b[31mrt\r\n", reason="on\tbattery\u2028"))
    aggregator.take(Message("\x1b[2Jtopic\nline", b""))
    with aggregator.database.reading() as records:
        device = records.device(phone.id)
        assert (device.label, device.runtime, device.reason) == (
            "x [2J ]0;owned FAKE row 1m", "lite [31mrt", "on battery",
        )  # fmt: skip
        texts = [row[0] for row in records._connection.exec_driver_sql("select text from events")]
    assert len(texts) == 1
    assert texts[0].isprintable()


def test_a_token_of_another_population_does_not_move_or_admit_a_device(aggregator, phone):
    with aggregator.database.transaction() as records:
        found(records, aggregator.blobs, aggregator.keys, make_bundle("second"), settings(), NOW)
    token = aggregator.service.mint_token("second", "", NOW)
    with pytest.raises(InvalidToken, match="belongs to population toy, not second"):
        aggregator.service.enrol(phone.enrolment(token, "second"), NOW)
    with aggregator.database.reading() as records:
        assert records.device(phone.id).population == POPULATION
        assert [token.uses_left for token in records.tokens() if token.population == "second"] == [1]


def test_requests_that_the_device_did_not_sign_take_no_place_in_the_queue(aggregator, phone):
    stranger = Phone(99, aggregator)
    for i in range(50):
        forged = stranger.status_message(f"{i:032x}")
        aggregator.take(Message(f"fl/v1/dev/{phone.id}/req", forged.payload))
    with aggregator.database.reading() as records:
        assert records.requests(100) == []
    assert aggregator.events()["bad_signature"] == 50


def test_a_device_has_one_check_in_and_a_few_questions_in_the_queue(aggregator, phone):
    aggregator.take(*[phone.status_message(f"{i:032x}") for i in range(40)])
    aggregator.take(phone.check_in_message(), phone.check_in_message())
    # The same question again takes the place of the first.
    aggregator.take(phone.status_message(f"{0:032x}"))
    with aggregator.database.reading() as records:
        waiting = records.requests(100)
    assert [row.kind for row in waiting] == ["check-in"] + ["status-query"] * MAX_QUERIES
    assert aggregator.events()["too many requests"] == 40 - MAX_QUERIES
    assert aggregator.turn().offers == 1
    assert phone.replies()[-1].nonce == phone.last_nonce


def test_check_ins_come_first_in_a_pass(aggregator):
    fleet = sorted(phones(aggregator, 3), key=lambda phone: phone.id)
    for phone in fleet[:2]:
        aggregator.take(*[phone.status_message(f"{i:032x}") for i in range(5)])
    aggregator.take(fleet[2].check_in_message(), fleet[0].check_in_message())
    with aggregator.database.reading() as records:
        first = records.requests(2)
    assert [(row.kind, row.device) for row in first] == [("check-in", fleet[0].id), ("check-in", fleet[2].id)]


def test_devices_are_told_the_brokers_address_without_its_password(aggregator):
    aggregator.service.addresses = replace(aggregator.service.addresses, broker_url="mqtt://cloud:s3cr@t@broker:1883")
    assert Phone(9, aggregator).enrol().broker_url == "mqtt://broker:1883"


class Poisoned:
    """A database of the tests whose records fail for one message in a way that nobody foresaw."""

    def __init__(self, database, poison, failure):
        self.database, self.poison, self.failure = database, poison, failure
        self.reading = database.reading

    @contextmanager
    def transaction(self):
        with self.database.transaction() as records:
            put, poison, failure = records.put_requests, self.poison, self.failure

            def put_or_fail(requests):
                if any(request.key == poison for request in requests):
                    raise failure
                put(requests)

            records.put_requests = put_or_fail
            yield records


def test_a_message_that_nobody_foresaw_is_dropped_with_an_event_and_its_group_is_kept(aggregator, phone):
    aggregator.service.database = Poisoned(aggregator.database, "ab" * 16, OverflowError("too large"))
    group = [phone.status_message(update_id) for update_id in ("01" * 16, "ab" * 16, "02" * 16)]
    aggregator.take(*group)
    with aggregator.database.reading() as records:
        assert [row.key for row in records.requests(9)] == ["01" * 16, "02" * 16]
    assert aggregator.events()["message dropped"] == 1


def test_a_message_that_could_not_be_stored_is_not_dropped(aggregator, phone):
    aggregator.service.database = Poisoned(aggregator.database, "ab" * 16, StorageFailed("disk full"))
    with pytest.raises(StorageFailed):
        aggregator.take(phone.status_message("01" * 16), phone.status_message("ab" * 16))
    assert aggregator.events() == {}
    with aggregator.database.reading() as records:
        assert records.requests(9) == []


def test_a_population_founded_beside_a_running_service_is_announced_once(tmp_path):
    aggregator = Aggregator(tmp_path / "d")
    aggregator.service.start()
    aggregator.turn()
    assert aggregator.wire.sent == []
    aggregator.found()
    aggregator.turn(1)
    aggregator.turn(1)
    assert len(announced(aggregator.wire, "pop/toy/training")) == 1
    assert len(announced(aggregator.wire, "pop/toy/refresh")) == 1


def test_a_population_is_announced_after_a_pass_that_failed_too(tmp_path):
    aggregator = Aggregator(tmp_path / "d")
    aggregator.service.start()
    aggregator.found()
    blobs, aggregator.service.blobs = aggregator.service.blobs, None
    with pytest.raises(AttributeError):
        aggregator.turn()
    aggregator.service.blobs = blobs
    aggregator.turn()
    assert len(announced(aggregator.wire, "pop/toy/training")) == 1


def test_a_turn_tells_how_many_updates_its_steps_used(aggregator):
    fleet = phones(aggregator, 6)
    aggregator.take(*[phone.check_in_message() for phone in fleet])
    assert aggregator.turn().applied == 0
    for phone in fleet:
        aggregator.take(*phone.update(phone.replies()[-1]))
    report = aggregator.turn()
    assert (report.verdicts, report.applied) == ({"accepted": 6}, 4)
    # The two that were left make a part-filled step at the deadline.
    assert aggregator.turn(86_400).applied == 2
