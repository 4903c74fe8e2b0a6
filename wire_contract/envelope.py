"""Signing exact bytes, and sealing updates to the aggregator.

The rules:
- a signature covers `edge-federation v1`, the kind of message and the body's exact bytes, so that a receipt can never
  pass for a manifest; verifying gives back those bytes, which are decoded once;
- an update is sealed to the aggregator's X25519 key named in the signed task: a fresh ephemeral key, HKDF-SHA256
  (RFC 5869) over the shared secret with both public keys as salt, ChaCha20-Poly1305 (RFC 8439) with the header's
  bytes as associated data; the key is used once, so the nonce is zero (as in HPKE base mode, RFC 9180);
- then the device signs. Top-k indices name the words a person typed: broker, logs and queues must not read them.
"""

import hashlib

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wire_contract.errors import Malformed, Unsupported, Untrusted

ENVELOPE_VERSION = 1
MAX_ENVELOPE_BYTES = 96 * 1024
SEAL_OVERHEAD_BYTES = 16

_NONCE = bytes(12)


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """A signed body on the wire: [envelope version, kind, key id, body, signature]."""

    version: int
    kind: str
    key_id: str
    body: bytes
    signature: bytes


def public_bytes(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """Return the 32 raw bytes of a private key's public half."""
    return key.public_key().public_bytes_raw()


def key_id(public_key: bytes) -> str:
    """Return a key's name: the first 16 bytes of SHA-256 of its 32 raw bytes, as hex. A device's id is this name."""
    return hashlib.sha256(b"edge-federation key v1\n" + public_key).hexdigest()[:32]


def _signed_bytes(kind: str, body: bytes) -> bytes:
    return b"edge-federation v1\n" + kind.encode() + b"\n" + body


def sign(key: Ed25519PrivateKey, kind: str, body: bytes) -> bytes:
    """Return the envelope of `body`, signed for `kind` (a lower-case name without a line break)."""
    signature = key.sign(_signed_bytes(kind, body))
    return msgspec.msgpack.encode(Signed(ENVELOPE_VERSION, kind, key_id(public_bytes(key)), body, signature))


def read_envelope(data: bytes) -> Signed:
    """Read an envelope without trusting it, to learn whose key it names. Raises `Malformed` or `Unsupported`."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise Malformed(f"an envelope has at most {MAX_ENVELOPE_BYTES} bytes, got {len(data)}")
    try:
        signed = msgspec.msgpack.decode(data, type=Signed)
    except (msgspec.DecodeError, RecursionError, ValueError) as e:
        raise Malformed(f"an envelope is a MessagePack array of five: {e}") from e
    if signed.version != ENVELOPE_VERSION:
        raise Unsupported(f"this side reads envelope version {ENVELOPE_VERSION}, got {signed.version}")
    if len(signed.signature) != 64:
        raise Malformed(f"a signature has 64 bytes, got {len(signed.signature)}")
    return signed


def verify(data: bytes, kind: str, public_key: bytes) -> bytes:
    """Return the body of an envelope signed for `kind` by the holder of `public_key` (32 raw bytes).

    Raises `Malformed`, `Unsupported`, or `Untrusted` when kind, key or signature do not hold.
    """
    signed = read_envelope(data)
    if signed.kind != kind:
        raise Untrusted(f"an envelope of kind {kind!r} was expected, got {signed.kind[:40]!r}")
    if signed.key_id != key_id(public_key):
        raise Untrusted(f"the envelope is signed by {key_id(public_key)}, it names {signed.key_id[:40]!r}")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signed.signature, _signed_bytes(kind, signed.body))
    except InvalidSignature as e:
        raise Untrusted(f"the signature of a {kind} does not hold") from e
    except ValueError as e:
        raise Malformed(f"an Ed25519 public key has 32 bytes, got {len(public_key)}") from e
    return signed.body


def verify_detached(signature: bytes, kind: str, body: bytes, public_key: bytes) -> None:
    """Raise `Untrusted` unless `signature` (64 bytes) is the key holder's over `body` for `kind`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _signed_bytes(kind, body))
    except (InvalidSignature, ValueError) as e:
        raise Untrusted(f"the signature of a {kind} does not hold") from e


def sign_detached(key: Ed25519PrivateKey, kind: str, body: bytes) -> bytes:
    """Return the bare 64-byte signature; inverse of `verify_detached`."""
    return key.sign(_signed_bytes(kind, body))


def _seal_key(shared: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=ephemeral + recipient, info=b"edge-federation seal v1")
    return kdf.derive(shared)


def seal(plain: bytes, *, header: bytes, ephemeral: X25519PrivateKey, recipient: bytes) -> bytes:
    """Return `plain` sealed to `recipient` (32 raw bytes), bound to `header`; 16 bytes longer than `plain`.

    Use each ephemeral key once and put its public half into the header. Raises `Malformed` if `recipient` is no usable
    X25519 key (RFC 7748: an all-zero shared secret is refused).
    """
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    except ValueError as e:
        raise Malformed("a sealing key is a valid X25519 public key of 32 bytes") from e
    key = _seal_key(shared, public_bytes(ephemeral), recipient)
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, header)


def unseal(ciphertext: bytes, *, header: bytes, ephemeral_key: bytes, recipient: X25519PrivateKey) -> bytes:
    """Return the plain bytes; inverse of `seal`. Raises `Untrusted` if a byte of header or ciphertext changed."""
    try:
        shared = recipient.exchange(X25519PublicKey.from_public_bytes(ephemeral_key))
        key = _seal_key(shared, ephemeral_key, public_bytes(recipient))
        return ChaCha20Poly1305(key).decrypt(_NONCE, ciphertext, header)
    except (InvalidTag, ValueError) as e:
        raise Untrusted("the seal of an update does not open with this header and key") from e
