"""Why something cannot be imported."""

from wire_contract.manifest import MAX_PARAMETERS

MAX_SOURCE_BYTES = 16 * MAX_PARAMETERS
MAX_ARRAYS = 4096


class BadImport(Exception):  # noqa: N818 - named for what was tried
    """A source, a name map, a vocabulary or a check breaks a rule; the message states the rule and the value."""
