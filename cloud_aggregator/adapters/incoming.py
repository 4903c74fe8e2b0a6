"""What the broker has delivered and no transaction has taken yet: bounded, and given out in groups.

The rules:
- at most `HELD` messages wait; whoever puts another one waits itself, so the socket is no longer read and the broker
  keeps the rest: memory does not grow when the disk is slow;
- a group is closed by its number of messages, or by its time after its first one, whichever comes first;
- after `close` nobody waits any more: what was not taken is not acknowledged, and comes again.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

# The broker is told to send no more than this before the first is acknowledged; not every broker listens.
HELD: Final = 256
# An update of one chunk is two messages: its init and the chunk.
MESSAGES_AN_UPDATE: Final = 2

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Grouping:
    """The largest group: how many updates, and how many seconds after its first message it is closed."""

    updates: int = 64
    seconds: float = 0.02

    @property
    def messages(self) -> int:
        """How many messages a group has at most."""
        return MESSAGES_AN_UPDATE * self.updates


DEFAULT_GROUPING: Final = Grouping()


class Incoming(Generic[Item]):
    """A bounded queue between the connection's thread and the intake's."""

    def __init__(self, grouping: Grouping, held: int = HELD) -> None:
        self._grouping = grouping
        self._held = held
        # Each with the moment of its arrival, in monotonic seconds.
        self._items: deque[tuple[float, Item]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return len(self._items)

    def put(self, item: Item) -> None:
        """Add a message; waits while there is no room."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._held)
            if not self._closed:
                self._items.append((time.monotonic(), item))
                self._changed.notify_all()

    def group(self) -> list[Item]:
        """Return the next group, at least one message; empty once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            # What waited while the group before was stored has had its time.
            end = (self._items[0][0] if self._items else 0.0) + self._grouping.seconds
            wanted = min(self._grouping.messages, self._held)
            while not self._closed and len(self._items) < wanted:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            if self._closed:
                return []
            taken = [self._items.popleft()[1] for _ in range(min(wanted, len(self._items)))]
            self._changed.notify_all()
            return taken

    def ready(self, most: int) -> list[Item]:
        """Return what waits now, at most so many messages; may be empty."""
        with self._changed:
            taken = [self._items.popleft()[1] for _ in range(min(most, len(self._items)))]
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Let everybody go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
