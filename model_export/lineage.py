"""What an exported version was made of: the exporter's code by its hash, and what went in by theirs.

`export_lineage` is for whoever makes a manifest; an export has no parents. `evaluation` are numbers that were measured
on the exported file, by name (`top3`, `recall_points_lost`), never a verdict.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from wire_contract.code_hash import code_hash
from wire_contract.lineage import Lineage, Measure

# What decides the bytes of an export: the exporter, and the contract that both sides share.
PACKAGES: Final = ("model_export", "wire_contract")


def export_lineage(sources: Iterable[bytes | str], evaluation: Mapping[str, float] | None = None) -> Lineage:
    """Return the lineage of a version that is exported now, by this code.

    `sources`: what went in, each as its bytes or as their SHA-256 in hex: starting weights, vocabulary, text. One that
    is given twice is stated once. At most 16 are.
    """
    hashes = [source if isinstance(source, str) else hashlib.sha256(source).hexdigest() for source in sources]
    measures = tuple(Measure(name=name, value=float(value)) for name, value in (evaluation or {}).items())
    return Lineage(
        made_by="export", evaluation=measures, code_sha256=exporter_code(), sources=tuple(dict.fromkeys(hashes))
    )


@functools.cache
def exporter_code() -> str:
    """Return the hash of the exporter's own source files, read once a process."""
    root = Path(__file__).resolve().parent.parent
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return code_hash({path.relative_to(root).as_posix(): path.read_bytes() for path in paths})
