"""HTTP downloads with the standard library: Range, timeouts, a limit on bytes; nothing foreign leaves.

One connection a download. Redirects are not followed: the manifest's address is the address. Over https the server's
name is checked against the system's certificate authorities, or the one in a file.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_runtime.ports import Download, NotThere, TooLarge, Unreachable

if TYPE_CHECKING:
    import http.client

TIMEOUT_S = 15.0
PIECE_BYTES = 256 * 1024


class HttpDownloads:
    """Implements the Downloads port. `ca_file` (PEM) names the authority of an https server, "" the system's."""

    def __init__(self, timeout_s: float = TIMEOUT_S, *, ca_file: str = "") -> None:
        self._timeout_s = timeout_s
        self._ca_file = ca_file

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        """Open `url` from byte `start`; at most `limit_bytes` come out of the iterator, more is `TooLarge`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        connection = connect(url, self._timeout_s, self._ca_file)
        try:
            response = request(connection, "GET", url, None, headers)
        except BaseException:
            connection.close()
            raise
        if response.status == 416:
            # The server has not more than what we hold already.
            connection.close()
            return Download(start, iter(()))
        if response.status == 404:
            connection.close()
            raise NotThere(f"{url} answers 404")
        if response.status not in (200, 206):
            connection.close()
            raise Unreachable(f"{url} answers {response.status} {response.reason}")
        begins = start if response.status == 206 else 0
        return Download(begins, _read(connection, response, url, limit_bytes - begins))


def connect(url: str, timeout_s: float, ca_file: str = "") -> "http.client.HTTPConnection":
    """Return an unopened connection for `url`. Raises `Unreachable` if it is no http(s) address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as e:
        raise Unreachable(f"an address is http://HOST[:PORT]/..., got {url[:200]!r}") from e
    if parts.scheme not in ("http", "https") or not host:
        raise Unreachable(f"an address is http://HOST[:PORT]/..., got {url[:200]!r}")
    # Here and not above, with what is below them: 3 MB that an idle agent does without.
    import http.client

    from edge_runtime.adapters.tls import client_context

    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=client_context(ca_file))


def request(
    connection: "http.client.HTTPConnection", method: str, url: str, body: bytes | None, headers: dict[str, str]
) -> "http.client.HTTPResponse":
    """Send one request and return the answer's head. Raises `Unreachable`."""
    import http.client

    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method, target, body=body, headers=headers)
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as e:
        raise Unreachable(f"{parts.scheme}://{parts.netloc} does not answer: {e}") from e
    except ValueError as e:
        # Among them UnicodeError, of a path or a host name that is not ASCII.
        raise Unreachable(f"an address is http://HOST[:PORT]/..., got {url[:200]!r}: {e}") from e


def _read(
    connection: "http.client.HTTPConnection", response: "http.client.HTTPResponse", url: str, limit_bytes: int
) -> Iterator[bytes]:
    import http.client

    left = limit_bytes
    try:
        while piece := response.read(min(PIECE_BYTES, left + 1)):
            left -= len(piece)
            if left < 0:
                raise TooLarge(f"{url} has more than the {limit_bytes} bytes that were announced")
            yield piece
        if response.length:
            raise Unreachable(f"{url} broke off {response.length} bytes before its end")
    except (OSError, http.client.HTTPException) as e:
        raise Unreachable(f"{url} broke off: {e}") from e
    finally:
        connection.close()


def read_all(download: Download) -> bytes:
    """Return a whole small download."""
    return b"".join(download.chunks)
