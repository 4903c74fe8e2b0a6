"""Properties of services on the system's D-Bus, asked for one by one over one connection.

The rules:
- jeepney and the connection are made at the first question: a device without a bus never loads either;
- a question takes at most `TIMEOUT_S`, the greeting included (jeepney's own connection waits for it without an end);
  after a failure the next one is not asked before `RETRY_S`, so that a bus that hangs costs the agent little;
- the socket lies under the root prefix, so that a fixture never talks to the real bus;
- an error that the bus answers is an answer: the service or the property is not there.
https://dbus.freedesktop.org/doc/dbus-specification.html
"""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = 0.5
RETRY_S = 60.0
SOCKET = "run/dbus/system_bus_socket"
READ_BYTES = 4096
# A property that we ask for is a word or two; a bus that sends more without an end is let go.
MAX_REPLY_BYTES = 64 * 1024


class SystemBus:
    """One connection, opened when it is needed. `elapsed` gives seconds that never jump."""

    def __init__(self, root: Path = Path("/"), elapsed: Callable[[], float] = time.monotonic) -> None:
        self._place = root / SOCKET
        self._elapsed = elapsed
        self._socket: socket.socket | None = None
        self._parser: Any = None
        self._serial = 0
        self._not_before = float("-inf")

    def get(self, service: str, path: str, interface: str, name: str) -> object | None:
        """Return a property's value; None if there is no bus, no service, no such property or no answer in time."""
        if self._elapsed() < self._not_before or not self._place.exists():
            return None
        from jeepney import DBusAddress, MessageType, Properties

        try:
            if self._socket is None:
                self._open()
            reply = self._ask(Properties(DBusAddress(path, bus_name=service, interface=interface)).get(name))
            if reply.header.message_type is not MessageType.method_return:
                return None
            variant = reply.body[0]
            if not isinstance(variant, tuple):
                raise TypeError(f"a property is a variant, got {type(variant).__name__}")
            value: object = variant[1]
        except Exception:  # noqa: BLE001 - jeepney reads what a bus sends, and says nowhere what it may raise
            self.close()
            self._not_before = self._elapsed() + RETRY_S
            return None
        return value

    def _open(self) -> None:
        from jeepney import Parser, message_bus
        from jeepney.io.blocking import prep_socket

        self._socket = prep_socket(str(self._place), timeout=TIMEOUT_S)
        self._parser = Parser()
        self._ask(message_bus.Hello())

    def _ask(self, message: Any) -> Any:
        from jeepney import HeaderFields

        assert self._socket is not None
        deadline, received = time.monotonic() + TIMEOUT_S, 0
        self._serial += 1
        self._socket.settimeout(TIMEOUT_S)
        self._socket.sendall(message.serialise(self._serial))
        while True:
            # What came unasked (that we got our name, a signal) is passed over.
            while (reply := self._parser.get_next_message()) is not None:
                if reply.header.fields.get(HeaderFields.reply_serial) == self._serial:
                    return reply
            left = deadline - time.monotonic()
            if left <= 0.0:
                raise TimeoutError(f"the bus did not answer within {TIMEOUT_S} s")
            self._socket.settimeout(left)
            data = self._socket.recv(READ_BYTES)
            received += len(data)
            if not data or received > MAX_REPLY_BYTES:
                raise ConnectionResetError("the bus hung up, or sends without an end")
            self._parser.add_data(data)

    def close(self) -> None:
        """Let go of the connection; the next question opens another."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._parser = None
