"""Deltas between versions: the result is the target's bytes, or nothing."""

import contextlib
import hashlib
import struct
from itertools import pairwise

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.wire_contract.toy_model import FILE, MANIFEST, TENSORS
from wire_contract import delta
from wire_contract.errors import ContractError, Malformed, Unsupported, Untrusted
from wire_contract.manifest import TensorEntry, fingerprint, template_hash
from wire_contract.patch import GRID_STEPS, patch

HEAD, HOP = 40, 68


def version(seed, keep=0.75, start=FILE, size=0.1):
    """A version's file: the one before, with its weights moved a little."""
    rng = np.random.default_rng(seed)
    moved = {name: (value + rng.normal(size=value.shape) * size).astype(np.float32) for name, value in TENSORS.items()}
    return patch(start, MANIFEST, moved, keep=keep)


def manifest_of(file):
    return msgspec.structs.replace(MANIFEST, sha256=hashlib.sha256(file).hexdigest())


def walk(steps, keep=0.75):
    files = [FILE]
    for seed in range(steps):
        files.append(version(seed, keep, files[-1]))
    return files


def reference(base, data, manifest):
    """An independent reading of one hop, a byte at a time, with `struct` and loops only."""
    out = bytearray(base)
    position = HEAD + HOP

    def take(count):
        nonlocal position
        position += count
        return data[position - count : position]

    def block():
        length, packed = struct.unpack("<II", take(8))
        piece = take(packed)
        return piece if packed == length else zstandard.ZstdDecompressor().decompress(piece, max_output_size=length)

    def numbers(raw):
        found, value, shift = [], 0, 0
        for byte in raw:
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                found.append(value)
                value, shift = 0, 0
        return found

    def places(raw):
        at, found = -1, []
        for gap in numbers(raw):
            at += gap + 1
            found.append(at)
        return found

    for tensor in manifest.tensors:
        mode = take(1)[0]
        if mode == delta.SAME:
            continue
        rows, columns = tensor.shape[::-1] if tensor.transposed else (*tensor.shape, 1)[:2]
        if tensor.kind == "int8":
            scales = [
                struct.unpack_from("<f", *where)[0] for where in ((out, tensor.scale_offsets[0]), (data, position))
            ]
            for at in range(tensor.offsets[0], tensor.offsets[0] + tensor.size) if scales[0] != scales[1] else ():
                code = (out[at] ^ 128) - 128
                code = max(-127, min(127, round(code * scales[0] / scales[1]))) % 256
                for offset in tensor.offsets:
                    out[offset + at - tensor.offsets[0]] = code
            for offset in tensor.scale_offsets:
                out[offset : offset + 4] = data[position : position + 4]
            position += 4
        if mode == delta.DENSE:
            changes = list(enumerate(block()))
        elif mode in (delta.SPARSE, delta.SPARSE_TRANSPOSED):
            (count,) = struct.unpack("<I", take(4))
            where, signs, sizes = places(block()), block(), block()
            changes = [(at, (sizes[i] + 1) * (-1 if signs[i // 8] >> i % 8 & 1 else 1)) for i, at in enumerate(where)]
            assert len(changes) == count
            if mode == delta.SPARSE_TRANSPOSED:
                changes = [(at % rows * columns + at // rows, change) for at, change in changes]
        for offset in tensor.offsets:
            if tensor.kind == "int8":
                for at, change in changes:
                    out[offset + at] = (out[offset + at] + change) % 256
        if tensor.kind == "float32":
            take(4)
            where, raw = places(block()), block()
            for i, at in enumerate(where):
                spot = tensor.offsets[0] + 4 * at
                if mode == delta.STEPS:
                    step = numbers(raw)[i]
                    step = -(step + 1) // 2 if step & 1 else step // 2
                    (old,) = struct.unpack("<f", out[spot : spot + 4])
                    new = struct.pack("<f", (round(old * GRID_STEPS) + step) / GRID_STEPS)
                else:
                    new = bytes(raw[plane * len(where) + i] for plane in range(4))
                for offset in tensor.offsets:
                    out[offset + 4 * at : offset + 4 * at + 4] = new
    assert position == len(data)
    return bytes(out)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.75, 1.0])
def test_what_is_applied_is_what_was_encoded_and_an_independent_reader_agrees(keep):
    for base, target in pairwise(walk(6, keep)):
        data = delta.encode(base, target, MANIFEST)
        assert delta.apply(base, data, manifest_of(target)) == target
        assert reference(base, data, MANIFEST) == target


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from([0.0, 0.6, 2.0]), st.floats(1e-5, 30.0))
def test_any_two_versions_of_a_template_have_a_delta(one, two, keep, size):
    base, target = version(one, size=size), version(two, keep, version(one + 1), size)
    data = delta.encode(base, target, MANIFEST)
    assert delta.apply(base, data, manifest_of(target)) == target == reference(base, data, MANIFEST)
    assert delta.write(delta.read(data)) == data


def test_versions_that_are_equal_have_a_delta_of_a_head_and_nothing_else():
    assert len(delta.encode(FILE, FILE, MANIFEST)) == HEAD + HOP + len(MANIFEST.tensors)


def test_a_chain_of_deltas_does_what_they_do_one_after_another():
    files = walk(5)
    hops = [delta.encode(a, b, MANIFEST) for a, b in pairwise(files)]
    chained = delta.chain(hops)
    assert delta.apply(FILE, chained, manifest_of(files[-1])) == files[-1]
    parsed = delta.read(chained)
    assert (parsed.base, parsed.target) == tuple(hashlib.sha256(f).hexdigest() for f in (FILE, files[-1]))
    with pytest.raises(Malformed, match="a hop begins where the last ended"):
        delta.chain([hops[0], hops[2]])
    with pytest.raises(Malformed, match="1 to 16 hops"):
        delta.chain([delta.encode(FILE, FILE, MANIFEST)] * 17)


def big_manifest():
    """A model in which a change of a few codes in a thousand is rare, and columns matter."""
    tensors = (
        msgspec.structs.replace(MANIFEST.tensors[0], name="a", shape=(200, 300), offsets=(100,), scale_offsets=(0,)),
        msgspec.structs.replace(
            MANIFEST.tensors[0], name="b", shape=(300, 200), offsets=(60_100,), scale_offsets=(4,), transposed=True
        ),
    )
    blank = struct.pack("<ff", 0.01, 0.02) + bytes(range(92)) + bytes(120_000)
    draft = msgspec.structs.replace(MANIFEST, tensors=tensors, size_bytes=len(blank))
    return blank, msgspec.structs.replace(draft, template_sha256=delta.template_hash(blank, draft))


@pytest.mark.parametrize("form", ["rows", "columns", "everywhere"])
def test_the_smallest_form_is_chosen_for_changes_in_rows_in_columns_or_everywhere(form):
    blank, manifest = big_manifest()
    rng = np.random.default_rng(3)
    codes = rng.integers(-100, 100, 60_000).astype(np.int8).reshape(200, 300)
    after = codes.copy()
    if form == "rows":
        after[5:8] += 1
    elif form == "columns":
        after[:, 5:8] += 1
    else:
        after += rng.integers(-1, 2, after.shape).astype(np.int8)
    base, target = (blank[:100] + c.tobytes() + blank[60_100:] for c in (codes, after))
    data = delta.encode(base, target, manifest)
    wanted = {"rows": delta.SPARSE, "columns": delta.SPARSE_TRANSPOSED, "everywhere": delta.DENSE}[form]
    assert data[HEAD + HOP] == wanted
    assert (
        delta.apply(base, data, msgspec.structs.replace(manifest, sha256=hashlib.sha256(target).hexdigest())) == target
    )
    assert reference(base, data, manifest) == target


def test_a_delta_for_another_base_another_target_or_another_template_is_refused_before_a_byte_is_made():
    first, second, third = walk(2)
    data = delta.encode(first, second, MANIFEST)
    with pytest.raises(Malformed, match="is not what is held"):
        delta.apply(third, data, manifest_of(second))
    with pytest.raises(Malformed, match="the delta leads to"):
        delta.apply(first, data, manifest_of(third))
    with pytest.raises(Malformed, match="the delta is for template"):
        delta.apply(first, data, msgspec.structs.replace(manifest_of(second), template_sha256="0" * 64))


def test_a_delta_whose_result_has_another_hash_gives_nothing():
    first, second, third = walk(2)
    hop = delta.read(delta.encode(first, second, MANIFEST)).hops[0]
    lie = msgspec.structs.replace(manifest_of(third))
    lying = delta.write(delta.Delta(MANIFEST.template_sha256, (delta.Hop(hop.base, lie.sha256, hop.body),)))
    with pytest.raises(Untrusted, match="the delta's result hashes to"):
        delta.apply(first, lying, lie)


@given(st.data())
def test_a_damaged_delta_gives_the_target_or_the_contracts_error(data):
    first, second = walk(1)
    whole = bytearray(delta.encode(first, second, MANIFEST))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))]) + data.draw(st.binary(max_size=3))
    with contextlib.suppress(ContractError):
        assert delta.apply(first, cut, manifest_of(second)) == second


@given(st.binary(max_size=300))
def test_any_bytes_raise_only_the_contracts_error(data):
    with pytest.raises(ContractError):
        delta.apply(FILE, data, MANIFEST)


def block(data, length=None, packed=None):
    return struct.pack("<II", len(data) if length is None else length, len(data) if packed is None else packed) + data


BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 24))
SCALE = struct.pack("<f", 0.5)
SPARSE = bytes([delta.SPARSE]) + SCALE


@pytest.mark.parametrize(
    ("first", "error", "said"),
    [
        (bytes([9]), Unsupported, "mode that this side knows, got 9"),
        (bytes([delta.STEPS]), Unsupported, "a section of int8"),
        (bytes([delta.DENSE]) + SCALE + block(bytes(23)), Malformed, "24 to 24 bytes, got 23"),
        (bytes([delta.DENSE]) + SCALE + block(bytes(30), 24), Malformed, "got 24 packed in 30"),
        (bytes([delta.DENSE]) + SCALE + block(BOMB[:20], 24), Malformed, "24 bytes, its frame states 16777216"),
        (bytes([delta.DENSE]) + SCALE + block(b"no frame", 24), Malformed, "zstd frame"),
        (SPARSE + struct.pack("<I", 25), Malformed, "changes at most 24 values, got 25"),
        (SPARSE + struct.pack("<I", 1) + block(b"\x18"), Malformed, "below 24, got 24"),
        (SPARSE + struct.pack("<I", 2) + block(b"\x01"), Malformed, "2 to 8 bytes, got 1"),
        (SPARSE + struct.pack("<I", 1) + block(b"\x80\x00"), Malformed, "shortest form"),
        (SPARSE + struct.pack("<I", 1) + block(b"\x01") + block(b"\x02"), Malformed, "spare bits"),
        (SPARSE + struct.pack("<I", 1) + block(b"\x01") + block(b"\x01"), Malformed, "section is whole"),
        (bytes([delta.SAME, delta.SAME, delta.SAME, delta.SAME]), Malformed, "nothing follows the last section"),
        (bytes([delta.SAME, delta.SAME, delta.DENSE]), Unsupported, "a section of float32"),
    ],
)  # fmt: skip
def test_each_rule_of_a_section_is_checked(first, error, said):
    target = walk(1)[1]
    manifest = manifest_of(target)
    hop = delta.Hop(hashlib.sha256(FILE).hexdigest(), manifest.sha256, first)
    with pytest.raises(error, match=said):
        delta.apply(FILE, delta.write(delta.Delta(MANIFEST.template_sha256, (hop,))), manifest)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda d: d[:39], Malformed, "at least 40 bytes"),
        (lambda d: b"EFD2" + d[4:], Malformed, "begins with"),
        (lambda d: d[:4] + b"\x02" + d[5:], Unsupported, "delta format 1, got 2"),
        (lambda d: d[:5] + b"\x00" + d[6:40], Malformed, "1 to 16 hops, got 0"),
        (lambda d: d[:5] + b"\x00" + d[6:], Malformed, "nothing follows the last hop"),
        (lambda d: d[:5] + b"\x02" + d[6:], Malformed, "a hop has at least 68 bytes, 0 are left"),
        (lambda d: d[:5] + b"\xff" + d[6:], Malformed, "a hop has at least"),
        (lambda d: d[:6] + b"\x01" + d[7:], Malformed, "reserved is 0"),
        (lambda d: d[:40] + struct.pack("<I", 63) + d[44:], Malformed, "length lies inside the delta, got 63"),
        (lambda d: d[:40] + struct.pack("<I", 1 << 31) + d[44:], Malformed, "length lies inside"),
        (lambda d: d + b"x", Malformed, "nothing follows the last hop"),
    ],
)
def test_each_rule_of_the_head_is_checked(change, error, said):
    first, second = walk(1)
    with pytest.raises(error, match=said):
        delta.apply(first, change(delta.encode(first, second, MANIFEST)), manifest_of(second))


def test_files_of_another_template_have_no_delta():
    other = bytearray(FILE)
    other[0] ^= 1
    with pytest.raises(Malformed, match="versions of template"):
        delta.encode(bytes(other), FILE, MANIFEST)
    with pytest.raises(Malformed, match="versions of template"):
        delta.encode(FILE, FILE[:-1], MANIFEST)


def test_a_new_scale_moves_most_codes_and_costs_little():
    blank, manifest = big_manifest()
    rng = np.random.default_rng(8)
    weights = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in (("a", (200, 300)), ("b", (300, 200)))
    }
    base = patch(blank, manifest, weights)
    grown = {name: value.copy() for name, value in weights.items()}
    for value in grown.values():
        value[0, 0] = 1.02 * np.max(np.abs(value))
    target = patch(base, manifest, grown, keep=0.75)
    moved = np.mean(np.frombuffer(base, np.int8) != np.frombuffer(target, np.int8))
    data = delta.encode(base, target, manifest)
    assert moved > 0.5 and len(data) < 0.05 * 120_000
    assert reference(base, data, manifest) == target
    stated = msgspec.structs.replace(manifest, sha256=hashlib.sha256(target).hexdigest())
    assert delta.apply(base, data, stated) == target


def test_a_matrix_of_one_row_can_be_read_across():
    entry = msgspec.structs.replace(MANIFEST.tensors[0], shape=(1, 24))
    manifest = msgspec.structs.replace(MANIFEST, tensors=(entry, *MANIFEST.tensors[1:]))
    target = bytearray(FILE)
    target[20] = (target[20] + 3) % 256
    section = (
        bytes([delta.SPARSE_TRANSPOSED]) + FILE[8:12] + struct.pack("<I", 1) + block(b"\x04") + block(b"\x00")
        + block(b"\x02") + bytes(2)
    )  # fmt: skip
    stated = msgspec.structs.replace(manifest, sha256=hashlib.sha256(target).hexdigest())
    hop = delta.Hop(hashlib.sha256(FILE).hexdigest(), stated.sha256, section)
    assert delta.apply(FILE, delta.write(delta.Delta(MANIFEST.template_sha256, (hop,))), stated) == target


def test_a_scale_that_is_none_is_refused():
    target = walk(1)[1]
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        section = bytes([delta.DENSE]) + struct.pack("<f", scale) + block(bytes(24)) + bytes(2)
        hop = delta.Hop(hashlib.sha256(FILE).hexdigest(), hashlib.sha256(target).hexdigest(), section)
        with pytest.raises(Malformed, match="a scale is finite and positive"):
            delta.apply(FILE, delta.write(delta.Delta(MANIFEST.template_sha256, (hop,))), manifest_of(target))


HALVES = msgspec.structs.replace(
    MANIFEST,
    tensors=(
        MANIFEST.tensors[0],
        TensorEntry(name="halves", shape=(3, 2), kind="float16", offsets=(72, 100), transposed=True),
    ),
    train_inputs=(),
)


@given(st.lists(st.floats(-60000, 60000), min_size=6, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_float16_versions_delta_leads_from_one_to_the_other(values, moved):
    manifest = msgspec.structs.replace(HALVES, layout_fingerprint=fingerprint(HALVES.tensors))
    manifest = msgspec.structs.replace(manifest, template_sha256=template_hash(FILE, manifest))
    first = np.array(values, np.float32).reshape(3, 2)
    second = np.where(np.array(moved).reshape(3, 2), first / 2, first)
    rows = TENSORS["rows"]
    base, target = (patch(FILE, manifest, {"rows": rows, "halves": half}) for half in (first, second))
    stated = msgspec.structs.replace(manifest, sha256=hashlib.sha256(target).hexdigest())
    assert delta.apply(base, delta.encode(base, target, stated), stated) == target


def test_a_float16_section_with_another_mode_is_refused_by_name():
    manifest = msgspec.structs.replace(HALVES, layout_fingerprint=fingerprint(HALVES.tensors))
    manifest = msgspec.structs.replace(manifest, template_sha256=template_hash(FILE, manifest))
    base = patch(FILE, manifest, {"rows": TENSORS["rows"], "halves": np.ones((3, 2), np.float32)})
    target = patch(base, manifest, {"rows": TENSORS["rows"], "halves": np.zeros((3, 2), np.float32)})
    stated = msgspec.structs.replace(manifest, sha256=hashlib.sha256(target).hexdigest())
    whole = bytearray(delta.encode(base, target, stated))
    mode = len(whole) - len(delta.read(bytes(whole)).hops[0].body) + 1
    assert whole[mode] == delta.HALVES
    for wrong in (delta.STEPS, delta.VALUES, delta.DENSE, 7):
        whole[mode] = wrong
        with pytest.raises(Unsupported, match="a section of float16"):
            delta.apply(base, bytes(whole), stated)
