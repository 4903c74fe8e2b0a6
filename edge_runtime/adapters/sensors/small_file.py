"""What a small file of the kernel or of a hook says, or nothing: a sensor that is not there is no error.

Nothing is waited for: a pipe under a hook's name, which nobody writes, would else hold up the agent for ever.
"""

import math
import os
from pathlib import Path

MAX_BYTES = 256


def read_text(path: Path) -> str | None:
    """Return the stripped text, cut at 256 bytes; None if it is empty, missing or unreadable."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.read(file, MAX_BYTES)
        finally:
            os.close(file)
    except (OSError, ValueError):
        return None
    return data.decode("utf-8", errors="replace").strip() or None


def to_number(text: str | None) -> float | None:
    """Return a finite number, or None for what is none."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_number(path: Path) -> float | None:
    """Return the finite number that a file holds, or None."""
    return to_number(read_text(path))
