"""The signed repository by python-tuf: `tuf.ngclient.Updater`, fed from an announcement and over HTTP.

    HOME/trust/*.json                the newest metadata that were found valid, N.root.json for each root

The rules:
- tuf is imported when a refresh is there that is newer than what is held, and not before: it takes a third of a second;
- the pinned root is where the chain of roots begins, each time; the Updater's rules are TUF's own (specification 5);
- metadata that an announcement carried come first, what it lacks comes over HTTP;
- where HTTP cannot be reached, a root that nobody has seen counts as not there, as the specification says (5.3.3): an
  attacker who holds it back is stopped when the metadata that the old keys signed expire;
- the Updater does not sync what it writes: it works on a copy, and what it found valid is kept by our own rules;
- the time is the device's (`now`), which a signed message may have proved, and a simulation plays;
- nothing of tuf's leaves: its exceptions become `ManifestRefused` with the names below, or `Unreachable`.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from edge_runtime.adapters.files import remove, storage_error, write_atomically
from edge_runtime.ports import Downloads, NotThere, PortError, StorageFailed, TooLarge, Unreachable
from edge_runtime.repository_trust import FOLDER, PINNED_FILE, Listing, Target
from edge_runtime.trust import ManifestRefused
from wire_contract.trust_roles import MAX_METADATA_BYTES, MAX_ROOT_BYTES, METADATA_PATH, refresh_target

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile
    from tuf.ngclient import Updater

MAX_ROOTS = 256
_ROOT_SUFFIX = ".root.json"


class TufRepository:
    """Implements `repository_trust.Repository` over `home`, for the server at `model_url`.

    `carried` is set with each announcement.
    """

    def __init__(self, home: Path, root: bytes, model_url: str, downloads: Downloads) -> None:
        self._folder = home / FOLDER
        self._root = root
        self._url = urljoin(model_url, METADATA_PATH + "/")
        self._downloads = downloads
        self.carried: Mapping[str, bytes] = {}

    def listing(self, population: str, now: float, carried: Mapping[str, bytes]) -> Listing:
        """See `repository_trust.Repository`. Raises `StorageFull`, `StorageFailed` beside."""
        from tuf.api.exceptions import DownloadError, RepositoryError

        source = Source(self._url, self._downloads, carried)
        try:
            with tempfile.TemporaryDirectory(prefix="edge-trust-") as made:
                copy = Path(made)
                before = self._lay_out(copy)
                try:
                    return self._refresh(copy, source, population, now)
                finally:
                    # Also what was valid before the first thing that was not: it protects from going back behind it.
                    self._keep(copy, before)
        except DownloadError as e:
            raise source.cause(e) from e
        except RepositoryError as e:
            raise _refusal(e, source) from e
        except OSError as e:
            raise storage_error(e, str(self._folder)) from e

    def _refresh(self, copy: Path, source: "Source", population: str, now: float) -> Listing:
        from tuf.api.metadata import Metadata, Targets
        from tuf.ngclient import Updater, UpdaterConfig

        config = UpdaterConfig(
            max_root_rotations=MAX_ROOTS, max_delegations=4, root_max_length=MAX_ROOT_BYTES,
            timestamp_max_length=MAX_METADATA_BYTES, snapshot_max_length=MAX_METADATA_BYTES,
            targets_max_length=MAX_METADATA_BYTES,
        )  # fmt: skip
        updater = Updater(str(copy), self._url, fetcher=fetcher(source), config=config, bootstrap=self._root)
        set_time(updater, now)
        updater.refresh()
        current = updater.get_targetinfo(refresh_target(population))
        # The file that `refresh` has just found valid: which role lists a target, the Updater does not tell.
        targets = Metadata[Targets].from_bytes((copy / "targets.json").read_bytes()).signed
        templates = {path: target for path, info in targets.targets.items() if (target := _target(info)) is not None}
        return Listing(_target(current), templates)

    def _lay_out(self, copy: Path) -> dict[str, bytes]:
        """Lay out what is kept as the Updater keeps it; return it by the Updater's names."""
        kept: dict[str, bytes] = {}
        (copy / "root_history").mkdir()
        for path in self._folder.glob("*.json") if self._folder.is_dir() else ():
            if path.name != PINNED_FILE:
                name = f"root_history/{path.name}" if path.name.endswith(_ROOT_SUFFIX) else path.name
                kept[name] = path.read_bytes()
                (copy / name).write_bytes(kept[name])
        return kept

    def _keep(self, copy: Path, before: Mapping[str, bytes]) -> None:
        for path in (*sorted(copy.glob("root_history/*.json")), *sorted(copy.glob("*.json"))):
            name = str(path.relative_to(copy))
            # root.json is the Updater's link to the newest of its history.
            if name != "root.json" and before.get(name) != (data := path.read_bytes()):
                write_atomically(self._folder / path.name, data)

    def forget(self) -> None:
        """Delete what was kept; the pinned root stays. Raises `StorageFailed`."""
        for path in self._folder.glob("*.json"):
            if path.name != PINNED_FILE:
                remove(path)


class Source:
    """Where metadata come from: what was carried, then the Downloads port; remembers the last file, and what failed."""

    def __init__(self, url: str, downloads: Downloads, carried: Mapping[str, bytes]) -> None:
        self._url = url
        self._downloads = downloads
        self._carried = carried
        self.name, self.data = "", b""
        self.error: PortError | None = None

    def read(self, name: str) -> bytes:
        """Return a file by its name. Raises what `Downloads.fetch` does."""
        self.name, self.data = name, b""
        self.error = None
        try:
            self.data = self._read(name)
        except PortError as e:
            self.error = e
            raise
        return self.data

    def _read(self, name: str) -> bytes:
        if name in self._carried:
            return self._carried[name]
        is_root = name.endswith(_ROOT_SUFFIX)
        try:
            found = self._downloads.fetch(self._url + name, 0, MAX_ROOT_BYTES if is_root else MAX_METADATA_BYTES)
            return b"".join(found.chunks)
        except Unreachable as e:
            if is_root and self._carried:
                raise NotThere(f"{name} was neither carried nor to be had: {e}") from e
            raise

    def cause(self, error: Exception) -> Exception:
        """Return what a failed download means."""
        match self.error:
            case Unreachable():
                return self.error
            case NotThere():
                return ManifestRefused("metadata_missing", f"the repository has no {self.name}")
            case TooLarge():
                return ManifestRefused("metadata_too_large", str(self.error))
            case PortError():
                return self.error
        # Longer than the metadata above it say.
        return ManifestRefused("metadata_mixed", f"{self.name}: {error}")


def fetcher(source: Source) -> Any:
    """Return tuf's fetcher over a source."""
    from tuf.api.exceptions import DownloadHTTPError
    from tuf.ngclient import FetcherInterface

    class _Fetcher(FetcherInterface):
        def _fetch(self, url: str) -> Iterator[bytes]:
            name = urlsplit(url).path.rpartition("/")[2]
            try:
                return iter((source.read(name),))
            except NotThere as e:
                raise DownloadHTTPError(str(e), 404) from e

    return _Fetcher()


def set_time(updater: "Updater", now: float) -> None:
    """Have an updater judge expiry at `now` (Unix seconds) and not by the operating system's clock.

    The Updater offers no public way. A board without a clock of its own begins in 1970 or where it was switched off,
    and knows the time from a signed message (`Clock.prove`), while the system's clock may not be set; a simulation
    plays its time. This is the one place that reaches inside; a test fails when tuf changes here.
    """
    trusted = updater._trusted_set
    if not isinstance(trusted.reference_time, datetime):
        raise StorageFailed("this release of tuf keeps its reference time elsewhere: tuf 7 is needed")
    trusted.reference_time = datetime.fromtimestamp(now, UTC)


def _target(info: "TargetFile | None") -> Target | None:
    return None if info is None else Target(info.length, info.hashes.get("sha256", ""))


def _refusal(error: Exception, source: Source) -> ManifestRefused:
    from tuf.api import exceptions
    from tuf.api.serialization import DeserializationError

    names = (
        (DeserializationError, "metadata_malformed"),
        (exceptions.ExpiredMetadataError, "metadata_expired"),
        (exceptions.UnsignedMetadataError, "metadata_unsigned"),
        (exceptions.LengthOrHashMismatchError, "metadata_mixed"),
    )
    for kind, name in names:
        if isinstance(error, kind):
            return ManifestRefused(name, f"{source.name}: {error}")
    if isinstance(error, exceptions.BadVersionNumberError):
        name = "metadata_rolled_back" if _is_older(source) else "metadata_mixed"
        return ManifestRefused(name, f"{source.name}: {error}")
    # A role that another lists and that is not there, or metadata of another type under a name.
    return ManifestRefused("metadata_mixed", f"{source.name}: {error}")


def _is_older(source: Source) -> bool:
    """Whether a version was refused for going back: of a file that is what its name says, there is no other reason."""
    number, _, rest = source.name.partition(".")
    if number == "timestamp":
        return True
    try:
        return rest == "snapshot.json" and bool(json.loads(source.data)["signed"]["version"] == int(number))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
