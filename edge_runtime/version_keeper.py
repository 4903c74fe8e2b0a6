"""Keeping the device's versions up to date: the base that an offer names, and the refresh that was announced.

The rules:
- an announcement, retained on MQTT or fetched over HTTP, is only bytes until `trust` accepts it;
- a base is wanted exactly as the offer names it, version and hash; if the world moved on, the lease is dropped; the
  public files that the offer's plan names are fetched with it;
- a version that HTTP does not bring may come over the broker (`model_chunks`);
- a base that was refused here is not fetched again for an hour, however often it is offered;
- a trainer that died says nothing about a version: it is tried again, as after a broken link;
- a refresh is installed when the link is unmetered; a broken link is tried again after a full-jitter wait, and a
  refused version is forgotten until another is announced;
- where a root is pinned, a refresh that is newer than what is held is taken only if the repository lists it;
- a refresh on trial (`activation`) is started once a turn, in the trainer, and judged after the last of these starts;
  whoever else uses it counts its own starts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edge_runtime import activation, backoff, news, public_files, session
from edge_runtime.adapters.tuf_client import TufRepository
from edge_runtime.model_chunks import ModelChunks, Transfer
from edge_runtime.model_health import Health
from edge_runtime.model_slots import Check, Held, ModelSlots, Rebuild, VersionRefused
from edge_runtime.ports import (
    Clock,
    Download,
    Downloads,
    NotThere,
    PortError,
    RuntimeFailed,
    StorageFailed,
    StorageFull,
    TooLarge,
    Unreachable,
)
from edge_runtime.repository_trust import pinned_root
from edge_runtime.trust import Keys, ManifestRefused
from edge_runtime.turn_report import Notes
from wire_contract.errors import ContractError
from wire_contract.manifest import MAX_MANIFEST_BYTES, Manifest
from wire_contract.messages import Enrolled, EvaluationOffer, ModelChunk, TaskOffer, TrustFile
from wire_contract.topics import Track

REFUSED_S = 3600.0
ENVELOPE_SLACK_BYTES = 1024


@dataclass
class CountedDownloads:
    """A Downloads port that counts the bytes that came."""

    downloads: Downloads
    bytes_down: int = 0

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        """See `ports.Downloads.fetch`."""
        opened = self.downloads.fetch(url, start, limit_bytes)
        return replace(opened, chunks=self._count(opened.chunks))

    def _count(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for piece in chunks:
            self.bytes_down += len(piece)
            yield piece


TryOut = Callable[[str, str], Health]
"""`try_out(sha256, before)` opens a version that is here, and judges its health against `before`'s, if that is not "".
Raises `RuntimeFailed` if the trainer died, `StorageFull`, `StorageFailed`."""


class VersionKeeper:
    """One agent's versions. `notes` is set anew each turn; `seen_at` (Unix seconds) is when news were seen last.

    Without `try_out` a version's starts are counted by whoever uses it, and it is confirmed by hand.
    """

    def __init__(
        self, home: Path, enrolled: Enrolled, downloads: Downloads, clock: Clock, check: Check, rebuild: Rebuild,
        *, seen_at: float = 0.0, remember: Callable[[float], None] = lambda seen_at: None,
        try_out: TryOut | None = None,
    ) -> None:  # fmt: skip
        self._home = home
        self._enrolled = enrolled
        self._clock = clock
        self._downloads = CountedDownloads(downloads)
        keys = Keys(enrolled.manifest_key, enrolled.aggregator_key)
        root = pinned_root(home, enrolled.root)
        self._repository = TufRepository(home, root, enrolled.model_url, self._downloads) if root else None
        self.slots = ModelSlots(
            home, keys, enrolled.population, enrolled.model_url, self._downloads, check, rebuild, self._repository
        )
        self._try_out = try_out
        self.chunks = ModelChunks(self.slots)
        self._training: bytes | None = None
        self._refresh: bytes | None = None
        self._carried: dict[str, bytes] = {}
        self._attempts = 0
        self._not_before = 0.0
        self._seen_at = self._remembered_at = seen_at
        self._remember = remember
        # The file that was refused last, and until when (elapsed seconds) it is not tried again.
        self._refused: tuple[str, float] = ("", 0.0)
        self.notes = Notes()
        # The turn in which a version on trial was started last.
        self._tried_in: Notes | None = None

    def take_bytes_down(self) -> int:
        """Return the bytes downloaded since the last call."""
        count, self._downloads.bytes_down = self._downloads.bytes_down, 0
        return count

    @property
    def versions(self) -> tuple[int, int]:
        """Highest accepted (training, refresh) version; 0 before the first."""
        return self.slots.slot("training").version, self.slots.slot("refresh").version

    @property
    def wants_news(self) -> bool:
        """Whether a refresh waits to be installed, or none was announced for six hours."""
        return self._refresh is not None or news.due(self._seen_at, self._clock.now())

    def announce(self, track: Track, signed: bytes, trust: tuple[TrustFile, ...] = ()) -> None:
        """Take note of a retained announcement, and of the repository's metadata that it brought."""
        if track == "training":
            self._training = signed
        else:
            self._refresh = signed
            self._carried = {file.name: file.data for file in trust}
            self._see(self._clock.now())

    def _see(self, now: float) -> None:
        # Durable, so that an agent that is started again and again does not connect each time; but not for each news.
        self._seen_at = now
        if not 0.0 <= now - self._remembered_at < news.POLL_S / 6:
            self._remember(now)
            self._remembered_at = now

    def current(self) -> Held | None:
        """Return the version for the keyboard, see `ModelSlots.for_keyboards`."""
        return self.slots.for_keyboards()

    def fetch_refresh(self) -> Manifest:
        """Fetch the announced refresh over HTTP and install it; raises what `ModelSlots.install` does."""
        manifest = self._install(self._by_http("refresh"), "refresh", self._clock.now())
        self._start_again()
        return manifest

    def install_refresh(self, draw: Callable[[], float]) -> None:
        """Install the refresh that was announced, if one waits and its time has come."""
        now = self._clock.now()
        self.go_on_with_trial()
        if not self.wants_news or now < self._not_before:
            return
        before = self.slots.slot("refresh").current
        try:
            # Some brokers send a retained message only once to a session that goes on: then it is fetched.
            signed = self._refresh or self._by_http("refresh")
            manifest = self._install(signed, "refresh", now)
        except (Unreachable, StorageFull, RuntimeFailed) as e:
            self.notes.refused.append(name_of(e))
            self._not_before = now + backoff.wait(self._attempts, draw())
            self._attempts += 1
            return
        except (VersionRefused, ManifestRefused, PortError) as e:
            self.notes.refused.append(name_of(e))
        else:
            if before != manifest.sha256:
                self.notes.versions.append(("refresh", manifest.version))
                if not before:
                    # The first one: a keyboard waits for it.
                    self._start_again()
        self._refresh, self._attempts = None, 0
        self._see(now)

    def go_on_with_trial(self) -> None:
        """Start the refresh that is on trial once more, once a turn; it needs no link."""
        if self._tried_in is not self.notes:
            self._tried_in = self.notes
            self._start_again()

    def _start_again(self) -> None:
        """Start the refresh that is on trial, and act on what that came to."""
        slots = self.slots
        if self._try_out is None or not slots.slot("refresh").on_trial:
            return
        try:
            held, after = slots.begin_boot(), slots.slot("refresh")
            if held is None or not after.on_trial:
                self._tell_rolled_back(after)
                return
            if held.manifest.sha256 != after.current:
                # No room to count the start: then there is none.
                self.notes.refused.append(name_of(StorageFull()))
                return
            last = bool(after.previous) and after.came_up + 1 >= after.boots_wanted
            health = self._try_out(after.current, after.previous if last else "")
            if health.reason:
                self._tell_rolled_back(slots.change("refresh", activation.Unhealthy(health.reason, after.current)))
                return
            judged = [activation.Healthy(health.said, after.current)] if last else []
            slots.change("refresh", activation.CameUp(after.current), *judged)
        except RuntimeFailed as e:
            # The start counts, and did not come up.
            self.notes.refused.append(name_of(e))
        except VersionRefused as e:
            # The person, or another process, ended the trial meanwhile.
            self.notes.refused.append(name_of(e))

    def _tell_rolled_back(self, slot: activation.Slot) -> None:
        self.notes.refused.append("rolled_back: " + slot.said.rpartition(": ")[2])
        self.notes.versions.append(("refresh", slot.version))

    @property
    def trial_said(self) -> str:
        """What the last trial came to if it ended badly, for the device's report; "" while the newest is in use."""
        slot = self.slots.slot("refresh")
        return slot.said if slot.bad and not slot.on_trial and "rolled back" in slot.said else ""

    def base(self, offer: TaskOffer) -> Held | None:
        """Return the offer's base version if it is here."""
        return self.slots.base_of(offer)

    def fetch_base(self, offer: TaskOffer, draw: float) -> session.Event:
        """Get the offer's base version; the answer is the session's next event."""
        now = self._clock.now()
        try:
            if self.base(offer) is not None:
                return self._fetch_named(offer, draw, now)
            refused = self._refused_before(offer.base_sha256, draw, now)
            if refused is not None:
                return refused
            for signed in self._announcements():
                manifest = self._acceptable(signed, now)
                stated = manifest and (manifest.version, manifest.sha256)
                if manifest is not None and stated == (offer.base_version, offer.base_sha256):
                    self._install(signed, "training", now)
                    self.notes.versions.append(("training", manifest.version))
                    return self._fetch_named(offer, draw, now)
            self.notes.refused.append("base_gone")
            return session.BaseGone(now, draw, f"version {offer.base_version} is not announced any more")
        except (VersionRefused, ManifestRefused, PortError) as e:
            return self._not_had(e, offer.base_sha256, draw, now)

    def fetch_evaluated(self, offer: EvaluationOffer, draw: float) -> session.Event | None:
        """Get the version that is to be evaluated; None once it is here, else the session's next event."""
        now = self._clock.now()
        try:
            if self.slots.held(offer.version_sha256) is not None:
                return None
            refused = self._refused_before(offer.version_sha256, draw, now)
            if refused is not None:
                return refused
            for track, signed in self._announced():
                manifest = self._acceptable(signed, now, track)
                if manifest is not None and (manifest.version, manifest.sha256) == (
                    offer.version, offer.version_sha256,
                ):  # fmt: skip
                    self._install(signed, track, now)
                    self.notes.versions.append((track, manifest.version))
                    return None
            self.notes.refused.append("version_gone")
            return session.BaseGone(now, draw, f"version {offer.version} is not announced any more")
        except (VersionRefused, ManifestRefused, PortError) as e:
            return self._not_had(e, offer.version_sha256, draw, now)

    def _not_had(self, error: Exception, sha256: str, draw: float, now: float) -> session.Event:
        self.notes.refused.append(name_of(error))
        if isinstance(error, Unreachable | StorageFull | RuntimeFailed):
            return session.BaseUnreachable(now, draw, str(error))
        if isinstance(error, VersionRefused):
            self._refused = (sha256, self._clock.elapsed() + REFUSED_S)
        return session.BaseGone(now, draw, str(error))

    def _refused_before(self, sha256: str, draw: float, now: float) -> session.Declined | None:
        name, until = self._refused
        left = until - self._clock.elapsed()
        if name != sha256 or left <= 0.0:
            return None
        self.notes.refused.append("refused_before")
        reason = f"the version's file {sha256[:16]} was refused here a short while ago"
        return session.Declined(now, draw, reason, not_before=now + left)

    def _announced(self) -> Iterator[tuple[Track, bytes]]:
        if self._refresh is not None:
            yield "refresh", self._refresh
        if self._training is not None:
            yield "training", self._training
        yield "refresh", self._by_http("refresh")
        yield "training", self._by_http("training")

    def _fetch_named(self, offer: TaskOffer, draw: float, now: float) -> session.Event:
        try:
            for kind, sha256 in public_files.named(offer.plan.codec):
                public_files.ensure(self._home, kind, sha256, self.slots.fetch)
        except (VersionRefused, PortError) as e:
            # Waited for within the lease, whatever is wrong with it: asking for work at once would bring the same.
            self.notes.refused.append(name_of(e))
            return session.BaseUnreachable(now, draw, str(e))
        return session.BaseHeld(now)

    def _install(self, signed: bytes, track: Track, now: float) -> Manifest:
        before = self._downloads.bytes_down
        if self._repository is not None:
            self._repository.carried = self._carried if signed == self._refresh else {}
        try:
            manifest = self.slots.install(signed, track, now)
        except Unreachable:
            wanted = self._acceptable(signed, now, track)
            if wanted is not None:
                self.chunks.http_failed(signed, wanted, track)
            raise
        finally:
            self._tell_refused_parts()
        self.chunks.installed(manifest.sha256)
        if self._downloads.bytes_down > before:
            self.chunks.http_works()
        return manifest

    def _tell_refused_parts(self) -> int:
        refused, self.slots.refused_parts = self.slots.refused_parts, []
        self.notes.refused += refused
        return len(refused)

    def take_chunk(self, chunk: ModelChunk) -> None:
        """Take a piece of a version that came over the broker. Raises `StorageFull`."""
        dropped = self.chunks.take(chunk)
        if dropped:
            self.notes.refused.append(dropped)

    def install_chunks(self) -> bool:
        """Install the version whose pieces are all here, if there is one; return whether one became current."""
        transfer = self.chunks.whole()
        if transfer is None:
            return False
        if self._repository is not None:
            self._repository.carried = self._carried if transfer.signed == self._refresh else {}
        try:
            manifest = self.slots.install(transfer.signed, transfer.track, self._clock.now())
        except (Unreachable, VersionRefused) as e:
            # An unreachable server after a whole: what the pieces made was of no use.
            if self._tell_refused_parts() or isinstance(e, VersionRefused):
                self._pieces_lied(transfer, e)
            return False
        except (ManifestRefused, NotThere, TooLarge, RuntimeFailed) as e:
            self.notes.refused.append(name_of(e))
            return False
        self._tell_refused_parts()
        self.notes.versions.append((transfer.track, manifest.version))
        if transfer.track == "refresh":
            self._refresh, self._attempts = None, 0
            self._see(self._clock.now())
        return True

    def _pieces_lied(self, transfer: Transfer, error: Exception) -> None:
        if isinstance(error, VersionRefused):
            self.notes.refused.append(name_of(error))
        if self.chunks.was_bad(transfer):
            self.notes.refused.append("model_chunks_lie")

    def _acceptable(self, signed: bytes, now: float, track: Track = "training") -> Manifest | None:
        # Whoever can write to the broker could stop all training with one refused manifest, if that ended the search.
        try:
            return self.slots.accept(signed, track, now)
        except ManifestRefused as e:
            self.notes.refused.append(name_of(e))
            return None

    def _announcements(self) -> Iterator[bytes]:
        if self._training is not None:
            yield self._training
        yield self._by_http("training")

    def _by_http(self, track: Track) -> bytes:
        path = f"/v1/populations/{self._enrolled.population}/{track}"
        return self.slots.fetch(path, MAX_MANIFEST_BYTES + ENVELOPE_SLACK_BYTES)


def name_of(error: Exception) -> str:
    """Return a refusal's stable name: its own, or the error's class in lower case."""
    reason = getattr(error, "reason", "")
    if isinstance(reason, str) and reason:
        return reason
    return _NAMES.get(type(error).__name__, type(error).__name__.lower())


_NAMES = {
    cls.__name__: name
    for cls, name in (
        (StorageFull, "storage_full"),
        (StorageFailed, "storage_failed"),
        (NotThere, "not_there"),
        (TooLarge, "too_large"),
        (RuntimeFailed, "trainer_died"),
        (ContractError, "malformed"),
    )
}
