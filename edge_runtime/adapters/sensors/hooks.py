"""What the owner's own scripts say: small files that a desktop, a keyboard or a network hook writes.

    ROOT/run/edge-runtime/idle_seconds           "SECONDS" or "SECONDS WRITTEN_AT": since somebody last used the device
    ROOT/run/edge-runtime/metered                "0" or "1", or "0 WRITTEN_AT"

A hook writes the file whole, WRITTEN_AT in Unix seconds. Without it, seconds of idleness are as old as the file's last
change, so that a hook that died does not say for ever that nobody is there; in a fixture, where time is played, they
count as fresh (`undated_is_fresh`). A link without WRITTEN_AT stays what it was said to be until the hook says else.
What is missing, unreadable or no finite number is unknown; so is the age of a value whose WRITTEN_AT is none, and with
it the value. Where a hook says something, its word counts before that of any other source.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edge_runtime.adapters.sensors.small_file import read_text
from edge_runtime.eligibility import Reading

FOLDER = "run/edge-runtime"
Value = TypeVar("Value", bound=float)


def read_idle_s(root: Path, now: float, *, undated_is_fresh: bool = True) -> Reading[float]:
    """Return the seconds since somebody last used the device."""
    reading = _read(root, "idle_seconds", float, now)
    if undated_is_fresh or reading.value is None or reading.age_s != 0.0:
        return reading
    try:
        return replace(reading, age_s=now - (root / FOLDER / "idle_seconds").stat().st_mtime)
    except OSError:
        return Reading()


def read_metered(root: Path, now: float) -> Reading[bool]:
    """Return whether the link is metered."""
    return _read(root, "metered", lambda text: bool(int(text)), now)


def _read(root: Path, name: str, convert: Callable[[str], Value], now: float) -> Reading[Value]:
    words = (read_text(root / FOLDER / name) or "").split()
    try:
        value = convert(words[0])
        age_s = now - float(words[1]) if len(words) > 1 else 0.0
    except (IndexError, ValueError, OverflowError):
        return Reading()
    if not (math.isfinite(value) and math.isfinite(age_s)):
        return Reading()
    return Reading(value, age_s, f"{FOLDER}/{name}")
