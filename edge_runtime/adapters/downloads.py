"""HTTP downloads with the standard library: Range, timeouts, a limit on bytes; nothing foreign leaves.

One connection a download. Redirects are not followed: the manifest's address is the address. Over https the server's
name is checked against the system's certificate authorities, or the one in a file.

A server that sends a byte now and then would keep a device waiting for weeks, and no timeout of one read would notice
(the slow retrieval attack of TUF, 1.5.2): a head that is not whole, or a body that came more slowly than
`LEAST_BYTES_PER_S` over `PATIENCE_S`, counts as a link that broke. What had come stays, and is gone on from.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_runtime.ports import Download, NotThere, TooLarge, Unreachable

if TYPE_CHECKING:
    import http.client

TIMEOUT_S = 15.0
PATIENCE_S = 60.0
# GPRS brings some 5000.
LEAST_BYTES_PER_S = 256
PIECE_BYTES = 256 * 1024


class HttpDownloads:
    """Implements the Downloads port. `ca_file` (PEM) names the authority of an https server, "" the system's.

    `patience_s` is how long a server may be slower than `LEAST_BYTES_PER_S`.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S, *, ca_file: str = "", patience_s: float = PATIENCE_S) -> None:
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._ca_file = ca_file

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        """Open `url` from byte `start`; at most `limit_bytes` come out of the iterator, more is `TooLarge`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        connection = connect(url, self._timeout_s, self._ca_file)
        try:
            response = request(connection, "GET", url, None, headers, self._patience_s)
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
        return Download(begins, _read(connection, response, url, limit_bytes - begins, self._patience_s))


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
    connection: "http.client.HTTPConnection", method: str, url: str, body: bytes | None, headers: dict[str, str],
    patience_s: float = PATIENCE_S,
) -> "http.client.HTTPResponse":  # fmt: skip
    """Send one request and return the answer's head, which is whole within `patience_s`. Raises `Unreachable`."""
    import http.client

    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    gave_up = threading.Event()
    late = threading.Timer(patience_s, _break_off, (connection, gave_up))
    late.daemon = True
    try:
        connection.request(method, target, body=body, headers=headers)
        late.start()
        answer = connection.getresponse()
        if gave_up.is_set():
            # Where a head is cut, http.client takes what came of it for the whole.
            raise TimeoutError(f"its head took longer than {patience_s:g} s")
        return answer
    except (OSError, http.client.HTTPException) as e:
        raise Unreachable(f"{parts.scheme}://{parts.netloc} does not answer: {e}") from e
    except ValueError as e:
        # Among them UnicodeError, of a path or a host name that is not ASCII.
        raise Unreachable(f"an address is http://HOST[:PORT]/..., got {url[:200]!r}: {e}") from e
    finally:
        late.cancel()


def _break_off(connection: "http.client.HTTPConnection", gave_up: threading.Event) -> None:
    gave_up.set()
    # Reading ends where it is; to close the socket is for whoever reads, and perhaps has done so.
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def _read(
    connection: "http.client.HTTPConnection", response: "http.client.HTTPResponse", url: str, limit_bytes: int,
    patience_s: float,
) -> Iterator[bytes]:  # fmt: skip
    """Yield the body in pieces of `PIECE_BYTES`, and what came of it before a link broke."""
    import http.client

    # `read1` does not keep the response's own count before Python 3.13.
    left, missing = limit_bytes, response.length
    gathered, began = bytearray(), time.monotonic()
    try:
        while missing is None or missing:
            piece = response.read1(min(PIECE_BYTES, left + 1, PIECE_BYTES if missing is None else missing))
            if not piece:
                break
            left -= len(piece)
            if left < 0:
                raise TooLarge(f"{url} has more than the {limit_bytes} bytes that were announced")
            missing = None if missing is None else missing - len(piece)
            gathered += piece
            if len(gathered) >= PIECE_BYTES:
                yield bytes(gathered)
                gathered.clear()
            taken = time.monotonic() - began
            if taken > patience_s and limit_bytes - left < LEAST_BYTES_PER_S * taken:
                raise TimeoutError(f"{limit_bytes - left} bytes in {taken:.0f} s")
        broke = f"{missing} bytes before its end" if missing else ""
    except (OSError, http.client.HTTPException) as e:
        broke = str(e) or type(e).__name__
    finally:
        connection.close()
    if gathered:
        yield bytes(gathered)
    if broke:
        raise Unreachable(f"{url} broke off: {broke}")


def read_all(download: Download) -> bytes:
    """Return a whole small download."""
    return b"".join(download.chunks)
