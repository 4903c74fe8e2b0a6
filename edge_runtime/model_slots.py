"""The versions on this device: get, check, switch, keep the previous one.

    HOME/slots/TRACK.json            what the track holds (`activation.Slot`); TRACK.lock is held while it changes
    HOME/models/SHA256.tflite        whole and checked; SHA256.part is a download that goes on later
    HOME/models/SHA256.BASE.part     likewise a delta from the file whose hash begins with BASE; .delta when it is whole
    HOME/manifests/SHA256.bin        the signed manifest of that file
    HOME/templates/SHA256.bin        the exporter-signed manifest of a template
    HOME/vocabularies/SHA256.txt

The rules:
- a file that is here is believed on what was checked when it came: under a manifest that promises anything else of it
  (other golden vectors, other ranges) it is checked again before the slot switches;
- a file gets its name only after size, hash, template hash, `flatbuffer_check` and `model_check` agree; then the slot
  switches by renaming one small file; a power cut leaves the old slot or the new one;
- a refresh is on trial from then on (`activation`); where a repository is pinned, it is fetched only if that lists it;
- several processes may change a slot: each reads it anew, under a lock, before it writes it;
- what is refused leaves no file behind, the slot stays, and the refusal has a name;
- a delta from what is held comes first, then the whole file; a delta of no use is told in `refused_parts`, deleted,
  and the version is not refused for it;
- a broken link leaves the `.part`, which the next attempt resumes; after three of a delta the whole file is tried;
- a file that was begun earlier and turns out wrong is told there too, and fetched once more from its beginning: pieces
  that came over the broker (`model_chunks`) lie in the same `.part`, and they may have been anybody's;
- the current and the previous version of each track stay, everything older is deleted;
- a file that has rotted since is found when it is read, and counts as not held: it is fetched again;
- a version may have the bytes of an older one (an undo): the slot's version rises all the same.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import get_args
from urllib.parse import urljoin, urlsplit

from edge_runtime import activation, flatbuffer_check, trust
from edge_runtime.activation import Slot, StepRefused
from edge_runtime.adapters.files import (
    append_durably,
    make_empty,
    remove,
    rename_durably,
    storage_error,
    write_atomically,
)
from edge_runtime.ports import Downloads, NotThere, StorageFailed, StorageFull, TooLarge, Unreachable
from edge_runtime.repository_trust import FOLDER, PINNED_FILE, Repository, admit
from edge_runtime.version_delta import DeltaRefused, rebuild
from wire_contract.envelope import read_envelope
from wire_contract.errors import ContractError
from wire_contract.manifest import (
    ARRAY_FAMILY,
    MAX_MANIFEST_BYTES,
    Manifest,
    decode_manifest,
    patched_ranges,
    promises_hash,
    template_hash,
)
from wire_contract.messages import TaskOffer
from wire_contract.topics import Track
from wire_contract.trust_roles import template_path
from wire_contract.vocabulary import MAX_FILE_BYTES, Vocabulary

Check = Callable[[bytes, Manifest], None]
Rebuild = Callable[[bytes, str, bytes, Manifest], bytes | DeltaRefused]
UNFINISHED = (".part", ".delta")
SIGNED_SLACK_BYTES = 1024
KEPT_PARTS = 4
MOST_SOUND = 64
TRIES = 3


class VersionRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A version cannot be used; `reason` is its stable name, and the slot is what it was."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@lru_cache(maxsize=4)
def _parse(data: bytes) -> Vocabulary:
    return Vocabulary.from_bytes(data)


# Files whose structure was found sound in this process: by their template, and what a version of it may change. What
# lies outside those ranges is the template's, so that it need not be looked at for each version, and each device.
_sound: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Held:
    """A version that is on the disk: its manifest and the file's bytes."""

    manifest: Manifest
    data: bytes


class ModelSlots:
    """Slots below `home`. `model_url` is what the manifest's addresses are relative to; `check` raises to refuse;
    `rebuild` makes a version of a base and a delta, where numpy is; `repository` is asked about refreshes, if there is
    one."""

    def __init__(
        self, home: Path, keys: trust.Keys, population: str, model_url: str, downloads: Downloads, check: Check,
        rebuild: Rebuild = rebuild, repository: Repository | None = None,
    ) -> None:  # fmt: skip
        self._home = home
        self._keys = keys
        self._population = population
        self._model_url = model_url
        self._downloads = downloads
        self._check = check
        self._rebuild = rebuild
        self.repository = repository
        self._slots: dict[str, tuple[tuple[int, int], Slot]] = {}
        self.refused_parts: list[str] = []
        self._broken_deltas: tuple[str, int] = ("", 0)

    def slot(self, track: Track) -> Slot:
        """Return what a track holds. Raises `StorageFailed` if its pointer is broken."""
        path = self._home / "slots" / f"{track}.json"
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:
            return Slot()
        except OSError as e:
            raise StorageFailed(f"{path} cannot be read: {e}") from e
        known = self._slots.get(track)
        if known is None or known[0] != seen:
            known = self._slots[track] = (seen, _read_slot(path))
        return known[1]

    def accept(self, signed: bytes, track: Track, now: float) -> Manifest:
        """Return the manifest inside `signed` if `trust` takes it for this track; fetches its template if need be.

        Raises `trust.ManifestRefused` or `Unreachable`.
        """
        slot = self.slot(track)
        templates: dict[str, Manifest] = {}
        while True:
            try:
                return trust.accept(
                    signed,
                    keys=self._keys,
                    population=self._population,
                    track=track,
                    before=trust.Accepted(slot.version, slot.sha256),
                    templates=templates,
                    now=now,
                )
            except trust.TemplateUnknown as e:
                templates[e.template_sha256] = self._template(e.template_sha256)

    def _template(self, template_sha256: str) -> Manifest:
        signed = self._signed_template(template_sha256)
        return trust.accept_template(signed, keys=self._keys, template_sha256=template_sha256)

    def _signed_template(self, template_sha256: str) -> bytes:
        path = self._home / "templates" / f"{template_sha256}.bin"
        held = self._held_template(path, template_sha256)
        if held is not None:
            return held
        try:
            signed = self.fetch(
                template_path(self._population, template_sha256), MAX_MANIFEST_BYTES + SIGNED_SLACK_BYTES
            )
        except (NotThere, TooLarge) as e:
            raise trust.ManifestRefused("template_missing", f"the template's manifest is not to be had: {e}") from e
        trust.accept_template(signed, keys=self._keys, template_sha256=template_sha256)
        write_atomically(path, signed)
        return signed

    def _held_template(self, path: Path, template_sha256: str) -> bytes | None:
        try:
            signed = path.read_bytes()
            trust.accept_template(signed, keys=self._keys, template_sha256=template_sha256)
            return signed
        except FileNotFoundError:
            return None
        except trust.ManifestRefused:
            remove(path)
            return None
        except OSError as e:
            raise StorageFailed(f"{path} cannot be read: {e}") from e

    def install(self, signed: bytes, track: Track, now: float) -> Manifest:
        """Make the version described by `signed` the track's current one; a refresh is on trial then.

        Use it for a version that `accept` would take. Raises `VersionRefused`, `trust.ManifestRefused`, `NotThere`,
        `Unreachable` (resume later), `StorageFull`.
        """
        manifest = self.accept(signed, track, now)
        slot = self.slot(track)
        if manifest.sha256 in slot.bad:
            raise VersionRefused("rolled_back", f"version {manifest.version} was here, and was rolled back")
        self._check_vocabulary(manifest)
        whole = slot.current == manifest.sha256 and self.held(manifest.sha256) is not None
        if whole and slot.version == manifest.version:
            return manifest
        if track == "refresh" and self.repository is not None:
            admit(
                signed, manifest, self.repository, self._population,
                lambda: self._signed_template(manifest.template_sha256), now,
            )  # fmt: skip
        held = self.held(manifest.sha256)
        if held is None:
            self._get(manifest, track)
        elif promises_hash(held.manifest) != promises_hash(manifest):
            self._check_bytes(held.data, manifest)
        write_atomically(self._home / "manifests" / f"{manifest.sha256}.bin", signed)
        self.change(track, activation.Installed(manifest.sha256, manifest.version, tried=track == "training"))
        return manifest

    def change(self, track: Track, *events: activation.Event) -> Slot:
        """Take steps of `activation`, durably and all at once; then delete what no slot names any more.

        Raises `VersionRefused` for a step that the table does not list: then none is taken.
        """
        with self._locked(track):
            try:
                slot = reduce(activation.step, events, self.slot(track))
            except StepRefused as e:
                raise VersionRefused(e.reason, str(e)) from e
            text = json.dumps(asdict(slot))
            write_atomically(self._home / "slots" / f"{track}.json", text.encode() + b"\n")
        self.sweep()
        return slot

    @contextmanager
    def _locked(self, track: Track) -> Iterator[None]:
        path = self._home / "slots" / f"{track}.lock"
        make_empty(path, 0o644)
        try:
            with path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as e:
            raise storage_error(e, str(path)) from e

    def begin_boot(self, track: Track = "refresh") -> Held | None:
        """Return what a process that is about to use the track's version is to open, or None.

        On trial the start is counted, durably, before anything is returned; say `came_up` when the version answered.
        Where the disk is too full to count it, the version before is returned, which needs no count.
        """
        slot = self.slot(track)
        if slot.on_trial:
            try:
                slot = self.change(track, activation.BootBegun())
            except StorageFull:
                before = self.held(slot.previous) if slot.previous else None
                if before is None:
                    raise
                return before
        held = self.held(slot.current) if slot.current else None
        if slot.on_trial and held is None:
            slot = self.change(track, activation.Lost())
            held = self.held(slot.current) if slot.current else None
        return held

    def came_up(self, track: Track = "refresh", sha256: str = "") -> Slot:
        """Count that the version which `begin_boot` returned, the file `sha256`, was opened and answered.

        It does not count for another that was installed meanwhile; "" is whichever is there.
        """
        slot = self.slot(track)
        if not slot.on_trial or sha256 not in ("", slot.current):
            return slot
        return self.change(track, activation.CameUp(sha256))

    def roll_back(self, track: Track) -> Slot:
        """Go back to the track's previous version by hand; the confirmed floor stays what it was."""
        slot = self.slot(track)
        if not slot.previous or self.held(slot.previous) is None:
            raise VersionRefused("no_previous", f"the {track} track holds no previous version")
        return self.change(track, activation.RolledBack())

    def sweep(self) -> None:
        """Delete files that no slot names."""
        slots = [self.slot(track) for track in get_args(Track)]
        named = {sha256 for slot in slots for sha256 in (slot.current, slot.previous)}
        for folder in ("models", "manifests"):
            for path in (self._home / folder).glob("[0-9a-f]*"):
                if path.suffix not in UNFINISHED and path.stem not in named:
                    remove(path)
        parts = [path for path in (self._home / "models").glob("*.*") if path.suffix in UNFINISHED]
        for path in parts:
            if path.name.partition(".")[0] in named:
                remove(path)
        for path in sorted((p for p in parts if p.exists()), key=lambda path: path.stat().st_mtime)[:-KEPT_PARTS]:
            remove(path)

    def held(self, sha256: str) -> Held | None:
        """Return a version whose file and manifest are here and whole, or None."""
        path = self._home / "models" / f"{sha256}.tflite"
        try:
            signed = (self._home / "manifests" / f"{sha256}.bin").read_bytes()
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            remove(path)
            return None
        try:
            return Held(self._reopen(signed), data)
        except ContractError:
            return None

    def _reopen(self, signed: bytes) -> Manifest:
        # Accepted before; who signed it was settled then.
        return decode_manifest(read_envelope(signed).body)

    def base_of(self, offer: TaskOffer) -> Held | None:
        """Return the offer's base version if it is here, whole, and what the offer says."""
        held = self.held(offer.base_sha256)
        if held is None or not self.has_vocabulary(held.manifest):
            return None
        # After an undo two versions have the same bytes; the manifest on the disk is the newer's, of either track.
        slot = self.slot("training")
        versions = (held.manifest.version, slot.version if slot.sha256 == offer.base_sha256 else 0)
        fits = offer.base_version in versions and held.manifest.layout_fingerprint == offer.layout_fingerprint
        return held if fits else None

    def for_keyboards(self) -> Held | None:
        """Return the refresh. Before the first one it is the training version, but not where a root is pinned: what
        the offline keys have not signed for keyboards reaches none."""
        held = self.current("refresh")
        pinned = (self._home / FOLDER / PINNED_FILE).exists()
        return held if held is not None or pinned else self.current("training")

    def current(self, track: Track) -> Held | None:
        """Return the track's current version, or None."""
        slot = self.slot(track)
        return self.held(slot.current) if slot.current else None

    def vocabulary(self, sha256: str) -> Vocabulary | None:
        """Return a vocabulary that is here, or None."""
        try:
            data = (self._home / "vocabularies" / f"{sha256}.txt").read_bytes()
        except OSError:
            return None
        return _parse(data) if hashlib.sha256(data).hexdigest() == sha256 else None

    def has_vocabulary(self, manifest: Manifest) -> bool:
        """Whether what a version needs beside its file is here."""
        return manifest.family == ARRAY_FAMILY or self.vocabulary(manifest.vocabulary_sha256) is not None

    def _check_vocabulary(self, manifest: Manifest) -> None:
        if self.has_vocabulary(manifest):
            return
        data = self.fetch(manifest.vocabulary_url or f"/v1/vocabularies/{manifest.vocabulary_sha256}", MAX_FILE_BYTES)
        if hashlib.sha256(data).hexdigest() != manifest.vocabulary_sha256:
            raise VersionRefused("vocabulary_hash", f"the vocabulary hashes not to {manifest.vocabulary_sha256[:16]}")
        try:
            words = len(Vocabulary.from_bytes(data))
        except ContractError as e:
            raise VersionRefused("vocabulary", str(e)) from e
        if words != manifest.vocabulary_words:
            raise VersionRefused("vocabulary", f"the manifest says {manifest.vocabulary_words} words, got {words}")
        write_atomically(self._home / "vocabularies" / f"{manifest.vocabulary_sha256}.txt", data)

    def fetch(self, url: str, limit_bytes: int) -> bytes:
        """Return a small file; `url` is relative to the model server's. Raises as `install` does."""
        return b"".join(self._downloads.fetch(self._address(url), 0, limit_bytes).chunks)

    def _address(self, url: str) -> str:
        try:
            address = urljoin(self._model_url, url)
            urlsplit(address).port  # noqa: B018 - reading it is the check
            address.encode("ascii")
        except ValueError as e:
            raise VersionRefused("wrong_address", f"an address is an ASCII URL, got {url[:200]!r}") from e
        return address

    def part(self, manifest: Manifest, base: str = "") -> Path:
        """Return where the bytes of a version gather: those of its delta from `base`, or its file's if that is ""."""
        return self._home / "models" / (f"{manifest.sha256}.{base[:16]}.part" if base else f"{manifest.sha256}.part")

    def bases(self, track: Track, manifest: Manifest) -> Iterator[tuple[str, Held]]:
        """Yield what is here and whole that a delta to this version may start from, the track's own first."""
        slots = [self.slot(track), *(self.slot(other) for other in get_args(Track) if other != track)]
        for sha256 in dict.fromkeys(name for slot in slots for name in (slot.current, slot.previous) if name):
            held = self.held(sha256) if sha256 != manifest.sha256 else None
            if held is not None and held.manifest.template_sha256 == manifest.template_sha256:
                yield sha256, held

    def _get(self, manifest: Manifest, track: Track) -> None:
        part = self.part(manifest)
        whole = part.exists() and part.stat().st_size == manifest.size_bytes
        target, count = self._broken_deltas
        broken = count if target == manifest.sha256 else 0
        try:
            if whole or not self._by_any_delta(manifest, track, may_fetch=broken < TRIES):
                self._download(manifest)
        except Unreachable:
            self._broken_deltas = (manifest.sha256, broken + 1)
            raise

    def _by_any_delta(self, manifest: Manifest, track: Track, *, may_fetch: bool) -> bool:
        # One that is here already comes before one that would have to be fetched.
        here = any((self._home / "models").glob(f"{manifest.sha256}.*.delta"))
        tries = [False] * here + [True] * may_fetch
        return any(
            self._by_delta(manifest, base, held, may_fetch=fetches)
            for fetches in tries
            for base, held in self.bases(track, manifest)
        )

    def _by_delta(self, manifest: Manifest, base: str, held: Held, *, may_fetch: bool) -> bool:
        """Make the version of one that is held; False if there is no delta, or it is of no use."""
        part = self.part(manifest, base)
        gathered = part.with_suffix(".delta")
        address = self._address(f"/v1/populations/{self._population}/deltas/{base}/{manifest.sha256}")
        try:
            if not gathered.exists():
                if not may_fetch:
                    return False
                # No larger than the file: then the file itself is the better way.
                self._append(part, address, manifest.size_bytes - 1)
                rename_durably(part, gathered)
            made = self._rebuild(held.data, base, gathered.read_bytes(), manifest)
        except NotThere:
            return False
        except TooLarge as e:
            made = DeltaRefused("delta_too_large", str(e))
        except OSError as e:
            raise storage_error(e, str(part)) from e
        remove(part)
        if isinstance(made, DeltaRefused):
            remove(gathered)
            self.refused_parts.append(made.reason)
            return False
        try:
            self._check_bytes(made, manifest)
        except VersionRefused:
            remove(gathered)
            raise
        write_atomically(part.with_name(f"{manifest.sha256}.tflite"), made)
        remove(gathered)
        return True

    def _download(self, manifest: Manifest) -> None:
        part = self.part(manifest)
        begun = part.exists()
        try:
            self._finish(manifest, part)
        except VersionRefused as e:
            if not begun or e.reason not in ("wrong_size", "wrong_hash"):
                raise
            self.refused_parts.append(f"part_{e.reason}")
            self._finish(manifest, part)

    def _finish(self, manifest: Manifest, part: Path) -> None:
        try:
            if not part.exists() or part.stat().st_size != manifest.size_bytes:
                self._append(part, self._address(manifest.url or f"/v1/models/{manifest.sha256}"), manifest.size_bytes)
            data = part.read_bytes()
        except TooLarge as e:
            remove(part)
            raise VersionRefused("wrong_size", str(e)) from e
        except OSError as e:
            raise storage_error(e, str(part)) from e
        try:
            self._check_bytes(data, manifest)
        except VersionRefused:
            remove(part)
            raise
        rename_durably(part, part.with_suffix(".tflite"))

    def _append(self, part: Path, address: str, limit_bytes: int) -> None:
        """Fetch what is missing of a part."""
        start = part.stat().st_size if part.exists() else 0
        if start > limit_bytes:
            remove(part)
            start = 0
        download = self._downloads.fetch(address, start, limit_bytes)
        append_durably(part, download.start, download.chunks)

    def _check_bytes(self, data: bytes, manifest: Manifest) -> None:
        if len(data) != manifest.size_bytes:
            raise VersionRefused("wrong_size", f"the manifest says {manifest.size_bytes} bytes, got {len(data)}")
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest.sha256:
            raise VersionRefused("wrong_hash", f"the file hashes to {manifest.sha256[:16]}..., got {digest[:16]}...")
        if template_hash(data, manifest) != manifest.template_sha256:
            raise VersionRefused("wrong_template", "bytes outside the stated ranges differ from the template's")
        try:
            _check_structure(data, manifest)
        except flatbuffer_check.FileRefused as e:
            raise VersionRefused(e.reason, str(e)) from e
        self._check(data, manifest)


def _check_structure(data: bytes, manifest: Manifest) -> None:
    stated = repr((patched_ranges(manifest), manifest.tensors, sorted(manifest.signatures))).encode()
    name = (manifest.template_sha256, hashlib.sha256(stated).hexdigest())
    if name not in _sound:
        flatbuffer_check.check(data, manifest)
        if len(_sound) >= MOST_SOUND:
            _sound.clear()
        _sound.add(name)


def _read_slot(path: Path) -> Slot:
    try:
        fields = json.loads(path.read_text())
        fields["bad"] = tuple(fields.get("bad", ()))
        # A release without trials confirmed what it installed.
        fields.setdefault("floor", fields["version"])
        fields.setdefault("floor_sha256", fields["sha256"])
        return Slot(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise StorageFailed(f"{path} cannot be read: {e}") from e
