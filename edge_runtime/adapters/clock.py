"""The system's wall clock."""

import time


class SystemClock:
    """Implements the Clock port."""

    def now(self) -> float:
        """Return Unix seconds."""
        return time.time()
