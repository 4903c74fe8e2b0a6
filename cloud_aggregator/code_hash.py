"""The hash of the aggregator's own source, which every version that it makes states in its lineage."""

import functools
from pathlib import Path
from typing import Final

from wire_contract.code_hash import code_hash

# What decides the bytes of a version: the aggregator, and the contract that both sides share.
PACKAGES: Final = ("cloud_aggregator", "wire_contract")


@functools.cache
def aggregator_code() -> str:
    """Return the hash of the source files, read once a process: at the service's start, before they can change."""
    root = Path(__file__).resolve().parent.parent
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return code_hash({path.relative_to(root).as_posix(): path.read_bytes() for path in paths})
