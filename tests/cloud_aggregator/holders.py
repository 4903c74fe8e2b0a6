"""Three holders of offline keys for the aggregator's tests, and what they bring: the exporter's real ceremony."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from cloud_aggregator import trust
from cloud_aggregator.adapters.ceremony_files import read_ceremony
from cloud_aggregator.adapters.key_files import ONLINE_FOLDER, OnlineKeyFiles
from cloud_aggregator.repository_import import Offered
from model_export import trust_metadata as meta
from model_export.ceremony import found_ceremony, replace_key
from tests.cloud_aggregator.fleet import NOW, Aggregator, make_bundle
from wire_contract import trust_roles as roles
from wire_contract.envelope import public_bytes


def online_keys(folder: Path) -> tuple[OnlineKeyFiles, dict[str, bytes]]:
    """Return a service's online keys, made if need be, and their public halves by role."""
    files = OnlineKeyFiles(folder / ONLINE_FOLDER)
    public = {role: public_bytes(files.newest(role) or files.make(role, os.urandom)) for role in roles.ONLINE_ROLES}
    return files, public


@dataclass
class Holders:
    """The ceremony's folder; `now` is what the holders' clock says."""

    folder: Path
    online: dict[str, bytes]
    now: int = NOW
    names: tuple[str, ...] = field(default=())

    def __post_init__(self):
        self.ceremony = found_ceremony(self.folder, 3, 2, self.online, self.now)

    def add_template(self, bundle=None) -> None:
        bundle = bundle or make_bundle()
        path = roles.template_target(bundle.manifest.population, bundle.manifest.template_sha256)
        self.ceremony.put_target(path, bundle.signed_manifest)
        custom = {"version": bundle.manifest.version, "sha256": bundle.manifest.sha256}
        targets = self.ceremony.newest(roles.TARGETS)
        self.ceremony.store(
            roles.TARGETS, meta.with_target(targets, roles.TARGETS, path, bundle.signed_manifest, custom, self.now)
        )

    def add_offline(self, bundle=None) -> None:
        bundle = bundle or make_bundle()
        path = roles.offline_target(bundle.manifest.population)
        offline = self.ceremony.newest(roles.OFFLINE)
        self.ceremony.store(
            roles.OFFLINE, meta.with_target(offline, roles.OFFLINE, path, bundle.signed_manifest, {}, self.now)
        )

    def rotate(self, role: str, holder: int = 0, public: bytes | None = None) -> None:
        replace_key(self.ceremony, role, holder, public, self.now)

    def renew(self, *names: str) -> None:
        for role in names or roles.OFFLINE_ROLES:
            self.ceremony.store(role, meta.renewed(self.ceremony.newest(role), role, self.now))

    def bring(self) -> Offered:
        return read_ceremony(self.folder)


def protect(aggregator: Aggregator, folder: Path) -> Holders:
    """Give an aggregator a repository that names the toy template."""
    _, public = online_keys(aggregator.folder)
    holders = Holders(folder, public, int(aggregator.clock.now()))
    holders.add_template()
    bring(aggregator, holders)
    return holders


def bring(aggregator: Aggregator, holders: Holders) -> trust.Imported:
    """Import what the holders have signed, as `cloud-aggregator trust import` does."""
    with aggregator.database.transaction() as records:
        return trust.import_ceremony(records, aggregator.keys, holders.bring(), int(aggregator.clock.now()))


def shelf(aggregator: Aggregator):
    """Return the repository's metadata as committed."""
    with aggregator.database.reading() as records:
        return trust.shelf_of(records)
