import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire_contract.test_codec import heavy_tailed
from wire_contract import codec
from wire_contract.errors import ContractError, Malformed, Unsupported
from wire_contract.index_set import decode_index_set, encode_index_set
from wire_contract.messages import CodecPlan
from wire_contract.ring import Ring, pack

SIZE = 500
PLACES = np.array([0, 3, 4, 90, 91, 92, 250, 499])
INDEX_SET = decode_index_set(encode_index_set(SIZE, PLACES))
RING = Ring(2.0**-6, 4, 6)
PLAN = CodecPlan(mode="shared", bits=4, headroom_bits=6, unit=2.0**-6, index_set=INDEX_SET.sha256)


def encode(delta, residual=None, *, ring=RING, clip_norm=1e9, index_set=INDEX_SET):
    return codec.encode_shared(delta, residual, index_set=index_set, ring=ring, clip_norm=clip_norm)


def decode(data, **changes):
    return codec.decode(data, **{"size": SIZE, "plan": PLAN, "index_set": INDEX_SET, **changes})


def test_what_is_decoded_is_what_the_encoder_said_it_sent():
    update = encode(heavy_tailed(1, SIZE) * 50)
    seen = decode(update.data)
    assert np.array_equal(seen.indices, PLACES) and np.array_equal(seen.values, update.sent.values)
    assert np.count_nonzero(seen.values) > 2


@given(st.integers(0, 10_000), st.floats(0.0, 100.0), st.integers(2, 16), st.integers(0, 16))
@settings(max_examples=80, deadline=None)
def test_neither_length_nor_places_depend_on_the_values(seed, scale, bits, headroom):
    ring = Ring(2.0**-6, bits, headroom)
    update = encode((heavy_tailed(seed, SIZE) * scale).astype(np.float32), ring=ring)
    assert len(update.data) == 24 + 8 + -(-len(PLACES) * (bits + headroom) // 8)
    assert update.data[:32] == encode(np.zeros(SIZE, np.float32), ring=ring).data[:32]
    assert np.array_equal(update.sent.indices, PLACES)


def test_every_value_of_the_set_is_the_nearest_multiple_of_the_unit_within_the_range():
    delta = np.zeros(SIZE, np.float32)
    delta[PLACES] = np.array([0.4, 0.6, -0.6, 6.6, 7.6, -100.0, 1.5, 2.5]) * RING.unit
    assert (encode(delta).sent.values / RING.unit).tolist() == [0, 1, -1, 7, 7, -7, 2, 2]


def test_what_is_not_in_the_set_and_what_saturates_stays_in_the_residual():
    delta = np.zeros(SIZE, np.float32)
    delta[[3, 90, 1]] = (100 * RING.unit, 2 * RING.unit, 0.25)
    update = encode(delta)
    expected = np.zeros(SIZE, np.float32)
    expected[[3, 1]] = (93 * RING.unit, 0.25)
    assert np.array_equal(update.residual, expected)
    again = encode(np.zeros(SIZE, np.float32), update.residual)
    assert again.sent.values[1] == 7 * RING.unit, "a saturated value goes on with the next update"


def test_residual_and_sent_add_up_to_delta_and_the_old_residual():
    delta, old = heavy_tailed(2, SIZE) * 10, heavy_tailed(3, SIZE) * 10
    update = encode(delta, old)
    np.testing.assert_allclose(update.residual + update.sent.dense(), delta + old, rtol=0, atol=1e-6)


@given(st.integers(0, 10_000), st.floats(1e-6, 2.0), st.integers(-12, 0))
@settings(max_examples=80, deadline=None)
def test_neither_what_is_sent_nor_what_is_kept_back_is_longer_than_the_clip_norm(seed, clip_norm, exponent):
    ring = Ring(2.0**exponent, 6)
    update = encode(heavy_tailed(seed, SIZE) * 1000, ring=ring, clip_norm=clip_norm)
    assert codec.decode(update.data, size=SIZE, index_set=INDEX_SET).norm() <= clip_norm
    assert np.linalg.norm(update.residual.astype(np.float64)) <= clip_norm * (1 + 1e-6)


@given(st.integers(0, 10_000), st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_the_sum_of_the_wires_ring_values_decodes_to_the_sum_of_the_updates(seed, clients):
    updates = [encode(heavy_tailed(seed + i, SIZE) * 100) for i in range(clients)]
    sums = [0] * len(PLACES)
    for update in reversed(updates):
        whole = int.from_bytes(update.data[32:], "little")
        sums = [(total + (whole >> (10 * place))) % 1024 for place, total in enumerate(sums)]
    centered = np.array([total - 1024 if total >= 512 else total for total in sums])
    expected = np.sum([update.sent.values for update in updates], axis=0)
    assert np.array_equal(centered * RING.unit, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_delta_that_is_not_finite_is_refused_even_outside_the_set(bad):
    delta = np.zeros(SIZE, np.float32)
    delta[7] = bad
    with pytest.raises(Malformed, match="finite"):
        encode(delta)


def test_a_set_of_another_model_is_refused_by_both_ends():
    other = decode_index_set(encode_index_set(SIZE + 1, PLACES))
    with pytest.raises(Malformed, match="501 values"):
        encode(np.zeros(SIZE, np.float32), index_set=other)
    with pytest.raises(Malformed, match="of 501"):
        decode(encode(np.zeros(SIZE, np.float32)).data, index_set=other)


def crafted(**changes) -> bytes:
    fields = {
        "magic": b"EFU1", "mode": 2, "entropy": 0, "headroom": 6, "bits": 4, "n": SIZE, "k": 8, "scale": 2.0**-6,
        "set": INDEX_SET.id, "values": pack(np.array([1, -1, 7, -7, 0, 0, 0, 2]), RING), "behind": b"", "length": 18,
    }  # fmt: skip
    fields.update(changes)
    head = struct.pack(
        "<4sBBBBIIfI", fields["magic"], fields["mode"], fields["entropy"], fields["headroom"], fields["bits"],
        fields["n"], fields["k"], fields["scale"], fields["length"],
    )  # fmt: skip
    return head + fields["set"] + fields["values"] + fields["behind"]


def test_the_crafted_update_is_good_before_it_is_broken():
    assert (decode(crafted()).values * 64).tolist() == [1, -1, 7, -7, 0, 0, 0, 2]
    assert codec.set_id_of(crafted()) == INDEX_SET.id


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"magic": b"EFU2"}, "begins with"),
        ({"mode": 1}, "the plan's codec is shared"),
        ({"mode": 3}, "modes 1 and 2"),
        ({"entropy": 1}, "no entropy stage"),
        ({"headroom": 5}, "the plan's ring"),
        ({"headroom": 21}, "headroom"),
        ({"bits": 5}, "the plan's ring"),
        ({"bits": 0}, "2 to 16 bits"),
        ({"bits": 17}, "2 to 16 bits"),
        ({"n": SIZE - 1}, "500 values"),
        ({"k": 7}, "the update 7"),
        ({"k": 9}, "the update 9"),
        ({"k": 0xFFFFFFFF}, "at most 500"),
        ({"scale": 2.0**-7}, "the plan's ring"),
        ({"scale": float("nan")}, "finite"),
        ({"scale": 0.0}, "positive"),
        ({"scale": -1.0}, "positive"),
        ({"length": 17}, "take 18 bytes"),
        ({"length": 0xFFFFFFFF}, "take 18 bytes"),
        ({"behind": b"\0"}, "take 18 bytes"),
        ({"behind": b"\0", "length": 19}, "take 18 bytes"),
        ({"values": bytes(9)}, "take 18 bytes"),
        ({"set": bytes(8)}, "index set is"),
        ({"values": pack(np.array([1, -1, 8, -7, 0, 0, 0, 2]), RING)}, "within 7 units, got 8"),
        ({"values": pack(np.array([1, -512, 7, -7, 0, 0, 0, 2]), RING)}, "within 7 units, got -512"),
    ],
)
def test_a_broken_update_is_refused_with_the_rule(changes, rule):
    with pytest.raises(ContractError, match=rule):
        decode(crafted(**changes))


def test_spare_bits_are_zero():
    ring, plan = Ring(2.0**-6, 3), msgspec.structs.replace(PLAN, bits=3, headroom_bits=0)
    three = decode_index_set(encode_index_set(SIZE, np.array([1, 2, 3])))
    good = encode(np.full(SIZE, RING.unit, np.float32), ring=ring, index_set=three).data
    assert (decode(good, plan=plan, index_set=three).values * 64).tolist() == [1, 1, 1]
    with pytest.raises(Malformed, match="spare bits"):
        decode(good[:-1] + bytes([good[-1] | 0x80]), plan=plan, index_set=three)


def test_without_its_index_set_an_update_is_not_read():
    with pytest.raises(Unsupported, match="needs its index set"):
        decode(crafted(), index_set=None)


def test_an_update_of_the_other_mode_or_width_is_not_the_plans():
    topk = codec.encode(heavy_tailed(1, SIZE), None, kept=8, clip_norm=1.0, entropy="none", bits=2).data
    with pytest.raises(Malformed, match="the plan's codec is shared, the update is of mode 1"):
        decode(topk)
    with pytest.raises(Malformed, match="codes have 4 bits, the update's 2"):
        codec.decode(topk, size=SIZE, plan=CodecPlan())
    eight = CodecPlan(mode="topk", bits=2, kept=8 / SIZE)
    assert len(codec.decode(topk, size=SIZE, plan=eight).indices) == 8
    assert codec.set_id_of(topk) is None


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"mode": "topk5"}, "mode is one of"),
        ({"mode": "topk4", "bits": 8}, "topk4 has 4 bits"),
        ({"mode": "topk", "bits": 3}, "1 or 2 or 4 or 8 bits"),
        ({"mode": "topk", "entropy": "lzma"}, "entropy"),
        ({"mode": "shared", "bits": 1}, "2 to 16 bits"),
        ({"mode": "shared", "bits": 16, "headroom_bits": 20}, "at most 32"),
        ({"mode": "shared", "unit": 0.1}, "float32"),
    ],
)
def test_a_codec_plan_whose_parts_do_not_go_together_is_refused(changes, rule):
    with pytest.raises(ContractError, match=rule):
        codec.check_plan(CodecPlan(**changes))


def test_plans_that_go_together_pass():
    codec.check_plan(PLAN)
    for bits in (1, 2, 4, 8):
        codec.check_plan(CodecPlan(mode="topk", bits=bits))
    codec.check_plan(CodecPlan())


@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_an_update_in_range_or_the_contracts_error(tail, position, value):
    data = bytearray(crafted())
    data[position % len(data)] = value
    for hostile in (bytes(data), crafted()[:24] + tail):
        try:
            seen = decode(hostile)
        except ContractError:
            continue
        assert np.abs(seen.values).max() <= 7 * RING.unit and np.array_equal(seen.indices, PLACES)
