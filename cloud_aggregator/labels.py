"""Words that a stranger gave and that a person's terminal will show.

The rules:
- only printable characters stay: control characters, line ends and direction marks become one space;
- a label never looks like a device's id, so that an id always names one device.
"""

import re
from typing import Final

from cloud_aggregator.errors import InvalidSetting

MAX_LABEL: Final = 80

_ID = re.compile(r"[0-9a-fA-F]{32}")


def printable(text: str) -> str:
    """Return `text` on one line, without anything that a terminal would act on."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def check_label(text: str) -> str:
    """Return the label to store, at most 80 characters. Raises `InvalidSetting` for one that reads like an id."""
    label = printable(text)[:MAX_LABEL]
    if _ID.fullmatch(label):
        raise InvalidSetting(f"a label is no 32 hex digits, they would read as a device's id, got {label!r}")
    return label
