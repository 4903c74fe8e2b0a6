"""The broker's addresses, and which of them to try next. Pure.

    mqtt://HOST[:1883]   mqtts://HOST[:8883]   ws://HOST[:80][/mqtt]   wss://HOST[:443][/mqtt]

An enrolment names one, or up to four with a space between two, the best first: where a network lets nothing through but
443, the WebSocket is what is left. The rules:
- each address is read strictly; user, password, query and fragment have no place in one;
- the address that worked last is tried first, then the others in their order;
- for six hours; then the first has its chance again, for the network that closed its port may be another one by now.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from edge_runtime.ports import Unreachable

MOST_ADDRESSES: Final = 4
RETURN_S: Final = 6 * 3600.0

Scheme = Literal["mqtt", "mqtts", "ws", "wss"]
_PORTS: Final[dict[str, int]] = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_SHAPE: Final = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<host>[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[A-Za-z0-9._~/-]{0,100})?"
)
_RULE: Final = (
    f"a broker's address is mqtt://HOST:PORT, or mqtts, ws or wss; at most {MOST_ADDRESSES}, a space between two"
)


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens. `path` is a WebSocket's, empty otherwise."""

    scheme: Scheme
    host: str
    port: int
    path: str = ""

    @property
    def tls(self) -> bool:
        """Whether the broker must show a certificate for `host`."""
        return self.scheme in ("mqtts", "wss")

    @property
    def websocket(self) -> bool:
        """Whether MQTT goes inside a WebSocket."""
        return self.scheme in ("ws", "wss")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def parse_addresses(text: str) -> tuple[BrokerAddress, ...]:
    """Read an enrolment's `broker_url`. Raises `Unreachable`: nothing can be reached at what is no address."""
    addresses = tuple(_parse(word) for word in text.split(" "))
    if len(addresses) > MOST_ADDRESSES:
        raise Unreachable(f"{_RULE}; got {len(addresses)}")
    if len(set(addresses)) != len(addresses):
        raise Unreachable(f"{_RULE}; got one of them twice in {text[:200]!r}")
    return addresses


def _parse(word: str) -> BrokerAddress:
    found = _SHAPE.fullmatch(word)
    scheme: Scheme | None = next((known for known in get_args(Scheme) if found and found["scheme"] == known), None)
    if found is None or scheme is None:
        raise Unreachable(f"{_RULE}; got {word[:200]!r}")
    port = int(found["port"]) if found["port"] else _PORTS[scheme]
    if not 1 <= port <= 65_535:
        raise Unreachable(f"a port is 1 to 65535, got {port} in {word[:200]!r}")
    if found["path"] not in (None, "/") and scheme not in ("ws", "wss"):
        raise Unreachable(f"only a ws or wss address has a path, got {word[:200]!r}")
    path = (found["path"] or "/mqtt") if scheme in ("ws", "wss") else ""
    return BrokerAddress(scheme, found["host"].strip("[]"), port, path)


@dataclass(frozen=True, slots=True)
class Route:
    """The addresses, the `place` of the one that worked last, and since when (elapsed seconds) it is preferred."""

    addresses: tuple[BrokerAddress, ...]
    place: int = 0
    since: float = 0.0

    def order(self, now: float) -> tuple[int, ...]:
        """Return the places in the order in which to try them at `now` (elapsed seconds)."""
        everywhere = range(len(self.addresses))
        if now - self.since >= RETURN_S:
            return tuple(everywhere)
        return (self.place, *(place for place in everywhere if place != self.place))

    def worked(self, place: int, now: float) -> "Route":
        """Return the route after a session was opened at `place`."""
        renewed = place != self.place or now - self.since >= RETURN_S
        return replace(self, place=place, since=now if renewed else self.since)
