"""A population whose model learns from arrays: no vocabulary anywhere, and everything else as for text."""

import msgspec
import pytest

from cloud_aggregator.bundle import check_bundle, read_bundle
from cloud_aggregator.errors import Refused
from cloud_aggregator.population import found
from tests.cloud_aggregator.fleet import (
    CAPABILITIES,
    CLIP_NORM,
    MANIFEST_KEY,
    POPULATION,
    Aggregator,
    make_bundle,
    phones,
    settings,
    submit,
)
from wire_contract import envelope
from wire_contract.errors import ContractError
from wire_contract.manifest import ArraySpec, SignatureSpec, encode_manifest
from wire_contract.messages import CodecPlan, Plan
from wire_contract.patch import read_tensors

PLAN = Plan(signature="train", dropout=0.0, clip_norm=CLIP_NORM, weight_rule="uniform", codec=CodecPlan(kept=0.25))
CAN = (*CAPABILITIES, "signature:train")
SPECS = (
    ArraySpec(name="amounts", shape=(8,), dtype="float32"),
    ArraySpec(name="target", shape=(), dtype="int32", role="target"),
)


def array_bundle(**changes):
    """Return the toy model as one that learns from arrays."""
    text = make_bundle()
    values = {
        "family": "arrays", "examples": SPECS, "loss": "binary_crossentropy", "vocabulary_sha256": "",
        "vocabulary_words": 0, "signatures": {"train": SignatureSpec(batch=4, length=1)}, **changes,
    }  # fmt: skip
    manifest = msgspec.structs.replace(text.manifest, **values)
    signed = envelope.sign(MANIFEST_KEY, "manifest", encode_manifest(manifest))
    return check_bundle(signed, text.manifest_key, text.model, b"")


def write(folder, bundle):
    folder.mkdir()
    (folder / "model.tflite").write_bytes(bundle.model)
    (folder / "manifest.bin").write_bytes(bundle.signed_manifest)
    (folder / "manifest_key.pub").write_text(bundle.manifest_key.hex())


def founded(folder, **changes):
    aggregator = Aggregator(folder)
    bundle = array_bundle()
    with aggregator.database.transaction() as records:
        found(
            records, aggregator.blobs, aggregator.keys, bundle, settings(plan=PLAN, **changes), aggregator.clock.now()
        )
    return aggregator


def test_a_folder_without_a_vocabulary_is_a_whole_bundle(tmp_path):
    write(tmp_path / "bundle", array_bundle())
    bundle = read_bundle(tmp_path / "bundle", None)
    assert bundle.vocabulary == b"" and bundle.manifest.examples == SPECS
    assert len(bundle.weights) == bundle.manifest.parameters


def test_a_model_of_text_still_needs_its_vocabulary():
    text = make_bundle()
    with pytest.raises((Refused, ContractError), match="vocabulary"):
        check_bundle(text.signed_manifest, text.manifest_key, text.model, b"")


def test_a_vocabulary_beside_a_model_of_arrays_is_not_what_was_signed():
    bundle = array_bundle()
    with pytest.raises(Refused, match="has no vocabulary, got one of 4 bytes"):
        check_bundle(bundle.signed_manifest, bundle.manifest_key, bundle.model, b"word")


def test_updates_make_a_version_that_announces_no_vocabulary(tmp_path):
    aggregator = founded(tmp_path)
    before = aggregator.manifest()
    assert (before.vocabulary_url, before.vocabulary_sha256, before.family) == ("", "", "arrays")
    for phone in phones(aggregator, 4):
        receipt, _ = submit(aggregator, phone, phone.update(phone.lease(capabilities=CAN)))
        assert receipt.verdict == "accepted"
    after = aggregator.manifest()
    assert after.version == 2 and after.examples == SPECS and after.loss == "binary_crossentropy"
    assert (after.vocabulary_url, after.vocabulary_sha256) == ("", "")
    old, new = (read_tensors(aggregator.blobs.get(m.sha256), m)["rows"] for m in (before, after))
    assert (old != new).any()


def test_a_release_of_arrays_is_judged_without_a_vocabulary(tmp_path):
    aggregator = founded(tmp_path)
    for phone in phones(aggregator, 4):
        submit(aggregator, phone, phone.update(phone.lease(capabilities=CAN)))
    candidate = aggregator.service.candidate(POPULATION)
    assert candidate.candidate.vocabulary is None and candidate.candidate.version == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [({"signature": "train_sampled"}, "plan.signature 'train', got 'train_sampled'"),
     ({"dropout": 0.2}, "plan.dropout is 0, got 0.2")],
)  # fmt: skip
def test_settings_made_for_text_are_refused_with_what_to_write(tmp_path, change, told):
    aggregator = Aggregator(tmp_path)
    wrong = settings(plan=msgspec.structs.replace(PLAN, **change))
    with pytest.raises(Refused, match=told) as refused, aggregator.database.transaction() as records:
        found(records, aggregator.blobs, aggregator.keys, array_bundle(), wrong, aggregator.clock.now())
    assert 'signature = "train", dropout = 0.0' in refused.value.hint
    with aggregator.database.reading() as records:
        assert records.populations() == []


def test_principal_axes_need_a_model_of_text(tmp_path):
    aggregator = Aggregator(tmp_path)
    plan = msgspec.structs.replace(PLAN, codec=CodecPlan(mode="topk", kept=0.25))
    wrong = settings(plan=plan, principal_axes=True)
    with pytest.raises(Refused, match="principal axes"), aggregator.database.transaction() as records:
        found(records, aggregator.blobs, aggregator.keys, array_bundle(), wrong, aggregator.clock.now())
