"""Hysteresis: what a published version changes of the one before, and what it never does."""

import hashlib
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.wire_contract.toy_model import FILE, MANIFEST, TENSORS
from wire_contract.errors import Malformed
from wire_contract.manifest import TensorEntry, fingerprint
from wire_contract.patch import patch, quantize, read_tensors, requantize, snap

WEIGHTS = arrays.arrays(np.float32, 40, elements=st.floats(-3, 3, width=32))
KEEPS = st.sampled_from([0.5, 0.75, 1.0, 2.0])


def test_without_hysteresis_the_bytes_do_not_depend_on_the_version_before():
    other = patch(FILE, MANIFEST, {name: -value for name, value in TENSORS.items()})
    assert patch(other, MANIFEST, TENSORS) == patch(FILE, MANIFEST, TENSORS) == FILE


@given(WEIGHTS, WEIGHTS, KEEPS)
def test_a_code_stays_until_its_weight_has_moved_far_enough_and_is_then_the_nearest(before, after, keep):
    codes, scale = quantize(before)
    new, new_scale = requantize(after, codes, scale, keep)
    position = after.astype(np.float64) / np.float64(new_scale)
    under = np.clip(np.rint(codes.astype(float) * float(scale) / float(new_scale)), -127, 127)
    assert new_scale != scale or np.array_equal(under, codes)
    stays = np.abs(position - under) < keep
    assert np.array_equal(new[stays], under[stays])
    assert np.all(np.abs(new[~stays] - position[~stays]) <= 0.5)
    assert np.all(np.abs(new.astype(int)) <= 127)


@given(WEIGHTS, KEEPS)
def test_the_same_weights_again_change_nothing(weights, keep):
    codes, scale = requantize(weights, *quantize(np.zeros(40, np.float32)), keep)
    again, same = requantize(weights, codes, scale, keep)
    assert same == scale and np.array_equal(codes, again)


def test_a_scale_stays_while_the_largest_weight_fits_and_grows_with_room_when_it_does_not():
    weights = np.linspace(-1, 1, 40, dtype=np.float32)
    codes, scale = quantize(weights)
    _, kept = requantize(weights * np.float32(1.003), codes, scale, 0.75)
    assert kept == scale
    grown, larger = requantize(weights * np.float32(1.02), codes, scale, 0.75)
    assert larger == pytest.approx(1.02 * 1.0625 / 127) and np.max(np.abs(grown)) in (119, 120)
    _, again = requantize(weights * np.float32(1.06), grown, larger, 0.75)
    assert again == larger
    _, shrunk = requantize(weights * np.float32(0.4), codes, scale, 0.75)
    assert shrunk == pytest.approx(0.4 * 1.0625 / 127)


@given(WEIGHTS, WEIGHTS, KEEPS)
def test_a_float_stays_or_lies_on_the_grid_of_a_1024th(before, after, keep):
    new = snap(after, before, keep)
    stays = np.abs(after.astype(np.float64) - before) * 1024 < keep
    assert np.array_equal(new[stays], before[stays])
    moved = new[~stays].astype(np.float64) * 1024
    assert np.array_equal(moved, np.rint(moved)) and np.all(np.abs(moved - after[~stays] * 1024.0) <= 0.5)
    assert not np.any(np.signbit(new[~stays]) & (new[~stays] == 0))


def test_what_hysteresis_holds_back_moves_once_the_master_weight_has_gone_far_enough():
    exact = read_tensors(FILE, MANIFEST)
    file, seen = FILE, []
    for i in range(1, 5):
        rows = exact["rows"].copy()
        rows[3, 0] -= np.float32(i * 0.3 / 127)
        file = patch(file, MANIFEST, {**exact, "rows": rows}, keep=0.75)
        seen.append(int(np.frombuffer(file, np.int8, 24, 16)[12]))
    first = int(np.frombuffer(FILE, np.int8, 24, 16)[12])
    assert [code - first for code in seen] == [0, 0, -1, -1]


def test_a_published_file_differs_from_the_one_before_only_inside_the_manifests_ranges():
    moved = patch(FILE, MANIFEST, {name: value * np.float32(1.3) for name, value in TENSORS.items()}, keep=0.75)
    inside = np.zeros(len(FILE), bool)
    for tensor in MANIFEST.tensors:
        for offset in tensor.offsets:
            inside[offset : offset + tensor.size_bytes] = True
        for offset in tensor.scale_offsets:
            inside[offset : offset + 4] = True
    differ = np.frombuffer(FILE, np.uint8) != np.frombuffer(moved, np.uint8)
    assert differ.any() and not np.any(differ & ~inside)
    near = read_tensors(moved, MANIFEST)
    assert all(np.allclose(near[name], TENSORS[name] * 1.3, atol=0.04) for name in TENSORS)


@pytest.mark.parametrize("keep", [0.1, -1.0, 4.5, float("nan")])
def test_a_keep_outside_its_range_is_refused(keep):
    with pytest.raises(Malformed, match=r"keep is 0 or from 0\.5 to 4\.0 codes"):
        patch(FILE, MANIFEST, TENSORS, keep=keep)


def test_ten_published_steps_are_these_bytes_on_every_machine():
    file = FILE
    for i in range(10):
        moved = {name: value * np.float32(1 + i / 64) - np.float32(i / 512) for name, value in TENSORS.items()}
        file = patch(file, MANIFEST, moved, keep=0.75)
    assert hashlib.sha256(file).hexdigest() == "a64376d8e06882acf47193ed884f3c92ab2be15136ebfbaf8a2b88a5c597671b"


HALVES = TensorEntry(name="halves", shape=(5, 8), kind="float16", offsets=(16, 128), transposed=True)
HALF_FILE = bytes(range(16)) + bytes(80) + bytes(range(32)) + bytes(80) + b"end"
HALF_MANIFEST = msgspec.structs.replace(
    MANIFEST,
    tensors=(HALVES,),
    train_inputs=(),
    size_bytes=len(HALF_FILE),
    layout_fingerprint=fingerprint((HALVES,)),
)
HALF_WEIGHTS = arrays.arrays(
    np.float32, (5, 8), elements=st.floats(-70_000, 70_000, width=32) | st.floats(-3, 3, width=32)
)
IN_RANGE = HALF_WEIGHTS.filter(lambda values: np.abs(values).max() < 65_520)


@given(IN_RANGE)
def test_a_float16_tensor_is_the_nearest_half_even_at_all_its_places_and_nothing_else_changes(weights):
    file = patch(HALF_FILE, HALF_MANIFEST, {"halves": weights})
    for offset in HALVES.offsets:
        stored = np.array(struct.unpack_from("<40e", file, offset)).reshape(8, 5).T
        # struct rounds for itself, from the exact value, half to even.
        judged = np.array([struct.unpack("<e", struct.pack("<e", float(w)))[0] for w in weights.ravel()])
        assert np.array_equal(stored.ravel(), judged)
    assert np.array_equal(read_tensors(file, HALF_MANIFEST)["halves"], stored.astype(np.float32))
    assert file[:16] == HALF_FILE[:16] and file[96:128] == HALF_FILE[96:128] and file[208:] == b"end"


@given(HALF_WEIGHTS)
def test_a_float16_weight_that_would_become_infinite_is_refused_by_its_tensors_name(weights):
    if np.abs(weights).max() < 65_520:
        assert np.isfinite(
            read_tensors(patch(HALF_FILE, HALF_MANIFEST, {"halves": weights}), HALF_MANIFEST)["halves"]
        ).all()
        return
    with pytest.raises(Malformed, match=r"a float16 weight is below 65520, got .* in halves"):
        patch(HALF_FILE, HALF_MANIFEST, {"halves": weights})


@given(IN_RANGE, IN_RANGE, KEEPS)
def test_a_half_stays_until_it_has_moved_far_enough_and_then_lies_on_the_grid_or_next_to_it(before, after, keep):
    old = patch(HALF_FILE, HALF_MANIFEST, {"halves": before})
    new = patch(old, HALF_MANIFEST, {"halves": after}, keep=keep)
    was, now = (read_tensors(file, HALF_MANIFEST)["halves"] for file in (old, new))
    stays = np.abs(after.astype(np.float64) - was) * 1024 < keep
    assert np.array_equal(now[stays], was[stays])
    grid = np.rint(after[~stays].astype(np.float64) * 1024) / 1024
    assert np.array_equal(now[~stays], grid.astype(np.float16).astype(np.float32))
    step = np.spacing(np.abs(now[~stays]).astype(np.float16)).astype(np.float64)
    assert np.all(np.abs(now[~stays] - after[~stays].astype(np.float64)) <= 2.0**-11 + step)
    assert patch(new, HALF_MANIFEST, {"halves": after}, keep=keep) == new


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
def test_a_file_with_a_half_that_is_not_finite_is_refused(bits):
    file = bytearray(HALF_FILE)
    file[20:22] = struct.pack("<H", bits)
    with pytest.raises(Malformed, match="finite, got NaN or Inf in halves"):
        read_tensors(bytes(file), HALF_MANIFEST)
