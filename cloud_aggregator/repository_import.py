"""What an operator brings from a key ceremony, judged before any of it is kept.

The rules:
- roots begin at 1 and follow one another; each is signed by the threshold of the one before it and by its own;
- no version ever falls, and two contents of one version are refused;
- `targets` names templates alone, each by its hash with its file at hand, and delegates to `refreshes` and `offline`,
  each with its one path pattern; `offline` names offline bundles alone;
- the online roles' keys are this service's own: others it could not sign with;
- nothing is expired.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from tuf.api.metadata import DelegatedRole, Metadata, Root, Targets

from cloud_aggregator.online_keys import OnlineKeys
from cloud_aggregator.repository import Shelf
from cloud_aggregator.tuf_metadata import (
    MetadataRefused,
    check_content,
    check_fresh,
    decode,
    delegator,
    holds,
    own_key,
    role_of,
    targets_of,
    version_of,
)
from wire_contract import envelope
from wire_contract import trust_roles as roles
from wire_contract.errors import ContractError
from wire_contract.manifest import decode_manifest
from wire_contract.offline_bundle import MAX_ROOTS

_PATTERNS: Final = {roles.REFRESHES: roles.REFRESH_PATHS, roles.OFFLINE: roles.OFFLINE_PATHS}


@dataclass(frozen=True, slots=True)
class Offered:
    """What an operator brings: roots by version, the newest `targets` and `offline`, and files by their SHA-256."""

    roots: Mapping[int, bytes]
    targets: bytes
    offline: bytes
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What of it is new: roots in order, the shelf with them (online roles not yet settled), contents by path."""

    roots: tuple[bytes, ...]
    shelf: Shelf
    files: Mapping[str, bytes]


def accept(
    held: Shelf | None, held_roots: Mapping[int, bytes], offered: Offered, keys: OnlineKeys, now: int,
    known: Mapping[str, bytes],
) -> Accepted:  # fmt: skip
    """Return what to keep of a ceremony's result. Raises `MetadataRefused` with the rule that does not hold.

    `known`: files that are held already, by their SHA-256.
    """
    root, new_roots = _accept_roots(held_roots, offered.roots)
    check_fresh(root, roles.ROOT, now)
    for role in (roles.SNAPSHOT, roles.TIMESTAMP):
        _check_ours(root, role, keys)
    targets = _accept_role(held, root, roles.TARGETS, offered.targets, now)
    _check_delegations(targets, keys)
    offline = _accept_role(held, targets, roles.OFFLINE, offered.offline, now)
    templates = _templates(targets, {**known, **offered.files})
    _check_offline_paths(offline)
    before = held or Shelf(b"", b"", b"")
    return Accepted(tuple(new_roots), replace(before, root=root, targets=targets, offline=offline), templates)


def _accept_roots(held: Mapping[int, bytes], offered: Mapping[int, bytes]) -> tuple[bytes, list[bytes]]:
    """Return the newest root and those that are new, in order."""
    if len(held.keys() | offered.keys()) > MAX_ROOTS:
        raise MetadataRefused("too_many_roots", f"a repository has at most {MAX_ROOTS} roots: found another")
    for version, data in offered.items():
        stated = version_of(data, roles.ROOT)
        if stated != version:
            raise MetadataRefused("metadata_mixed", f"{version}.root.json holds root {version}, got {stated}")
        if version in held and not _same(data, held[version]):
            raise MetadataRefused("metadata_mixed", f"root {version} is held already, with another content")
    newest = max(held, default=0)
    if offered and max(offered) < newest:
        raise MetadataRefused("metadata_rolled_back", f"root {newest} is held already, got up to {max(offered)}")
    added: list[bytes] = []
    previous = held.get(newest)
    for version in sorted(version for version in offered if version > newest):
        if version != newest + len(added) + 1:
            raise MetadataRefused("metadata_mixed", f"root {newest + len(added) + 1} comes next, got root {version}")
        _check_root(previous, offered[version])
        previous = offered[version]
        added.append(previous)
    if previous is None:
        raise MetadataRefused("metadata_mixed", "a repository begins with 1.root.json, got no root")
    return previous, added


def _same(a: bytes, b: bytes) -> bool:
    """Whether two roots say the same; holders may have signed one of them more often."""
    return bool(decode(a, roles.ROOT).signed_bytes == decode(b, roles.ROOT).signed_bytes)


def _check_root(previous: bytes | None, data: bytes) -> None:
    metadata = decode(data, roles.ROOT)
    before = None if previous is None else cast(Root, decode(previous, roles.ROOT).signed)
    result = metadata.signed.get_root_verification_result(before, metadata.signed_bytes, metadata.signatures)
    if not result.verified:
        version = metadata.signed.version
        old, own = (f"{len(part.signed)} of {part.threshold}" for part in (result.first, result.second))
        told = f"root {version} has {old} signatures of the keys before and {own} of its own"
        raise MetadataRefused("metadata_unsigned", told, "model-export keys sign")


def _accept_role(held: Shelf | None, authority: bytes, role: str, data: bytes, now: int) -> bytes:
    """Return the metadata to keep: the offered ones, or those held where their content is the same."""
    metadata = decode(data, role)
    _check_signed(authority, role, metadata)
    if held is not None:
        before = decode(held.of(role), role)
        if metadata.signed.version < before.signed.version:
            told = f"{role} {before.signed.version} is held already, got {metadata.signed.version}"
            raise MetadataRefused("metadata_rolled_back", told)
        if metadata.signed.version == before.signed.version:
            if metadata.signed_bytes != before.signed_bytes:
                told = f"{role} {before.signed.version} is held already, with another content"
                raise MetadataRefused("metadata_mixed", told)
            # Held bytes are what a snapshot names; but they must hold under the keys that are named now.
            data = held.of(role) if holds(authority, role, before) else data
    check_fresh(data, role, now)
    return data


def _check_signed(authority: bytes, role: str, metadata: "Metadata[Any]") -> None:
    named = delegator(authority)
    result = named.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not result.verified:
        told = f"{role} {metadata.signed.version} has {len(result.signed)} of {result.threshold} signatures"
        raise MetadataRefused("metadata_unsigned", told, "model-export keys sign")


def _check_ours(authority: bytes, role: str, keys: OnlineKeys) -> None:
    if role_of(authority, role).threshold != 1 or own_key(authority, role, keys) is None:
        told = f"the role {role} is signed by one key of this service, and the metadata name others"
        raise MetadataRefused("wrong_keys", told, "cloud-aggregator trust keys, then model-export keys init or rotate")


def _check_delegations(targets: bytes, keys: OnlineKeys) -> None:
    delegated = cast(Targets, decode(targets, roles.TARGETS).signed).delegations
    found = {} if delegated is None or delegated.roles is None else delegated.roles
    if set(found) != set(_PATTERNS):
        told = f"targets delegates to refreshes and offline, got {sorted(found)[:8]}"
        raise MetadataRefused("wrong_role", told)
    for role, pattern in _PATTERNS.items():
        if found[role].paths != [pattern] or not found[role].terminating:
            told = f"the role {role} names {pattern} and ends the search, got {found[role].paths}"
            raise MetadataRefused("wrong_role", told)
    _check_ours(targets, roles.REFRESHES, keys)


def _templates(targets: bytes, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the contents of all that `targets` names, by path."""
    found = {}
    for path, target in targets_of(targets, roles.TARGETS).items():
        content = files.get(str(target.hashes.get("sha256", "")))
        if content is None:
            raise MetadataRefused("wrong_target", f"targets names {path}, and its file is not there")
        check_content(target, content)
        try:
            manifest = decode_manifest(envelope.read_envelope(content).body)
        except ContractError as e:
            raise MetadataRefused("wrong_target", f"{path} is an exporter's signed manifest: {e}") from e
        if path != roles.template_target(manifest.population, manifest.template_sha256):
            raise MetadataRefused("wrong_role", f"targets names templates by population and hash, got {path[:100]}")
        found[path] = content
    return found


def _check_offline_paths(offline: bytes) -> None:
    signed = cast(Targets, decode(offline, roles.OFFLINE).signed)
    pattern = DelegatedRole(roles.OFFLINE, [], 1, True, [roles.OFFLINE_PATHS])
    wrong = [path for path in signed.targets if not pattern.is_delegated_path(path)]
    if wrong or signed.delegations is not None:
        told = f"the role offline names {roles.OFFLINE_PATHS} alone, got {(wrong or ['a delegation'])[0][:100]}"
        raise MetadataRefused("wrong_role", told)
