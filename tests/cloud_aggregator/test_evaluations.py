"""Evaluations on devices: who is asked, which report counts, what the operator sees. Real database, real signatures."""

import math
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator import evaluations
from cloud_aggregator import operator_view as view
from cloud_aggregator.adapters import schema
from cloud_aggregator.adapters.database import SqlDatabase
from cloud_aggregator.errors import NotFound, Refused
from cloud_aggregator.evaluations import admit, recall
from cloud_aggregator.leases import Lease
from cloud_aggregator.ports import Message
from cloud_aggregator.records import EvaluationRecord, ReportRecord
from tests.cloud_aggregator.fleet import CAPABILITIES, NOW, POPULATION, Aggregator, Phone, last_json, phones
from tests.cloud_aggregator.test_web import Site
from wire_contract import envelope
from wire_contract.messages import (
    EVALUATION_CAPABILITY,
    EvaluationOffer,
    EvaluationReport,
    TaskOffer,
    TurnedAway,
    encode_message,
    lease_id,
)
from wire_contract.topics import DeviceTopic, build_topic

KNOWS = (*CAPABILITIES, EVALUATION_CAPABILITY)


def ask(aggregator, **changes):
    wanted = {"version": None, "devices": 2, "minimum_words": 50, "most_words": 2000, "valid_s": 86_400, **changes}
    return aggregator.service.ask_evaluation(POPULATION, aggregator.clock.now(), **wanted)


def check_in(phone, **changes):
    """Check in as a device that knows the task; return the reply."""
    phone.aggregator.take(phone.check_in_message(**{"capabilities": KNOWS, **changes}))
    phone.aggregator.turn()
    return phone.answers("down/task", "task", TaskOffer | EvaluationOffer, TurnedAway)[-1]


def rest(phone):
    replies = phone.answers("down/task", "task", TaskOffer | EvaluationOffer, TurnedAway)
    clock = phone.aggregator.clock
    clock.value = max(clock.value, replies[-1].retry.earliest)


def report_of(phone, offer, **changes):
    fields = {
        "device": phone.id, "task": offer.task, "lease": offer.lease, "version": offer.version, "words": 120,
        "hits1": 20, "hits3": 40, "sent_at": int(phone.aggregator.clock.now()), **changes,
    }  # fmt: skip
    fields.setdefault("report_id", lease_id(phone.id, fields["task"], fields["lease"]))
    return EvaluationReport(**fields)


def message_of(phone, report, key=None):
    signed = envelope.sign(key or phone.key, "request", encode_message(report))
    return Message(build_topic(DeviceTopic(phone.id, "req")), signed)


def send(phone, report):
    phone.aggregator.take(message_of(phone, report))
    phone.aggregator.turn()
    return phone.receipts()[-1]


def show(aggregator, task):
    with aggregator.database.reading() as records:
        return view.evaluation_show(records, task, int(aggregator.clock.now()))


def sums(aggregator, task):
    shown = show(aggregator, task)
    return tuple(shown[name] for name in ("reports", "too_little_text", "words", "hits1", "hits3"))


def test_a_device_that_knows_the_task_is_asked_before_it_trains_and_its_report_is_counted_once(aggregator):
    phone = phones(aggregator, 1)[0]
    asked = ask(aggregator)
    offer = check_in(phone)
    assert isinstance(offer, EvaluationOffer)
    assert (offer.task, offer.version, offer.version_sha256) == (asked.task, 1, aggregator.manifest("refresh").sha256)
    assert (offer.minimum_words, offer.most_words, offer.nonce) == (50, 2000, phone.last_nonce)
    report = report_of(phone, offer)
    first = send(phone, report)
    assert (first.verdict, first.update_id) == ("accepted", report.report_id)
    assert send(phone, report).verdict == "duplicate"
    assert sums(aggregator, asked.task) == (1, 0, 120, 20, 40)
    shown = show(aggregator, asked.task)
    assert shown["top3_percent"] == pytest.approx(100 / 3, abs=1e-3) and shown["top3_standard_error"] is None
    rest(phone)
    assert isinstance(check_in(phone), TaskOffer), "asked once, and then it trains as before"


def test_no_more_leases_go_out_than_devices_were_asked_for_and_one_that_ran_out_is_another_devices(aggregator):
    fleet = phones(aggregator, 4)
    asked = ask(aggregator, devices=2)
    kinds = [type(check_in(phone)) for phone in fleet]
    assert kinds == [EvaluationOffer, EvaluationOffer, TaskOffer, TaskOffer]
    assert show(aggregator, asked.task)["leases"] == 2
    aggregator.clock.value += 3600
    assert isinstance(check_in(fleet[2]), EvaluationOffer), "the first two leases ran out"
    assert isinstance(check_in(fleet[0]), TaskOffer), "nobody is asked twice"


def test_a_device_whose_offer_was_lost_gets_the_same_offer_again(aggregator):
    phone = phones(aggregator, 1)[0]
    ask(aggregator)
    first, second = check_in(phone), check_in(phone)
    assert isinstance(second, EvaluationOffer)
    assert (second.lease, second.deadline) == (first.lease, first.deadline) and second.nonce != first.nonce


def test_a_question_for_the_time_alone_keeps_no_device_from_asking_for_work(aggregator):
    phone = phones(aggregator, 1)[0]
    assert isinstance(check_in(phone, capabilities=()), TurnedAway)
    assert isinstance(check_in(phone, capabilities=CAPABILITIES), TaskOffer)


def test_a_device_that_does_not_know_the_task_trains(aggregator):
    phone = phones(aggregator, 1)[0]
    ask(aggregator)
    assert isinstance(check_in(phone, capabilities=CAPABILITIES), TaskOffer)


def test_a_device_that_cannot_train_can_be_asked_all_the_same(aggregator):
    phone = phones(aggregator, 1)[0]
    ask(aggregator)
    assert isinstance(check_in(phone, capabilities=(EVALUATION_CAPABILITY,), examples=0), EvaluationOffer)


def test_a_training_that_a_device_holds_is_not_taken_from_it(aggregator):
    phone = phones(aggregator, 1)[0]
    lease = check_in(phone).lease
    ask(aggregator)
    assert check_in(phone).lease == lease


def test_a_check_in_that_is_dated_wrong_gets_no_lease(aggregator):
    phone = phones(aggregator, 1)[0]
    asked = ask(aggregator)
    assert isinstance(check_in(phone, sent_at=NOW - 90_000), TurnedAway)
    assert show(aggregator, asked.task)["leases"] == 0


def test_a_silent_device_is_no_miss(aggregator):
    fleet = phones(aggregator, 2)
    asked = ask(aggregator)
    assert send(fleet[0], report_of(fleet[0], check_in(fleet[0]), words=0, hits1=0, hits3=0)).verdict == "accepted"
    assert sums(aggregator, asked.task) == (1, 1, 0, 0, 0) and show(aggregator, asked.task)["top3_percent"] is None
    send(fleet[1], report_of(fleet[1], check_in(fleet[1])))
    assert sums(aggregator, asked.task) == (2, 1, 120, 20, 40)
    assert show(aggregator, asked.task)["state"] == "closed"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"hits3": 130}, "malformed"),
        ({"hits1": 50}, "malformed"),
        ({"words": 121}, "malformed"),
        ({"hits1": 21}, "malformed"),
        ({"words": 0}, "malformed"),
        ({"words": 40, "hits1": 0, "hits3": 0}, "malformed"),
        ({"words": 2010}, "malformed"),
        ({"words": 1 << 31, "hits3": 1 << 31}, "malformed"),
        ({"report_id": "0" * 32}, "malformed"),
        ({"version": 2}, "wrong_version"),
        ({"lease": "f" * 32}, "unknown_lease"),
        ({"task": "f" * 16}, "unknown_task"),
    ],
)
def test_a_report_that_breaks_a_rule_is_refused_by_name_and_adds_nothing(aggregator, changes, verdict):
    phone = phones(aggregator, 1)[0]
    asked = ask(aggregator)
    offer = check_in(phone)
    receipt = send(phone, report_of(phone, offer, **changes))
    assert receipt.verdict == verdict and receipt.reason
    assert aggregator.events()[f"report {verdict}"] == 1
    assert sums(aggregator, asked.task) == (0, 0, 0, 0, 0)
    assert send(phone, report_of(phone, offer)).verdict == "accepted", "the lease is still its own"


def test_a_report_that_is_sent_again_later_is_the_same_report(aggregator):
    phone = phones(aggregator, 1)[0]
    ask(aggregator)
    report = report_of(phone, check_in(phone))
    assert send(phone, report).verdict == "accepted"
    later = msgspec.structs.replace(report, sent_at=report.sent_at + 700)
    assert send(phone, later).verdict == "duplicate"


def test_the_first_report_of_a_lease_counts_and_another_one_is_a_conflict(aggregator):
    phone = phones(aggregator, 1)[0]
    asked = ask(aggregator)
    offer = check_in(phone)
    assert send(phone, report_of(phone, offer)).verdict == "accepted"
    assert send(phone, report_of(phone, offer, hits3=110)).verdict == "conflict"
    assert sums(aggregator, asked.task) == (1, 0, 120, 20, 40)


def test_a_report_comes_in_time_until_the_grace_is_over(aggregator):
    fleet = phones(aggregator, 2)
    asked = ask(aggregator)
    offers = [check_in(phone) for phone in fleet]
    aggregator.clock.value = offers[0].deadline + 600
    assert send(fleet[0], report_of(fleet[0], offers[0])).verdict == "accepted"
    aggregator.clock.value += 1
    assert send(fleet[1], report_of(fleet[1], offers[1])).verdict == "expired"
    assert sums(aggregator, asked.task)[0] == 1


def test_another_devices_lease_and_a_report_that_its_device_did_not_sign_count_for_nothing(aggregator):
    mine, other = phones(aggregator, 2)
    asked = ask(aggregator, devices=1)
    offer = check_in(mine)
    assert send(other, report_of(other, offer)).verdict == "unknown_lease"
    aggregator.take(message_of(mine, report_of(mine, offer), key=other.key))
    stolen = message_of(other, report_of(mine, offer))
    aggregator.take(stolen)
    aggregator.turn()
    assert mine.receipts() == [] and aggregator.events()["bad_signature"] == 2
    assert sums(aggregator, asked.task) == (0, 0, 0, 0, 0)


def test_a_revoked_device_is_neither_asked_nor_heard(aggregator):
    phone = phones(aggregator, 1)[0]
    asked = ask(aggregator)
    offer = check_in(phone)
    aggregator.service.revoke(phone.id, aggregator.clock.now())
    aggregator.take(message_of(phone, report_of(phone, offer)))
    aggregator.turn()
    assert phone.receipts() == [] and sums(aggregator, asked.task)[0] == 0


def test_an_update_under_an_evaluations_lease_is_refused_and_moves_nothing(aggregator):
    phone = phones(aggregator, 1)[0]
    ask(aggregator)
    offer = check_in(phone)
    as_training = TaskOffer(
        device=phone.id, population=POPULATION, task=offer.task, lease=offer.lease, nonce=offer.nonce,
        base_version=1, base_sha256=offer.version_sha256, seed=1, shard=0, issued_at=offer.issued_at,
        layout_fingerprint=aggregator.manifest().layout_fingerprint, plan=aggregator_plan(aggregator),
        sealing_key=aggregator.keys.sealing_public, deadline=offer.deadline, retry=offer.retry,
    )  # fmt: skip
    aggregator.take(*phone.update(as_training))
    aggregator.turn()
    assert phone.receipts()[-1].verdict == "wrong_task"


def aggregator_plan(aggregator):
    return aggregator.service._populations[POPULATION].plan


def test_few_reports_of_a_device_may_wait(aggregator):
    phone = phones(aggregator, 1)[0]
    ask(aggregator)
    offer = check_in(phone)
    aggregator.take(*[message_of(phone, report_of(phone, offer, lease=f"{n:032x}")) for n in range(50)])
    assert aggregator.events()["too many requests"] == 50 - 8
    aggregator.turn()
    assert aggregator.events()["report unknown_lease"] == 8


def test_sums_and_leases_survive_a_restart_and_a_report_counts_once_across_it(aggregator):
    phone = phones(aggregator, 1)[0]
    asked = ask(aggregator)
    offer = check_in(phone)
    report = report_of(phone, offer)
    aggregator.take(message_of(phone, report))
    aggregator.restart()
    aggregator.turn()
    assert phone.receipts()[-1].verdict == "accepted"
    aggregator.restart()
    assert send(phone, report).verdict == "duplicate"
    assert sums(aggregator, asked.task) == (1, 0, 120, 20, 40)


def test_a_pass_that_fails_before_its_commit_counts_nothing_and_is_done_again(aggregator):
    phone = phones(aggregator, 1)[0]
    asked = ask(aggregator)
    offer = check_in(phone)
    aggregator.take(message_of(phone, report_of(phone, offer)))

    class PowerCutError(Exception):
        pass

    def cut(*_):
        raise PowerCutError

    connection = aggregator.database._engine
    sa.event.listen(connection, "commit", cut)
    with pytest.raises(PowerCutError):
        aggregator.turn()
    sa.event.remove(connection, "commit", cut)
    assert sums(aggregator, asked.task)[0] == 0
    aggregator.turn()
    assert sums(aggregator, asked.task) == (1, 0, 120, 20, 40)
    assert [receipt.verdict for receipt in phone.receipts()] == ["accepted"]


def test_both_databases_keep_evaluations(tmp_path, database_url):
    aggregator = Aggregator(tmp_path / "data", database_url=database_url).found()
    fleet = phones(aggregator, 3)
    asked = ask(aggregator, devices=3)
    for number, phone in enumerate(fleet):
        assert send(phone, report_of(phone, check_in(phone), hits3=40 + 10 * number)).verdict == "accepted"
    assert sums(aggregator, asked.task) == (3, 0, 360, 60, 150)
    with aggregator.database.reading() as records:
        assert view.evaluation_list(records, 0, NOW)["items"][0]["reports"] == 3
    aggregator.database.close()


def test_only_what_is_announced_can_be_asked_about(aggregator):
    with pytest.raises(NotFound, match="announces no version 7, only refresh 1, training 1"):
        ask(aggregator, version=7)
    with pytest.raises(Refused, match="the minimum of words"):
        ask(aggregator, minimum_words=100, most_words=50)
    for _ in range(evaluations.MAX_OPEN):
        ask(aggregator)
    with pytest.raises(Refused, match="at most 8"):
        ask(aggregator)
    aggregator.clock.value += 86_400
    ask(aggregator)
    with aggregator.database.reading() as records:
        tasks = [each.task for each in records.evaluations(None)]
    assert len(set(tasks)) == len(tasks) == evaluations.MAX_OPEN + 1


def test_the_oldest_open_evaluation_is_served_first(aggregator):
    fleet = phones(aggregator, 2)
    first = ask(aggregator, devices=1)
    aggregator.clock.value += 1
    second = ask(aggregator, devices=1)
    assert [check_in(phone).task for phone in fleet] == [first.task, second.task]


def test_nobody_is_asked_about_a_version_that_is_not_announced_any_more(aggregator):
    fleet = phones(aggregator, 6)
    old = aggregator.manifest("training")
    asked = ask(aggregator, version=1)
    for phone in fleet[:4]:
        aggregator.take(phone.check_in_message())
    aggregator.turn()
    for phone in fleet[:4]:
        aggregator.take(*phone.update(phone.replies()[-1]))
    aggregator.turn()
    assert aggregator.manifest("training").version > old.version
    assert check_in(fleet[4]).task == asked.task, "the refresh still is that version"
    aggregator.service.release(POPULATION, aggregator.clock.now())
    assert isinstance(check_in(fleet[5]), TaskOffer)


def test_old_notes_of_reports_go_and_the_sums_stay(aggregator):
    phone = phones(aggregator, 1)[0]
    asked = ask(aggregator)
    offer = check_in(phone)
    report = report_of(phone, offer)
    send(phone, report)
    aggregator.turn(after=31 * 86_400)
    with aggregator.database.reading() as records:
        assert records.report(offer.task, phone.id, offer.lease) is None
    assert send(phone, report).verdict in ("conflict", "expired")
    assert sums(aggregator, asked.task) == (1, 0, 120, 20, 40)


EVALUATION = EvaluationRecord("1" * 16, POPULATION, 3, "a" * 64, 10, 50, 2000, NOW, NOW + 100)
LEASE = Lease("2" * 32, "1" * 16, "3" * 32, 3, "a" * 64, 0, NOW, NOW + 50)


@given(
    words=st.integers(0, 1 << 31), hits1=st.integers(0, 1 << 31), hits3=st.integers(0, 1 << 31),
    version=st.integers(1, 5), late=st.integers(-100, 100), known=st.booleans(), leased=st.booleans(),
    stored=st.sampled_from([None, "same", "other"]), state=st.sampled_from(["live", "answered", "expired", "replaced"]),
)  # fmt: skip
def test_whatever_a_report_says_it_has_one_verdict_and_an_accepted_one_keeps_every_rule(
    words, hits1, hits3, version, late, known, leased, stored, state
):
    report = EvaluationReport(
        device=LEASE.device, task=LEASE.task, lease=LEASE.lease, version=version, words=words, hits1=hits1,
        hits3=hits3, sent_at=NOW, report_id=lease_id(LEASE.device, LEASE.task, LEASE.lease),
    )  # fmt: skip
    note = ReportRecord(LEASE.task, LEASE.device, LEASE.lease, stored, NOW) if stored else None
    verdict = admit(
        report, EVALUATION if known else None, replace(LEASE, state=state) if leased else None, note,
        body_sha256="same", now=LEASE.deadline + late, grace_s=10,
    )  # fmt: skip
    fits = (
        known and leased and note is None and state != "answered" and late <= 10 and version == 3
        and hits1 <= hits3 <= words and words % 10 == hits1 % 10 == hits3 % 10 == 0
        and (words == 0 or 50 <= words <= 2000)
    )  # fmt: skip
    assert (verdict.name == "accepted") == fits and verdict.reason


def test_an_accepted_report_is_at_least_the_offers_minimum_rounded_down():
    evaluation = replace(EVALUATION, minimum_words=55)
    report = EvaluationReport(
        device=LEASE.device, task=LEASE.task, lease=LEASE.lease, version=3, words=50, hits1=0, hits3=10, sent_at=NOW,
        report_id=lease_id(LEASE.device, LEASE.task, LEASE.lease),
    )  # fmt: skip
    given_ = {"body_sha256": "", "now": NOW, "grace_s": 0}
    assert admit(report, evaluation, LEASE, None, **given_).name == "accepted", "it had 55 to 59 words"
    fewer = msgspec.structs.replace(report, words=40)
    assert admit(fewer, evaluation, LEASE, None, **given_).name == "malformed"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=40))
def test_recall_and_its_error_are_those_of_the_devices_counts(pairs):
    counts = [(10 * max(a, b), 10 * min(a, b)) for a, b in pairs]
    evaluation = EVALUATION
    for words, hits in counts:
        report = EvaluationReport(
            device="3" * 32, task="1" * 16, lease="2" * 32, report_id="0" * 32, version=3, words=words, hits1=0,
            hits3=hits, sent_at=NOW,
        )  # fmt: skip
        evaluation = evaluations.added(evaluation, report)
    scored = [(words, hits) for words, hits in counts if words]
    found = recall(evaluation)
    if not scored:
        assert found is None
        return
    ratio = sum(hits for _, hits in scored) / sum(words for words, _ in scored)
    assert found[1] == pytest.approx(100 * ratio)
    if len(scored) < 2:
        assert found[2] is None
        return
    mean = sum(words for words, _ in scored) / len(scored)
    spread = sum((hits - ratio * words) ** 2 for words, hits in scored) / (len(scored) - 1)
    assert found[2] == pytest.approx(100 * math.sqrt(spread / len(scored)) / mean, rel=1e-6, abs=1e-4)


def test_the_operator_asks_and_reads_over_the_api(aggregator):
    site = Site(aggregator)
    try:
        status, asked = site.operate("POST", "/evaluations", devices=3, minimum_words=20)
        assert status == 200 and asked["evaluation"].startswith("e-") and asked["state"] == "open"
        phone = phones(aggregator, 1)[0]
        send(phone, report_of(phone, check_in(phone)))
        _, shown = site.operate("GET", f"/evaluations/{asked['evaluation'][:8]}")
        assert (shown["reports"], shown["leases"], shown["words"], shown["devices_wanted"]) == (1, 1, 120, 3)
        _, listed = site.operate("GET", "/evaluations")
        assert listed["total"] == 1 and listed["items"][0] == shown
        assert site.operate("GET", "/evaluations/e-ffff")[0] == 404
        assert site.operate("POST", "/evaluations", version=9)[0] == 404
        assert site.operate("POST", "/evaluations", devices=0)[0] == 422
        assert site.operate("POST", "/evaluations", minimum_words=5000)[0] == 409
    finally:
        site.handle.stop()


def test_a_database_of_the_schema_before_gets_the_new_tables_and_keeps_its_rows(tmp_path):
    aggregator = Aggregator(tmp_path / "data").found()
    phone = Phone(1, aggregator)
    phone.enrol()
    with aggregator.database._engine.begin() as connection:
        for table in (schema.evaluation_reports, schema.evaluations):
            table.drop(connection)
    with aggregator.database.transaction() as records:
        records.set_meta("schema", b"3")
    aggregator.restart()
    with aggregator.database.reading() as records:
        assert records.meta("schema") == schema.SCHEMA and [d.device for d in records.devices()] == [phone.id]
    asked = ask(aggregator)
    assert send(phone, report_of(phone, check_in(phone))).verdict == "accepted"
    assert sums(aggregator, asked.task)[0] == 1
    with aggregator.database.transaction() as records:
        records.set_meta("schema", b"2")
    aggregator.database.close()
    with pytest.raises(Refused, match="got 2"):
        SqlDatabase.in_folder(tmp_path / "data")


def test_the_command_lists_and_shows_without_a_service_and_asks_only_a_running_one(tmp_path):
    aggregator = Aggregator(tmp_path / "data").found()
    fleet = phones(aggregator, 2)
    asked = ask(aggregator)
    for phone in fleet:
        send(phone, report_of(phone, check_in(phone)))
    aggregator.database.close()

    def run(*words):
        command = [sys.executable, "-m", "cloud_aggregator.cli", "evaluation", *words, "--data", str(aggregator.folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    listed = run("list", "--json")
    assert listed.returncode == 0, listed.stderr
    (item,) = last_json(listed.stdout)["items"]
    assert (item["evaluation"], item["reports"], item["words"]) == (f"e-{asked.task}", 2, 240)
    shown = run("show", asked.task[:6], "--json")
    assert last_json(shown.stdout)["top3_percent"] == pytest.approx(100 / 3, abs=1e-3)
    table = run("list")
    assert f"e-{asked.task}" in table.stdout and "TOP 3 %" in table.stdout
    assert run("show", "e-ffffff").returncode == 3
    refused = run("ask", "--devices", "5")
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
