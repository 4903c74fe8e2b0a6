"""The signed repository as the service uses it: read from its rows, changed in the transaction that makes it necessary.

Without a repository everything here answers "nothing" and no TUF library is imported: small set-ups go without. With
one, the rules are:
- a population whose template `targets` names is *protected*: what its keyboards get is named by the role `refreshes`,
  in the transaction that announces it, and a device that enrols is told the root;
- a population founded before the repository, whose template is not named, is as without one until it is; one that is
  protected stays so: what would leave it is not imported;
- timestamp, snapshot and refreshes are signed again in time, once an hour at the most; what hinders that is told.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cloud_aggregator.errors import NotFound, Refused
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.records import PopulationRecord, Records
from cloud_aggregator.trust_records import MetadataRecord, TargetRecord
from wire_contract import trust_roles as roles
from wire_contract.messages import MAX_MESSAGE_BYTES, TrustFile

if TYPE_CHECKING:
    from cloud_aggregator.repository import Shelf
    from cloud_aggregator.repository_import import Offered

# Older ones are still asked for by devices that read an older snapshot a moment ago.
KEEP_METADATA: Final = 8
KEEP_CONTENTS: Final = 4
MAX_TRUST_BYTES: Final = 60_000
TELL_BEFORE_S: Final = 30 * 86_400
LOOK_EVERY_S: Final = 3600
ALL_ROLES: Final = (*roles.OFFLINE_ROLES, roles.REFRESHES, roles.SNAPSHOT, roles.TIMESTAMP)
# What is left out first when an announcement is full comes last.
ANNOUNCED: Final = (roles.TIMESTAMP, roles.SNAPSHOT, roles.REFRESHES, roles.TARGETS, roles.ROOT)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import changed: versions of root, targets and offline that are held now, and whose refresh was signed."""

    versions: Mapping[str, int]
    populations: tuple[str, ...]


def shelf_of(records: Records) -> "Shelf | None":
    """Return the repository's newest metadata; None where there is no repository."""
    root = records.metadata(roles.ROOT)
    if root is None:
        return None
    from cloud_aggregator.repository import Shelf

    found = {role: records.metadata(role) for role in ALL_ROLES}
    return Shelf(**{role: b"" if record is None else record.data for role, record in found.items()})


def check_template(records: Records, population: str, template_sha256: str, signed_template: bytes) -> None:
    """Raise `Refused` if there is a repository whose `targets` do not name this exporter's manifest."""
    shelf = shelf_of(records)
    if shelf is None:
        return
    from cloud_aggregator.repository import names_template

    if names_template(shelf, population, template_sha256) != sha256(signed_template).hexdigest():
        raise Refused(
            f"not_a_target: the repository's `targets` do not name the bundle's template {template_sha256[:12]}...",
            "model-export keys add-template DIR --bundle BUNDLE, then cloud-aggregator trust import DIR",
        )


def is_protected(records: Records, population: PopulationRecord) -> bool:
    """Whether `targets` name the population's template: then its refreshes are signed by the repository's roles."""
    shelf = shelf_of(records)
    return shelf is not None and _names(shelf, population)


def root_for(records: Records, population: PopulationRecord) -> bytes:
    """Return the root that an enrolling device is to pin; empty for a population that is not protected."""
    shelf = shelf_of(records)
    return shelf.root if shelf is not None and _names(shelf, population) else b""


def publish_refresh(
    records: Records, keys: ServiceKeys, population: PopulationRecord, signed_manifest: bytes, now: int
) -> None:
    """Let the role `refreshes` name what a population's keyboards get now.

    Call it before the announcement is stored, in its transaction. Raises `Refused` with the rule that does not hold;
    then nothing was written.
    """
    shelf = shelf_of(records)
    if shelf is None or not _names(shelf, population):
        return
    _store(records, shelf, _with_refreshes(shelf, keys, [(population, signed_manifest)], now), now)
    _put_contents(records, {_path(population): signed_manifest}, now)


def import_ceremony(records: Records, keys: ServiceKeys, offered: "Offered", now: int) -> Imported:
    """Keep what holders signed, and sign the online roles for it. Raises `Refused`; then nothing is kept.

    What protected populations announce already is named by `refreshes` at once: their next device may enrol now.
    """
    from cloud_aggregator.repository import refreshed, settle
    from cloud_aggregator.repository_import import accept
    from cloud_aggregator.tuf_metadata import targets_of

    before = shelf_of(records)
    held_roots = {version: _held(records, roles.ROOT, version) for version in records.metadata_versions(roles.ROOT)}
    known = {}
    if before is not None:
        for path, target in targets_of(before.targets, roles.TARGETS).items():
            content = records.target(path, str(target.hashes["sha256"]))
            if content is not None:
                known[content.sha256] = content.data
    accepted = accept(before, held_roots, offered, keys.online, now, known)
    first = max(held_roots, default=0) + 1
    for version, root in enumerate(accepted.roots, first):
        records.put_metadata(MetadataRecord(roles.ROOT, version, root, now))
    _put_contents(records, accepted.files, now)
    shelf, changes = accepted.shelf, []
    for population in records.populations():
        announced = records.announcement(population.population, "refresh")
        if announced is not None and _names(shelf, population):
            changes.append((population, announced.signed_manifest))
    named = refreshed(shelf)
    _check_none_left(named, records, shelf)
    changes = [(p, signed) for p, signed in changes if named.get(_path(p)) != sha256(signed).hexdigest()]
    if changes:
        shelf = _with_refreshes(shelf, keys, changes, now, before)
    else:
        shelf = settle(shelf, keys.online, now, before)
    _put_contents(records, {_path(population): signed for population, signed in changes}, now)
    _store(records, before, shelf, now)
    versions = {role: _version(shelf, role) for role in roles.OFFLINE_ROLES}
    return Imported(versions, tuple(population.population for population, _ in changes))


def _check_none_left(named: Mapping[str, str], records: Records, shelf: "Shelf") -> None:
    """Raise `Refused` if a population that is protected would not be any more: its devices have pinned the root."""
    for population in records.populations():
        if _path(population) in named and not _names(shelf, population):
            raise Refused(
                f"wrong_target: `targets` no longer name the template of population {population.population} as its"
                " exporter signed it: its devices would refuse every refresh",
                "model-export keys add-template with the bundle that the population was founded from",
            )


def renew(records: Records, keys: ServiceKeys, now: int) -> None:
    """Sign again what is due of timestamp, snapshot and refreshes. Raises `Refused`; then nothing was written."""
    shelf = shelf_of(records)
    if shelf is None:
        return
    from cloud_aggregator.repository import settle

    _store(records, shelf, settle(shelf, keys.online, now), now)


def expiring(records: Records, now: int) -> list[str]:
    """Return a line for each role of the holders whose metadata expire within 30 days."""
    shelf = shelf_of(records)
    if shelf is None:
        return []
    from cloud_aggregator.repository import role_view

    views = [role_view(shelf, role) for role in roles.OFFLINE_ROLES]
    return [
        f"the metadata of {view.role} expire in {max(0, view.expires - now) // 86_400} days:"
        f" model-export keys renew --role {view.role}, then cloud-aggregator trust import"
        for view in views
        if view.expires - now < TELL_BEFORE_S
    ]


def trust_files(records: Records, population: str, room_bytes: int) -> tuple[TrustFile, ...]:
    """Return the metadata that a population's announcement carries: the most urgent first, as far as they fit."""
    shelf = shelf_of(records)
    found = next((each for each in records.populations() if each.population == population), None)
    if shelf is None or found is None or not _names(shelf, found):
        return ()
    room = min(MAX_TRUST_BYTES, room_bytes)
    files = []
    for role in ANNOUNCED:
        data = shelf.of(role)
        if not data or len(data) > room:
            continue
        room -= len(data)
        version = _version(shelf, role)
        name = "timestamp.json" if role == roles.TIMESTAMP else f"{version}.{role}.json"
        files.append(TrustFile(name=name, data=data))
    return tuple(files)


def room_beside(signed_manifest: bytes) -> int:
    """Return the bytes that an announcement has for metadata beside its manifest."""
    # The rest of the message: its tag, its keys and the files' names.
    return MAX_MESSAGE_BYTES - len(signed_manifest) - 1024


def metadata_file(records: Records, name: str) -> bytes:
    """Return a metadata file by its name: `timestamp.json`, `7.snapshot.json`. Raises `NotFound`."""
    number, _, role = name.removesuffix(".json").rpartition(".")
    numbered = number.isascii() and number.isdecimal() and len(number) < 10
    if role in ALL_ROLES and name.endswith(".json") and (numbered or name == "timestamp.json"):
        found = records.metadata(role, int(number) if number else None)
        # A version has one name: no file is served as `07.root.json` too.
        if found is not None and number in ("", str(found.version)):
            return found.data
    raise NotFound(f"no metadata {name[:80]!r}")


def target_file(records: Records, path: str) -> bytes:
    """Return a target's content by its path with the hash before its name. Raises `NotFound`."""
    folder, _, name = path.rpartition("/")
    digest, _, base = name.partition(".")
    found = records.target(f"{folder}/{base}", digest)
    if found is None:
        raise NotFound(f"no target {path[:200]!r}")
    return found.data


def _names(shelf: "Shelf", population: PopulationRecord) -> bool:
    from cloud_aggregator.repository import names_template

    named = names_template(shelf, population.population, population.template_sha256)
    return named == sha256(population.signed_template).hexdigest()


def _with_refreshes(
    shelf: "Shelf", keys: ServiceKeys, changes: Iterable[tuple[PopulationRecord, bytes]], now: int,
    before: "Shelf | None" = None,
) -> "Shelf":  # fmt: skip
    from cloud_aggregator.repository import Change, with_refreshes

    wanted = [Change(signed_manifest, population.signed_template) for population, signed_manifest in changes]
    return with_refreshes(shelf, keys.online, wanted, keys.public, now, before)


def _store(records: Records, before: "Shelf | None", after: "Shelf", now: int) -> None:
    """Keep what differs; the roots are kept where they are judged."""
    for role in ALL_ROLES:
        data = after.of(role)
        if role == roles.ROOT or (before is not None and before.of(role) == data):
            continue
        version = _version(after, role)
        records.put_metadata(MetadataRecord(role, version, data, now))
        records.drop_metadata(role, version - KEEP_METADATA + 1)


def _put_contents(records: Records, contents: Mapping[str, bytes], now: int) -> None:
    for path, content in contents.items():
        records.put_target(TargetRecord(path, sha256(content).hexdigest(), content, now))
        records.drop_targets(path, KEEP_CONTENTS)


def _path(population: PopulationRecord) -> str:
    return roles.refresh_target(population.population)


def _version(shelf: "Shelf", role: str) -> int:
    from cloud_aggregator.tuf_metadata import version_of

    return version_of(shelf.of(role), role)


def _held(records: Records, role: str, version: int) -> bytes:
    found = records.metadata(role, version)
    if found is None:
        raise NotFound(f"no {role} metadata of version {version}")
    return found.data


class TrustTurns:
    """What the service's turns do for the repository: sign again in time, and say what hinders it. Once an hour.

    What it remembers is the time, and what it announced: the rows are the truth.
    """

    def __init__(self) -> None:
        self._looked_at = 0
        self._announced = 0

    def due(self, records: Records, keys: ServiceKeys, now: int) -> tuple[bool, Iterable[str]]:
        """Return whether refreshes are to be announced again, with fresh metadata, and what an operator must know."""
        if now < self._looked_at + LOOK_EVERY_S:
            return False, ()
        self._looked_at = now
        troubles = []
        try:
            renew(records, keys, now)
        except Refused as e:
            troubles.append(f"the repository's metadata cannot be renewed: {e}")
        troubles += expiring(records, now)
        stamp = records.metadata(roles.TIMESTAMP)
        version = 0 if stamp is None else stamp.version
        changed, self._announced = version != self._announced, version
        return changed and version > 0, troubles
