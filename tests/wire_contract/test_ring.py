import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire_contract.errors import Malformed
from wire_contract.ring import Ring, check_ring, pack, quantize, read_values, unpack

RINGS = st.tuples(st.integers(2, 16), st.integers(0, 20)).filter(lambda p: sum(p) <= 32)


def ring_of(bits_and_headroom, unit=2.0**-6):
    return Ring(unit, *bits_and_headroom)


@given(RINGS, st.integers(0, 2**32), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_numbers_survive_the_ring_in_exactly_the_declared_bytes(bits_and_headroom, seed, count):
    ring = ring_of(bits_and_headroom)
    half = 1 << (ring.width - 1)
    numbers = np.random.default_rng(seed).integers(-half, half, count)
    data = pack(numbers, ring)
    assert len(data) == -(-count * ring.width // 8)
    assert np.array_equal(unpack(data, count, ring), numbers)


def test_the_bytes_are_little_endian_bits_of_the_residue_classes():
    # An independent reading: one big integer, the first number in its lowest bits.
    ring, numbers = Ring(1.0, 4, 3), [3, -1, -7, 0, 5]
    whole = sum((number % 128) << (7 * place) for place, number in enumerate(numbers))
    assert pack(np.array(numbers), ring) == whole.to_bytes(5, "little")


@given(RINGS, st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 64))
@settings(max_examples=150, deadline=None)
def test_the_ring_sum_of_as_many_updates_as_the_headroom_allows_is_the_sum_of_what_they_decode_to(
    bits_and_headroom, seed, count, clients
):
    ring = ring_of(bits_and_headroom)
    clients = min(clients, ring.summands)
    rng = np.random.default_rng(seed)
    extremes = rng.random((clients, 1)) < 0.5
    each = np.where(extremes, ring.largest * rng.choice([-1, 1], (1, count)), rng.integers(
        -ring.largest, ring.largest + 1, (clients, count)))  # fmt: skip
    modulus = 1 << ring.width
    total = np.zeros(count, dtype=np.int64)
    # Any order, each summand as it stands on the wire, every partial sum reduced.
    for numbers in each[rng.permutation(clients)]:
        on_the_wire = unpack(pack(numbers, ring), count, ring) % modulus
        total = (total + on_the_wire) % modulus
    summed = unpack(pack(total, ring), count, ring)
    decoded = [read_values(pack(numbers, ring), count, ring) * ring.unit for numbers in each]
    assert np.array_equal(summed * ring.unit, np.sum(decoded, axis=0))


def test_the_extreme_updates_fill_the_headroom_and_do_not_leave_it():
    ring = Ring(1.0, 16, 16)
    total = ring.summands * ring.largest
    assert unpack(pack(np.array([total, -total]), ring), 2, ring).tolist() == [total, -total]
    assert total < 1 << (ring.width - 1)


@given(st.integers(0, 2**32), st.integers(2, 16), st.floats(1e-3, 100.0), st.integers(-10, 4))
@settings(max_examples=150, deadline=None)
def test_what_a_ring_value_says_is_never_longer_than_the_limit(seed, bits, limit, exponent):
    ring = Ring(2.0**exponent, bits)
    values = np.random.default_rng(seed).standard_t(2, 50)
    numbers = quantize(values, ring, limit)
    assert np.abs(numbers).max() <= ring.largest
    assert np.linalg.norm(numbers * ring.unit) <= limit


def test_rounding_that_lengthens_a_vector_is_shrunk_until_it_fits():
    # Each of 100 values just above half a unit would round up to one: a norm of 10 from one of 5.1.
    ring = Ring(1.0, 4)
    numbers = quantize(np.full(100, 0.51), ring, 5.2)
    assert np.linalg.norm(numbers) <= 5.2
    assert quantize(np.full(100, 0.51), ring, 10.0).tolist() == [1] * 100


def test_a_vector_beyond_the_limit_keeps_its_direction_because_it_is_scaled_before_it_is_cut_to_the_range():
    assert quantize(np.array([80.0, 40.0]), Ring(1.0, 4), 10.0).tolist() == [7, 4]
    assert quantize(np.array([80.0, 40.0]), Ring(1.0, 4), 100.0).tolist() == [7, 7]


def test_within_limit_and_range_a_value_is_rounded_half_to_even():
    values = np.array([0.5, 1.5, -0.5, -2.5, 2.4, 9.0, -9.0])
    assert quantize(values, Ring(1.0, 4), 1e3).tolist() == [0, 2, 0, -2, 2, 7, -7]


@pytest.mark.parametrize(
    ("ring", "rule"),
    [
        (Ring(1.0, 1), "2 to 16 bits"),
        (Ring(1.0, 17), "2 to 16 bits"),
        (Ring(1.0, 4, -1), "headroom"),
        (Ring(1.0, 4, 21), "headroom"),
        (Ring(1.0, 16, 17), "at most 32"),
        (Ring(0.0, 4), "unit"),
        (Ring(-1.0, 4), "unit"),
        (Ring(float("nan"), 4), "unit"),
        (Ring(float("inf"), 4), "unit"),
        (Ring(2e6, 4), "unit"),
        (Ring(0.1, 4), "float32"),
    ],
)
def test_a_ring_that_breaks_a_bound_is_refused(ring, rule):
    with pytest.raises(Malformed, match=rule):
        check_ring(ring)


def test_a_wrong_length_a_spare_bit_and_a_value_out_of_range_are_refused():
    ring = Ring(1.0, 4, 3)
    good = pack(np.array([7, -7, 0]), ring)
    assert read_values(good, 3, ring).tolist() == [7, -7, 0]
    for data in (good + b"\0", good[:-1]):
        with pytest.raises(Malformed, match="take 3 bytes"):
            read_values(data, 3, ring)
    with pytest.raises(Malformed, match="spare bits"):
        read_values(good[:-1] + bytes([good[-1] | 0x80]), 3, ring)
    for beyond in (8, -8, 63, -64):
        with pytest.raises(Malformed, match=f"within 7 units, got {beyond}"):
            read_values(pack(np.array([7, beyond, 0]), ring), 3, ring)
