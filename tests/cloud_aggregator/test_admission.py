"""Every refusal by its name, as the receipt tells it and as it stands in the database; nothing refused is counted."""

import hashlib
import sqlite3
import struct

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_aggregator import operator_view as view
from cloud_aggregator.admission import (
    Arrived,
    OpenedInit,
    Rules,
    Verdict,
    admit,
    open_init,
    update_weight,
)
from cloud_aggregator.errors import InvalidSetting
from cloud_aggregator.ports import Message
from cloud_aggregator.serving import chosen_kernel
from tests.cloud_aggregator.fleet import (
    CLIP_NORM,
    NOW,
    POPULATION,
    SIZE,
    Aggregator,
    Phone,
    big_update,
    delta_of,
    phones,
    submit,
    update_id_of,
)
from wire_contract import codec
from wire_contract.messages import Chunk, CodecPlan, Plan, encode_message
from wire_contract.topics import UpdateTopic, build_topic

HEADER = struct.Struct("<4sBBBBIIfI")


def assert_refused(aggregator, phone, messages, name):
    receipt, row = submit(aggregator, phone, messages)
    assert receipt.verdict == name, receipt
    assert row.verdict == name
    assert row.used_by is None
    assert receipt.reason
    assert receipt.update_id == update_id_of(messages)
    with aggregator.database.reading() as records:
        assert records.accepted_unused(row.task or "") == []
        assert records.sealed_bytes(row.id) == b""
        assert records.count_updates("received") == 0
    assert aggregator.manifest().version == 1
    return receipt, row


def test_an_honest_update_is_accepted_with_its_staleness_and_weight(aggregator, phone):
    offer = phone.lease()
    receipt, row = submit(aggregator, phone, phone.update(offer))
    assert (receipt.verdict, receipt.staleness) == ("accepted", 0)
    assert (row.verdict, row.weight, row.staleness) == ("accepted", 1.0, 0)
    assert 0 < row.norm <= CLIP_NORM * (1 + 1e-6)
    with aggregator.database.reading() as records:
        assert records.sealed_bytes(row.id) != b""


def test_a_norm_above_the_clip_norm_is_refused(aggregator, phone):
    plain = codec.encode(delta_of(1), None, kept=50, clip_norm=2 * CLIP_NORM, entropy="zstd").data
    long = codec.encode(delta_of(1) * 100, None, kept=50, clip_norm=1.01 * CLIP_NORM, entropy="zstd").data
    assert codec.decode(plain, size=SIZE).norm() < CLIP_NORM
    receipt, _ = assert_refused(aggregator, phone, phone.update(phone.lease(), plain=long), "norm_exceeded")
    assert "clip norm is 1.0" in receipt.reason


@pytest.mark.parametrize("scale", [float("inf"), float("nan"), 3e38, -1.0])
def test_a_crafted_scale_that_is_not_finite_or_huge_is_refused(aggregator, phone, scale):
    honest = codec.encode(delta_of(1), None, kept=50, clip_norm=CLIP_NORM, entropy="none").data
    fields = list(HEADER.unpack_from(honest))
    fields[7] = scale
    crafted = HEADER.pack(*fields) + honest[HEADER.size :]
    name = "norm_exceeded" if scale == 3e38 else "malformed"
    assert_refused(aggregator, phone, phone.update(phone.lease(), plain=crafted), name)


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_truncated_update_is_refused_as_malformed(aggregator, phone, cut):
    honest = codec.encode(delta_of(1), None, kept=50, clip_norm=CLIP_NORM, entropy="zstd").data
    assert_refused(aggregator, phone, phone.update(phone.lease(), plain=honest[:-cut]), "malformed")


def test_an_update_for_a_model_of_another_size_is_malformed(aggregator, phone):
    other = codec.encode(np.ones(SIZE + 1, np.float32), None, kept=5, clip_norm=CLIP_NORM, entropy="zstd").data
    assert_refused(aggregator, phone, phone.update(phone.lease(), plain=other), "malformed")


def test_a_codec_that_the_plan_does_not_name_is_unsupported(aggregator, phone):
    assert_refused(aggregator, phone, phone.update(phone.lease(), codec="topk9"), "unsupported")


def test_a_codec_mode_of_the_future_is_unsupported(aggregator, phone):
    honest = bytearray(codec.encode(delta_of(1), None, kept=50, clip_norm=CLIP_NORM, entropy="zstd").data)
    honest[4] = 9
    assert_refused(aggregator, phone, phone.update(phone.lease(), plain=bytes(honest)), "unsupported")


def test_a_seal_made_for_another_header_does_not_open(aggregator, phone):
    offer = phone.lease()
    sealed = b"".join(msgspec.msgpack.decode(message.payload)["data"] for message in phone.update(offer)[1:])
    assert_refused(aggregator, phone, phone.update(offer, sealed=sealed, examples=49), "bad_seal")


def test_a_flipped_bit_in_the_sealed_bytes_is_a_bad_seal(aggregator, phone):
    offer = phone.lease()
    honest = msgspec.msgpack.decode(phone.update(offer)[1].payload)["data"]
    broken = bytes([honest[0] ^ 1]) + honest[1:]
    assert_refused(aggregator, phone, phone.update(offer, sealed=broken), "bad_seal")


def test_another_layout_fingerprint_is_refused(aggregator, phone):
    receipt, _ = assert_refused(
        aggregator, phone, phone.update(phone.lease(), layout_fingerprint="ab" * 32), "wrong_layout"
    )
    assert "abababab" in receipt.reason


def test_another_populations_update_is_a_wrong_task(aggregator, phone):
    assert_refused(aggregator, phone, phone.update(phone.lease(), population="other"), "wrong_task")


def assert_only_an_event(aggregator, phone, messages, name, events=1):
    """Nothing of it is kept, nobody is told, and it is counted by name."""
    before = len(phone.receipts())
    aggregator.take(*messages)
    aggregator.turn()
    assert len(phone.receipts()) == before
    assert aggregator.update_row(update_id_of(messages)) is None
    with aggregator.database.reading() as records:
        assert view.status_view(records, NOW)["events"][name] == events
        assert records.count_updates("judged") == before
        assert records.count_updates("open") == records.count_updates("received") == 0


def test_an_update_for_a_task_that_the_device_was_never_given_is_an_event(aggregator, phone):
    assert_only_an_event(aggregator, phone, phone.update(phone.lease(), task="ab" * 8), "unknown_lease")


def test_however_many_leases_a_device_invents_no_row_is_kept(aggregator, phone):
    offer = phone.lease()
    for i in range(5):
        assert_only_an_event(aggregator, phone, phone.update(offer, lease=f"{i:032x}"), "unknown_lease", events=i + 1)
    receipt, _ = submit(aggregator, phone, phone.update(offer))
    assert receipt.verdict == "accepted"


def test_another_devices_lease_is_unknown(aggregator, phone):
    offer = phone.lease()
    thief = Phone(2, aggregator)
    thief.enrol()
    assert_only_an_event(aggregator, thief, thief.update(offer), "unknown_lease")


def test_a_base_version_that_the_lease_did_not_name_is_refused(aggregator, phone):
    assert_refused(aggregator, phone, phone.update(phone.lease(), base_version=7), "unknown_lease")


def test_an_update_after_deadline_and_grace_has_expired(aggregator, phone):
    offer = phone.lease()
    aggregator.clock.value = offer.deadline + 601
    assert_refused(aggregator, phone, phone.update(offer), "expired")


def test_an_update_within_the_grace_is_accepted(aggregator, phone):
    offer = phone.lease()
    aggregator.clock.value = offer.deadline + 600
    receipt, _ = submit(aggregator, phone, phone.update(offer))
    assert receipt.verdict == "accepted"


def test_an_update_older_than_the_maximum_age_has_expired(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found(
        lease_seconds=86_400, maximum_age_seconds=86_400, lease_grace_seconds=9999
    )
    phone = Phone(1, aggregator)
    phone.enrol()
    offer = phone.lease()
    aggregator.clock.value += 86_401
    receipt, _ = assert_refused(aggregator, phone, phone.update(offer), "expired")
    assert "at most 86400 s old" in receipt.reason


def test_no_example_has_no_weight(tmp_path):
    plan = Plan(clip_norm=CLIP_NORM, weight_rule="examples", codec=CodecPlan(kept=0.25))
    aggregator = Aggregator(tmp_path / "d").found(plan=plan)
    phone = Phone(1, aggregator)
    phone.enrol()
    receipt, _ = assert_refused(aggregator, phone, phone.update(phone.lease(), examples=0), "malformed")
    assert "at least one example" in receipt.reason


def test_an_update_that_keeps_more_values_than_its_plan_says_is_malformed(aggregator, phone):
    most = codec.encode(delta_of(1), None, kept=SIZE // 4, clip_norm=CLIP_NORM, entropy="zstd").data
    more = codec.encode(delta_of(1), None, kept=SIZE // 4 + 1, clip_norm=CLIP_NORM, entropy="zstd").data
    receipt, _ = assert_refused(aggregator, phone, phone.update(phone.lease(), plain=more), "malformed")
    assert f"at most {SIZE // 4} of {SIZE} values, the update has {SIZE // 4 + 1}" in receipt.reason
    phone.rest()
    receipt, _ = submit(aggregator, phone, phone.update(phone.lease(), plain=most))
    assert receipt.verdict == "accepted"


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_updates_are_decoded_by_the_kernel_that_the_environment_names(aggregator, phone, name):
    if name == "numba":
        pytest.importorskip("numba")
    kernel = chosen_kernel({"EDGE_FEDERATION_KERNEL": name})
    decoded = []

    class Watched:
        name, unavailable, fold = kernel.name, kernel.unavailable, kernel.fold

        def decode(self, data, **known):
            decoded.append(kernel.decode(data, **known))
            return decoded[-1]

    aggregator.service.kernel = Watched()
    aggregator.service._populations.clear()
    receipt, row = submit(aggregator, phone, phone.update(phone.lease()))
    assert receipt.verdict == "accepted"
    assert row.norm == decoded[0].norm()
    with aggregator.database.reading() as records:
        assert view.status_view(records, NOW, None, kernel)["kernel"] == {"name": name, "unavailable": ""}


def test_a_kernel_that_is_none_is_an_invalid_setting():
    with pytest.raises(InvalidSetting, match=r"EDGE_FEDERATION_KERNEL: a kernel is one of .*, got 'cuda'"):
        chosen_kernel({"EDGE_FEDERATION_KERNEL": "cuda"})


def test_an_update_four_steps_behind_is_stale_and_three_steps_behind_is_not(tmp_path):
    aggregator = Aggregator(tmp_path / "d").found(goal_count=2)
    early, late, *others = phones(aggregator, 10)
    offers = {early: early.lease(), late: late.lease()}
    for i in range(0, 8, 2):
        for phone in others[i : i + 2]:
            aggregator.take(*phone.update(phone.lease()))
        aggregator.turn()
        if i == 4:
            receipt, row = submit(aggregator, early, early.update(offers[early]))
            assert (receipt.verdict, receipt.staleness, row.weight) == ("accepted", 3, 0.5)
            # One waits in the buffer now, so the next two make a step and leave one.
    assert aggregator.manifest().version == 5
    receipt, row = submit(aggregator, late, late.update(offers[late]))
    assert (receipt.verdict, receipt.staleness) == ("stale", 4)
    assert row.used_by is None
    with aggregator.database.reading() as records:
        assert len(records.accepted_unused(row.task)) == 1


def test_of_an_unknown_device_neither_init_nor_chunks_are_kept(aggregator, phone):
    offer = phone.lease()
    stranger = Phone(9, aggregator)
    messages = stranger.update(offer)
    assert_only_an_event(aggregator, stranger, messages, "unknown_device", events=len(messages))
    with aggregator.database.reading() as records:
        assert records.chunk_sizes(update_id_of(messages)) == {}


def test_a_revoked_device_is_told_so_when_it_signs_an_update(aggregator, phone):
    messages = phone.update(phone.lease())
    aggregator.service.revoke(phone.id, NOW)
    receipt, _ = assert_refused(aggregator, phone, messages, "unknown_device")
    assert "revoked" in receipt.reason
    other = phone.update(phone.replies()[-1], key=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    aggregator.take(other[0])
    aggregator.turn()
    assert len(phone.receipts()) == 1


def test_a_revoked_device_is_unknown_even_for_what_waits(aggregator, phone):
    offer = phone.lease()
    messages = phone.update(offer)
    aggregator.take(*messages)
    aggregator.service.revoke(phone.id, NOW)
    assert_refused(aggregator, phone, messages, "unknown_device")


@pytest.mark.parametrize("payload", [None, b"", b"garbage", b"\x95\x02\xa6update\xa0\xc4\x00\xc4\x00"])
def test_an_init_that_the_device_did_not_sign_earns_no_answer_and_takes_no_key(aggregator, phone, payload):
    offer = phone.lease()
    forged = phone.update(offer, key=Ed25519PrivateKey.from_private_bytes(bytes(32)))[0]
    forged = forged if payload is None else Message(forged.topic, payload)
    assert_only_an_event(aggregator, phone, [forged], "bad_signature")
    receipt, row = submit(aggregator, phone, phone.update(offer))
    assert receipt.verdict == row.verdict == "accepted"


def test_a_forged_init_beside_a_real_one_changes_nothing(aggregator, phone):
    offer = phone.lease()
    honest = phone.update(offer)
    aggregator.take(honest[0])
    forged = phone.update(offer, key=Ed25519PrivateKey.from_private_bytes(bytes(32)), examples=3)
    aggregator.take(forged[0])
    aggregator.take(*honest[1:])
    aggregator.turn()
    assert [receipt.verdict for receipt in phone.receipts()] == ["accepted"]
    assert aggregator.events()["bad_signature"] == 1


def test_the_first_of_two_updates_under_one_lease_wins_and_the_other_is_a_conflict(aggregator, phone):
    offer = phone.lease()
    first, second = phone.update(offer), phone.update(offer, delta=delta_of(77))
    assert update_id_of(first) == update_id_of(second)
    aggregator.take(*first)
    aggregator.take(*second)
    report = aggregator.turn()
    assert report.verdicts == {"accepted": 1}
    assert sorted(receipt.verdict for receipt in phone.receipts()) == ["accepted", "conflict"]
    row = aggregator.update_row(update_id_of(first))
    assert row.verdict == "accepted"
    assert row.init_sha256 == hashlib.sha256(first[0].payload).hexdigest()
    with aggregator.database.reading() as records:
        assert len(records.accepted_unused(row.task)) == 1


def test_a_replayed_update_is_counted_once_and_answered_as_a_duplicate(aggregator, phone):
    messages = phone.update(phone.lease())
    for _ in range(3):
        aggregator.take(*messages)
        aggregator.turn()
    assert [receipt.verdict for receipt in phone.receipts()] == ["accepted", "duplicate", "duplicate"]
    assert aggregator.events()["duplicate"] == 2
    with aggregator.database.reading() as records:
        assert len(records.accepted_unused(aggregator.update_row(update_id_of(messages)).task)) == 1


def test_a_refused_update_that_comes_again_gets_its_first_receipt(aggregator, phone):
    messages = phone.update(phone.lease(), layout_fingerprint="ab" * 32)
    aggregator.take(*messages)
    aggregator.turn()
    aggregator.take(*messages)
    aggregator.turn(60)
    first, again = phone.receipts()
    assert first == again
    assert first.verdict == "wrong_layout"


def test_chunks_may_come_before_their_init_and_in_any_order(aggregator, phone):
    messages = big_update(phone, phone.lease())
    aggregator.take(*messages[:0:-1])
    assert aggregator.service.pending().received_updates == 0
    aggregator.take(messages[0])
    assert aggregator.service.pending().received_updates == 1
    aggregator.turn()
    assert [receipt.verdict for receipt in phone.receipts()] == ["bad_seal"]


def test_a_status_query_names_the_missing_chunks_and_then_the_verdict(aggregator, phone):
    messages = big_update(phone, phone.lease())
    assert len(messages) == 4
    aggregator.take(messages[0], messages[2])
    aggregator.take(phone.status_message(update_id_of(messages)))
    aggregator.turn()
    assert (phone.receipts()[-1].verdict, phone.receipts()[-1].missing) == ("incomplete", (0, 2))
    aggregator.take(messages[1], messages[3])
    aggregator.turn()
    assert phone.receipts()[-1].verdict == "bad_seal"
    aggregator.take(phone.status_message(update_id_of(messages)))
    aggregator.turn()
    assert phone.receipts()[-1] == phone.receipts()[-2]


def test_a_status_query_for_nothing_asks_for_the_init(aggregator, phone):
    aggregator.take(phone.status_message("ab" * 16))
    aggregator.turn()
    receipt = phone.receipts()[-1]
    assert (receipt.verdict, receipt.init_missing) == ("incomplete", True)


def test_a_device_learns_nothing_of_another_devices_update(aggregator, phone):
    messages = phone.update(phone.lease())
    aggregator.take(*messages)
    aggregator.turn()
    other = Phone(2, aggregator)
    other.enrol()
    aggregator.take(other.status_message(update_id_of(messages)))
    aggregator.turn()
    assert other.receipts()[-1].init_missing


def wrong_chunk(phone, messages, index=0):
    update_id = update_id_of(messages)
    size = len(msgspec.msgpack.decode(messages[1 + index].payload)["data"])
    body = encode_message(Chunk(update_id=update_id, index=index, data=bytes(size)))
    return Message(build_topic(UpdateTopic(0, phone.id, update_id, index)), body)


def test_a_strangers_chunk_does_not_refuse_the_update_it_is_asked_for_again(aggregator, phone):
    honest = phone.update(phone.lease())
    aggregator.take(wrong_chunk(phone, honest), honest[0])
    aggregator.turn()
    receipt = phone.receipts()[-1]
    assert (receipt.verdict, receipt.missing) == ("incomplete", (0,))
    aggregator.take(*honest[1:])
    aggregator.turn()
    assert phone.receipts()[-1].verdict == "accepted"


def test_chunks_that_never_hash_to_the_init_are_malformed_at_the_third_time(aggregator, phone):
    offer = phone.lease()
    honest = phone.update(offer)
    aggregator.take(honest[0])
    for _ in range(3):
        aggregator.take(wrong_chunk(phone, honest))
    aggregator.turn()
    row = aggregator.update_row(update_id_of(honest))
    assert row.verdict == phone.receipts()[-1].verdict == "malformed"
    with aggregator.database.reading() as records:
        assert records.lease(offer.task, phone.id, offer.lease).state == "answered"
    phone.rest()
    assert phone.lease().lease != offer.lease


def test_a_chunk_of_another_size_or_place_is_dropped_and_counted(aggregator, phone):
    messages = big_update(phone, phone.lease())
    update_id = update_id_of(messages)
    aggregator.take(messages[0])
    for index, data in ((0, b"short"), (7, b"x" * 1024)):
        body = encode_message(Chunk(update_id=update_id, index=index, data=data))
        aggregator.take(Message(build_topic(UpdateTopic(0, phone.id, update_id, index)), body))
    moved = encode_message(Chunk(update_id=update_id, index=1, data=b"x" * 1024))
    aggregator.take(Message(build_topic(UpdateTopic(0, phone.id, update_id, 0)), moved))
    with aggregator.database.reading() as records:
        assert records.chunk_sizes(update_id) == {}
    assert aggregator.events()["malformed chunk"] == 3


def test_one_value_above_the_buffers_bound_is_refused_within_the_norms_tolerance(aggregator, phone):
    """float32 64.00003 passes a clip norm of 64 with its tolerance, and would not fit the buffer."""
    offer, keys = phone.lease(), aggregator.keys
    delta = np.zeros(SIZE, np.float32)
    delta[3] = 64.00003
    messages = phone.update(offer, plain=codec.encode(delta, None, kept=1, clip_norm=1000.0, entropy="zstd").data)
    opened = open_init(messages[0].payload, UpdateTopic(0, phone.id, update_id_of(messages), None), phone.public)
    sealed = b"".join(msgspec.msgpack.decode(m.payload)["data"] for m in messages[1:])
    with aggregator.database.reading() as records:
        lease = records.lease(offer.task, phone.id, offer.lease)
    rules = Rules(POPULATION, offer.task, offer.layout_fingerprint, SIZE, Plan(clip_norm=64.0), 60, 86_400)
    verdict, vector = admit(Arrived(opened.init.header, opened.header, sealed, lease, 0), rules, keys.sealing, NOW)
    assert (verdict.name, vector) == ("norm_exceeded", None)
    assert "64.00003" in verdict.reason


def test_an_update_that_no_rule_foresaw_is_malformed_and_the_others_of_the_pass_go_on(aggregator):
    broken, honest = phones(aggregator, 2)
    updates = {phone: phone.update(phone.lease()) for phone in (broken, honest)}
    for messages in updates.values():
        aggregator.take(*messages)
    # A row that the program itself would not write: the header's bytes are cut.
    with sqlite3.connect(aggregator.folder / "aggregator.db") as connection:
        connection.execute("update updates set header = x'81' where device = ?", (broken.id,))
    assert aggregator.turn().verdicts == {"malformed": 1, "accepted": 1}
    assert broken.receipts()[-1].verdict == "malformed"
    assert honest.receipts()[-1].verdict == "accepted"
    assert aggregator.events()["admission failed"] == 1
    aggregator.restart()
    assert aggregator.turn().verdicts == {}


@given(topic=st.text(max_size=80), payload=st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_topic_and_any_bytes_leave_the_service_standing(shared_aggregator, topic, payload):
    shared_aggregator.take(Message(topic, payload))


@given(payload=st.binary(max_size=300), leaf=st.sampled_from(["req", "state", "init", "0", "7"]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_under_a_known_devices_topics_leave_the_service_standing(shared_aggregator, payload, leaf):
    phone = shared_aggregator.phone
    topic = f"fl/v1/dev/{phone.id}/{leaf}" if leaf in ("req", "state") else f"fl/v1/up/0/{phone.id}/{'ab' * 16}/{leaf}"
    shared_aggregator.take(Message(topic, payload))
    shared_aggregator.turn()
    assert shared_aggregator.manifest().version == 1


@pytest.fixture(scope="module")
def shared_aggregator(tmp_path_factory):
    aggregator = Aggregator(tmp_path_factory.mktemp("shared") / "d").found()
    aggregator.phone = Phone(1, aggregator)
    aggregator.phone.enrol()
    return aggregator


@given(plain=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_sealed_bytes_get_a_verdict(shared_aggregator, plain):
    from cloud_aggregator.leases import draw_lease
    from tests.cloud_aggregator.fleet import build_update

    phone = shared_aggregator.phone
    keys = shared_aggregator.keys
    lease = draw_lease(bytes(32), task="44" * 8, device=phone.id, counter=0, base=(1, "ab" * 32), now=NOW, lease_s=99)
    offer = type("Offer", (), {"task": lease.task, "lease": lease.lease, "population": POPULATION, "base_version": 1,
                               "layout_fingerprint": "cd" * 32, "sealing_key": keys.sealing_public})  # fmt: skip
    messages = build_update(phone, offer, plain=plain)
    topic = UpdateTopic(0, phone.id, update_id_of(messages), None)
    opened = open_init(messages[0].payload, topic, phone.public)
    assert isinstance(opened, OpenedInit)
    sealed = b"".join(msgspec.msgpack.decode(m.payload)["data"] for m in messages[1:])
    rules = Rules(POPULATION, lease.task, "cd" * 32, SIZE, Plan(clip_norm=CLIP_NORM), 60, 86_400)
    verdict, vector = admit(Arrived(opened.init.header, opened.header, sealed, lease, 0), rules, keys.sealing, NOW)
    assert isinstance(verdict, Verdict)
    assert verdict.name in ("malformed", "unsupported")
    assert vector is None


@pytest.mark.parametrize(
    ("rule", "examples", "staleness", "share"),
    [("uniform", 1, 0, 1.0), ("uniform", 10**6, 3, 0.5), ("examples", 40, 0, 0.5), ("examples", 10**6, 0, 1.0),
     ("examples", 40, 3, 0.25), ("examples", 0, 0, 0.0)],
)  # fmt: skip
def test_an_update_weighs_its_capped_examples_and_never_more_than_one(rule, examples, staleness, share):
    plan = Plan(weight_rule=rule, example_cap=80)
    assert update_weight(plan, examples, staleness) == share


def test_a_device_cannot_claim_a_fresher_base_than_its_lease_names(aggregator):
    late, *others = phones(aggregator, 5)
    old = late.lease()
    for phone in others:
        aggregator.take(*phone.update(phone.lease()))
    aggregator.turn()
    assert aggregator.manifest().version == 2
    receipt, row = submit(aggregator, late, late.update(old, base_version=2))
    assert receipt.verdict == row.verdict == "unknown_lease"
    assert "the lease is for version 1, the update for 2" in receipt.reason
