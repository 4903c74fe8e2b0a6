"""The one L2 norm: right, and the same bits whatever the array looks like and however many threads a library has."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire_contract import norm
from wire_contract.norm import l2_norm


def exact(values: np.ndarray) -> float:
    return math.sqrt(sum(Fraction(float(value)) ** 2 for value in values))


@given(st.integers(0, 1000), st.sampled_from([0, 1, 7, 8, 129, 4_000]), st.floats(1e-30, 1e30))
@settings(max_examples=60, deadline=None)
def test_it_is_the_root_of_the_exact_sum_of_squares_within_rounding(seed, size, scale):
    values = np.random.default_rng(seed).standard_t(2, size) * scale
    assert l2_norm(values) == pytest.approx(exact(values), rel=1e-14)


def pairwise(squares: list[float]) -> float:
    """The order of addition, written out: what another machine must do as well."""
    if len(squares) < 8:
        total = -0.0
        for square in squares:
            total += square
        return total
    if len(squares) <= 128:
        lanes = squares[:8]
        whole = len(squares) - len(squares) % 8
        for start in range(8, whole, 8):
            lanes = [lane + square for lane, square in zip(lanes, squares[start : start + 8], strict=True)]
        total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
        for square in squares[whole:]:
            total += square
        return total
    half = len(squares) // 2
    half -= half % 8
    return pairwise(squares[:half]) + pairwise(squares[half:])


@pytest.mark.parametrize("size", [0, 5, 8, 130, 14_222, 65_536, 70_001, 200_000])
def test_the_order_of_addition_is_fixed_to_the_last_bit(size):
    values = np.random.default_rng(size).standard_t(3, size)
    squares = [float(value) * float(value) for value in values]
    total = 0.0
    for start in range(0, size, norm._BLOCK):
        total += pairwise(squares[start : start + norm._BLOCK])
    assert l2_norm(values) == math.sqrt(total)


def test_float32_and_integers_are_squared_in_float64():
    small = np.array([1e-30, 3e38, 2e38], np.float32)
    assert l2_norm(small) == l2_norm(small.astype(np.float64)) == pytest.approx(exact(small))
    large = np.array([2**40, -(2**40)], np.int64)
    assert l2_norm(large) == pytest.approx(2**40.5)


def test_a_view_with_gaps_has_the_norm_of_its_copy():
    values = np.random.default_rng(1).normal(size=300_000)
    assert l2_norm(values[::2]) == l2_norm(values[::2].copy())
