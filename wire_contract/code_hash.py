"""One hash that names a package's source: a lineage states it, and whoever holds the same release can work it out.

    sha256( "edge-federation code v1\\n" || for each file in the order of its name: sha256 of its bytes in hex,
            two spaces, its name, "\\n" )

Names are relative, with forward slashes, from the folder that holds the package: `wire_contract/manifest.py`.
"""

import hashlib
from collections.abc import Mapping

from wire_contract.errors import Malformed


def code_hash(files: Mapping[str, bytes]) -> str:
    """Return the hash of source `files` by name, 64 hex digits. Raises `Malformed` for a name that could be two."""
    digest = hashlib.sha256(b"edge-federation code v1\n")
    for name in sorted(files):
        if "\n" in name or "\\" in name or name.startswith("/"):
            raise Malformed(f"a source file's name is relative, with forward slashes, got {name[:80]!r}")
        digest.update(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n".encode())
    return digest.hexdigest()
