"""The owner's terms for training, the `[policy]` table of HOME/settings.toml.

The defaults ask for much and are for a phone. What each setting means, and what a Pi on a mains adapter sets:
docs/training-conditions.md.
"""

from collections.abc import Iterator
from typing import Annotated, Literal
from zoneinfo import ZoneInfoNotFoundError, available_timezones

import msgspec

from cli_contract.settings import BrokenRule
from cli_contract.value_terms import near
from edge_runtime.eligibility import Policy, zone

ClockTime = Annotated[
    str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z", description="a time from 00:00 to 23:59 in quotes")
]
# A week: what is longer is a mistake in the unit, and infinity is none.
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=604_800.0)]
Percent = Annotated[float, msgspec.Meta(ge=0.0, le=100.0)]
Celsius = Annotated[float, msgspec.Meta(ge=-40.0, le=120.0)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Watts = Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)]
WattHours = Annotated[float, msgspec.Meta(ge=0.0, le=100_000.0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class SettingsInvalid(ValueError):  # noqa: N818
    """A value has the right form but cannot be used; the message names the key."""


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's terms as they stand in the file; `as_policy` is what `eligibility` reads.

    `clock = "rtc"` is the owner's word that the wall clock is right from the start; "ntp" believes network time and
    signed answers. `energy_wh` is a night's energy, counted as the trainer's CPU seconds times `watts`.
    """

    profile: Literal["battery", "mains"] = "battery"
    time_zone: str = "UTC"
    night_start: ClockTime = "23:00"
    night_end: ClockTime = "06:00"
    clock: Literal["ntp", "rtc"] = "ntp"
    idle: Literal["required", "if_known", "ignore"] = "required"
    heat: Literal["required", "if_known"] = "required"
    link: Literal["required", "if_known"] = "required"
    minimum_idle_s: Seconds = 120.0
    start_battery: Percent = 60.0
    stop_battery: Percent = 40.0
    start_celsius: Celsius = 70.0
    stop_celsius: Celsius = 80.0
    start_battery_celsius: Celsius = 38.0
    stop_battery_celsius: Celsius = 42.0
    maximum_load: Annotated[float, msgspec.Meta(ge=0.0, le=10_000.0)] = 40.0
    settle_s: Seconds = 120.0
    grace_s: Seconds = 10.0
    cool_down_s: Seconds = 600.0
    minimum_window_s: Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)] = 900.0
    training_s: Seconds = 7200.0
    energy_wh: WattHours = 20.0
    watts: Watts = 5.0
    written_bytes: Bytes = 64 * 1024 * 1024
    sent_bytes: Bytes = 32 * 1024 * 1024
    starts: Count = 2

    def as_policy(self) -> Policy:
        """Return the policy. Raises `SettingsInvalid`, naming the keys, for what cannot hold together."""
        broken = next(self.broken_rules(), None)
        if broken is not None:
            raise SettingsInvalid(broken.message)
        start, end = _minutes(self.night_start), _minutes(self.night_end)
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name != "clock"}
        return Policy(**{**given, "night_start": start, "night_end": end})

    def broken_rules(self) -> Iterator[BrokenRule]:
        """Yield what cannot hold together; `cli_contract.settings` tells file and line of its keys."""
        try:
            zone(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            meant = near(self.time_zone, available_timezones())
            question = f'; did you mean "{meant}"?' if meant else ""
            what = f'"policy.time_zone" is a name like Europe/Berlin, got {self.time_zone!r:.60}{question}'
            yield BrokenRule(("time_zone",), what)
        yield from self._crossed("start_battery", "stop_battery", at_least=True)
        yield from self._crossed("start_celsius", "stop_celsius", at_least=False)
        yield from self._crossed("start_battery_celsius", "stop_battery_celsius", at_least=False)
        window_s = 60.0 * ((_minutes(self.night_end) - _minutes(self.night_start)) % (24 * 60) or 24 * 60)
        if self.minimum_window_s > window_s:
            yield BrokenRule(
                ("minimum_window_s", "night_start", "night_end"),
                f'"policy.minimum_window_s" is at most the night from "policy.night_start" to "policy.night_end",'
                f" {window_s:.0f} s, got {self.minimum_window_s:g}",
            )

    def _crossed(self, start_key: str, stop_key: str, *, at_least: bool) -> Iterator[BrokenRule]:
        start, stop = getattr(self, start_key), getattr(self, stop_key)
        if start != stop and (start > stop) is not at_least:
            rule = "at least" if at_least else "at most"
            what = f'"policy.{start_key}" is {rule} "policy.{stop_key}", got {start:g} and {stop:g}'
            yield BrokenRule((start_key, stop_key), what)


def _minutes(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])
