"""What a small file of the kernel or of a hook says, or nothing: a sensor that is not there is no error."""

import math
from pathlib import Path

MAX_CHARACTERS = 256


def read_text(path: Path) -> str | None:
    """Return the stripped text, cut at 256 characters; None if it is empty, missing or unreadable."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_CHARACTERS).strip() or None
    except OSError:
        return None


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
