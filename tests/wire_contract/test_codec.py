import contextlib
import struct
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from wire_contract import codec
from wire_contract.errors import ContractError, Malformed, Unsupported


def heavy_tailed(seed: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(2, size) * 1e-3).astype(np.float32)


def encode(vector, residual=None, *, kept=50, clip_norm=1e9, entropy="zstd"):
    return codec.encode(vector, residual, kept=kept, clip_norm=clip_norm, entropy=entropy)


@pytest.mark.parametrize("entropy", ["none", "zstd", "deflate"])
def test_what_is_decoded_is_what_the_encoder_said_it_sent(entropy):
    update = encode(heavy_tailed(1, 5000), entropy=entropy)
    seen = codec.decode(update.data, size=5000)
    assert np.array_equal(seen.indices, update.sent.indices)
    assert np.array_equal(seen.values, update.sent.values)
    assert len(seen.indices) == 50


def test_the_largest_magnitudes_are_kept_and_ties_go_to_the_lower_index():
    vector = np.array([0.5, -2, 2, 0, 2, -2, 1], dtype=np.float32)
    assert codec.select_largest(vector, 3).tolist() == [1, 2, 4]
    assert codec.select_largest(vector, 7).tolist() == [0, 1, 2, 4, 5, 6]


@given(st.integers(0, 10_000), st.integers(1, 400), st.sampled_from([0, 1, 3]))
@settings(max_examples=80, deadline=None)
def test_selection_equals_a_full_sort_by_magnitude_then_index(seed, k, decimals):
    vector = heavy_tailed(seed, 300) * 1000
    vector = np.round(vector, decimals) if decimals else vector
    vector[seed % 250 :] = 0
    order = sorted((i for i in range(300) if vector[i] != 0), key=lambda i: (-abs(vector[i]), i))
    assert codec.select_largest(vector, k).tolist() == sorted(order[:k])


def test_selection_equals_a_full_sort_where_a_sample_guesses_the_threshold():
    vector = heavy_tailed(11, 200_000)
    vector[::3] = 0
    order = np.lexsort((np.arange(len(vector)), -np.abs(vector)))
    for k in (1, 2000, 70_000, 199_999):
        expected = np.sort(order[:k][vector[order[:k]] != 0])
        assert np.array_equal(codec.select_largest(vector, k), expected)


def test_residual_and_sent_add_up_to_delta_and_the_old_residual():
    delta, old = heavy_tailed(2, 3000), heavy_tailed(3, 3000)
    update = encode(delta, old)
    np.testing.assert_allclose(update.residual + update.sent.dense(), delta + old, rtol=0, atol=1e-7)


def test_a_value_is_quantized_to_the_nearest_of_the_eight_levels():
    vector = heavy_tailed(4, 2000)
    update = encode(vector, kept=200)
    _, _, _, step, _, _, _, scale, _ = struct.unpack_from("<4sBBBBIIfI", update.data)
    levels = codec.level_magnitudes(scale, step)
    for index, value in zip(update.sent.indices, update.sent.values, strict=True):
        best = min(levels, key=lambda level: abs(level - abs(float(vector[index]))))
        assert abs(value) == best
        assert np.sign(value) == np.sign(vector[index])


@given(st.integers(0, 10_000), st.floats(1e-6, 10.0), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_neither_what_is_sent_nor_what_is_kept_back_is_longer_than_the_clip_norm(seed, clip_norm, kept):
    update = encode(heavy_tailed(seed, 300) * 1000, kept=kept, clip_norm=clip_norm)
    assert codec.decode(update.data, size=300).norm() <= clip_norm
    assert np.linalg.norm(update.residual.astype(np.float64)) <= clip_norm * (1 + 1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("entropy", ["none", "zstd", "deflate"])
@pytest.mark.parametrize("kept", [1, 2, 3, 7, 50, 400])
def test_codes_of_every_width_decode_to_what_the_encoder_said_it_sent(bits, entropy, kept):
    vector = heavy_tailed(kept, 400) * 100
    update = codec.encode(vector, None, kept=kept, clip_norm=1.0, entropy=entropy, bits=bits)
    seen = codec.decode(update.data, size=400)
    assert np.array_equal(seen.indices, update.sent.indices) and np.array_equal(seen.values, update.sent.values)
    assert update.data[7] == (0 if bits == 4 else bits)
    assert seen.norm() <= 1.0
    assert np.array_equal(np.sign(seen.values), np.sign(vector[seen.indices]))


def test_four_bits_named_and_four_bits_by_default_are_the_same_bytes():
    assert encode(heavy_tailed(3, 900)).data == codec.encode(
        heavy_tailed(3, 900), None, kept=50, clip_norm=1e9, entropy="zstd", bits=4
    ).data  # fmt: skip


def test_one_bit_sends_the_mean_magnitude_under_every_sign():
    vector = heavy_tailed(4, 2000)
    update = codec.encode(vector, None, kept=200, clip_norm=1e9, entropy="zstd", bits=1)
    chosen = vector[update.sent.indices].astype(np.float64)
    assert np.array_equal(update.sent.values, np.sign(chosen) * np.float32(np.abs(chosen).mean()))


def test_two_bits_come_close_to_the_best_two_levels_of_any_kind():
    magnitudes = np.sort(np.abs(heavy_tailed(4, 300)).astype(np.float64))
    update = codec.encode(magnitudes.astype(np.float32), None, kept=300, clip_norm=1e9, entropy="none", bits=2)
    got = np.sum((magnitudes - np.abs(update.sent.values)) ** 2)
    best = min(
        np.sum((magnitudes[:cut] - magnitudes[:cut].mean()) ** 2)
        + np.sum((magnitudes[cut:] - magnitudes[cut:].mean()) ** 2)
        for cut in range(1, 300)
    )
    assert best <= got * (1 + 1e-9) <= 1.02 * best


def test_more_bits_leave_less_behind():
    vector = heavy_tailed(5, 20_000)
    errors = []
    for bits in (1, 2, 4, 8):
        update = codec.encode(vector, None, kept=500, clip_norm=1e9, entropy="none", bits=bits)
        errors.append(np.linalg.norm(update.residual.astype(np.float64)[update.sent.indices]))
    # The nearest of 128 levels over a few octaves is within 2.2 %, half of a sixteenth octave.
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.03 * np.linalg.norm(vector)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_equal_magnitudes_and_a_single_value_have_a_scale(bits):
    vector = np.zeros(20, np.float32)
    vector[[2, 9, 11]] = (-0.5, 0.5, 0.5)
    update = codec.encode(vector, None, kept=3, clip_norm=10.0, entropy="none", bits=bits)
    np.testing.assert_allclose(codec.decode(update.data, size=20).values, [-0.5, 0.5, 0.5], rtol=0.05)


@pytest.mark.parametrize("bits", [0, 3, 5, 16])
def test_another_code_width_is_refused(bits):
    with pytest.raises(Malformed, match="1 or 2 or 4 or 8 bits"):
        codec.encode(heavy_tailed(6, 100), None, kept=5, clip_norm=1.0, entropy="none", bits=bits)


@pytest.mark.parametrize(("bits", "last"), [(1, 0x08), (2, 0x40)])
def test_spare_codes_of_narrow_widths_are_zero(bits, last):
    vector = heavy_tailed(6, 100)
    data = codec.encode(vector, None, kept=3, clip_norm=1.0, entropy="none", bits=bits).data
    with pytest.raises(Malformed, match="spare codes"):
        codec.decode(data[:-1] + bytes([data[-1] | last]), size=100)


def test_a_threshold_keeps_small_values_back_even_where_fewer_than_k_go_out():
    vector = np.array([0.5, -0.25, 0.25, 0.125, 0.0, -4.0], dtype=np.float32)
    update = codec.encode(vector, None, kept=6, clip_norm=1e9, entropy="none", threshold=0.25)
    assert update.sent.indices.tolist() == [0, 1, 2, 5]
    assert update.residual[3] == np.float32(0.125)


def test_of_more_values_than_k_that_reach_the_threshold_the_largest_go_out():
    vector = np.array([0.5, -0.25, 0.25, 0.125, 0.0, -4.0], dtype=np.float32)
    update = codec.encode(vector, None, kept=2, clip_norm=1e9, entropy="none", threshold=0.25)
    assert update.sent.indices.tolist() == [0, 5]


def test_an_update_of_which_nothing_reaches_the_threshold_is_whole_and_empty():
    vector = np.full(50, 0.125, dtype=np.float32)
    update = codec.encode(vector, None, kept=50, clip_norm=1e9, entropy="zstd", threshold=0.25)
    assert len(codec.decode(update.data, size=50).indices) == 0
    assert np.array_equal(update.residual, vector)


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_a_threshold_below_0_is_refused(bad):
    with pytest.raises(Malformed, match="threshold"):
        codec.encode(np.ones(4, np.float32), None, kept=3, clip_norm=1.0, entropy="none", threshold=bad)


def test_one_percent_of_a_clustered_delta_takes_few_bytes():
    rng = np.random.default_rng(5)
    rows = np.repeat(rng.random(1000) ** 8, 74)
    vector = (rng.standard_normal(74_000) * rows).astype(np.float32)
    update = encode(vector, kept=740)
    assert 4 * 74_000 / len(update.data) > 200


def test_a_zero_delta_is_an_update_of_no_values():
    update = encode(np.zeros(100, np.float32))
    assert len(codec.decode(update.data, size=100).indices) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_not_finite_is_refused(bad):
    vector = heavy_tailed(6, 100)
    vector[7] = bad
    with pytest.raises(Malformed, match="finite"):
        encode(vector, kept=10)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, 1e-45, 1e-7, np.nan, np.inf])
def test_a_clip_norm_that_no_scale_can_meet_is_refused(clip_norm):
    with pytest.raises(Malformed, match="clip norm"):
        encode(heavy_tailed(6, 100), kept=10, clip_norm=clip_norm)


@given(st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_the_smallest_clip_norm_still_gives_an_update_that_decodes(kept):
    update = encode(heavy_tailed(6, 300) * 1e6, kept=kept, clip_norm=codec.SMALLEST_CLIP_NORM)
    assert 0 < codec.decode(update.data, size=300).norm() <= codec.SMALLEST_CLIP_NORM


def test_an_unknown_entropy_stage_is_refused_by_name():
    with pytest.raises(Unsupported, match="brotli"):
        encode(heavy_tailed(6, 100), kept=10, entropy="brotli")


def crafted(**changes) -> bytes:
    fields = {
        "magic": b"EFU1", "mode": 1, "entropy": 0, "step": 4, "reserved": 0, "n": 100, "k": 2, "scale": 1.0,
        "body": bytes([3, 5, 0x21]), "length": 3,
    }  # fmt: skip
    fields.update(changes)
    head = struct.pack(
        "<4sBBBBIIfI", fields["magic"], fields["mode"], fields["entropy"], fields["step"], fields["reserved"],
        fields["n"], fields["k"], fields["scale"], fields["length"],
    )  # fmt: skip
    return head + fields["body"]


def test_the_crafted_update_is_good_before_it_is_broken():
    seen = codec.decode(crafted(), size=100)
    assert seen.indices.tolist() == [3, 9]
    assert seen.values.tolist() == [2 ** (-4 / 16), 2 ** (-8 / 16)]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"magic": b"EFU2"}, "begins with"),
        ({"mode": 9}, "mode"),
        ({"entropy": 7}, "entropy"),
        ({"reserved": 3}, "code width is 0 .for 4., 1, 2 or 8, got 3"),
        ({"reserved": 4}, "code width"),
        ({"reserved": 16}, "code width"),
        ({"reserved": 8, "step": 16, "length": 4, "body": bytes([3, 5, 0, 1])}, "126 octaves"),
        ({"step": 0}, "step"),
        ({"n": 99}, "100 values"),
        ({"k": 101}, "at most 100"),
        ({"k": 0xFFFFFFFF}, "at most 100"),
        ({"scale": float("nan")}, "finite"),
        ({"scale": float("inf")}, "finite"),
        ({"scale": -1.0}, "positive"),
        ({"scale": 0.0}, "positive"),
        ({"length": 2}, "take 3 bytes"),
        ({"length": 0xFFFFFFFF}, "got a body"),
        ({"body": bytes([3, 5, 0x21, 0])}, "3 bytes and nothing behind"),
        ({"body": bytes([3, 5])}, "3 bytes and nothing behind"),
        ({"body": bytes([0x83, 0x00, 5, 0x21]), "length": 4}, "shortest form"),
        ({"body": bytes([0x83, 0x85, 0x21]), "length": 3}, "gaps were declared"),
        ({"body": bytes([3, 96, 0x21])}, "below 100"),
        ({"body": bytes([0xFF] * 4 + [1, 5, 0x21]), "length": 7}, "at most 4 bytes"),
        ({"k": 1, "body": bytes([3, 0x21]), "length": 2}, "spare nibble"),
        ({"entropy": 1}, "zstd"),
        ({"entropy": 2, "body": b"\xff\xff\xff"}, "deflate"),
    ],
)
def test_a_broken_update_is_refused_with_the_rule(changes, rule):
    with pytest.raises(ContractError, match=rule):
        codec.decode(crafted(**changes), size=100)


@pytest.mark.parametrize("cut", range(28))
def test_every_truncation_is_refused(cut):
    data = encode(heavy_tailed(8, 400)).data
    with pytest.raises(ContractError):
        codec.decode(data[:cut], size=400)
    with pytest.raises(ContractError):
        codec.decode(data[: len(data) - 1 - cut], size=400)


def test_a_compression_bomb_is_stopped_at_the_declared_size():
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(256 << 20))
    with pytest.raises(Malformed, match="3 bytes and nothing behind it"):
        codec.decode(crafted(entropy=1, body=bomb), size=100)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(64 << 20)) + deflate.flush()
    with pytest.raises(Malformed, match="nothing behind"):
        codec.decode(crafted(entropy=2, body=bomb), size=100)


def test_a_zstd_frame_with_a_huge_window_is_refused():
    big = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(19, window_log=27, write_content_size=False)
    ).compress(bytes(1 << 20))
    with pytest.raises(Malformed):
        codec.decode(crafted(entropy=1, body=big), size=100)


@given(st.binary(max_size=300))
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_an_update_or_the_contracts_error(data):
    with contextlib.suppress(ContractError):
        codec.decode(data, size=100)


@given(st.integers(0, 5000), st.integers(0, 255), st.sampled_from(["none", "zstd", "deflate"]))
@settings(max_examples=400, deadline=None)
def test_a_flipped_byte_gives_an_update_in_range_or_the_contracts_error(position, value, entropy):
    data = bytearray(encode(heavy_tailed(9, 2000), entropy=entropy).data)
    data[position % len(data)] = value
    try:
        seen = codec.decode(bytes(data), size=2000)
    except ContractError:
        return
    assert np.isfinite(seen.values).all()
    assert len(seen.indices) == 0 or (seen.indices[0] >= 0 and seen.indices[-1] < 2000)
    assert (np.diff(seen.indices) > 0).all()


@given(st.lists(st.integers(0, (1 << 28) - 1), max_size=50))
def test_gaps_survive_leb128(numbers):
    array = np.array(numbers, dtype=np.int64)
    assert codec.read_leb128(codec.write_leb128(array), len(array)).tolist() == numbers
