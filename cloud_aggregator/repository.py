"""The signed repository (The Update Framework 1.0), as values: what holders signed offline, and what the service adds.

What comes from a key ceremony is judged in `repository_import`; `with_refreshes` lets the online role `refreshes` name
what a population's keyboards get; `settle` brings refreshes, snapshot and timestamp up to date. The rules:
- a refresh is signed only for a template that `targets` itself names, only with the template's layout, signatures and
  family, and never with a lower version, or another model of the same version, than was signed before;
- online metadata rise by one version with every change, and are signed again well before they expire;
- nothing is signed under a root or `targets` that have expired: no device would believe it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, cast

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from cloud_aggregator.online_keys import OnlineKeys
from cloud_aggregator.tuf_metadata import (
    MetadataRefused,
    check_content,
    check_fresh,
    decode,
    ed25519,
    holds,
    keys_of,
    own_key,
    role_of,
    targets_of,
    version_of,
)
from wire_contract import envelope
from wire_contract import trust_roles as roles
from wire_contract.errors import ContractError
from wire_contract.manifest import Manifest, decode_manifest

DAY_S: Final = 86_400
# How long what the service signs is valid, and after how long it is signed again.
VALID_S: Final = {roles.TIMESTAMP: 14 * DAY_S, roles.SNAPSHOT: 30 * DAY_S, roles.REFRESHES: 30 * DAY_S}
RENEW_AFTER_S: Final = {roles.TIMESTAMP: DAY_S, roles.SNAPSHOT: 10 * DAY_S, roles.REFRESHES: 10 * DAY_S}
# What a version may state otherwise than its template: everything else is the exporter's word.
FREE: Final = frozenset({
    "version", "kind", "sha256", "created_at", "expires_at", "url", "vocabulary_url", "undo_of", "golden_vectors",
    "lineage",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shelf:
    """The repository's newest metadata, each role's exact bytes; the last three are empty until first signed."""

    root: bytes
    targets: bytes
    offline: bytes
    refreshes: bytes = b""
    snapshot: bytes = b""
    timestamp: bytes = b""

    def of(self, role: str) -> bytes:
        """Return a role's metadata."""
        return cast(bytes, getattr(self, role))


@dataclass(frozen=True, slots=True)
class Change:
    """What a population's keyboards are to get: the manifest that the service signed, and its template's content."""

    signed_manifest: bytes
    template: bytes


def with_refreshes(
    shelf: Shelf,
    keys: OnlineKeys,
    changes: Iterable[Change],
    aggregator_key: bytes,
    now: int,
    before: Shelf | None = None,
) -> Shelf:
    """Return the shelf whose role `refreshes` names these manifests for their populations, all online roles signed.

    The rules are the module's; `before` as for `settle`. Raises `MetadataRefused`.
    """
    found = _refreshed_before(shelf, before)
    for change in changes:
        try:
            manifest = decode_manifest(envelope.verify(change.signed_manifest, "manifest", aggregator_key))
            exported = decode_manifest(envelope.read_envelope(change.template).body)
        except ContractError as e:
            raise MetadataRefused("wrong_target", f"a refresh is a manifest that this service signed: {e}") from e
        path = roles.template_target(manifest.population, manifest.template_sha256)
        _check_names(shelf.targets, roles.TARGETS, path, change.template)
        check_patch(manifest, exported)
        path = roles.refresh_target(manifest.population)
        if path in found:
            _check_rises(found[path], manifest)
        found[path] = TargetFile.from_data(path, change.signed_manifest, ["sha256"])
        found[path].unrecognized_fields["custom"] = {"version": manifest.version, "sha256": manifest.sha256}
    return settle(replace(shelf, refreshes=_refreshes(shelf, found, keys, now)), keys, now, before)


def settle(shelf: Shelf, keys: OnlineKeys, now: int, before: Shelf | None = None) -> Shelf:
    """Return the shelf with refreshes, snapshot and timestamp up to date; the same one if they are.

    A role is signed again where it is missing, is due, does not hold under the keys named now, or names something else
    than is there. `before`: the shelf before an import, whose keys may have signed what is to be signed again. Raises
    `MetadataRefused` under an expired root or `targets`, for a key that is not ours, and for held metadata that hold
    under neither: to sign those again would make damage true.
    """
    check_fresh(shelf.root, roles.ROOT, now)
    check_fresh(shelf.targets, roles.TARGETS, now)
    if _due(shelf.refreshes, roles.REFRESHES, shelf.targets, now):
        shelf = replace(shelf, refreshes=_refreshes(shelf, _refreshed_before(shelf, before), keys, now))
    meta = {f"{role}.json": _meta(shelf.of(role), role) for role in (roles.TARGETS, roles.REFRESHES, roles.OFFLINE)}
    if _due(shelf.snapshot, roles.SNAPSHOT, shelf.root, now) or _decode_snapshot(shelf).meta != meta:
        version = _next_version(shelf, roles.SNAPSHOT, before)
        body = Snapshot(version, expires=_until(roles.SNAPSHOT, now), meta=meta)
        shelf = replace(shelf, snapshot=_signed(body, roles.SNAPSHOT, shelf.root, keys))
    current = _meta(shelf.snapshot, roles.SNAPSHOT)
    if _due(shelf.timestamp, roles.TIMESTAMP, shelf.root, now) or _decode_timestamp(shelf).snapshot_meta != current:
        version = _next_version(shelf, roles.TIMESTAMP, before)
        stamp = Timestamp(version, expires=_until(roles.TIMESTAMP, now), snapshot_meta=current)
        shelf = replace(shelf, timestamp=_signed(stamp, roles.TIMESTAMP, shelf.root, keys))
    return shelf


def check_patch(manifest: Manifest, template: Manifest) -> None:
    """Raise `MetadataRefused` unless `manifest` is a refresh of `template` that differs only where a version may."""
    if manifest.kind != "refresh":
        raise MetadataRefused("wrong_target", f"the role refreshes names refreshes, got kind {manifest.kind}")
    for name in Manifest.__struct_fields__:
        if name not in FREE and getattr(manifest, name) != getattr(template, name):
            raise MetadataRefused("wrong_target", f"a refresh has its template's {name}, and has another")


def names_template(shelf: Shelf, population: str, template_sha256: str) -> str | None:
    """Return the SHA-256 of the exporter's manifest that `targets` names for a population's template, or None."""
    target = targets_of(shelf.targets, roles.TARGETS).get(roles.template_target(population, template_sha256))
    return None if target is None else str(target.hashes.get("sha256", ""))


def refreshed(shelf: Shelf) -> dict[str, str]:
    """Return the paths that the role `refreshes` names, with their content's SHA-256."""
    found = targets_of(shelf.refreshes, roles.REFRESHES) if shelf.refreshes else {}
    return {path: str(target.hashes["sha256"]) for path, target in found.items()}


@dataclass(frozen=True, slots=True)
class RoleView:
    """What an operator sees of a role: version, expiry (Unix seconds), keys by their hex, threshold."""

    role: str
    version: int
    expires: int
    threshold: int
    keys: tuple[str, ...]


def role_view(shelf: Shelf, role: str) -> RoleView:
    """Return what the shelf says of a role that has metadata."""
    authority = shelf.root if role in (roles.ROOT, roles.TARGETS, roles.SNAPSHOT, roles.TIMESTAMP) else shelf.targets
    named = role_of(authority, role)
    known = keys_of(authority)
    public = tuple(ed25519(known[keyid]).hex() for keyid in named.keyids if keyid in known)
    signed = decode(shelf.of(role), role).signed
    return RoleView(role, signed.version, int(signed.expires.timestamp()), named.threshold, public)


def _check_names(data: bytes, role: str, path: str, content: bytes) -> None:
    target = targets_of(data, role).get(path)
    if target is None:
        raise MetadataRefused(
            "not_a_target", f"the role {role} does not name {path}", "model-export keys add-template, then trust import"
        )
    check_content(target, content)


def _check_rises(before: TargetFile, manifest: Manifest) -> None:
    told = before.unrecognized_fields["custom"]
    if manifest.version < told["version"]:
        raise MetadataRefused(
            "metadata_rolled_back", f"refresh {told['version']} was signed already, got {manifest.version}",
            "an undo gives old weights a new, higher number",
        )  # fmt: skip
    if manifest.version == told["version"] and manifest.sha256 != told["sha256"]:
        raise MetadataRefused("metadata_mixed", f"refresh {told['version']} was signed with another model")


def _refreshes(shelf: Shelf, targets: Mapping[str, TargetFile], keys: OnlineKeys, now: int) -> bytes:
    # Whether what is there may be gone on from, `_refreshed_before` has asked.
    version = version_of(shelf.refreshes, roles.REFRESHES) + 1 if shelf.refreshes else 1
    body = Targets(version, expires=_until(roles.REFRESHES, now), targets=dict(targets))
    return _signed(body, roles.REFRESHES, shelf.targets, keys)


def _signed(body: "Targets | Snapshot | Timestamp", role: str, authority: bytes, keys: OnlineKeys) -> bytes:
    private = own_key(authority, role, keys)
    if private is None:
        raise MetadataRefused(
            "wrong_keys", f"this service has no key of the role {role}", "cloud-aggregator trust show"
        )
    metadata: Metadata[Any] = Metadata(body)
    metadata.sign(CryptoSigner(private))
    data = bytes(metadata.to_bytes(JSONSerializer(compact=True)))
    if len(data) > roles.MAX_METADATA_BYTES:
        raise MetadataRefused(
            "too_large", f"{role} metadata have at most {roles.MAX_METADATA_BYTES} bytes: {len(data)}"
        )
    return data


def _due(data: bytes, role: str, authority: bytes, now: int) -> bool:
    if not data:
        return True
    metadata = decode(data, role)
    signed_at = metadata.signed.expires.timestamp() - VALID_S[role]
    return bool(now >= signed_at + RENEW_AFTER_S[role]) or not holds(authority, role, metadata)


def _decode_snapshot(shelf: Shelf) -> Snapshot:
    return cast(Snapshot, decode(shelf.snapshot, roles.SNAPSHOT).signed)


def _decode_timestamp(shelf: Shelf) -> Timestamp:
    return cast(Timestamp, decode(shelf.timestamp, roles.TIMESTAMP).signed)


def _meta(data: bytes, role: str) -> MetaFile:
    return MetaFile(version_of(data, role), len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def _next_version(shelf: Shelf, role: str, before: Shelf | None) -> int:
    if not shelf.of(role):
        return 1
    _check_held(shelf, role, before)
    return version_of(shelf.of(role), role) + 1


def _refreshed_before(shelf: Shelf, before: Shelf | None) -> dict[str, TargetFile]:
    if not shelf.refreshes:
        return {}
    _check_held(shelf, roles.REFRESHES, before)
    return dict(targets_of(shelf.refreshes, roles.REFRESHES))


def _check_held(shelf: Shelf, role: str, before: Shelf | None) -> None:
    """Raise `MetadataRefused` unless held metadata hold under the keys named now, or before an import."""
    metadata = decode(shelf.of(role), role)
    above = roles.TARGETS if role == roles.REFRESHES else roles.ROOT
    if not any(each is not None and holds(each.of(above), role, metadata) for each in (shelf, before)):
        told = f"the stored {role} {metadata.signed.version} do not hold under the keys that the {above} name"
        raise MetadataRefused("metadata_unsigned", told, "the database was damaged or changed: restore it")


def _until(role: str, now: int) -> datetime:
    return datetime.fromtimestamp(now + VALID_S[role], UTC)
