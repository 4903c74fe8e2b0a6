"""What a zip archive of hostile bytes makes the standard library raise, OSError apart: catch it where one is read."""

import lzma
import struct
import zipfile
import zlib
from typing import Final

BROKEN_ARCHIVE: Final = (
    EOFError, NotImplementedError, RuntimeError, ValueError, lzma.LZMAError, struct.error, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
