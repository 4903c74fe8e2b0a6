"""Text from a file, a device or a person, made fit for a terminal: it cannot move the cursor or fake a line."""


def plain(value: object) -> str:
    """Return `value` as text that cannot steer a terminal: control characters stand as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
