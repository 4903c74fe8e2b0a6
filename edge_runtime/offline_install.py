"""A version from one file, over USB: the same checks as over the network, and the same activation.

The rules (Uptane's offline updates, PURE-2; TUF 1.0 for the roles):
- the chain of roots begins at or before the root that this device pinned: each is signed by the one before and by
  itself, numbers rise by one, and one of them is the pinned root, or follows it; it begins no lower than the newest
  root that this device has seen, over the network or in a bundle: keys that one took away are gone for good;
- the last root, `targets` and `offline` have not expired by the device's clock; `targets` is signed by the root's keys,
  `offline` by the keys that `targets` delegates to, each by its threshold; none is older than one that was used here
  and still holds under those keys: a number that stolen keys ran up is forgotten when they are replaced;
- `offline` lists the manifest for this device's population, `targets` itself its template;
- the version is above the confirmed floor: freshness cannot be had offline, going back can be ruled out;
- then the file goes the way of a download: `model_slots` checks it, installs it, and it is on trial.
What tuf raises becomes `ManifestRefused`. The pinned root stays; roots, `targets` and `offline` are kept beside it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.adapters.files import write_atomically
from edge_runtime.model_slots import Check, ModelSlots
from edge_runtime.ports import Download, NotThere, StorageFailed, TooLarge
from edge_runtime.repository_trust import FOLDER, Listing, Target, pinned_root
from edge_runtime.trust import Keys, ManifestRefused
from wire_contract.envelope import read_envelope
from wire_contract.errors import ContractError
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.messages import Enrolled
from wire_contract.offline_bundle import OfflineBundle, decode_offline_bundle
from wire_contract.trust_roles import OFFLINE, OFFLINE_PATHS, ROOT, TARGETS, offline_target, template_path

if TYPE_CHECKING:
    from tuf.api.metadata import Root, Targets


def install(data: bytes, home: Path, enrolled: Enrolled, check: Check, now: float) -> Manifest:
    """Install the version in an offline bundle as the refresh of an enrolled home; `check` is `model_slots`'s.

    Raises `ManifestRefused`, `VersionRefused`, `StorageFull`, `StorageFailed`.
    """
    root = pinned_root(home, enrolled.root)
    if not root:
        raise ManifestRefused("no_pinned_root", "this device was enrolled without a repository: no file can be trusted")
    try:
        bundle = decode_offline_bundle(data)
        manifest = decode_manifest(read_envelope(bundle.signed_manifest).body)
    except ContractError as e:
        raise ManifestRefused("malformed", str(e)) from e
    if manifest.population != enrolled.population:
        raise ManifestRefused(
            "wrong_population", f"this device is of {enrolled.population!r}, got {manifest.population!r}"
        )
    trusted = verify(bundle, home / FOLDER, root, now)
    slots = ModelSlots(
        home, Keys(enrolled.manifest_key, enrolled.aggregator_key), enrolled.population, enrolled.model_url,
        _BundleDownloads(bundle, manifest), check, repository=trusted,
    )  # fmt: skip
    slot = slots.slot("refresh")
    if manifest.version <= slot.floor:
        raise ManifestRefused("lower_version", f"version {slot.floor} is confirmed, got {manifest.version}")
    for name, kept in trusted.kept.items():
        write_atomically(home / FOLDER / name, kept)
    return slots.install(bundle.signed_manifest, "refresh", now)


class Verified:
    """Metadata of a bundle that were verified: implements `repository_trust.Repository`. `kept`: files to keep."""

    def __init__(self, targets: "Targets", offline: "Targets", kept: Mapping[str, bytes]) -> None:
        self.carried: Mapping[str, bytes] = {}
        self.kept = kept
        self._targets = targets
        self._offline = offline

    def listing(self, population: str, now: float, carried: Mapping[str, bytes]) -> Listing:
        """See `repository_trust.Repository`."""
        templates = {path: target for path, info in self._targets.targets.items() if (target := _target(info))}
        return Listing(_target(self._offline.targets.get(offline_target(population))), templates)


def verify(bundle: OfflineBundle, folder: Path, pinned: bytes, now: float) -> Verified:
    """Return what a bundle's metadata list, verified from the pinned root on; `folder` holds what was used before.

    Raises `ManifestRefused`.
    """
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Targets
    from tuf.api.serialization import DeserializationError

    try:
        root, roots = _follow((*_seen(folder), *bundle.roots), pinned)
        targets = Metadata[Targets].from_bytes(bundle.targets)
        offline = Metadata[Targets].from_bytes(bundle.offline)
        for metadata, kind in ((root, ROOT), (targets.signed, TARGETS), (offline.signed, TARGETS)):
            if metadata.type != kind:
                raise ManifestRefused("metadata_mixed", f"a file of {kind} was asked for, got {metadata.type}")
        root.verify_delegate(TARGETS, targets.signed_bytes, targets.signatures)
        role = targets.signed.delegations and (targets.signed.delegations.roles or {}).get(OFFLINE)
        if not role or list(role.paths or ()) != [OFFLINE_PATHS]:
            raise ManifestRefused("metadata_mixed", f"targets delegate {OFFLINE_PATHS} to {OFFLINE}, and here do not")
        targets.signed.verify_delegate(OFFLINE, offline.signed_bytes, offline.signatures)
    except ManifestRefused:
        raise
    except DeserializationError as e:
        raise ManifestRefused("metadata_malformed", str(e)) from e
    except RepositoryError as e:
        raise ManifestRefused("metadata_unsigned", str(e)) from e
    except ValueError as e:
        # What tuf says when a role is asked about that the delegator does not name.
        raise ManifestRefused("metadata_mixed", str(e)) from e
    at = datetime.fromtimestamp(now, UTC)
    for what, signed in ((ROOT, root), (TARGETS, targets.signed), (OFFLINE, offline.signed)):
        if signed.is_expired(at):
            raise ManifestRefused("metadata_expired", f"{what} expired at {signed.expires:%Y-%m-%d %H:%M}")
    for name, signed, above in ((TARGETS, targets.signed, root), (OFFLINE, offline.signed, targets.signed)):
        used = _used(folder / f"{name}.json", name, above)
        if signed.version < used:
            raise ManifestRefused("metadata_rolled_back", f"{name} of number {used} was used, got {signed.version}")
    kept = {f"{number}.root.json": each for number, each in roots.items()}
    return Verified(
        targets.signed, offline.signed, kept | {"targets.json": bundle.targets, "offline.json": bundle.offline}
    )


def _follow(chain: tuple[bytes, ...], pinned: bytes) -> "tuple[Root, dict[int, bytes]]":
    """Return the last root that the pinned one leads to, and the bytes of those behind it by number."""
    from tuf.api.metadata import Metadata, Root

    metadata = Metadata[Root].from_bytes(pinned)
    # A root that does not sign itself pins nothing.
    metadata.signed.verify_delegate(ROOT, metadata.signed_bytes, metadata.signatures)
    trusted, roots = metadata.signed, {}
    known = {trusted.version: metadata.signed_bytes}
    for data in chain:
        following = Metadata[Root].from_bytes(data)
        signed = following.signed
        if signed.type != ROOT:
            raise ManifestRefused("metadata_mixed", f"a chain of roots holds roots, got {signed.type}")
        if signed.version <= trusted.version:
            # What is signed counts: another holder's signature may have been added since.
            if known.get(signed.version, following.signed_bytes) != following.signed_bytes:
                raise ManifestRefused("another_root", f"root {signed.version} is not the one that this device knows")
            continue
        if signed.version != trusted.version + 1:
            raise ManifestRefused("metadata_mixed", f"root {trusted.version + 1} comes next, got {signed.version}")
        trusted.verify_delegate(ROOT, following.signed_bytes, following.signatures)
        signed.verify_delegate(ROOT, following.signed_bytes, following.signatures)
        trusted = signed
        roots[signed.version], known[signed.version] = data, following.signed_bytes
    return trusted, roots


def _seen(folder: Path) -> list[bytes]:
    """Return the roots that were found valid after the pinned one, in order. Raises `StorageFailed`."""
    found = {}
    for path in folder.glob("*.root.json"):
        number = path.name.removesuffix(".root.json")
        if number.isascii() and number.isdecimal():
            found[int(number)] = _read(path)
    return [found[number] for number in sorted(found)]


def _used(path: Path, role: str, above: "Root | Targets") -> int:
    """Return the number of the metadata that were used last; 0 for none, or for keys that `above` names no more."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Targets
    from tuf.api.serialization import DeserializationError

    try:
        used = Metadata[Targets].from_bytes(_read(path))
        above.verify_delegate(role, used.signed_bytes, used.signatures)
        return int(used.signed.version)
    except FileNotFoundError:
        return 0
    except DeserializationError as e:
        raise StorageFailed(f"{path} cannot be read: {e}") from e
    except RepositoryError:
        return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as e:
        raise StorageFailed(f"{path} cannot be read: {e}") from e


def _target(info: Any) -> Target | None:
    return None if info is None else Target(info.length, info.hashes.get("sha256", ""))


class _BundleDownloads:
    """The Downloads port over a bundle: what `model_slots` would fetch for its manifest."""

    def __init__(self, bundle: OfflineBundle, manifest: Manifest) -> None:
        template = bundle.signed_template or bundle.signed_manifest
        self._files = {
            manifest.url or f"/v1/models/{manifest.sha256}": bundle.model,
            manifest.vocabulary_url or f"/v1/vocabularies/{manifest.vocabulary_sha256}": bundle.vocabulary,
            template_path(manifest.population, manifest.template_sha256): template,
        }

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        """See `ports.Downloads`."""
        data = next((data for path, data in self._files.items() if url.endswith(path) and data), None)
        if data is None:
            raise NotThere(f"an offline bundle has no {url[-120:]}")
        if len(data) > limit_bytes:
            raise TooLarge(f"{url[-120:]} has at most {limit_bytes} bytes, got {len(data)}")
        return Download(start, iter((data[start:],)))
