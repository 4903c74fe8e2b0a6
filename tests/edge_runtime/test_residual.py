import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime import residual as residuals
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.adapters.vectors import Vectors
from edge_runtime.ports import StorageFailed
from edge_runtime.residual import Residual, carry, pack, take_back, unpack
from wire_contract import codec
from wire_contract.codec import SparseVector
from wire_contract.messages import CodecPlan, Plan

SIZE = 200


def vector(seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(2, SIZE) * scale).astype(np.float32)


def norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def test_by_default_a_residual_is_added_whole_whatever_its_age():
    kept = Residual(3, vector(1, 0.01))
    assert np.array_equal(carry(kept, 3000, Plan()), kept.vector)
    assert carry(None, 3, Plan()) is None


@given(st.integers(0, 1000), st.floats(0.0, 1.0), st.floats(1e-3, 100.0), st.floats(1e-4, 10.0))
@settings(max_examples=100, deadline=None)
def test_what_is_added_points_where_the_residual_does_is_no_longer_than_its_share_and_than_the_clip_norm(
    seed, keep, clip_norm, scale
):
    kept = Residual(3, vector(seed, scale))
    added = carry(kept, 4, Plan(residual_keep=keep, clip_norm=clip_norm))
    if keep == 0.0:
        assert added is None
        return
    # Below the normal float32 numbers a product is rounded by more than its 24 bits.
    assert norm(added) <= min(keep * norm(kept.vector), clip_norm) * (1 + 1e-5) + 1e-36
    np.testing.assert_allclose(added * norm(kept.vector), kept.vector * norm(added), rtol=1e-3, atol=1e-6)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 60))
def test_a_residual_is_dropped_when_more_versions_lie_between_than_the_plan_allows(limit, base, ahead):
    kept = Residual(base, vector(1))
    added = carry(kept, base + ahead, Plan(residual_versions=limit))
    assert (added is None) == (ahead > limit)
    assert residuals.age(kept, base + ahead) == ahead


def test_a_base_of_a_lower_number_makes_no_residual_old():
    kept = Residual(9, vector(1, 0.01))
    assert residuals.age(kept, 4) == 0
    assert carry(kept, 4, Plan(residual_versions=1)) is not None


@given(st.integers(0, 1000), st.sampled_from(["topk", "shared"]), st.sampled_from([0.05, 1.0, 1e6]))
@settings(max_examples=60, deadline=None)
def test_a_night_that_came_to_nothing_is_not_lost(seed, mode, clip_norm):
    """Stale: residual + all that was said = the delta and the older residual, up to the clip norm."""
    delta, old = vector(seed), vector(seed + 1, 0.1)
    if mode == "topk":
        encoded = codec.encode(delta, old, kept=20, clip_norm=clip_norm, entropy="none")
    else:
        from wire_contract.index_set import decode_index_set, encode_index_set
        from wire_contract.ring import Ring

        places = decode_index_set(encode_index_set(SIZE, np.arange(0, SIZE, 3)))
        encoded = codec.encode_shared(delta, old, index_set=places, ring=Ring(2.0**-8, 8), clip_norm=clip_norm)
    back = take_back(Residual(5, encoded.residual), encoded.sent, 5, clip_norm)
    assert norm(back.vector) <= clip_norm * (1 + 1e-6)
    if clip_norm == 1e6:
        np.testing.assert_allclose(back.vector, delta + old, atol=1e-5)


def test_what_returns_bears_the_newer_base_and_stands_alone_where_the_residual_is_gone():
    said = SparseVector(SIZE, np.array([4]), np.array([0.5]))
    assert take_back(Residual(3, vector(1)), said, 7, 10.0).base_version == 7
    assert take_back(Residual(8, vector(1)), said, 7, 10.0).base_version == 8
    alone = take_back(None, said, 7, 0.25)
    assert (alone.base_version, alone.vector[4], norm(alone.vector)) == (7, 0.25, 0.25)


def test_a_residual_in_the_axes_of_another_basis_is_neither_added_nor_added_to():
    turned = Residual(3, vector(1, 0.01), bytes.fromhex("ab" * 8))
    plain = Residual(3, vector(1, 0.01))
    in_basis = {name: Plan(codec=CodecPlan(mode="topk", basis=name)) for name in ("ab" * 32, "ac" * 32)}
    assert np.array_equal(carry(turned, 3, in_basis["ab" * 32]), turned.vector)
    assert carry(turned, 3, in_basis["ac" * 32]) is None and carry(turned, 3, Plan()) is None
    assert carry(plain, 3, in_basis["ab" * 32]) is None
    said = SparseVector(SIZE, np.array([4]), np.array([0.5]))
    back = take_back(turned, said, 4, 10.0, turned.basis)
    assert np.array_equal(back.vector, turned.vector + said.dense().astype(np.float32)) and back.basis == turned.basis
    other = take_back(turned, said, 4, 10.0, bytes.fromhex("ac" * 8))
    assert np.array_equal(other.vector, said.dense()) and other.basis.hex() == "ac" * 8


@given(st.integers(0, 1000), st.floats(1e-30, 1e30), st.integers(0, 1 << 31))
@settings(max_examples=100, deadline=None)
def test_a_residual_survives_the_disk_within_half_a_thousandth_in_half_the_room(seed, scale, version):
    kept = Residual(version, vector(seed, scale), version.to_bytes(8, "big"))
    data = pack(kept)
    assert len(data) == 24 + 2 * SIZE
    seen = unpack(data)
    assert (seen.base_version, seen.basis) == (version, kept.basis)
    largest = np.abs(kept.vector).max()
    np.testing.assert_allclose(seen.vector, kept.vector, rtol=2.0**-11, atol=float(largest) * 2.0**-39)
    assert norm(seen.vector / largest - kept.vector / largest) <= 2.0**-11 * norm(kept.vector / largest)
    assert norm(carry(Residual(version, seen.vector), version, Plan(clip_norm=1.0))) <= 1.0 + 1e-6


def test_a_residual_of_nothing_survives_too():
    seen = unpack(pack(Residual(1, np.zeros(SIZE, np.float32))))
    assert not seen.vector.any() and len(seen.vector) == SIZE


def test_over_forty_nights_the_halves_lose_less_than_two_thousandths_of_the_residual():
    """The same deltas with the residual as float32 and as it lies on the disk: rounding errors add as noise does."""
    exact: np.ndarray | None = None
    stored: bytes | None = None
    sent = {"exact": np.zeros(SIZE), "stored": np.zeros(SIZE)}
    for night in range(40):
        delta = vector(night, 0.01)
        one = codec.encode(delta, exact, kept=10, clip_norm=10.0, entropy="none")
        two = codec.encode(
            delta, None if stored is None else unpack(stored).vector, kept=10, clip_norm=10.0, entropy="none"
        )
        exact, stored = one.residual, pack(Residual(night, two.residual))
        sent["exact"] += one.sent.dense()
        sent["stored"] += two.sent.dense()
    whole = sum(vector(night, 0.01).astype(np.float64) for night in range(40))
    lost = norm(unpack(stored).vector + sent["stored"] - whole)
    assert lost < 2e-3 * norm(exact)
    assert norm(exact + sent["exact"] - whole) < lost


ONE_AND_TWO = np.array([1, 2], "<f2").tobytes()


def test_a_residual_in_an_older_form_is_not_read_and_goes_with_the_next_one(tmp_path):
    store = StateStore(tmp_path / "state.db")
    vectors = Vectors(tmp_path / "vectors", store)
    (tmp_path / "vectors").mkdir()
    np.save(tmp_path / "vectors" / "0123456789abcdef0123456789abcdef.npy", vector(1))
    with store.transaction() as connection:
        vectors.name_residual(connection, "0123456789abcdef0123456789abcdef.npy", "layout")
    assert vectors.residual("layout", SIZE) is None
    name = vectors.write(Residual(4, vector(2)))
    with store.transaction() as connection:
        vectors.name_residual(connection, name, "layout")
    vectors.sweep()
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == [name]
    assert vectors.residual("layout", SIZE).base_version == 4
    assert vectors.residual("another layout", SIZE) is None and vectors.residual("layout", SIZE + 1) is None
    store.close()


def crafted(magic=b"EFR1", version=1, exponent=-14, spare=0, count=2, basis=bytes(8), body=ONE_AND_TWO):
    return struct.pack("<4sIhHI8s", magic, version, exponent, spare, count, basis) + body


def test_the_crafted_residual_is_good_before_it_is_broken():
    assert unpack(crafted()).vector.tolist() == [2.0**-14, 2.0**-13]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        crafted()[:23],
        crafted()[:16] + ONE_AND_TWO,
        crafted(magic=b"EFR2"),
        crafted(exponent=201),
        crafted(exponent=-201),
        crafted(spare=1),
        crafted(count=3),
        crafted(count=0xFFFFFFFF),
        crafted(body=np.array([1, np.inf], "<f2").tobytes()),
        crafted(body=np.array([1, np.nan], "<f2").tobytes()),
        crafted(exponent=130),
    ],
)
def test_a_broken_file_holds_no_residual(data):
    with pytest.raises(StorageFailed):
        unpack(data)
