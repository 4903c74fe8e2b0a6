"""One file that brings a version to a device without a network: over USB, or in pieces over a broker.

It holds everything that the device checks it with, in the manner of Uptane's offline updates (PURE-2): the chain of
roots, the `targets` and `offline` metadata, and the files. Freshness cannot be had offline: what protects the device
is that versions only rise, and that the `offline` role's metadata expire. The rules:
- the file begins with `MAGIC`, then one MessagePack map; nothing comes after it;
- every part has a limit, and the whole one that follows from them.
"""

from typing import Annotated, Final

import msgspec

from wire_contract.errors import Malformed
from wire_contract.manifest import MAX_MODEL_BYTES
from wire_contract.trust_roles import MAX_METADATA_BYTES, MAX_ROOT_BYTES
from wire_contract.vocabulary import MAX_FILE_BYTES

MAGIC: Final = b"edge-federation offline bundle v1\n"
MAX_ROOTS: Final = 64
MAX_BUNDLE_BYTES: Final = MAX_MODEL_BYTES + MAX_FILE_BYTES + MAX_ROOTS * MAX_ROOT_BYTES + 4 * MAX_METADATA_BYTES

Root = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_ROOT_BYTES)]
Metadata = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_METADATA_BYTES)]
Signed = Annotated[bytes, msgspec.Meta(min_length=1, max_length=96 * 1024)]


class OfflineBundle(msgspec.Struct, frozen=True, kw_only=True):
    """`roots`: version 1, 2, ... in order. `signed_template`: the exporter's manifest of the template, when
    `signed_manifest` was signed by the aggregator. `vocabulary` is empty for a model of arrays."""

    roots: Annotated[tuple[Root, ...], msgspec.Meta(min_length=1, max_length=MAX_ROOTS)]
    targets: Metadata
    offline: Metadata
    signed_manifest: Signed
    signed_template: Annotated[bytes, msgspec.Meta(max_length=96 * 1024)] = b""
    vocabulary: Annotated[bytes, msgspec.Meta(max_length=MAX_FILE_BYTES)] = b""
    model: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_MODEL_BYTES)]


def encode_offline_bundle(bundle: OfflineBundle) -> bytes:
    """Return the file's bytes; inverse of `decode_offline_bundle`."""
    return MAGIC + msgspec.msgpack.encode(bundle)


def decode_offline_bundle(data: bytes) -> OfflineBundle:
    """Return what the file holds; nothing of it is trusted yet. Raises `Malformed`."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise Malformed(f"an offline bundle has at most {MAX_BUNDLE_BYTES} bytes, got {len(data)}")
    if not data.startswith(MAGIC):
        raise Malformed(f"an offline bundle begins with {MAGIC[:31].decode()!r}, got {data[:16]!r}")
    try:
        return msgspec.msgpack.decode(memoryview(data)[len(MAGIC) :], type=OfflineBundle)
    except (msgspec.DecodeError, RecursionError, ValueError) as e:
        raise Malformed(f"an offline bundle is a MessagePack map of its parts: {e}") from e
