"""How much to have on its way at once, and how large a chunk may be, by what the link has shown. Pure.

The rules:
- two messages unacknowledged at first, up to four while acknowledgements come within a second, two again when one took
  longer than four: on a link that breaks, what is on its way is what is sent twice;
- never more than the broker's receive maximum;
- a chunk passes within a quarter of the keepalive, chunk <= rate * keepalive / 4, so that a ping never waits behind one
  for longer than the broker waits for it; and it fits into the broker's largest packet;
- chunks are powers of two from 1 KiB, so that a rate that wavers does not change every cut.
"""

from dataclasses import dataclass, replace
from typing import Final

KEEPALIVE_S: Final = 60
NARROW: Final = 2
WIDE: Final = 4
QUICK_S: Final = 1.0
SLOW_S: Final = 4.0
SMALLEST_CHUNK_BYTES: Final = 1024
# Below this an upload is over before its rate can be told from the broker's answering time.
MEASURED_FROM_BYTES: Final = 16 * 1024
MEASURED_FROM_S: Final = 0.05
# A chunk's message beside its data: MessagePack's names and its id, the topic, the PUBLISH packet's own header.
CHUNK_OVERHEAD_BYTES: Final = 320


@dataclass(frozen=True, slots=True)
class SendWindow:
    """How many messages may be unacknowledged; `ceiling` is the broker's receive maximum, if lower than ours."""

    size: int = NARROW
    ceiling: int = WIDE

    def limited(self, receive_maximum: int) -> "SendWindow":
        """Return the window under the broker's receive maximum (at least 1)."""
        ceiling = max(1, min(WIDE, receive_maximum))
        return replace(self, size=min(self.size, ceiling), ceiling=ceiling)

    def acknowledged(self, after_s: float) -> "SendWindow":
        """Return the window after an acknowledgement that took so long."""
        if after_s <= QUICK_S:
            return replace(self, size=min(self.ceiling, self.size + 1))
        if after_s > SLOW_S:
            return replace(self, size=min(self.ceiling, NARROW))
        return self


def measured_rate(before: float, sent_bytes: int, seconds: float) -> float:
    """Return the link's rate (bytes a second; 0 unknown) after an upload: half what was known, half what was seen."""
    if sent_bytes < MEASURED_FROM_BYTES or seconds < MEASURED_FROM_S:
        return before
    seen = sent_bytes / seconds
    return 0.5 * (before + seen) if before > 0.0 else seen


def chunk_bytes(wanted: int, rate: float, keepalive_s: float, limit_bytes: int) -> int:
    """Return the chunk's size for the next update: at most `wanted`.

    `limit_bytes` is the largest topic and payload that the broker takes. The smallest chunk is 1 KiB, whatever it says.
    """
    most = min(wanted, limit_bytes - CHUNK_OVERHEAD_BYTES)
    if rate > 0.0:
        most = min(most, int(rate * keepalive_s / 4))
    if most >= wanted:
        return wanted
    size = SMALLEST_CHUNK_BYTES
    while 2 * size <= most:
        size *= 2
    return size
