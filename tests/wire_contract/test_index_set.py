import contextlib
import hashlib
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from wire_contract.errors import ContractError, Malformed
from wire_contract.index_set import decode_index_set, encode_index_set, set_id


@given(st.sets(st.integers(0, 299), min_size=1))
@settings(max_examples=80, deadline=None)
def test_a_set_survives_its_file_and_is_named_by_its_hash(places):
    indices = np.array(sorted(places), dtype=np.int64)
    data = encode_index_set(300, indices)
    seen = decode_index_set(data)
    assert (seen.size, seen.indices.tolist()) == (300, sorted(places))
    assert seen.sha256 == hashlib.sha256(data).hexdigest()
    assert seen.id == hashlib.sha256(data).digest()[:8] == set_id(seen.sha256)


def test_a_set_that_was_read_cannot_be_written_to():
    seen = decode_index_set(encode_index_set(10, np.array([1, 2])))
    with pytest.raises(ValueError, match="read-only"):
        seen.indices[0] = 5


@pytest.mark.parametrize("indices", [[], [3, 3], [4, 3], [-1, 2], [0, 10], list(range(11))])
def test_what_is_no_set_of_the_model_is_not_written(indices):
    with pytest.raises(Malformed):
        encode_index_set(10, np.array(indices, dtype=np.int64))


def crafted(*, magic=b"EFI1", n=100, k=3, body=bytes([2, 0, 90]), length=None, packed=None, behind=b"") -> bytes:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(body) if packed is None else packed
    return struct.pack("<4sIII", magic, n, k, len(body) if length is None else length) + frame + behind


def test_the_crafted_set_is_good_before_it_is_broken():
    assert decode_index_set(crafted()).indices.tolist() == [2, 3, 94]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"magic": b"EFI2"}, "begins with"),
        ({"n": 94}, "below 94"),
        ({"n": 2}, "min.n"),
        ({"n": 0xFFFFFFFF}, "n <="),
        ({"k": 0}, "1 <= k"),
        ({"k": 2}, "gaps were declared"),
        ({"k": 101}, "1 <= k"),
        ({"k": 0xFFFFFFFF}, "1 <= k"),
        ({"length": 2}, "3 gaps take"),
        ({"length": 13}, "3 gaps take"),
        ({"length": 4}, "4 bytes and nothing behind"),
        ({"length": 0xFFFFFFFF}, "3 gaps take"),
        ({"behind": b"\0"}, "nothing behind"),
        ({"body": bytes([0x82, 0, 0, 90])}, "shortest form"),
        ({"body": bytes([0xFF] * 4 + [1, 0, 90])}, "at most 4 bytes"),
        ({"body": bytes([2, 0, 0xDA])}, "gaps were declared"),
        ({"packed": b"no zstd"}, "zstd"),
        ({"packed": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))}, "nothing behind"),
    ],
)
def test_a_broken_set_is_refused_with_the_rule(changes, rule):
    with pytest.raises(Malformed, match=rule):
        decode_index_set(crafted(**changes))


def test_every_truncation_is_refused_and_so_is_a_file_over_the_limit():
    data = encode_index_set(5000, np.arange(0, 5000, 7))
    for cut in range(len(data)):
        with pytest.raises(Malformed):
            decode_index_set(data[:cut])
    with pytest.raises(Malformed, match="4194304 bytes"):
        decode_index_set(data + bytes(4 << 20))


@given(st.integers(0, 5000), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_gives_another_name_or_the_contracts_error(position, value):
    data = bytearray(encode_index_set(5000, np.arange(0, 5000, 7)))
    whole = hashlib.sha256(data).hexdigest()
    before = data[position % len(data)]
    data[position % len(data)] = value
    with contextlib.suppress(ContractError):
        seen = decode_index_set(bytes(data))
        assert (seen.sha256 == whole) == (before == value)
        assert (np.diff(seen.indices) > 0).all() and seen.indices[-1] < seen.size
