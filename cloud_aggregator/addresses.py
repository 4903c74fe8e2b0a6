"""URLs as other people may see them: without the user and the password in them."""

import re
from typing import Final

_CREDENTIALS: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)


def without_credentials(url: str) -> str:
    """Return `url` without what stands before its last "@", also where it is no well-formed URL."""
    return _CREDENTIALS.sub(r"\1", url)
