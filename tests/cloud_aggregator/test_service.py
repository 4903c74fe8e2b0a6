"""The service as a whole over a real database: offers, steps inside a pass, restarts, releases."""

import hashlib

import numpy as np
import pytest
import sqlalchemy as sa

from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.errors import InvalidToken, NotFound, Refused, StorageFailed
from cloud_aggregator.housekeeping import Retention
from cloud_aggregator.ports import Message
from tests.cloud_aggregator.fleet import (
    CLIP_NORM,
    MANIFEST_KEY,
    NOW,
    POPULATION,
    SIZE,
    Aggregator,
    Phone,
    announced,
    delta_of,
    entropy,
    make_bundle,
    phones,
    run_step,
    update_id_of,
)
from wire_contract import codec, envelope
from wire_contract.layout import Layout
from wire_contract.manifest import decode_manifest, template_hash
from wire_contract.messages import TaskOffer, TurnedAway
from wire_contract.patch import patch, read_tensors


@pytest.fixture
def aggregator(tmp_path, database_url):
    """This file's stories over each database."""
    made = Aggregator(tmp_path / "data", database_url=database_url).found()
    yield made
    made.database.close()


def test_enrolment_tells_a_device_all_that_it_needs(aggregator):
    enrolled = Phone(1, aggregator).enrol()
    assert enrolled.aggregator_key == aggregator.keys.public
    assert enrolled.manifest_key == envelope.public_bytes(MANIFEST_KEY)
    assert enrolled.population == POPULATION


def test_a_token_is_used_once(aggregator):
    token = aggregator.service.mint_token(POPULATION, "", NOW)
    aggregator.service.enrol(Phone(1, aggregator).enrolment(token), NOW)
    with pytest.raises(InvalidToken, match="unknown, used up or expired"):
        aggregator.service.enrol(Phone(2, aggregator).enrolment(token), NOW)
    with aggregator.database.reading() as records:
        assert [device.device for device in records.devices()] == [Phone(1, aggregator).id]
        assert [token.uses_left for token in records.tokens()] == [0]
        assert token not in str(records.tokens())


def test_an_expired_token_enrols_nobody(aggregator):
    token = aggregator.service.mint_token(POPULATION, "", NOW, valid_s=60)
    with pytest.raises(InvalidToken):
        aggregator.service.enrol(Phone(1, aggregator).enrolment(token), NOW + 60)


def test_a_proof_by_another_key_enrols_nobody_and_leaves_the_token(aggregator):
    import msgspec

    token = aggregator.service.mint_token(POPULATION, "", NOW)
    stolen = msgspec.structs.replace(Phone(1, aggregator).enrolment(token), public_key=Phone(2, aggregator).public)
    with pytest.raises(InvalidToken, match="proof"):
        aggregator.service.enrol(stolen, NOW)
    with aggregator.database.reading() as records:
        assert records.tokens()[0].uses_left == 1
        assert records.devices() == []


def test_a_token_for_no_population_is_not_minted(aggregator):
    with pytest.raises(NotFound, match="no population 'other'"):
        aggregator.service.mint_token("other", "", NOW)


def test_an_offer_carries_the_check_ins_nonce_and_the_current_version(aggregator, phone):
    offer = phone.lease()
    assert offer.nonce == phone.last_nonce
    assert (offer.base_version, offer.base_sha256) == (1, aggregator.manifest().sha256)
    assert offer.sealing_key == aggregator.keys.sealing_public
    assert offer.deadline == NOW + 3600


def test_a_device_that_asks_again_gets_the_same_lease(aggregator, phone):
    first, again = phone.lease(), phone.lease()
    assert (first.lease, first.seed, first.deadline) == (again.lease, again.seed, again.deadline)
    assert first.nonce != again.nonce
    with aggregator.database.reading() as records:
        assert records.count_leases(first.task, phone.id) == 1


def test_after_an_answer_the_next_lease_is_another(aggregator, phone):
    first = phone.lease()
    aggregator.take(*phone.update(first))
    phone.rest()
    second = phone.lease()
    assert second.lease != first.lease
    assert second.seed != first.seed


def test_a_device_that_lost_an_overtaken_base_gets_a_new_lease_and_its_old_one_still_counts(aggregator):
    late, *others = phones(aggregator, 5)
    old = late.lease()
    for phone in others:
        aggregator.take(*phone.update(phone.lease()))
    aggregator.turn()
    assert late.lease(held_version=1).lease == old.lease
    late.rest()
    new = late.lease(held_version=0)
    assert (new.base_version, new.lease != old.lease) == (2, True)
    aggregator.take(*late.update(old))
    aggregator.turn()
    assert (late.receipts()[-1].verdict, late.receipts()[-1].staleness) == ("accepted", 1)


def test_leases_in_flight_stay_within_twice_the_goal_count(aggregator):
    fleet = phones(aggregator, 12)
    aggregator.take(*[phone.check_in_message() for phone in fleet])
    report = aggregator.turn()
    assert (report.offers, report.turned_away) == (8, 4)
    replies = {phone: phone.replies()[-1] for phone in fleet}
    in_order = sorted(fleet, key=lambda phone: phone.id)
    assert [isinstance(replies[phone], TaskOffer) for phone in in_order] == [True] * 8 + [False] * 4
    away = replies[in_order[-1]]
    assert "8 leases are in flight, the goal count is 4" in away.reason
    assert away.retry.earliest == NOW + 900
    assert away.nonce == in_order[-1].last_nonce


def test_leases_that_run_out_make_room(aggregator):
    fleet = phones(aggregator, 9)
    aggregator.take(*[phone.check_in_message() for phone in fleet])
    assert aggregator.turn().offers == 8
    aggregator.clock.value += 3600
    aggregator.take(*[phone.check_in_message() for phone in fleet])
    assert aggregator.turn().offers == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capabilities": ("codec:topk4", "rule:sgd")}, "the task needs entropy:zstd, signature:train_sampled"),
        ({"examples": 0}, "1 examples, the device has 0"),
        ({"population": "other"}, "population toy, not other"),
        ({"sent_at": NOW - 86_400}, "dated -86400 s"),
        ({"sent_at": NOW + 90_000}, "dated +90000 s"),
    ],
)
def test_a_device_that_cannot_take_the_task_is_turned_away_with_the_reason(aggregator, phone, changes, reason):
    aggregator.take(phone.check_in_message(**changes))
    aggregator.turn()
    reply = phone.replies()[-1]
    assert isinstance(reply, TurnedAway)
    assert reason in reply.reason
    with aggregator.database.reading() as records:
        assert records.count_in_flight(records.populations()[0].task, NOW) == 0


def test_a_check_in_that_another_key_signed_is_not_answered(aggregator, phone):
    other = Phone(2, aggregator)
    other.enrol()
    stolen = other.check_in_message(device=phone.id)
    aggregator.take(Message(f"fl/v1/dev/{phone.id}/req", stolen.payload))
    aggregator.take(other.check_in_message(device=phone.id))
    report = aggregator.turn()
    assert report.offers == 0
    assert phone.replies() == other.replies() == []
    assert aggregator.events()["bad_signature"] == 2


def test_check_ins_that_wait_survive_a_restart(aggregator, phone):
    aggregator.take(phone.check_in_message())
    aggregator.restart()
    assert aggregator.service.pending().check_ins == 1
    assert aggregator.turn().offers == 1


def test_the_goal_count_makes_a_version_that_is_the_base_plus_the_mean_update(aggregator):
    fleet = phones(aggregator, 4)
    run_step(aggregator, fleet)
    report = aggregator.turn()
    assert report.steps == ((POPULATION, 2),)
    bundle, manifest = make_bundle(), aggregator.manifest()
    total = np.zeros(SIZE)
    for phone in fleet:
        sent = codec.encode(delta_of(phone.number), None, kept=SIZE // 4, clip_norm=CLIP_NORM, entropy="zstd").sent
        total[sent.indices] += sent.values
    expected = (bundle.weights.astype(np.float64) + total / 4).astype(np.float32)
    layout = Layout.of(manifest)
    file = aggregator.blobs.get(manifest.sha256)
    by_hand = patch(bundle.model, bundle.manifest, layout.unflatten(expected), keep=PopulationSettings().hysteresis)
    difference = np.abs(
        layout.flatten(read_tensors(file, manifest)) - layout.flatten(read_tensors(by_hand, bundle.manifest))
    )
    assert difference.max() < 1e-6
    assert template_hash(file, manifest) == bundle.manifest.template_sha256
    assert manifest.version == 2
    assert manifest.kind == "training"
    assert manifest.url == f"/v1/models/{hashlib.sha256(file).hexdigest()}"


def test_the_step_is_announced_retained_and_signed_by_the_aggregator(aggregator):
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()
    (announcement,) = announced(aggregator.wire, "pop/toy/training")
    body = envelope.verify(announcement.signed_manifest, "manifest", aggregator.keys.public)
    assert decode_manifest(body) == aggregator.manifest()


def test_later_updates_of_the_same_pass_meet_the_new_version(aggregator):
    fleet = phones(aggregator, 6)
    run_step(aggregator, fleet)
    report = aggregator.turn()
    assert report.staleness == {0: 4, 1: 2}
    with aggregator.database.reading() as records:
        rows = records.accepted_unused(records.populations()[0].task)
    assert [row.weight for row in rows] == [pytest.approx(0.7071067811865476)] * 2


def test_updates_are_admitted_by_finishing_time_then_device_whatever_the_order_of_arrival(tmp_path):
    files = []
    for name, reverse in (("a", False), ("b", True)):
        aggregator = Aggregator(tmp_path / name).found()
        fleet = phones(aggregator, 6)
        aggregator.take(*[phone.check_in_message() for phone in fleet])
        aggregator.turn()
        messages = [phone.update(phone.replies()[-1], finished_at=NOW + phone.number % 3) for phone in fleet]
        for update in reversed(messages) if reverse else messages:
            aggregator.take(*update)
        aggregator.turn()
        with aggregator.database.reading() as records:
            used = {row.device for row in records.updates_of_version(records.populations()[0].task, 2)}
        files.append((aggregator.manifest().sha256, used))
    assert files[0] == files[1]


def test_a_seeded_service_repeats_its_leases_and_seeds(tmp_path):
    offers = []
    for name in ("a", "b"):
        aggregator = Aggregator(tmp_path / name).found()
        offers.append([(p.lease().lease, p.lease().seed) for p in phones(aggregator, 3)])
    assert offers[0] == offers[1]


def test_a_part_filled_round_closes_at_the_report_deadline_and_divides_by_the_goal(aggregator):
    fleet = phones(aggregator, 2)
    run_step(aggregator, fleet)
    assert aggregator.turn().steps == ()
    assert aggregator.turn(86_399).steps == ()
    assert aggregator.turn(1).steps == ((POPULATION, 2),)
    with aggregator.database.reading() as records:
        version = records.versions(POPULATION)[0]
    assert (version.cause, version.updates) == ("report deadline", 2)
    total = np.zeros(SIZE)
    for phone in fleet:
        sent = codec.encode(delta_of(phone.number), None, kept=SIZE // 4, clip_norm=CLIP_NORM, entropy="zstd").sent
        total[sent.indices] += sent.values
    assert version.delta_norm == pytest.approx(np.linalg.norm(total / 4), rel=1e-5)


def test_a_restart_rebuilds_the_buffer_bitwise(tmp_path):
    hashes = []
    for name, restarted in (("a", False), ("b", True)):
        aggregator = Aggregator(tmp_path / name).found()
        fleet = phones(aggregator, 4)
        for phone in fleet:
            aggregator.take(*phone.update(phone.lease()))
            aggregator.turn()
            if restarted:
                aggregator.restart()
        hashes.append((aggregator.manifest().version, aggregator.manifest().sha256))
    assert hashes[0] == hashes[1]
    assert hashes[0][0] == 2


def test_receipts_that_the_broker_did_not_take_go_out_after_a_restart(aggregator, phone):
    messages = phone.update(phone.lease())
    aggregator.wire.reachable = False
    aggregator.take(*messages)
    aggregator.turn()
    assert phone.receipts() == []
    assert not aggregator.update_row(update_id_of(messages)).receipt_published
    aggregator.restart()
    assert [receipt.verdict for receipt in phone.receipts()] == ["accepted"]
    aggregator.turn()
    assert aggregator.update_row(update_id_of(messages)).receipt_published
    aggregator.restart()
    assert phone.receipts() == []


def test_a_receipt_is_handed_over_once_while_the_broker_is_away(aggregator, phone):
    offer = phone.lease()
    aggregator.wire.reachable = False
    aggregator.take(*phone.update(offer))
    aggregator.turn()
    aggregator.wire.reachable = True
    aggregator.turn()
    assert phone.receipts() == []


def test_a_restart_announces_both_tracks_again(aggregator):
    aggregator.restart()
    assert len(announced(aggregator.wire, "pop/toy/training")) == 1
    assert len(announced(aggregator.wire, "pop/toy/refresh")) == 1


class FailingBlobs:
    """Blobs of the tests whose disk is full when told so."""

    def __init__(self, blobs):
        self.blobs, self.full = blobs, False

    def put(self, data):
        if self.full:
            raise StorageFailed("no space left")
        return self.blobs.put(data)

    def get(self, sha256):
        return self.blobs.get(sha256)

    def path(self, sha256):
        return self.blobs.path(sha256)


def test_a_pass_that_fails_leaves_nothing_and_the_next_one_does_it_all(aggregator):
    run_step(aggregator, phones(aggregator, 5))
    aggregator.service.blobs = FailingBlobs(aggregator.blobs)
    aggregator.service.blobs.full = True
    sent = len(aggregator.wire.sent)
    with pytest.raises(StorageFailed, match="no space left"):
        aggregator.turn()
    with aggregator.database.reading() as records:
        assert records.count_updates("received") == 5
        assert len(records.versions(POPULATION)) == 1
        assert records.optimizer(POPULATION).step == 0
    assert len(aggregator.wire.sent) == sent
    aggregator.service.blobs.full = False
    report = aggregator.turn()
    assert report.verdicts == {"accepted": 5}
    assert report.steps == ((POPULATION, 2),)


def test_a_full_database_takes_no_message_and_loses_none_that_it_took(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found()
    phone = Phone(1, aggregator)
    phone.enrol()
    offer = phone.lease()
    engine = aggregator.database._engine
    engine.dispose()

    @sa.event.listens_for(engine, "connect")
    def limit(connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 2}")

    big = phone.update(offer, sealed=bytes(range(256)) * 200, chunk_bytes=32_768)
    with pytest.raises(StorageFailed):
        aggregator.take(*big)
    engine.dispose()
    sa.event.remove(engine, "connect", limit)
    assert aggregator.update_row(update_id_of(big)) is None
    aggregator.take(*big)
    assert aggregator.update_row(update_id_of(big)).state == "received"


def test_a_report_is_kept_and_an_old_sessions_last_will_is_not_believed(aggregator, phone):
    def shown():
        with aggregator.database.reading() as records:
            return records.device(phone.id)

    aggregator.take(phone.report_message(nonce="aa" * 16, training_version=7, reason="not charging"))
    assert (shown().online, shown().training_version, shown().reason) == (True, 7, "not charging")
    aggregator.take(phone.report_message(nonce="bb" * 16, training_version=8, sent_at=NOW + 5))
    aggregator.take(phone.report_message(nonce="aa" * 16, online=False))
    assert shown().online
    aggregator.take(phone.report_message(nonce="bb" * 16, online=False, sent_at=NOW + 4))
    assert (shown().online, shown().training_version) == (False, 8)
    aggregator.take(phone.report_message(nonce="cc" * 16, sent_at=NOW - 50, training_version=1))
    assert (shown().online, shown().training_version) == (False, 8)


def test_a_report_of_another_device_is_not_believed(aggregator, phone):
    other = Phone(2, aggregator)
    other.enrol()
    aggregator.take(Message(f"fl/v1/dev/{phone.id}/state", other.report_message().payload))
    aggregator.take(Message(f"fl/v1/dev/{phone.id}/state", phone.report_message(device=other.id).payload))
    with aggregator.database.reading() as records:
        assert not records.device(phone.id).online


def test_sealed_updates_are_deleted_after_their_days_but_not_while_they_wait(aggregator):
    fleet = phones(aggregator, 5)
    run_step(aggregator, fleet)
    aggregator.turn()
    aggregator.turn(31 * 86_400)
    with aggregator.database.reading() as records:
        task = records.populations()[0].task
        used = records.updates_of_version(task, 2)
        waiting = records.accepted_unused(task)
        assert [records.sealed_bytes(row.id) for row in used] == [b""] * 4
        assert all(records.sealed_bytes(row.id) for row in waiting)
    aggregator.restart()
    aggregator.turn()


def test_the_second_service_in_one_folder_makes_the_same_keys_only_once(tmp_path):
    from cloud_aggregator.adapters.key_files import load_keys, make_keys

    first = make_keys(tmp_path / "d", entropy(b"one"))
    with pytest.raises(Refused, match="never overwritten"):
        make_keys(tmp_path / "d", entropy(b"two"))
    assert load_keys(tmp_path / "d").public == first.public
    assert (tmp_path / "d" / "aggregator.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "d" / "sealing.key").chmod(0o644)
    with pytest.raises(Refused, match="owner only"):
        load_keys(tmp_path / "d")


def test_files_of_old_training_versions_go_and_refreshes_stay(tmp_path):
    aggregator = Aggregator(tmp_path / "d", retention=Retention(versions=2)).found(goal_count=1, minimum_updates=1)
    (phone,) = phones(aggregator, 1)
    hashes = [aggregator.manifest().sha256]
    for _ in range(4):
        aggregator.clock.value += 900
        aggregator.take(*phone.update(phone.lease()))
        aggregator.turn()
        hashes.append(aggregator.manifest().sha256)
        if len(hashes) == 3:
            aggregator.service.release(POPULATION, aggregator.clock.value)
    aggregator.turn(3600)
    kept = {path.name for path in (aggregator.folder / "blobs").iterdir()}
    assert kept & set(hashes) == {hashes[0], hashes[2], hashes[3], hashes[4]}
    aggregator.restart()
    assert aggregator.service.undo(POPULATION, aggregator.clock.value).sha256 == hashes[0]


def test_an_announcement_is_signed_again_before_it_expires(aggregator):
    before = aggregator.manifest("refresh")
    aggregator.turn(44 * 86_400)
    assert aggregator.manifest("refresh") == before
    aggregator.turn(2 * 86_400)
    after = aggregator.manifest("refresh")
    assert (after.version, after.sha256) == (before.version, before.sha256)
    assert after.expires_at == int(aggregator.clock.now()) + 90 * 86_400
    assert len(announced(aggregator.wire, "pop/toy/refresh")) == 1
    assert len(announced(aggregator.wire, "pop/toy/training")) == 1
    aggregator.turn(60)
    assert len(announced(aggregator.wire, "pop/toy/refresh")) == 1
