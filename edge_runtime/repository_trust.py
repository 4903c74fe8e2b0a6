"""What the signed repository says about a refresh, and what follows from it. Pure, but for keeping the pinned root.

    HOME/trust/pinned.json           the first root metadata that enrolment gave: pinned for ever

The rules (TUF 1.0, docs/trust.md):
- a device whose enrolment named a root takes a refresh only if the repository lists it: the exact signed manifest is
  the target of its population, by length and SHA-256;
- the manifest's template is a target of the role `targets` itself, by its exporter-signed manifest: the online roles
  can only bring patches of what two of three offline keys have signed;
- a root that was pinned stays pinned: a later enrolment without one, or with another, changes nothing. New keys come
  by the chain of roots, each signed by the one before;
- training versions are not listed: they are trusted by the keys that were pinned at enrolment, and never reach a
  keyboard.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edge_runtime import trust
from edge_runtime.adapters.files import write_atomically
from edge_runtime.ports import StorageFailed
from edge_runtime.trust import ManifestRefused
from wire_contract.envelope import read_envelope
from wire_contract.errors import ContractError
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.trust_roles import template_target

FOLDER, PINNED_FILE = "trust", "pinned.json"


@dataclass(frozen=True, slots=True)
class Target:
    """A file that a role lists."""

    size_bytes: int
    sha256: str

    def is_of(self, data: bytes) -> bool:
        """Whether `data` is that file."""
        return len(data) == self.size_bytes and hashlib.sha256(data).hexdigest() == self.sha256


@dataclass(frozen=True, slots=True)
class Listing:
    """What valid metadata list: `current` is what the population gets (None: nothing), `templates` the targets of the
    role `targets` itself, by path."""

    current: Target | None
    templates: Mapping[str, Target] = field(default_factory=dict)


class Repository(Protocol):
    """The port: metadata that were checked up to now. `carried` are those that an announcement brought, by name."""

    carried: Mapping[str, bytes]

    def listing(self, population: str, now: float, carried: Mapping[str, bytes]) -> Listing:
        """Return what is listed at `now` (Unix seconds, the device's clock); what is not `carried` is fetched.

        Raises `ManifestRefused` with a stable name (`metadata_expired`, ...), or `Unreachable`.
        """


def admit(
    signed: bytes,
    manifest: Manifest,
    repository: Repository,
    population: str,
    template: Callable[[], bytes],
    now: float,
) -> None:
    """Raise `ManifestRefused` unless the repository lists this manifest now, or `Unreachable`.

    An announcement is signed piece by piece, not as a whole: whoever can write to a broker may put a good manifest
    beside stale metadata. So what was carried can admit, and not refuse; that only the server's answer can.
    """
    if repository.carried:
        try:
            check_listed(signed, manifest, repository.listing(population, now, repository.carried), template)
        except ManifestRefused:
            repository.carried = {}
        else:
            return
    check_listed(signed, manifest, repository.listing(population, now, {}), template)


def check_listed(signed: bytes, manifest: Manifest, listing: Listing, template: Callable[[], bytes]) -> None:
    """Raise `ManifestRefused` unless the repository lists this very manifest and its template.

    `template` fetches the exporter-signed manifest of the template; it is asked for if `signed` is not that itself.
    """
    if listing.current is None:
        raise ManifestRefused("not_a_target", f"the repository lists nothing for {manifest.population}")
    if not listing.current.is_of(signed):
        raise ManifestRefused("wrong_target", f"the repository lists another manifest than version {manifest.version}")
    listed = listing.templates.get(template_target(manifest.population, manifest.template_sha256))
    if listed is None:
        raise ManifestRefused("template_not_a_target", f"template {manifest.template_sha256[:16]} is not listed")
    if listed.is_of(signed):
        return
    held = template()
    if not listed.is_of(held):
        raise ManifestRefused("wrong_template_target", f"template {manifest.template_sha256[:16]} is listed otherwise")
    try:
        trust.check_patch(manifest, decode_manifest(read_envelope(held).body))
    except ContractError as e:
        raise ManifestRefused("malformed", f"the listed template cannot be read: {e}") from e


def pinned_root(home: Path, enrolled: bytes) -> bytes:
    """Return the root that this home trusts, b"" if none was ever named; the first that is named is kept for ever.

    Raises `StorageFull`, `StorageFailed`.
    """
    path = home / FOLDER / PINNED_FILE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if enrolled:
            write_atomically(path, enrolled)
        return enrolled
    except OSError as e:
        raise StorageFailed(f"{path} cannot be read: {e}") from e
