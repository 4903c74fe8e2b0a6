"""A basis: turning and turning back, judged by float64 einsum; its file; and a network that is turned alike."""

import hashlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export import reference
from model_export.network import NetworkSize, layout_without_file
from wire_contract.basis import (
    MAGIC,
    MAX_WIDTH,
    NO_BASIS,
    Basis,
    BasisFile,
    Turned,
    basis_id,
    check_fits,
    decode_basis,
    encode_basis,
    turn,
    turn_back,
)
from wire_contract.errors import Malformed
from wire_contract.layout import Layout
from wire_contract.manifest import TensorEntry
from wire_contract.messages import MAX_BASIS_BYTES, CodecPlan, Plan, capabilities_needed

WIDTH = 8
LAYOUT = layout_without_file(NetworkSize(words=128, width=WIDTH, cells=128))
TURNED = (
    Turned(tensor="embedding", axis=1),
    Turned(tensor="kernel", axis=1),
    Turned(tensor="projection", axis=0),
)


def orthogonal(seed: int, width: int = WIDTH) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0].astype(np.float32)


def basis(seed: int = 1, turned=TURNED) -> Basis:
    return decode_basis(encode_basis(orthogonal(seed), turned))


def vector(seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(3, LAYOUT.size) * scale).astype(np.float32)


def judged(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The same by einsum in float64: `matrix` [from, to]."""
    tensors = {name: value.astype(np.float64) for name, value in LAYOUT.unflatten(values).items()}
    exact = matrix.astype(np.float64)
    tensors["embedding"] = np.einsum("vo,on->vn", tensors["embedding"], exact)
    tensors["projection"] = np.einsum("oc,on->nc", tensors["projection"], exact)
    kernel = tensors["kernel"]
    blocks = np.einsum("kbo,on->kbn", kernel.reshape(len(kernel), 2, WIDTH), exact)
    tensors["kernel"] = blocks.reshape(kernel.shape)
    return np.concatenate([tensors[tensor.name].ravel() for tensor in LAYOUT.tensors])


def rounding(values: np.ndarray) -> float:
    return float(np.abs(values).max()) * 1e-5


@given(st.integers(0, 1000), st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_turning_back_undoes_turning_and_neither_changes_the_norm(seed, draw, scale):
    axes, values = basis(seed), vector(draw, scale)
    turned = turn(values, LAYOUT, axes)
    np.testing.assert_allclose(turn_back(turned, LAYOUT, axes), values, atol=rounding(values))
    np.testing.assert_allclose(np.linalg.norm(turned.astype(float)), np.linalg.norm(values.astype(float)), rtol=1e-5)


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_both_ways_agree_with_an_independent_product(seed, draw):
    axes, values = basis(seed), vector(draw)
    np.testing.assert_allclose(turn(values, LAYOUT, axes), judged(values, axes.matrix), atol=rounding(values))
    back = turn_back(values, LAYOUT, axes)
    np.testing.assert_allclose(back, judged(values, axes.matrix.T), rtol=3e-7, atol=1e-12 * rounding(values) + 1e-7)
    assert back.dtype == np.float32


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(-2.0, 2.0))
@settings(max_examples=40, deadline=None)
def test_the_sum_turned_back_is_the_sum_of_what_was_turned_back(seed, draw, factor):
    axes, one, two = basis(seed), vector(draw), vector(draw + 1)
    whole = turn_back((one + np.float32(factor) * two).astype(np.float32), LAYOUT, axes)
    parts = turn_back(one, LAYOUT, axes) + factor * turn_back(two, LAYOUT, axes)
    np.testing.assert_allclose(whole, parts, atol=3 * rounding(np.concatenate([one, two])))


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_turning_back_gives_the_same_bits_however_the_arrays_lie_in_memory(seed, draw):
    axes, values = basis(seed), vector(draw)
    expected = turn_back(values, LAYOUT, axes)
    strided = np.zeros(2 * LAYOUT.size, np.float32)
    strided[::2] = values
    wide = np.zeros((WIDTH, 3 * WIDTH), np.float32)
    wide[:, ::3] = axes.matrix
    for matrix in (np.asfortranarray(axes.matrix), wide[:, ::3]):
        other = Basis(matrix, axes.turned, axes.sha256)
        assert turn_back(strided[::2], LAYOUT, other).tobytes() == expected.tobytes()
    # Scalars in plain Python, in the order that the module promises: one product and one sum at a time.
    rows, first = LAYOUT.unflatten(values)["embedding"], LAYOUT.unflatten(expected)["embedding"]
    for old in range(WIDTH):
        total = 0.0
        for new in range(WIDTH):
            total += float(rows[0, new]) * float(axes.matrix[old, new])
        assert np.float32(total) == first[0, old]


def test_what_is_not_named_stays_and_the_argument_is_not_changed():
    values = vector(5)
    before = values.copy()
    axes = basis(turned=(Turned(tensor="projection", axis=0),))
    for way in (turn, turn_back):
        seen = LAYOUT.unflatten(way(values, LAYOUT, axes))
        for name, tensor in LAYOUT.unflatten(before).items():
            assert np.array_equal(seen[name], tensor) == (name != "projection")
    assert np.array_equal(values, before)


def test_a_network_whose_matrices_are_all_turned_gives_the_same_logits():
    tensors = {tensor.name: vector(7, 0.5)[: tensor.size].reshape(tensor.shape) for tensor in LAYOUT.tensors}
    turned = LAYOUT.unflatten(turn(LAYOUT.flatten(tensors), LAYOUT, basis(3)))
    tokens = np.array([[4, 9, 17, 39, 5], [6, 6, 30, 12, 8]], np.int32)
    before, after = reference.logits_of(tensors, tokens), reference.logits_of(turned, tokens)
    np.testing.assert_allclose(after, before, atol=1e-4)
    partly = LAYOUT.unflatten(turn(LAYOUT.flatten(tensors), LAYOUT, basis(3, TURNED[:2])))
    assert np.abs(reference.logits_of(partly, tokens) - before).max() > 1e-2, "one left out, and it is another network"


@given(st.integers(0, 1000), st.integers(1, 24))
@settings(max_examples=25, deadline=None)
def test_a_file_says_what_was_put_in_and_its_name_is_its_hash(seed, width):
    matrix = orthogonal(seed, width)
    data = encode_basis(matrix, TURNED)
    seen = decode_basis(data)
    assert np.array_equal(seen.matrix, matrix) and seen.turned == TURNED and seen.width == width
    assert seen.sha256 == hashlib.sha256(data).hexdigest() and basis_id(seen.sha256) == bytes.fromhex(seen.sha256)[:8]
    assert encode_basis(np.asfortranarray(matrix), TURNED) == data
    with pytest.raises(ValueError, match="read-only"):
        seen.matrix[0, 0] = 1.0


def test_no_basis_has_an_id_of_zeros():
    assert basis_id("") == NO_BASIS == bytes(8)


def crafted(magic: bytes = MAGIC, *, tail: bytes = b"", **changes: object) -> bytes:
    body = {
        "width": 2,
        "turned": [{"tensor": "embedding", "axis": 1}],
        "matrix": np.eye(2, dtype="<f4").tobytes(),
        **changes,
    }
    return magic + msgspec.msgpack.encode({key: value for key, value in body.items() if value is not None}) + tail


def test_the_crafted_file_is_good_before_it_is_broken():
    assert decode_basis(crafted()).matrix.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert decode_basis(crafted(matrix=(np.eye(2) * 1.0004).astype("<f4").tobytes())).width == 2


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "has 5 to"),
        (MAGIC, "has 5 to"),
        (crafted() + bytes(MAX_BASIS_BYTES), "has 5 to"),
        (crafted(b"EFI1"), "begins with"),
        (MAGIC + b"\xc1", "MessagePack"),
        (MAGIC + b"\x91" * 60_000, "MessagePack"),
        (crafted(tail=b"\x00"), "MessagePack"),
        (crafted(width=0), "MessagePack"),
        (crafted(width=MAX_WIDTH + 1), "MessagePack"),
        (crafted(width="2"), "MessagePack"),
        (crafted(width=None), "MessagePack"),
        (crafted(matrix=None), "MessagePack"),
        (crafted(turned=[]), "MessagePack"),
        (crafted(turned=[{"tensor": f"t{i}", "axis": 0} for i in range(65)]), "MessagePack"),
        (crafted(turned=[{"tensor": "t" * 201, "axis": 0}]), "MessagePack"),
        (crafted(turned=[{"tensor": "t", "axis": 4}]), "MessagePack"),
        (crafted(turned=[{"tensor": "t", "axis": -1}]), "MessagePack"),
        (crafted(turned=[{"tensor": "t", "axis": 0}, {"tensor": "t", "axis": 1}]), "turned once"),
        (crafted(width=3), "width 3 has 36 bytes, got 16"),
        (crafted(width=1), "width 1 has 4 bytes, got 16"),
        (crafted(width=MAX_WIDTH), "bytes, got 16"),
        (crafted(matrix=floats(1, 0, 0, np.nan)), "finite"),
        (crafted(matrix=floats(1, 0, 0, np.inf)), "finite"),
        (crafted(matrix=floats(1, 0, 0, 3e38)), "orthogonal"),
        (crafted(matrix=floats(0, 0, 0, 0)), "orthogonal"),
        (crafted(matrix=floats(1, 0, 0, 1.01)), "orthogonal"),
        (crafted(matrix=floats(1, 0.002, 0, 1)), "orthogonal"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_the_rule(data, rule):
    with pytest.raises(Malformed, match=rule):
        decode_basis(data)


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_file_with_one_other_byte_is_refused_or_has_another_name(place, change):
    data = bytearray(encode_basis(orthogonal(1), TURNED))
    data[place % len(data)] ^= change
    try:
        seen = decode_basis(bytes(data))
    except Malformed:
        return
    assert seen.sha256 != basis(1).sha256 and np.isfinite(seen.matrix).all()


def test_what_could_not_be_read_is_not_written():
    with pytest.raises(Malformed, match="orthogonal"):
        encode_basis(np.ones((2, 2), np.float32), TURNED)
    with pytest.raises(Malformed, match="bytes"):
        encode_basis(np.ones((3, 2), np.float32), TURNED)
    assert BasisFile.__struct_fields__ == ("width", "turned", "matrix")


@pytest.mark.parametrize(
    "turned",
    [
        Turned(tensor="nowhere", axis=0),
        Turned(tensor="embedding", axis=2),
        Turned(tensor="kernel_bias", axis=1),
        Turned(tensor="other", axis=1),
    ],
)
def test_a_basis_that_does_not_fit_the_layout_is_refused_before_anything_is_turned(turned):
    other = TensorEntry(name="other", shape=(2, WIDTH + 1), kind="float32", offsets=(0,))
    layout = Layout((*LAYOUT.tensors, other))
    axes = basis(turned=(turned,))
    with pytest.raises(Malformed, match="is a multiple of 8"):
        check_fits(axes, layout)
    for way in (turn, turn_back):
        with pytest.raises(Malformed, match="is a multiple of 8"):
            way(np.zeros(layout.size, np.float32), layout, axes)


def test_a_plan_with_a_basis_or_a_threshold_is_for_devices_that_know_them():
    first = Plan(codec=CodecPlan(mode="topk"))
    whole = Plan(codec=CodecPlan(mode="topk", basis="ab" * 32, threshold=0.5))
    assert capabilities_needed(whole) - capabilities_needed(first) == {"codec:basis", "codec:threshold"}
