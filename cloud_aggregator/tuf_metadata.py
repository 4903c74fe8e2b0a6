"""Metadata of the signed repository (TUF) as tuf.api reads them, and the questions that every rule asks of them.

Nothing that comes from outside raises anything but `MetadataRefused`, whose `name` is stable:

    not_metadata           no metadata at all              metadata_mixed         metadata of another version or content
    metadata_unsigned      below a threshold               wrong_role             a role says what is not its to say
    metadata_rolled_back   a version falls                 wrong_keys             an online key is not this service's
    metadata_expired       past its date                   not_a_target           nothing that is signed names it
    too_large, too_many_roots                              wrong_target           another content than was signed
"""

from typing import Any, Final, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Key, Metadata, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from cloud_aggregator.errors import Refused
from cloud_aggregator.online_keys import OnlineKeys
from wire_contract import trust_roles as roles

_TYPES: Final[dict[str, type]] = {
    roles.ROOT: Root, roles.SNAPSHOT: Snapshot, roles.TIMESTAMP: Timestamp,
    roles.TARGETS: Targets, roles.OFFLINE: Targets, roles.REFRESHES: Targets,
}  # fmt: skip


class MetadataRefused(Refused):
    """Metadata, or what they are to name, break a rule; `name` is stable for scripts."""

    def __init__(self, name: str, message: str, hint: str = "") -> None:
        super().__init__(f"{name}: {message}", hint)
        self.name = name


def version_of(data: bytes, role: str) -> int:
    """Return the metadata's version."""
    return int(decode(data, role).signed.version)


def holds(authority: bytes, role: str, metadata: "Metadata[Any]") -> bool:
    """Whether the role's threshold of the keys that `authority` names has signed."""
    named = delegator(authority)
    return bool(named.get_verification_result(role, metadata.signed_bytes, metadata.signatures).verified)


def check_fresh(data: bytes, role: str, now: int) -> None:
    """Raise `MetadataRefused` if the metadata have expired at `now` (Unix seconds)."""
    signed = decode(data, role).signed
    if signed.expires.timestamp() <= now:
        told = f"{role} {signed.version} expired on {signed.expires:%Y-%m-%d}"
        raise MetadataRefused("metadata_expired", told, f"model-export keys renew --role {role}, then trust import")


def check_content(target: TargetFile, content: bytes) -> None:
    """Raise `MetadataRefused` unless these bytes are the target's."""
    try:
        target.verify_length_and_hashes(content)
    except LengthOrHashMismatchError as e:
        raise MetadataRefused("wrong_target", f"{target.path} is not the file that was signed: {e}") from e


def own_key(authority: bytes, role: str, keys: OnlineKeys) -> Ed25519PrivateKey | None:
    """Return the service's private key for a role, if the metadata name one of its keys."""
    named, known = role_of(authority, role), keys_of(authority)
    return keys.find([ed25519(known[keyid]) for keyid in named.keyids if keyid in known])


def keys_of(authority: bytes) -> dict[str, Key]:
    """Return every key that a root, or `targets`, know, by id."""
    signed = delegator(authority)
    if isinstance(signed, Root):
        return signed.keys
    return {} if signed.delegations is None else signed.delegations.keys


def ed25519(key: Key) -> bytes:
    """Return an Ed25519 key's 32 bytes; empty for a key of another kind."""
    try:
        return bytes.fromhex(str(key.keyval["public"])) if key.keytype == "ed25519" else b""
    except (ValueError, KeyError):
        return b""


def targets_of(data: bytes, role: str) -> dict[str, TargetFile]:
    """Return what a role names, by path."""
    return cast(Targets, decode(data, role).signed).targets


def role_of(authority: bytes, role: str) -> Role:
    """Return the keys and threshold that a root, or `targets`, name for a role."""
    try:
        return delegator(authority).get_delegated_role(role)
    except ValueError as e:
        raise MetadataRefused("wrong_role", f"the metadata name no keys of the role {role}") from e


def delegator(authority: bytes) -> Root | Targets:
    """Return what names keys: a root or `targets`."""
    metadata: Metadata[Any] = read(authority)
    if not isinstance(metadata.signed, Root | Targets):
        raise MetadataRefused("metadata_mixed", f"keys are named by root and targets, got {metadata.signed.type}")
    return metadata.signed


def decode(data: bytes, role: str) -> "Metadata[Any]":
    """Read a role's metadata; no signature is asked about."""
    limit = roles.MAX_ROOT_BYTES if role == roles.ROOT else roles.MAX_METADATA_BYTES
    if len(data) > limit:
        raise MetadataRefused("too_large", f"{role} metadata have at most {limit} bytes, got {len(data)}")
    metadata = read(data)
    if type(metadata.signed) is not _TYPES[role]:
        raise MetadataRefused("metadata_mixed", f"{role} metadata were expected, got {metadata.signed.type}")
    if isinstance(metadata.signed, Root):
        _check_keys(metadata.signed)
    return metadata


def _check_keys(root: Root) -> None:
    named = {roles.ROOT, roles.TARGETS, roles.SNAPSHOT, roles.TIMESTAMP}
    if set(root.roles) != named or not root.consistent_snapshot:
        told = f"a root names the keys of {sorted(named)}, with consistent snapshots"
        raise MetadataRefused("wrong_role", told)
    for role, found in root.roles.items():
        # Under two ids one key would count as two holders.
        keys = {ed25519(root.keys[keyid]) for keyid in found.keyids if keyid in root.keys} - {b""}
        if len(keys) != len(found.keyids):
            raise MetadataRefused("wrong_role", f"the keys of the role {role} are Ed25519, known and differ")


def read(data: bytes) -> "Metadata[Any]":
    """Read metadata of any kind."""
    try:
        return Metadata.from_bytes(data)
    # A hostile file can be deep, or hold any kind of value where another is expected.
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        told = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise MetadataRefused("not_metadata", f"these bytes are no metadata: {told}") from e
