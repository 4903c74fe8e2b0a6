"""The offline roles' metadata (The Update Framework 1.0): root, targets and offline, as bytes in and bytes out.

Everything that a ceremony decides is here; keys, time and earlier metadata are arguments. The rules:
- what is changed gets the next version number, a fresh expiry and no signature: it counts for nothing until enough
  holders have signed it;
- a new root is signed by the threshold of the root before it and by its own (`standing` counts both);
- a replaced key is named by no role any more: what it signs counts for nothing;
- a key signs only what names it; a signature by another is refused by name;
- `targets` names templates, `offline` what offline bundles bring: neither a path of the other (see `trust_roles`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Key, Metadata, Role, Root, TargetFile, Targets
from tuf.api.serialization.json import JSONSerializer

from wire_contract import trust_roles as roles

VALID_S: Final = 365 * 86_400
HOLDER: Final = "holder"
# Which metadata name a role's keys.
NAMED_BY: Final = {
    roles.ROOT: roles.ROOT,
    roles.TARGETS: roles.ROOT,
    roles.SNAPSHOT: roles.ROOT,
    roles.TIMESTAMP: roles.ROOT,
    roles.REFRESHES: roles.TARGETS,
    roles.OFFLINE: roles.TARGETS,
}
LIMITS: Final = dict.fromkeys(NAMED_BY, roles.MAX_METADATA_BYTES) | {roles.ROOT: roles.MAX_ROOT_BYTES}


class BadMetadata(Exception):  # noqa: N818 - named for what the bytes are
    """Metadata, or a key for them, break a rule; the message says which."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key of 32 bytes; `holder` 1, 2, ... is who keeps the private one, 0 the online service."""

    data: bytes
    holder: int = 0

    @classmethod
    def of(cls, private: Ed25519PrivateKey, holder: int = 0) -> "PublicKey":
        """Return the public half of `private`."""
        return cls(private.public_key().public_bytes_raw(), holder)

    @property
    def id(self) -> str:
        """The key's id in metadata, 64 hex digits."""
        return str(_tuf_key(self).keyid)


@dataclass(frozen=True, slots=True)
class Quorum:
    """The keys of one role and how many of them must sign."""

    keys: tuple[PublicKey, ...]
    threshold: int

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= len(self.keys):
            raise BadMetadata(f"a threshold is 1 to the number of keys, {len(self.keys)}, got {self.threshold}")
        if len({key.data for key in self.keys}) != len(self.keys):
            raise BadMetadata("a role's keys differ: two holders of one key are one holder")


@dataclass(frozen=True, slots=True)
class Count:
    """How many of a quorum's keys have validly signed: `by` and `missing` are the keys."""

    threshold: int
    by: tuple[PublicKey, ...]
    missing: tuple[PublicKey, ...]

    @property
    def complete(self) -> bool:
        return len(self.by) >= self.threshold


@dataclass(frozen=True, slots=True)
class Standing:
    """How far metadata are signed: by each quorum that must, one for most roles, two for a root after the first."""

    role: str
    version: int
    expires: int
    counts: tuple[Count, ...]

    @property
    def complete(self) -> bool:
        return all(count.complete for count in self.counts)

    def told(self) -> str:
        """Return the standing in words: `2.root.json has 1 of 2 signatures of the keys before, 2 of 2 of its own`."""
        words = ("of the keys before", "of its own") if len(self.counts) == 2 else ("",)
        parts = [
            f"{len(count.by)} of {count.threshold} signatures {word}".rstrip()
            for count, word in zip(self.counts, words, strict=True)
        ]
        return f"{self.version}.{self.role}.json has {', '.join(parts)}"


def first_root(root: Quorum, targets: Quorum, online: Mapping[str, bytes], now: int, valid_s: int = VALID_S) -> bytes:
    """Return version 1 of the root, unsigned; `online` has the public keys of `snapshot` and `timestamp`."""
    quorums = {roles.ROOT: root, roles.TARGETS: targets}
    for role in (roles.SNAPSHOT, roles.TIMESTAMP):
        quorums[role] = Quorum((PublicKey(_online_key(online, role)),), 1)
    keys = {key.id: _tuf_key(key) for quorum in quorums.values() for key in quorum.keys}
    named = {role: Role([key.id for key in quorum.keys], quorum.threshold) for role, quorum in quorums.items()}
    signed = Root(1, expires=_moment(now + valid_s), keys=keys, roles=named, consistent_snapshot=True)
    return encode(Metadata(signed))


def first_targets(offline: Quorum, online: Mapping[str, bytes], now: int, valid_s: int = VALID_S) -> bytes:
    """Return version 1 of `targets`, unsigned: no template yet, and the two delegations."""
    refreshes = Quorum((PublicKey(_online_key(online, roles.REFRESHES)),), 1)
    delegated = {
        roles.REFRESHES: _delegation(roles.REFRESHES, refreshes, roles.REFRESH_PATHS),
        roles.OFFLINE: _delegation(roles.OFFLINE, offline, roles.OFFLINE_PATHS),
    }
    keys = {key.id: _tuf_key(key) for key in (*refreshes.keys, *offline.keys)}
    signed = Targets(1, expires=_moment(now + valid_s), delegations=Delegations(keys, delegated))
    return encode(Metadata(signed))


def first_offline(now: int, valid_s: int = VALID_S) -> bytes:
    """Return version 1 of `offline`, unsigned: nothing goes to devices offline yet."""
    return encode(Metadata(Targets(1, expires=_moment(now + valid_s))))


def renewed(data: bytes, role: str, now: int, valid_s: int = VALID_S) -> bytes:
    """Return the next version with the same content and a fresh expiry, unsigned."""
    metadata = decode(data, role)
    _next(metadata, now, valid_s)
    return encode(metadata)


def with_key(data: bytes, role: str, old: PublicKey, new: PublicKey, now: int, valid_s: int = VALID_S) -> bytes:
    """Return the next version of what names `role`'s keys with `new` instead of `old`, unsigned; `old` is revoked.

    `data` is a root, or for `refreshes` and `offline` the `targets`. Raises `BadMetadata` where `old` is none of its
    keys or `new` is one already, of any role: a key has one purpose.
    """
    metadata = decode(data, NAMED_BY[role])
    signed = cast(Root | Targets, metadata.signed)
    before = quorum_of(data, role)
    if old.id not in {key.id for key in before.keys}:
        raise BadMetadata(f"{old.id[:8]} is no key of the role {role}")
    named = signed.keys if isinstance(signed, Root) else cast(Delegations, signed.delegations).keys
    if new.id in named:
        raise BadMetadata(f"{new.id[:8]} is a key of a role already: a key has one purpose")
    # In its place, so that holders stand in their order.
    found = _role(signed, role)
    found.keyids = [new.id if keyid == old.id else keyid for keyid in found.keyids]
    named[new.id] = _tuf_key(new)
    still = _every_role(signed)
    if not any(old.id in each.keyids for each in still):
        del named[old.id]
    _next(metadata, now, valid_s)
    return encode(metadata)


def with_target(
    data: bytes, role: str, path: str, content: bytes, custom: Mapping[str, object], now: int, valid_s: int = VALID_S
) -> bytes:
    """Return the next version of `targets` or `offline` that names `content` at `path`, unsigned.

    Raises `BadMetadata` for a path that is not the role's.
    """
    if role not in (roles.TARGETS, roles.OFFLINE):
        raise BadMetadata(f"files are named by the roles targets and offline here, got {role}")
    if not path.startswith("templates/" if role == roles.TARGETS else "offline/"):
        raise BadMetadata(f"{path} is no path of the role {role}")
    metadata = decode(data, role)
    target = TargetFile.from_data(path, content, ["sha256"])
    target.unrecognized_fields["custom"] = dict(custom)
    cast(Targets, metadata.signed).targets[path] = target
    _next(metadata, now, valid_s)
    return encode(metadata)


def names_target(data: bytes, role: str, path: str, content: bytes) -> bool:
    """Whether `role`'s metadata name exactly these bytes at `path`."""
    target = cast(Targets, decode(data, role).signed).targets.get(path)
    return target is not None and target.hashes == TargetFile.from_data(path, content, ["sha256"]).hashes


def targets_of(data: bytes, role: str) -> dict[str, str]:
    """Return the paths that the role's metadata name, with their content's SHA-256."""
    return {path: target.hashes.get("sha256", "") for path, target in decode(data, role).signed.targets.items()}


def sign(data: bytes, role: str, keys: Iterable[Ed25519PrivateKey], authorities: Sequence[bytes]) -> bytes:
    """Return the metadata with the signatures of those `keys` added that `authorities` name for the role."""
    metadata = decode(data, role)
    named = {key.id for authority in authorities for key in quorum_of(authority, role).keys}
    for key in keys:
        if PublicKey.of(key).id in named:
            metadata.sign(CryptoSigner(key), append=True)
    return encode(metadata)


def standing(data: bytes, role: str, authorities: Sequence[bytes]) -> Standing:
    """Return how far the metadata are signed, counted by each of `authorities`: metadata that name the role's keys.

    A root's are the root before it and itself; the first root's itself alone.
    """
    metadata = decode(data, role)
    counts = []
    for authority in authorities:
        signed = cast(Root | Targets, decode(authority, NAMED_BY[role]).signed)
        result = signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        quorum = quorum_of(authority, role)
        by = tuple(key for key in quorum.keys if key.id in result.signed)
        counts.append(Count(quorum.threshold, by, tuple(key for key in quorum.keys if key not in by)))
    return Standing(role, metadata.signed.version, int(metadata.signed.expires.timestamp()), tuple(counts))


def quorum_of(data: bytes, role: str) -> Quorum:
    """Return the keys and the threshold that a root, or `targets`, state for `role`."""
    signed = cast(Root | Targets, decode(data, NAMED_BY[role]).signed)
    found = _role(signed, role)
    return Quorum(tuple(_public(signed.get_key(keyid)) for keyid in found.keyids), found.threshold)


def holder_key(quorum: Quorum, role: str, holder: int) -> PublicKey:
    """Return holder `holder`'s key. Raises `BadMetadata` where there is none."""
    for key in quorum.keys:
        if key.holder == holder:
            return key
    raise BadMetadata(f"the role {role} has the holders {[key.holder for key in quorum.keys]}, got {holder}")


def version_of(data: bytes, role: str) -> int:
    """Return the metadata's version number."""
    return int(decode(data, role).signed.version)


def decode(data: bytes, role: str) -> "Metadata[Any]":
    """Read a role's metadata; nothing of it is verified. Raises `BadMetadata`."""
    if len(data) > LIMITS[role]:
        raise BadMetadata(f"{role} metadata have at most {LIMITS[role]} bytes, got {len(data)}")
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    # A hostile file can be deep or hold any kind of value where another is expected.
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise BadMetadata(
            f"these are no {role} metadata: {str(e).splitlines()[0] if str(e) else type(e).__name__}"
        ) from e
    wanted = Root if role == roles.ROOT else Targets
    if not isinstance(metadata.signed, wanted):
        raise BadMetadata(f"{role} metadata are of the type {wanted.type}, got {metadata.signed.type}")
    if role == roles.TARGETS and cast(Targets, metadata.signed).delegations is None:
        raise BadMetadata("targets metadata delegate to the roles refreshes and offline, got no delegations")
    return metadata


def encode(metadata: "Metadata[Any]") -> bytes:
    """Return the file's bytes; inverse of `decode`."""
    return bytes(metadata.to_bytes(JSONSerializer(compact=True)))


def read_online(text: str) -> dict[str, bytes]:
    """Return the public keys of the online roles from `cloud-aggregator trust keys`. Raises `BadMetadata`."""
    try:
        keys = json.loads(text)["keys"]
        found = {role: bytes.fromhex(keys[role]) for role in roles.ONLINE_ROLES}
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BadMetadata(f"an online key file has `keys` with {', '.join(roles.ONLINE_ROLES)}: {e!r}") from e
    return {role: _online_key(found, role) for role in found}


def _online_key(online: Mapping[str, bytes], role: str) -> bytes:
    key = online.get(role, b"")
    if len(key) != 32:
        raise BadMetadata(f"the online key of {role} has 32 bytes, got {len(key)}")
    return key


def _next(metadata: "Metadata[Any]", now: int, valid_s: int) -> None:
    metadata.signed.version += 1
    metadata.signed.expires = _moment(now + valid_s)
    metadata.signatures.clear()


def _delegation(name: str, quorum: Quorum, paths: str) -> DelegatedRole:
    return DelegatedRole(name, [key.id for key in quorum.keys], quorum.threshold, True, [paths])


def _role(signed: Root | Targets, role: str) -> Role:
    try:
        return signed.get_delegated_role(role)
    except ValueError as e:
        raise BadMetadata(f"the metadata name no keys of the role {role}") from e


def _every_role(signed: Root | Targets) -> list[Role]:
    if isinstance(signed, Root):
        return list(signed.roles.values())
    delegated = None if signed.delegations is None else signed.delegations.roles
    return list((delegated or {}).values())


def _tuf_key(key: PublicKey) -> Key:
    made = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.data))
    if key.holder:
        made.unrecognized_fields[HOLDER] = key.holder
    return made


def _public(key: Key) -> PublicKey:
    try:
        data = bytes.fromhex(str(key.keyval["public"]))
    except ValueError:
        data = b""
    if (key.keytype, key.scheme, len(data)) != ("ed25519", "ed25519", 32):
        raise BadMetadata(f"keys are Ed25519 with 64 hex digits, got {key.keytype[:40]}/{key.scheme[:40]}")
    holder = key.unrecognized_fields.get(HOLDER, 0)
    return PublicKey(data, holder if isinstance(holder, int) else 0)


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
