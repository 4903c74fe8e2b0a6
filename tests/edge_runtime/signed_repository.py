"""A repository in memory, by tuf's own metadata API: an independent reading of docs/trust.md, with keys for wrongdoing.

`publish` signs what was changed and lays it out under the names that a server gives it; `files` are what a device may
fetch. Every role's signers can be changed, so that a test signs with too few, with a stranger's, or with old keys.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from tests.edge_runtime.fakes import MIDNIGHT
from wire_contract.trust_roles import (
    METADATA_PATH,
    OFFLINE,
    OFFLINE_PATHS,
    REFRESH_PATHS,
    REFRESHES,
    offline_target,
    refresh_target,
    template_target,
)

DAY = 86_400


def signers(count: int) -> list[CryptoSigner]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


class SignedRepository:
    """`now` (Unix seconds) is when it signs; `days` how long each role's metadata are valid."""

    def __init__(self, now: float = MIDNIGHT) -> None:
        self.now = now
        self.days = {"timestamp": 14, "snapshot": 30, REFRESHES: 30, "root": 365, "targets": 365, OFFLINE: 365}
        self.keys = {
            "root": signers(3), "targets": signers(3), OFFLINE: signers(3),
            "snapshot": signers(1), "timestamp": signers(1), REFRESHES: signers(1),
        }  # fmt: skip
        self.thresholds = {"root": 2, "targets": 2, OFFLINE: 2, "snapshot": 1, "timestamp": 1, REFRESHES: 1}
        self.files: dict[str, bytes] = {}
        self.root, self.snapshot, self.timestamp = Root(), Snapshot(), Timestamp()
        self.targets, self.refreshes, self.offline = Targets(), Targets(), Targets()
        for signed in (self.root, self.snapshot, self.timestamp, self.targets, self.refreshes, self.offline):
            signed.version = 0
        self.new_root()
        self.delegate()
        self.publish()

    def expiry(self, role: str) -> datetime:
        return datetime.fromtimestamp(self.now, UTC).replace(microsecond=0) + timedelta(days=self.days[role])

    def new_root(self, also: Sequence[CryptoSigner] = ()) -> bytes:
        """Make the next root of the keys as they are; `also`: the old root keys, which must sign it, too."""
        self.root = Root(version=self.root.version + 1, consistent_snapshot=True, expires=self.expiry("root"))
        for role in ("root", "targets", "snapshot", "timestamp"):
            for signer in self.keys[role]:
                self.root.add_key(_key(signer), role)
            self.root.roles[role].threshold = self.thresholds[role]
        data = self.sign("root", self.root, (*self.keys["root"], *also))
        self.files[f"{self.root.version}.root.json"] = data
        return data

    def rotate(self, role: str) -> None:
        """Replace a role's keys."""
        old = self.keys["root"]
        self.keys[role] = signers(len(self.keys[role]))
        self.new_root(old)

    def delegate(self) -> None:
        roles, keys = {}, {}
        for role, paths in ((REFRESHES, REFRESH_PATHS), (OFFLINE, OFFLINE_PATHS)):
            for signer in self.keys[role]:
                keys[_key(signer).keyid] = _key(signer)
            ids = [_key(signer).keyid for signer in self.keys[role]]
            roles[role] = DelegatedRole(role, ids, self.thresholds[role], True, paths=[paths])
        self.targets.delegations = Delegations(keys=keys, roles=roles)

    def list_template(self, population: str, template_sha256: str, signed: bytes) -> None:
        _list(self.targets, template_target(population, template_sha256), signed)

    def list_refresh(self, population: str, signed: bytes) -> None:
        _list(self.refreshes, refresh_target(population), signed)

    def list_offline(self, population: str, signed: bytes) -> None:
        _list(self.offline, offline_target(population), signed)

    def publish(self, *roles: str) -> None:
        """Sign the next version of `roles` (all), then snapshot and timestamp."""
        for role, signed in (("targets", self.targets), (REFRESHES, self.refreshes), (OFFLINE, self.offline)):
            if not roles or role in roles:
                signed.version += 1
                signed.expires = self.expiry(role)
                self.files[f"{signed.version}.{role}.json"] = self.sign(role, signed)
        self.snapshot.version += 1
        self.snapshot.expires = self.expiry("snapshot")
        self.snapshot.meta = {
            f"{role}.json": MetaFile.from_data(each.version, self.files[f"{each.version}.{role}.json"], ["sha256"])
            for role, each in (("targets", self.targets), (REFRESHES, self.refreshes), (OFFLINE, self.offline))
        }
        data = self.sign("snapshot", self.snapshot)
        self.files[f"{self.snapshot.version}.snapshot.json"] = data
        self.stamp(data)

    def stamp(self, snapshot: bytes) -> None:
        """Sign the next timestamp over a snapshot's bytes."""
        self.timestamp.version += 1
        self.timestamp.expires = self.expiry("timestamp")
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, snapshot, ["sha256"])
        self.files["timestamp.json"] = self.sign("timestamp", self.timestamp)

    def sign(self, role: str, signed: object, by: Sequence[CryptoSigner] | None = None) -> bytes:
        metadata = Metadata(signed)
        for signer in self.keys[role] if by is None else by:
            metadata.sign(signer, append=True)
        return metadata.to_bytes(JSONSerializer(compact=True))

    def serve(self, files: dict[str, bytes]) -> None:
        """Put what is published into a fake server's files, and take away what is not."""
        for path in [path for path in files if path.startswith(METADATA_PATH)]:
            del files[path]
        files |= {f"{METADATA_PATH}/{name}": data for name, data in self.files.items()}

    def current(self) -> dict[str, bytes]:
        """Return what an announcement carries: the newest of each role."""
        names = (
            "timestamp.json", f"{self.snapshot.version}.snapshot.json", f"{self.refreshes.version}.{REFRESHES}.json",
            f"{self.targets.version}.targets.json", f"{self.root.version}.root.json",
        )  # fmt: skip
        return {name: self.files[name] for name in names}


def _key(signer: CryptoSigner) -> Key:
    return signer.public_key


def _list(targets: Targets, path: str, data: bytes) -> None:
    targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
