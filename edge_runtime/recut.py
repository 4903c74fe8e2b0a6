"""Cutting a sealed update anew, when a broker takes smaller packets than the chunks that wait. Pure.

The sealed bytes, their hash and the header stay as they are, so the update stays the same one; only the init's
`chunk_bytes` changes, and the device, whose update it is, signs that init again. Only before the aggregator holds an
init of the update: another one for the same lease would be refused there as a conflict.
"""

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wire_contract import envelope
from wire_contract.errors import Malformed
from wire_contract.messages import Chunk, UpdateInit, decode_message, encode_message

KIND = "update"


def recut(
    init: bytes, chunks: tuple[bytes, ...], chunk_bytes: int, key: Ed25519PrivateKey
) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the signed init and the chunk messages of the same sealed bytes in pieces of `chunk_bytes`.

    `init` is the envelope that waits, `chunks` its chunk messages. Raises `Malformed` if they do not belong together.
    """
    old = decode_message(envelope.verify(init, KIND, envelope.public_bytes(key)), UpdateInit)
    pieces = [decode_message(chunk, Chunk) for chunk in chunks]
    sealed = b"".join(piece.data for piece in pieces)
    if not pieces or len(pieces) != old.chunks or len(sealed) != old.size_bytes:
        raise Malformed(
            f"an update of {old.chunks} chunks and {old.size_bytes} bytes, got {len(pieces)}, {len(sealed)}"
        )
    new = msgspec.structs.replace(old, chunk_bytes=chunk_bytes)
    messages = tuple(
        encode_message(
            Chunk(update_id=pieces[0].update_id, index=i, data=sealed[i * chunk_bytes : (i + 1) * chunk_bytes])
        )
        for i in range(new.chunks)
    )
    return envelope.sign(key, KIND, encode_message(new)), messages
