"""The wall clock."""

import time


class SystemClock:
    """`ports.Clock` of the machine."""

    def now(self) -> float:
        return time.time()
