"""Whether the link is metered, from NetworkManager: `org.freedesktop.NetworkManager.Metered`.

1 and 2 are the owner's yes and no, 3 and 4 its guesses, 0 is unknown. A guessed yes (a phone that shares its link) is
heeded like a yes; a guessed no is what an ordinary Wi-Fi or cable says, and counts as no.
https://networkmanager.dev/docs/api/latest/nm-dbus-types.html#NMMetered
"""

from edge_runtime.adapters.sensors.system_bus import SystemBus

SERVICE, PATH = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
SOURCE = "NetworkManager"
_METERED = {1: True, 2: False, 3: True, 4: False}


def read_metered(bus: SystemBus) -> bool | None:
    """Return whether the link is metered; None where it is unknown."""
    value = bus.get(SERVICE, PATH, SERVICE, "Metered")
    return _METERED.get(value) if isinstance(value, int) and not isinstance(value, bool) else None
