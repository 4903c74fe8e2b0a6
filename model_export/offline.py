"""Offline bundles: one file that brings a version to a device without a network, made and checked.

`pack` makes the file from what the ceremony has signed; `check_offline_bundle` is what a device does with it, for the
person who made it. The rules, in the order in which they are asked:
- from the pinned root on, every root is signed by the threshold of the one before it and by its own;
- the last root, `targets` and `offline` are signed by their thresholds and have not expired;
- `offline` names the signed manifest at the population's path, `targets` itself names the manifest of its template;
- model and vocabulary hash to what the manifest says, and the model is a patch of the template.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export import trust_metadata as meta
from model_export.trust_metadata import BadMetadata
from wire_contract import envelope
from wire_contract import trust_roles as roles
from wire_contract.errors import Malformed, Untrusted
from wire_contract.manifest import MAX_MODEL_BYTES, Manifest, decode_manifest, template_hash
from wire_contract.offline_bundle import MAX_ROOTS, OfflineBundle, decode_offline_bundle, encode_offline_bundle
from wire_contract.vocabulary import MAX_FILE_BYTES

MANIFEST_FILE: Final = "manifest.bin"
TEMPLATE_FILE: Final = "template.bin"
MODEL_FILE: Final = "model.tflite"
VOCABULARY_FILE: Final = "vocabulary.txt"


@dataclass(frozen=True, slots=True)
class OfflineVersion:
    """The files of one version; `signed_template` is empty where the exporter itself signed `signed_manifest`."""

    signed_manifest: bytes
    signed_template: bytes
    model: bytes
    vocabulary: bytes

    @property
    def template(self) -> bytes:
        """The exporter's signed manifest, which `targets` names."""
        return self.signed_template or self.signed_manifest

    def manifest(self) -> Manifest:
        """Return the manifest; who signed it is not asked. Raises the contract's errors."""
        return decode_manifest(envelope.read_envelope(self.signed_manifest).body)


def check_version(version: OfflineVersion) -> Manifest:
    """Return the manifest if all files are what it says. Raises `Untrusted` or another of the contract's errors."""
    manifest = version.manifest()
    template = decode_manifest(envelope.read_envelope(version.template).body)
    found = hashlib.sha256(version.model).hexdigest()
    if (len(version.model), found) != (manifest.size_bytes, manifest.sha256):
        raise Untrusted(
            f"the model hashes to {manifest.sha256[:12]}..., got {len(version.model)} bytes of {found[:12]}..."
        )
    if template.template_sha256 != manifest.template_sha256 or template.population != manifest.population:
        raise Untrusted("the version is of its template and population, and is not of this one")
    if template_hash(version.model, template) != template.template_sha256:
        raise Untrusted("the model is a patch of its template: other bytes than weights differ")
    vocabulary = hashlib.sha256(version.vocabulary).hexdigest() if version.vocabulary else ""
    if vocabulary != manifest.vocabulary_sha256:
        raise Untrusted(f"the vocabulary hashes to {manifest.vocabulary_sha256[:12]}..., got {vocabulary[:12]}...")
    return manifest


def pack(roots: Sequence[bytes], targets: bytes, offline: bytes, version: OfflineVersion) -> bytes:
    """Return the bundle's file. Raises `Malformed` for more roots than a bundle holds."""
    if not 1 <= len(roots) <= MAX_ROOTS:
        raise Malformed(f"an offline bundle holds 1 to {MAX_ROOTS} roots, got {len(roots)}")
    bundle = OfflineBundle(
        roots=tuple(roots), targets=targets, offline=offline, signed_manifest=version.signed_manifest,
        signed_template=version.signed_template, vocabulary=version.vocabulary, model=version.model,
    )  # fmt: skip
    return encode_offline_bundle(bundle)


def check_offline_bundle(data: bytes, pinned_root: bytes, now: int) -> tuple[OfflineBundle, Manifest]:
    """Return what a bundle holds if a device that pinned `pinned_root` would believe it at `now` (Unix seconds).

    Raises `Untrusted` with the rule that does not hold, or `Malformed`.
    """
    bundle = decode_offline_bundle(data)
    try:
        root = _last_root(bundle.roots, pinned_root)
        _check_role(root, roles.ROOT, [root], now)
        _check_role(bundle.targets, roles.TARGETS, [root], now)
        _check_role(bundle.offline, roles.OFFLINE, [bundle.targets], now)
        version = OfflineVersion(bundle.signed_manifest, bundle.signed_template, bundle.model, bundle.vocabulary)
        manifest = version.manifest()
        path = roles.offline_target(manifest.population)
        if not meta.names_target(bundle.offline, roles.OFFLINE, path, bundle.signed_manifest):
            raise Untrusted(f"the role offline names this version at {path}, and does not")
        path = roles.template_target(manifest.population, manifest.template_sha256)
        if not meta.names_target(bundle.targets, roles.TARGETS, path, version.template):
            raise Untrusted(f"the role targets names the template at {path}, and does not")
    except BadMetadata as e:
        raise Untrusted(f"the bundle's metadata break a rule: {e}") from e
    return bundle, check_version(version)


def _last_root(chain: Sequence[bytes], pinned: bytes) -> bytes:
    """Return the newest root that the pinned one leads to."""
    root, version = pinned, meta.version_of(pinned, roles.ROOT)
    for candidate in chain:
        number = meta.version_of(candidate, roles.ROOT)
        if number <= version:
            continue
        if number != version + 1:
            raise Untrusted(f"a root follows root {version}, got root {number}")
        found = meta.standing(candidate, roles.ROOT, [root, candidate])
        if not found.complete:
            raise Untrusted(f"a root is signed by the keys before and by its own: {found.told()}")
        root, version = candidate, number
    return root


def _check_role(data: bytes, role: str, authorities: Sequence[bytes], now: int) -> None:
    found = meta.standing(data, role, authorities)
    if not found.complete:
        raise Untrusted(f"metadata are signed by the threshold: {found.told()}")
    if now >= found.expires:
        raise Untrusted(f"{found.version}.{role}.json expired at {found.expires}, it is {now}")


def read_version(folder: Path) -> OfflineVersion:
    """Read what `cloud-aggregator release export` wrote. Raises `FileNotFoundError` or `Malformed`."""
    vocabulary = folder / VOCABULARY_FILE
    return OfflineVersion(
        _read(folder / MANIFEST_FILE, envelope.MAX_ENVELOPE_BYTES),
        _read(folder / TEMPLATE_FILE, envelope.MAX_ENVELOPE_BYTES),
        _read(folder / MODEL_FILE, MAX_MODEL_BYTES),
        # A model of arrays has none.
        _read(vocabulary, MAX_FILE_BYTES) if vocabulary.exists() else b"",
    )


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Malformed(f"{path.name} has at most {limit} bytes")
    return data
