"""Whatever a file's bytes and a manifest's offsets say: refused by a rule, never a crash, never believed."""

import hashlib
import random
import struct

import msgspec
import pytest
from ai_edge_litert import schema_py_generated as schema

from model_export.bundle import make_manifest, read_bundle
from model_export.file_structure import check_structure
from model_export.flatbuffer import UnexpectedFile
from tests.model_export.conftest import VARIANT, VARIANT_CANDIDATES
from wire_contract.errors import Malformed, Untrusted
from wire_contract.manifest import decode_manifest, encode_manifest, template_hash

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]
FLIPS = 2_000
LIES = 40


def flipped(data, rng):
    out = bytearray(data)
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def test_a_version_that_was_exported_holds(bundle_parts):
    check_structure(*bundle_parts)


def half_version(half_template, tensors, vocabulary):
    """(model bytes, manifest) of float16 weights; the shared template has no `evaluate`."""
    model, manifest = make_manifest(
        half_template, tensors, vocabulary, population="test", candidates=VARIANT_CANDIDATES, variants=[VARIANT],
        logit_tolerance=0.3, now=1_800_000_000, valid_s=86_400,
    )  # fmt: skip
    signatures = {name: spec for name, spec in manifest.signatures.items() if name != "evaluate"}
    return model, msgspec.structs.replace(manifest, signatures=signatures)


def test_a_float16_version_holds(half_template, tensors, vocabulary):
    check_structure(*half_version(half_template, tensors, vocabulary))


def test_every_one_of_2000_flipped_bits_is_refused_by_the_hash(bundle_parts, bundle_folder):
    model, _ = bundle_parts
    rng = random.Random(6)
    path = bundle_folder / "model.tflite"
    for _ in range(FLIPS):
        path.write_bytes(flipped(model, rng))
        with pytest.raises(Untrusted, match="hashes to what the manifest says"):
            read_bundle(bundle_folder)
    path.write_bytes(model)
    assert read_bundle(bundle_folder).model == model


def test_flips_that_a_liar_signs_anew_are_refused_or_leave_the_structure_whole(bundle_parts):
    """The liar states the right hash of the wrong file; what the template's hash would refuse is not asked here."""
    model, manifest = bundle_parts
    rng = random.Random(7)
    refused = 0
    for _ in range(LIES):
        broken = flipped(model, rng)
        lie = msgspec.structs.replace(
            manifest, sha256=hashlib.sha256(broken).hexdigest(), template_sha256=template_hash(broken, manifest)
        )
        try:
            check_structure(broken, lie)
        except UnexpectedFile:
            refused += 1
    assert 5 < refused < LIES


@pytest.mark.parametrize("part", range(1, 64, 7))
def test_a_truncated_file_is_refused(bundle_parts, part):
    model, manifest = bundle_parts
    with pytest.raises(UnexpectedFile):
        check_structure(model[: part * len(model) // 64], manifest)


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", bytes(200), b"\x18\x00\x00\x00TFL3" + bytes(8), b"\xff" * 4 + b"TFL3" + b"\xff" * 99]
)
def test_bytes_that_are_no_model_are_refused(bundle_parts, data):
    with pytest.raises(UnexpectedFile):
        check_structure(data, bundle_parts[1])


def moved(manifest, name, **change):
    tensors = tuple(msgspec.structs.replace(t, **change) if t.name == name else t for t in manifest.tensors)
    return msgspec.structs.replace(manifest, tensors=tensors)


def test_offsets_that_lie_are_refused_by_the_tensors_name(bundle_parts):
    model, manifest = bundle_parts
    kernel, bias = (next(t for t in manifest.tensors if t.name == n) for n in ("kernel", "kernel_bias"))
    lies = [
        (moved(manifest, "kernel", offsets=(kernel.offsets[0] + 4,)), "a weight is a constant of the file, got kernel"),
        (moved(manifest, "kernel", offsets=(40,)), "a weight is a constant of the file, got kernel"),
        (moved(manifest, "kernel_bias", offsets=(kernel.offsets[0],)), "got kernel_bias with"),
        (moved(manifest, "kernel", scale_offsets=(kernel.scale_offsets[0] + 2,)), "got kernel at"),
        (moved(manifest, "kernel", scale_offsets=(4,)), "a scale stands in a tensor's quantization"),
        (moved(manifest, "kernel_bias", kind="int8", shape=(4 * bias.size,), scale_offsets=kernel.scale_offsets),
         "kernel_bias is stored as int8"),
    ]  # fmt: skip
    for lie, rule in lies:
        with pytest.raises(UnexpectedFile, match=rule):
            check_structure(model, lie)


def test_offsets_outside_the_file_or_over_each_other_never_leave_the_manifests_reader(bundle_parts):
    _, manifest = bundle_parts
    embedding = next(t for t in manifest.tensors if t.name == "embedding")
    for offset in (manifest.size_bytes - 1, embedding.offsets[0] + 1, 1 << 60):
        lie = msgspec.msgpack.encode(moved(manifest, "kernel", offsets=(offset,)))
        with pytest.raises(Malformed, match="patched ranges lie apart inside the file"):
            decode_manifest(lie)
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_signatures_that_the_manifest_does_not_name_are_refused(bundle_parts):
    model, manifest = bundle_parts
    fewer = {name: spec for name, spec in manifest.signatures.items() if name != "train"}
    with pytest.raises(UnexpectedFile, match=r"signatures are the manifest's, got \['train'\]"):
        check_structure(model, msgspec.structs.replace(manifest, signatures=fewer))


def test_an_operator_or_a_buffer_that_leads_outside_is_refused(bundle_parts):
    model, manifest = bundle_parts
    table = schema.Model.GetRootAs(model, 0)
    operator = table.Subgraphs(0).Operators(0)
    inputs = operator._tab.Vector(operator._tab.Offset(6))
    broken = bytearray(model)
    broken[inputs : inputs + 4] = struct.pack("<i", 1 << 20)
    with pytest.raises(UnexpectedFile, match="an operand is one of"):
        check_structure(bytes(broken), manifest)
    kernel = next(t for t in manifest.tensors if t.name == "kernel")
    broken = bytearray(model)
    broken[kernel.offsets[0] - 4 : kernel.offsets[0]] = struct.pack("<I", len(model))
    with pytest.raises(UnexpectedFile, match="a buffer lies inside the file"):
        check_structure(bytes(broken), manifest)
