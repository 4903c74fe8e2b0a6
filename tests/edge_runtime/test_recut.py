"""An update in other pieces: the same sealed bytes, the same header, signed again by the device whose it is."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.recut import recut
from wire_contract import envelope
from wire_contract.errors import ContractError, Malformed
from wire_contract.messages import Chunk, UpdateInit, decode_message, encode_message

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
NAME = "ab" * 16


def queued(sealed, chunk_bytes):
    init = UpdateInit(
        header=b"header", size_bytes=len(sealed), sha256=hashlib.sha256(sealed).hexdigest(), chunk_bytes=chunk_bytes
    )
    pieces = [sealed[i : i + chunk_bytes] for i in range(0, len(sealed), chunk_bytes)]
    chunks = tuple(encode_message(Chunk(update_id=NAME, index=i, data=data)) for i, data in enumerate(pieces))
    return envelope.sign(KEY, "update", encode_message(init)), chunks


@given(st.binary(min_size=1, max_size=9000), st.integers(1024, 4096), st.integers(1024, 4096))
def test_the_sealed_bytes_and_the_header_stay_what_they_were(sealed, old, new):
    before, chunks = queued(sealed, old)
    after, pieces = recut(before, chunks, new, KEY)
    public = envelope.public_bytes(KEY)
    was = decode_message(envelope.verify(before, "update", public), UpdateInit)
    is_now = decode_message(envelope.verify(after, "update", public), UpdateInit)
    assert (is_now.header, is_now.size_bytes, is_now.sha256) == (was.header, was.size_bytes, was.sha256)
    assert is_now.chunk_bytes == new and len(pieces) == is_now.chunks
    read = [decode_message(piece, Chunk) for piece in pieces]
    assert [piece.index for piece in read] == list(range(len(read)))
    assert all(len(piece.data) <= new and piece.update_id == NAME for piece in read)
    assert b"".join(piece.data for piece in read) == sealed
    # There and back is where it came from, to the byte: signatures of Ed25519 are deterministic.
    assert recut(after, pieces, old, KEY) == (before, chunks)


def test_pieces_that_do_not_belong_to_the_init_are_refused():
    init, chunks = queued(b"x" * 5000, 1024)
    for wrong in (chunks[:-1], (), (*chunks, chunks[0]), chunks[:-1] + chunks[:1]):
        with pytest.raises(Malformed, match="an update of 5 chunks"):
            recut(init, wrong, 2048, KEY)
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    with pytest.raises(ContractError):
        recut(init, chunks, 2048, other)
