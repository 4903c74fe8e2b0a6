"""A loopback TCP proxy that behaves like a bad link: it cuts, throttles and delays, and counts what passed.

    with FaultProxy(("127.0.0.1", 1883), cut_after_bytes=600_000) as proxy: ... proxy.port, proxy.bytes_up

The rules:
- `cut_after_bytes` of a connection went up (from the device to the broker): both sides are closed at once, and what was
  on its way is lost;
- `rate` is bytes a second upwards. The proxy's own buffers are small, so that the device feels it;
- `delay_s` is added to each piece, each way;
- `bytes_up` counts what was taken from the device, `bytes_down` what was given to it, over all connections;
- the settings may be changed at any time; `break_all` closes what is open.
"""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

PIECE_BYTES = 4096
BUFFER_BYTES = 8192


class FaultProxy:
    """Listens from the moment it is made until `close`. Threads, two a connection: for few connections."""

    def __init__(
        self, upstream: tuple[str, int], *, cut_after_bytes: int = 0, rate: float = 0.0, delay_s: float = 0.0
    ) -> None:
        self.upstream = upstream
        self.cut_after_bytes = cut_after_bytes
        self.rate = rate
        self.delay_s = delay_s
        self.refuses = False
        self.bytes_up = self.bytes_down = self.connections = self.cuts = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        # Inherited by what is accepted: the window that the device sees.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The proxy as a broker's address."""
        return f"mqtt://127.0.0.1:{self.port}"

    def break_all(self) -> None:
        """Close every connection that is open."""
        with self._lock:
            open_now = list(self._open)
        for each in open_now:
            _end(each)

    def close(self) -> None:
        """Close everything."""
        self._closed = True
        _end(self._listener)
        self.break_all()
        self._thread.join(timeout=5)

    def _accept(self) -> None:
        while not self._closed:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                device.close()
                continue
            try:
                broker = socket.create_connection(self.upstream, timeout=5)
            except OSError:
                device.close()
                continue
            broker.settimeout(None)
            for each in (device, broker):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            with self._lock:
                self._open |= {device, broker}
            for target in (self._carry_up, self._carry_down):
                threading.Thread(target=target, args=(device, broker), daemon=True).start()

    def _carry_up(self, device: socket.socket, broker: socket.socket) -> None:
        passed, began = 0, time.monotonic()
        try:
            while piece := device.recv(PIECE_BYTES):
                self.bytes_up += len(piece)
                passed += len(piece)
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.rate:
                    # By the clock of the whole connection: short sleeps are never exact.
                    ahead = passed / self.rate - (time.monotonic() - began)
                    if ahead > 0:
                        time.sleep(ahead)
                    else:
                        # Time in which nothing was sent is not saved up.
                        began = time.monotonic() - passed / self.rate
                if self.cut_after_bytes and passed >= self.cut_after_bytes:
                    self.cuts += 1
                    break
                broker.sendall(piece)
        except OSError:
            pass
        self._let_go(device, broker)

    def _carry_down(self, device: socket.socket, broker: socket.socket) -> None:
        try:
            while piece := broker.recv(PIECE_BYTES):
                if self.delay_s:
                    time.sleep(self.delay_s)
                device.sendall(piece)
                self.bytes_down += len(piece)
        except OSError:
            pass
        self._let_go(device, broker)

    def _let_go(self, *sockets: socket.socket) -> None:
        for each in sockets:
            _end(each)
        with self._lock:
            self._open -= set(sockets)


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Wakes whoever waits in recv or accept.
        each.shutdown(socket.SHUT_RDWR)
    each.close()
