"""The device's settings: HOME/settings.toml, read by `cli_contract.settings`.

population = "keyboard"
server = "http://127.0.0.1:8080"      # where to enrol
runtime = "auto"                      # litert, tflite, or whichever is installed
[policy]
profile = "mains"                     # no battery to report
time_zone = "Europe/Berlin"
night_start = "23:00"
night_end = "06:00"
"""

from typing import Annotated, Literal
from zoneinfo import ZoneInfoNotFoundError

import msgspec

from edge_runtime.eligibility import Policy, zone
from wire_contract.messages import MAX_CHUNK_BYTES, Name

ClockTime = Annotated[str, msgspec.Meta(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")]
KeyHex = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]
Percent = Annotated[float, msgspec.Meta(ge=0.0, le=100.0)]


class SettingsInvalid(ValueError):  # noqa: N818
    """A value has the right form but cannot be used; the message names the key."""


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's terms as they stand in the file; `as_policy` is what `eligibility` reads."""

    profile: Literal["battery", "mains"] = "battery"
    time_zone: str = "UTC"
    night_start: ClockTime = "23:00"
    night_end: ClockTime = "06:00"
    minimum_idle_s: NotNegative = 120.0
    minimum_battery: Percent = 40.0
    maximum_celsius: float = 70.0
    training_s: NotNegative = 7200.0
    sent_bytes: Annotated[int, msgspec.Meta(ge=0)] = 32 * 1024 * 1024

    def as_policy(self) -> Policy:
        """Return the policy. Raises `SettingsInvalid` for an unknown time zone."""
        try:
            zone(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as e:
            raise SettingsInvalid(f'"policy.time_zone" is a name like Europe/Berlin, got {self.time_zone!r}') from e
        return Policy(
            profile=self.profile,
            time_zone=self.time_zone,
            night_start=_minutes(self.night_start),
            night_end=_minutes(self.night_end),
            minimum_idle_s=self.minimum_idle_s,
            minimum_battery=self.minimum_battery,
            maximum_celsius=self.maximum_celsius,
            training_s=self.training_s,
            sent_bytes=self.sent_bytes,
        )


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a person may set on a device. `aggregator_key` (64 hex) pins the key before the first use.

    `chunk_bytes`: smaller for a weak link; a chunk should pass within a quarter of the keepalive, 15 s.
    """

    population: Name = "keyboard"
    server: str = "http://127.0.0.1:8080"
    token_file: str = ""
    label: Annotated[str, msgspec.Meta(max_length=80)] = ""
    aggregator_key: KeyHex = ""
    runtime: Literal["auto", "litert", "tflite"] = "auto"
    sensors_root: str = "/"
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1024, le=MAX_CHUNK_BYTES)] = 32 * 1024
    policy: PolicySettings = PolicySettings()


def _minutes(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])
