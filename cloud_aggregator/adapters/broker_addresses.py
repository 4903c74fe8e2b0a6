"""The broker's addresses as devices are told them: one string, the best first, a space between two.

    mqtt://HOST[:PORT]   mqtts://HOST[:PORT]   ws://HOST[:PORT][/PATH]   wss://HOST[:PORT][/PATH]

Devices try them in this order (where a network lets nothing through but 443, a WebSocket is what is left), and refuse a
string that breaks a rule; so it is refused here, when it is set and not when the first device comes:
- one to four addresses, none twice, 400 characters together;
- user and password are ours and are taken out; a query or fragment is no part of an address.
"""

import re
from typing import Final

from cloud_aggregator.addresses import without_credentials
from cloud_aggregator.errors import InvalidSetting

MOST_ADDRESSES: Final = 4
MOST_CHARACTERS: Final = 400

_ADDRESS: Final = re.compile(
    r"(?:(?:mqtt|mqtts)://(?P<host>[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?/?"
    r"|(?:ws|wss)://(?P<web_host>[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<web_port>[0-9]{1,5}))?"
    r"(?:/[A-Za-z0-9._~/-]{0,100})?)"
)


def announced_addresses(setting: str) -> str:
    """Return what devices are told for `setting`, without users and passwords. Raises `InvalidSetting`."""
    words = [without_credentials(word) for word in setting.split(" ")]
    for word in words:
        found = _ADDRESS.fullmatch(word)
        port = int((found and (found["port"] or found["web_port"])) or 1)
        if found is None or not 1 <= port <= 65_535:
            raise InvalidSetting(
                f"devices are told mqtt://HOST:PORT, mqtts, ws or wss, up to {MOST_ADDRESSES}, a space between; got "
                f"{without_credentials(setting)[:120]!r}"
            )
    if len(words) > MOST_ADDRESSES or len(set(words)) != len(words):
        raise InvalidSetting(f"devices are told one to {MOST_ADDRESSES} addresses, none twice; got {len(words)}")
    told = " ".join(words)
    if len(told) > MOST_CHARACTERS:
        raise InvalidSetting(f"the addresses have {MOST_CHARACTERS} characters together, got {len(told)}")
    return told
