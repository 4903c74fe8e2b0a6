"""Whom TLS connections trust: the system's certificate authorities, or the one in a file; host names are checked."""

import ssl

from edge_runtime.ports import Unreachable


def client_context(ca_file: str) -> ssl.SSLContext:
    """Return the context for a connection; `ca_file` (PEM) replaces the system's authorities, "" keeps them.

    Raises `Unreachable`: with a file that cannot be used, nobody can be believed.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ValueError) as e:
        raise Unreachable(f"{ca_file}: a certificate authority's PEM file: {e}") from e
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
