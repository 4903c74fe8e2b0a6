"""A version over the broker, piece by piece, when the HTTP side cannot be reached: what to ask for, what to believe.

The rules:
- only after three downloads in a row found nobody, and only for a version whose signed manifest was accepted;
- a delta from what is held is asked for first, the whole file only when there is none;
- at most four pieces are on their way; the next are asked for when these have come, or again after a while, and then
  half as many: a slow link is not to carry twice what it carries already;
- a piece is taken only if it is the next one, of the size that its place has, of what was asked for: a repeated, an
  early or a foreign one is dropped. So the file's length is the whole state, and a transfer goes on after a restart,
  also one that HTTP began;
- pieces are not signed: the whole is believed when it hashes to the manifest's word. After three wholes that did not,
  no more of that version is asked for here;
- a denial, signed, says when to ask again.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from edge_runtime import backoff
from edge_runtime.adapters.files import append_durably, remove, rename_durably
from edge_runtime.model_slots import ModelSlots
from wire_contract.manifest import Manifest
from wire_contract.messages import MAX_CHUNK_BYTES, MAX_MODEL_WINDOW, ModelChunk, ModelDenied, ModelRequest
from wire_contract.topics import Track

FAILURES_BEFORE = 3
ANSWER_S = 60.0
BAD_WHOLES = 3
PATIENCE = 5


@dataclass(frozen=True, slots=True)
class Transfer:
    """What is gathered: the version, the base of its delta ("": the file itself), and the request under way.

    `expected` is the first piece that has not been asked for, `count` how many the last request was for; `size_bytes`
    is what the first piece said, 0 before and after a request that brought none; `attempts` counts the requests since
    the last piece.
    """

    signed: bytes
    manifest: Manifest
    track: Track
    base: str
    nonce: str = ""
    expected: int = 0
    count: int = 0
    size_bytes: int = 0
    ask_at: float = 0.0
    attempts: int = 0

    @property
    def goes_on(self) -> bool:
        """Whether pieces come, or may still come."""
        return self.attempts < PATIENCE


class ModelChunks:
    """One device's transfer over the broker; it has one at a time. `slots` says where the bytes gather."""

    def __init__(self, slots: ModelSlots) -> None:
        self._slots = slots
        self._failures = 0
        self._transfer: Transfer | None = None
        self._bad: tuple[str, int] = ("", 0)
        self._denied_until = 0.0

    @property
    def awaited(self) -> bool:
        """Whether pieces are on their way."""
        return self._transfer is not None and bool(self._transfer.nonce)

    def http_failed(self, signed: bytes, manifest: Manifest, track: Track) -> None:
        """Note that a version could not be downloaded: the third time, it is wanted over the broker."""
        self._failures += 1
        if self._failures < FAILURES_BEFORE or self._bad == (manifest.sha256, BAD_WHOLES):
            return
        now = self._transfer
        if now is not None and (now.manifest.sha256 == manifest.sha256 or (now.track != track and now.goes_on)):
            # The other track's turn comes when this one is through, or nobody answers.
            return
        base = next((sha256 for sha256, _ in self._slots.bases(track, manifest)), "")
        self._transfer = Transfer(signed, manifest, track, base, ask_at=self._denied_until)

    def http_works(self) -> None:
        """Note that a download went well: the broker is spared."""
        self._failures, self._transfer = 0, None

    def installed(self, sha256: str) -> None:
        """Note that a version is here: no piece of it is wanted any more."""
        if self._transfer is not None and self._transfer.manifest.sha256 == sha256:
            self._transfer = None

    def due(self, now: float) -> bool:
        """Whether something is to be asked for now."""
        transfer = self._transfer
        if transfer is None:
            return False
        came = bool(transfer.nonce) and self._length(transfer) // MAX_CHUNK_BYTES >= transfer.expected
        return came or now >= transfer.ask_at

    def request(self, device: str, now: float, nonce: str, draw: float) -> ModelRequest:
        """Return what to ask for, when it is `due`."""
        transfer = self._transfer
        if transfer is None:
            raise ValueError("a request is made for a version that is wanted")
        first = self._length(transfer) // MAX_CHUNK_BYTES
        # Without a piece in between, wait longer each time: a broker that is slow is not helped by more requests.
        longer = backoff.wait(transfer.attempts, draw) if transfer.attempts else 0.0
        count = self._next_count(transfer, first)
        self._transfer = replace(
            transfer,
            nonce=nonce,
            expected=first + count,
            count=count,
            # Nothing came that fits the size that a piece has said: perhaps that piece lied.
            size_bytes=0 if transfer.attempts else transfer.size_bytes,
            ask_at=now + ANSWER_S + longer,
            attempts=transfer.attempts + 1,
        )
        return ModelRequest(
            device=device,
            nonce=nonce,
            sent_at=int(now),
            wanted=transfer.manifest.sha256,
            held=transfer.base,
            first=first,
            count=count,
        )

    @staticmethod
    def _next_count(transfer: Transfer, first: int) -> int:
        """Return how many pieces to ask for: four, half as many as were not all there in time, twice what came."""
        if not transfer.count:
            return MAX_MODEL_WINDOW
        if transfer.nonce and first < transfer.expected:
            return max(1, transfer.count // 2)
        return min(MAX_MODEL_WINDOW, 2 * transfer.count)

    def take(self, chunk: ModelChunk) -> str:
        """Put a piece where it belongs; return why it was dropped, or "". Raises `StorageFull`."""
        transfer = self._transfer
        if transfer is None or (chunk.wanted, chunk.held) != (transfer.manifest.sha256, transfer.base):
            return "model_chunk_not_asked_for"
        size = transfer.manifest.size_bytes
        if not (chunk.size_bytes < size if transfer.base else chunk.size_bytes == size):
            return "model_chunk_wrong_size"
        if transfer.size_bytes not in (0, chunk.size_bytes):
            return "model_chunk_wrong_size"
        start = chunk.index * MAX_CHUNK_BYTES
        if len(chunk.data) != min(MAX_CHUNK_BYTES, chunk.size_bytes - start):
            return "model_chunk_wrong_size"
        if chunk.index != self._length(transfer) // MAX_CHUNK_BYTES or chunk.index >= transfer.expected:
            return "model_chunk_out_of_turn"
        self._write(self._part(transfer), start, chunk.data)
        self._transfer = replace(transfer, size_bytes=chunk.size_bytes, attempts=0)
        return ""

    def deny(self, denied: ModelDenied, draw: float) -> None:
        """Heed a signed denial of the request under way."""
        transfer = self._transfer
        if transfer is None or denied.nonce != transfer.nonce:
            return
        window = denied.retry
        ask_at = window.earliest + draw * max(0, window.latest - window.earliest)
        if denied.code in ("no_delta", "deltas_only"):
            # The next base, then the whole file; after that the first again, for a delta may have been made meanwhile.
            bases = [*(sha256 for sha256, _ in self._slots.bases(transfer.track, transfer.manifest)), ""]
            place = bases.index(transfer.base) + 1 if transfer.base in bases else 0
            self._transfer = replace(transfer, base=bases[place % len(bases)], nonce="", size_bytes=0, ask_at=ask_at)
        elif denied.code == "not_announced":
            self._transfer = None
        elif denied.code == "past_the_end":
            remove(self._part(transfer))
            self._transfer = replace(transfer, nonce="", size_bytes=0, ask_at=ask_at)
        else:
            # Meant for the device: another version would be denied as well.
            self._denied_until = ask_at
            self._transfer = replace(transfer, nonce="", ask_at=ask_at)

    def whole(self) -> Transfer | None:
        """Return the transfer if all its bytes are here, ready for `ModelSlots.install`; it is over then."""
        transfer = self._transfer
        if transfer is None or not transfer.size_bytes or self._length(transfer) != transfer.size_bytes:
            return None
        if transfer.base:
            part = self._part(transfer)
            rename_durably(part, part.with_suffix(".delta"))
        self._transfer = None
        return transfer

    def was_bad(self, transfer: Transfer) -> bool:
        """Note that a whole was of no use; return whether that was the third time."""
        name, count = self._bad
        count = count + 1 if name == transfer.manifest.sha256 else 1
        self._bad = (transfer.manifest.sha256, count)
        if count < BAD_WHOLES:
            self._transfer = Transfer(transfer.signed, transfer.manifest, transfer.track, transfer.base)
        return count >= BAD_WHOLES

    def _part(self, transfer: Transfer) -> Path:
        return self._slots.part(transfer.manifest, transfer.base)

    def _length(self, transfer: Transfer) -> int:
        try:
            return self._part(transfer).stat().st_size
        except OSError:
            return 0

    def _write(self, part: Path, start: int, data: bytes) -> None:
        # HTTP may have left a piece of a piece.
        append_durably(part, start, [data])
