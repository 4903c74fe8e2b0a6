"""The golden bytes: what this implementation writes and reads is what the first one did."""

import hashlib
import json
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from tests.vectors.write import HERE, RECIPIENT, SHARED_PLAN, VECTORS
from tests.wire_contract.samples import MESSAGES
from tests.wire_contract.toy_model import MANIFEST
from wire_contract import codec, delta, envelope, messages
from wire_contract.basis import decode_basis, turn_back
from wire_contract.index_set import decode_index_set
from wire_contract.layout import Layout
from wire_contract.manifest import decode_manifest

# Bytes behind a compressor may differ between compressors: those are decoded below. Some messages have more fields now.
COMPARED_ELSEWHERE = {
    "codec-topk4-v1", "codec-topk-v2", "index-set-v1", "messages-v1", "task-offer-v2", "task-offer-v3", "delta-v1",
    "manifest-v1",
}  # fmt: skip


GROWN = ("TaskOffer", "ModelAnnouncement", "Enrolled")


def golden(name: str):
    return json.loads((HERE / f"{name}.json").read_text())


@pytest.mark.parametrize("name", sorted(set(VECTORS) - COMPARED_ELSEWHERE))
def test_what_we_write_today_is_the_golden_bytes(name):
    assert json.loads(json.dumps(VECTORS[name]())) == golden(name)


def test_golden_messages_still_decode_to_the_same_values():
    today = {type(message).__name__: message for message in MESSAGES}
    for row in golden("messages-v1"):
        message = today[row["type"]]
        assert messages.decode_message(bytes.fromhex(row["hex"]), type(message)) == message


@pytest.mark.parametrize("vector", ["task-offer-v2", "task-offer-v3"])
def test_an_offer_of_an_older_aggregator_still_decodes_to_the_same_values(vector):
    today = VECTORS[vector]()
    for name, stored in golden(vector).items():
        expected = messages.decode_message(bytes.fromhex(today[name]), messages.TaskOffer)
        assert messages.decode_message(bytes.fromhex(stored), messages.TaskOffer) == expected


def test_an_older_aggregators_plan_asks_for_none_of_what_it_could_not_name():
    for name in ("first plan", "shared plan"):
        codec_plan = _golden_offer("task-offer-v2", name).plan.codec
        assert (codec_plan.threshold, codec_plan.basis) == (0.0, "")
    for name in ("first plan", "turned plan"):
        plan = _golden_offer("task-offer-v3", name).plan
        assert (plan.rules, plan.separation_versions, plan.separation_s) == ((), 0, 0)


def test_the_golden_plan_with_rules_says_them_in_their_order():
    plan = _golden_offer("task-offer-v4", "ruled plan").plan
    assert [(rule.name, rule.value, rule.tensors) for rule in plan.rules] == [
        ("momentum", 0.9, ()), ("freeze", 0.0, ("embedding", "lstm/kernel")),
    ]  # fmt: skip
    assert (plan.separation_versions, plan.separation_s) == (8, 518_400)
    needed = messages.capabilities_needed(plan) - messages.capabilities_needed(messages.Plan())
    assert needed == {"rule:momentum", "rule:freeze", "plan:separation"}


def test_a_manifest_of_an_older_exporter_still_decodes_to_the_same_values_and_patches_to_the_same_bytes():
    stored, today = golden("manifest-v1"), VECTORS["manifest-v1"]()
    assert decode_manifest(bytes.fromhex(stored.pop("manifest"))) == decode_manifest(
        bytes.fromhex(today.pop("manifest"))
    )
    assert today == stored


def test_messages_of_an_older_side_carry_no_root_and_no_metadata():
    rows = {row["type"]: bytes.fromhex(row["hex"]) for row in golden("messages-v1")}
    assert messages.decode_message(rows["Enrolled"], messages.Enrolled).root == b""
    assert messages.decode_message(rows["ModelAnnouncement"], messages.ModelAnnouncement).trust == ()


def _golden_offer(vector: str, name: str) -> messages.TaskOffer:
    return messages.decode_message(bytes.fromhex(golden(vector)[name]), messages.TaskOffer)


def test_a_message_whose_fields_are_the_first_ones_is_written_as_the_first_bytes():
    today = {row["type"]: row["hex"] for row in VECTORS["messages-v1"]()}
    for row in golden("messages-v1"):
        assert row["type"] in GROWN or today[row["type"]] == row["hex"]


def test_golden_versions_are_published_byte_for_byte_and_golden_deltas_lead_from_one_to_the_next():
    whole, today = golden("delta-v1"), VECTORS["delta-v1"]()
    assert today["files"] == whole["files"]
    files = [bytes.fromhex(file) for file in whole["files"]]
    ways = [*zip(whole["deltas"], pairwise(files), strict=True), (whole["chain"], (files[0], files[-1]))]
    for way, (old, new) in ways:
        stated = msgspec.structs.replace(MANIFEST, sha256=hashlib.sha256(new).hexdigest())
        assert delta.apply(old, bytes.fromhex(way), stated) == new


@pytest.mark.parametrize("entropy", sorted(codec.ENTROPY_CODES))
def test_golden_updates_decode_to_the_exact_values(entropy):
    whole = golden("codec-topk4-v1")
    case = whole["cases"][entropy]
    seen = codec.decode(bytes.fromhex(case["hex"]), size=whole["size"])
    assert seen.indices.tolist() == case["indices"]
    assert [float(v).hex() for v in seen.values] == case["values"]


def test_without_an_entropy_stage_the_update_bytes_are_fixed():
    assert VECTORS["codec-topk4-v1"]()["cases"]["none"] == golden("codec-topk4-v1")["cases"]["none"]


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_golden_updates_of_other_code_widths_decode_to_the_exact_values(bits):
    whole = golden("codec-topk-v2")
    case = whole["cases"][str(bits)]
    seen = codec.decode(bytes.fromhex(case["hex"]), size=whole["size"])
    assert seen.indices.tolist() == case["indices"]
    assert [float(v).hex() for v in seen.values] == case["values"]
    assert VECTORS["codec-topk-v2"]()["cases"][str(bits)] == case


def test_the_golden_index_set_and_the_golden_shared_update_decode_together():
    stored, update = golden("index-set-v1"), golden("codec-shared-v1")
    index_set = decode_index_set(bytes.fromhex(stored["hex"]))
    assert (index_set.size, index_set.sha256) == (stored["size"], stored["sha256"])
    assert index_set.indices.tolist() == stored["indices"]
    seen = codec.decode(bytes.fromhex(update["hex"]), size=1000, plan=SHARED_PLAN, index_set=index_set)
    assert seen.indices.tolist() == stored["indices"]
    assert [float(v).hex() for v in seen.values] == update["values"]


def test_the_golden_basis_turns_back_to_the_golden_bits():
    stored = golden("basis-v1")
    axes = decode_basis(bytes.fromhex(stored["hex"]))
    assert axes.sha256 == stored["sha256"] and [each.tensor for each in axes.turned] == ["rows", "kernel"]
    turned = np.array([float.fromhex(value) for value in stored["turned"]], np.float32)
    back = turn_back(turned, Layout.of(MANIFEST), axes)
    assert [float(value).hex() for value in back] == stored["turned_back"]
    # By hand, for the first block: old 0 is 0.6 x new 0 + 0.8 x new 1, in float32's 0.6 and 0.8.
    (first, second), (low, high) = turned[:2].tolist(), axes.matrix[0].tolist()
    assert back[0] == np.float32(low * first + high * second)


def test_golden_signature_and_seal_open():
    whole = golden("envelope-v1")
    public = bytes.fromhex(whole["public_key"])
    assert envelope.verify(bytes.fromhex(whole["signed"]["hex"]), "receipt", public) == b"body"
    sealed = whole["sealed"]
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(sealed["ephemeral_private"]))
    opened = envelope.unseal(
        bytes.fromhex(sealed["hex"]),
        header=bytes.fromhex(sealed["header"]),
        ephemeral_key=envelope.public_bytes(ephemeral),
        recipient=RECIPIENT,
    )
    assert opened.hex() == sealed["plain"]
