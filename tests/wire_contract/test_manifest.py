import hashlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire_contract.toy_model import ARRAY_MANIFEST, FILE, FULL_MANIFEST, MANIFEST, TENSORS
from wire_contract.errors import ContractError, Malformed, Unsupported
from wire_contract.layout import Layout
from wire_contract.lineage import Measure, Parent
from wire_contract.manifest import (
    GoldenVector,
    Part,
    TrainInput,
    decode_manifest,
    encode_manifest,
    patched_ranges,
    promises_hash,
    signature_family,
    signature_name,
    template_hash,
)
from wire_contract.patch import patch, quantize, read_tensors


@pytest.mark.parametrize("manifest", [MANIFEST, FULL_MANIFEST, ARRAY_MANIFEST])
def test_a_manifest_comes_back_as_it_was_signed(manifest):
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_family_that_this_side_does_not_know_is_unsupported():
    with pytest.raises(Unsupported, match="speech"):
        encode_manifest(changed(family="speech"))


@given(st.sampled_from(["train", "train_sampled", "train_private", "suggest_context"]), st.integers(1, 4096),
       st.integers(1, 4096))  # fmt: skip
def test_a_variants_name_says_its_family(family, batch, length):
    assert signature_family(signature_name(family, batch, length)) == family
    assert signature_family(family) == family


def test_a_name_that_is_no_signatures_is_its_own_family():
    for name in ("", "train_b0_l5", "Train", "train_b4", "train_b4_l20_x"):
        assert signature_family(name) == name


def test_a_newer_field_is_ignored_and_a_newer_format_is_unsupported():
    tree = msgspec.msgpack.decode(encode_manifest(MANIFEST))
    assert decode_manifest(msgspec.msgpack.encode({**tree, "colour": 1})) == MANIFEST
    with pytest.raises(Unsupported, match="got 2"):
        decode_manifest(msgspec.msgpack.encode({**tree, "format": 2}))


ROWS = (Part(tensor="rows", start=0, stop=4),)
BIAS = (Part(tensor="bias", start=0, stop=1),)


def changed(**fields):
    return msgspec.structs.replace(MANIFEST, **fields)


def arrays(**fields):
    return msgspec.structs.replace(ARRAY_MANIFEST, **fields)


def example(**fields):
    return msgspec.structs.replace(ARRAY_MANIFEST.examples[0], **fields)


def lineage(**fields):
    return msgspec.structs.replace(FULL_MANIFEST, lineage=msgspec.structs.replace(FULL_MANIFEST.lineage, **fields))


def golden(**fields):
    return changed(golden=msgspec.structs.replace(MANIFEST.golden, **fields))


def tensor(index: int, **fields):
    tensors = list(MANIFEST.tensors)
    tensors[index] = msgspec.structs.replace(tensors[index], **fields)
    return changed(tensors=tuple(tensors))


@pytest.mark.parametrize(
    ("manifest", "rule"),
    [
        (changed(sha256="zz"), "sha256"),
        (changed(version=0), "positive"),
        (changed(size_bytes=0), "bytes"),
        (changed(size_bytes=1 << 40), "bytes"),
        (changed(size_bytes=len(FILE) - 20), "inside the file"),
        (changed(expires_at=MANIFEST.created_at), "expires after"),
        (changed(tensors=()), "at least one"),
        (changed(tensors=(MANIFEST.tensors[0],) * 2), "once"),
        (changed(layout_fingerprint="0" * 64), "fingerprint"),
        (tensor(0, shape=(0, 4)), "positive dimensions"),
        (tensor(0, offsets=()), "one or more offsets"),
        (tensor(0, offsets=(-4,)), ">= 0"),
        (tensor(0, scale_offsets=()), "scale offsets"),
        (tensor(1, offsets=MANIFEST.tensors[0].offsets), "apart"),
        (tensor(2, transposed=True), "matrix"),
        (changed(train_inputs=(TrainInput(name="a", shape=(6, 4), parts=()),)), "parts"),
        (changed(train_inputs=(TrainInput(name="a", shape=(6, 1 << 40), parts=ROWS),)), "at most"),
        (changed(train_inputs=(TrainInput(name="a", shape=(6,), parts=(*BIAS, *BIAS)),)), "side by side"),
        (changed(url="http://[x"), "url"),
        (changed(url="http://höst/x"), "url"),
        (changed(vocabulary_url="/a b"), "vocabulary_url"),
        (changed(vocabulary_sha256=""), "vocabulary_sha256"),
        (changed(examples=ARRAY_MANIFEST.examples), "no example arrays"),
        (arrays(vocabulary_words=3), "no vocabulary"),
        (arrays(examples=()), "one target"),
        (arrays(examples=ARRAY_MANIFEST.examples[:2]), "one target"),
        (arrays(examples=(*ARRAY_MANIFEST.examples, ARRAY_MANIFEST.examples[2])), "one target"),
        (arrays(examples=(*ARRAY_MANIFEST.examples, ARRAY_MANIFEST.examples[0])), "different names"),
        (arrays(examples=(example(shape=(1 << 20, 8)), ARRAY_MANIFEST.examples[2])), "values"),
        (arrays(examples=(example(shape=(0,)), ARRAY_MANIFEST.examples[2])), "values"),
        (arrays(examples=(example(name="Image"), ARRAY_MANIFEST.examples[2])), "lower case"),
        (changed(golden_vectors=(GoldenVector(context=(4,), ids=()),)), "1 to 16 ids"),
        (changed(golden_vectors=(GoldenVector(context=(4,), ids=(6,)),)), "of the vocabulary"),
        (changed(golden_vectors=(GoldenVector(context=(-1,), ids=(4,)),)), "of the vocabulary"),
        (changed(golden_vectors=(GoldenVector(ids=(4,)),) * 65), "at most 64"),
        (
            changed(vocabulary_words=1 << 41, golden_vectors=(GoldenVector(context=(1 << 40,), ids=(4,)),)),
            "of the vocabulary",
        ),
        (golden(loss_tolerance=float("inf")), "finite"),
        (golden(logit_tolerance=float("nan")), "finite"),
        (golden(logit_tolerance=-1.0), "finite"),
        (golden(template_loss=float("nan")), "finite"),
        (golden(tokens=(1 << 31,)), "golden context"),
        (golden(tokens=(0,) * 4097), "golden context"),
        (tensor(0, name="rows\nbias"), "printable"),
        (tensor(0, name=""), "printable"),
        (changed(train_inputs=(TrainInput(name="a", shape=(6, 4), parts=ROWS, fill=float("nan")),)), "finite"),
        (changed(needs=("train",)), "capabilities"),
        (changed(needs=("signature:train",) * 65), "capabilities"),
        (changed(minimum_runtime="new"), "release"),
        (changed(minimum_runtime="1.2.3.4"), "release"),
        (lineage(parents=()), "parents"),
        (lineage(parents=(Parent(version=9, sha256="a" * 64),)), "lower version"),
        (lineage(parents=(Parent(version=3, sha256="a"),)), "lower version"),
        (lineage(updates=-1), "counts from 0"),
        (lineage(evaluation=(Measure(name="top3", value=float("nan")),)), "finite"),
        (lineage(evaluation=(Measure(name="Top 3", value=1.0),)), "name"),
        (lineage(code_sha256="xyz"), "code_sha256"),
        (lineage(sources=("d" * 63,)), "sources"),
        (changed(vocabulary_url="file:///etc/passwd"), "vocabulary_url"),
        (
            changed(train_inputs=(TrainInput(name="a", shape=(6, 4), parts=(Part(tensor="ghost", start=0, stop=4),)),)),
            "ghost",
        ),
        (
            changed(train_inputs=(TrainInput(name="a", shape=(6, 4), parts=(Part(tensor="rows", start=2, stop=6),)),)),
            "inside its columns",
        ),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused_with_the_rule(manifest, rule):
    with pytest.raises(Malformed, match=rule):
        encode_manifest(manifest)
    with pytest.raises(Malformed, match=rule):
        decode_manifest(msgspec.msgpack.encode(manifest))


@given(st.binary(max_size=300))
def test_any_bytes_raise_only_the_contracts_error(data):
    with pytest.raises(ContractError):
        decode_manifest(data)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_gives_a_manifest_within_the_rules_or_the_contracts_error(position, flip):
    data = bytearray(encode_manifest(MANIFEST))
    data[position % len(data)] ^= flip
    try:
        manifest = decode_manifest(bytes(data))
    except ContractError:
        return
    assert all(0 <= start < stop <= manifest.size_bytes for start, stop in patched_ranges(manifest))


def test_patched_weights_are_read_back_within_half_a_scale():
    rng = np.random.default_rng(0)
    new = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in TENSORS.items()}
    seen = read_tensors(patch(FILE, MANIFEST, new), MANIFEST)
    for entry in MANIFEST.tensors:
        error = np.abs(seen[entry.name] - new[entry.name]).max()
        limit = np.abs(new[entry.name]).max() / 127 / 2 * 1.001 if entry.kind == "int8" else 0
        assert error <= limit


def test_reading_and_patching_again_changes_no_byte():
    once = patch(FILE, MANIFEST, TENSORS)
    assert patch(once, MANIFEST, read_tensors(once, MANIFEST)) == once


def test_patching_touches_only_the_listed_ranges_so_the_template_hash_stays():
    new = {name: value + 1 for name, value in TENSORS.items()}
    patched = patch(FILE, MANIFEST, new)
    inside = {i for start, stop in patched_ranges(MANIFEST) for i in range(start, stop)}
    assert {i for i, (a, b) in enumerate(zip(FILE, patched, strict=True)) if a != b} <= inside
    assert template_hash(patched, MANIFEST) == template_hash(FILE, MANIFEST) == MANIFEST.template_sha256


def test_one_flipped_bit_outside_the_ranges_changes_the_template_hash():
    inside = {i for start, stop in patched_ranges(MANIFEST) for i in range(start, stop)}
    for position in set(range(len(FILE))) - inside:
        data = bytearray(FILE)
        data[position] ^= 1
        assert template_hash(bytes(data), MANIFEST) != MANIFEST.template_sha256


def test_the_template_hash_is_the_hash_of_the_file_with_zeros():
    data = bytearray(FILE)
    for start, stop in patched_ranges(MANIFEST):
        data[start:stop] = bytes(stop - start)
    assert hashlib.sha256(data).hexdigest() == template_hash(FILE, MANIFEST)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_never_written_or_read(bad):
    new = {name: value.copy() for name, value in TENSORS.items()}
    for name in new:
        broken = {**new, name: np.full_like(new[name], bad)}
        with pytest.raises(Malformed, match="finite"):
            patch(FILE, MANIFEST, broken)
    data = bytearray(FILE)
    at = MANIFEST.tensors[0].scale_offsets[0]
    data[at : at + 4] = np.float32(bad).tobytes()
    with pytest.raises(Malformed, match="scale"):
        read_tensors(bytes(data), MANIFEST)


def test_quantizing_rounds_half_to_even_and_an_all_zero_tensor_has_a_scale():
    codes, scale = quantize(np.array([127, 0.5, 1.5, 2.5, -0.5, -127], dtype=np.float32))
    assert scale == 1
    assert codes.tolist() == [127, 0, 2, 2, 0, -127]
    codes, scale = quantize(np.zeros(3, np.float32))
    assert scale > 0
    assert codes.tolist() == [0, 0, 0]


def test_flattening_and_packing_have_inverses():
    layout = Layout.of(MANIFEST)
    vector = layout.flatten(TENSORS)
    assert vector.shape == (layout.size,)
    for name, value in layout.unflatten(vector).items():
        assert np.array_equal(value, TENSORS[name])
    packed = layout.pack(TENSORS)
    assert packed["output_rows"].shape == (6, 6)
    assert (packed["output_rows"][:, 5] == 1).all()
    for name, value in layout.unpack(packed).items():
        assert np.array_equal(value, TENSORS[name])


def test_a_missing_tensor_or_a_wrong_shape_is_named():
    layout = Layout.of(MANIFEST)
    with pytest.raises(Malformed, match="bias"):
        layout.flatten({name: value for name, value in TENSORS.items() if name != "bias"})
    with pytest.raises(Malformed, match="34 values"):
        layout.unflatten(np.zeros(3, np.float32))


def test_the_fingerprint_follows_names_shapes_and_order_only():
    layout = Layout.of(MANIFEST)
    assert layout.fingerprint == Layout(tensor(0, offsets=(9999,)).tensors).fingerprint
    assert layout.fingerprint != Layout(MANIFEST.tensors[::-1]).fingerprint
    assert layout.fingerprint != Layout(tensor(0, name="other").tensors).fingerprint


def test_two_manifests_promise_the_same_of_a_file_if_they_differ_in_its_story_alone():
    story = {"version": 9, "kind": "training", "created_at": 5, "expires_at": 7, "url": "/x", "undo_of": 3}
    assert promises_hash(msgspec.structs.replace(FULL_MANIFEST, **story)) == promises_hash(FULL_MANIFEST)
    told = (GoldenVector(context=(4,), ids=(4,)),)
    for more in (
        changed(golden_vectors=told),
        golden(logit_tolerance=1.0),
        tensor(0, offsets=(4,)),
        changed(sha256="0" * 64),
    ):
        assert promises_hash(more) != promises_hash(MANIFEST)
