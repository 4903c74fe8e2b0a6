"""What the operator sets: one TOML file for the service, one for each population.

`aggregator.toml` stands in the data directory; `cloud-aggregator init` writes it. A population's file is given to
`population import` and stored in the database. Unknown keys, wrong types and broken rules are told with file and line.
"""

from typing import Annotated

import msgspec

from cloud_aggregator.errors import InvalidSetting
from cloud_aggregator.schedule import next_due
from cloud_aggregator.server_optimizer import OptimizerSettings
from wire_contract.messages import Plan

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Duration = Annotated[int, msgspec.Meta(ge=1, le=366 * 86_400)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]

# |value| <= 2^6 in the buffer: with the tolerance of the norm check, a longer clip norm could let one value over it.
MAX_CLIP_NORM = 63.0


class PaceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds until a device may ask again: never sooner, never told later."""

    minimum_seconds: Duration = 900
    maximum_seconds: Duration = 21_600


class ReleaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When refreshes go out by themselves; `cron` empty means only by hand."""

    cron: str = "0 6 * * 0"
    time_zone: str = "UTC"


class PopulationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one population learns. Times are seconds; see `rounds.RoundRules`, `leases`, `admission.Rules`."""

    goal_count: Count = 20
    minimum_updates: Count = 5
    report_deadline_seconds: Duration = 3 * 86_400
    lease_seconds: Duration = 21_600
    lease_grace_seconds: Duration = 3_600
    maximum_age_seconds: Duration = 21 * 86_400
    manifest_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 90
    plan: Plan = Plan()
    optimizer: OptimizerSettings = OptimizerSettings()
    pace: PaceSettings = PaceSettings()
    release: ReleaseSettings = ReleaseSettings()


def check_population(settings: PopulationSettings) -> None:
    """Raise `InvalidSetting` naming every rule between the settings that does not hold, each with its key."""
    wrong = []
    if settings.minimum_updates > settings.goal_count:
        wrong.append(f"minimum_updates is at most goal_count, got {settings.minimum_updates} > {settings.goal_count}")
    if settings.plan.clip_norm > MAX_CLIP_NORM:
        wrong.append(f"plan.clip_norm is at most {MAX_CLIP_NORM}, got {settings.plan.clip_norm}")
    if settings.pace.minimum_seconds > settings.pace.maximum_seconds:
        pace = settings.pace
        wrong.append(
            f"pace.minimum_seconds is at most pace.maximum_seconds, got {pace.minimum_seconds} > {pace.maximum_seconds}"
        )
    if settings.maximum_age_seconds < settings.lease_seconds:
        wrong.append(f"maximum_age_seconds is at least lease_seconds, got {settings.maximum_age_seconds}")
    if settings.release.cron:
        try:
            next_due(settings.release.cron, settings.release.time_zone, 0)
        except InvalidSetting as e:
            wrong.append(f"release.cron and release.time_zone: {e}")
    if wrong:
        raise InvalidSetting("; ".join(wrong))


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the HTTP side listens, and under which URL devices find it (empty: the listening address)."""

    host: str = "127.0.0.1"
    port: Port = 8080
    public_url: str = ""


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which broker to use (empty URL: start one on loopback), and the URL that devices are told (empty: the same).

    User and password in either are ours alone: devices are told the URL without them.
    """

    url: str = ""
    public_url: str = ""


class GateSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The held-out text a release is judged by (empty: releases are not judged), and who evaluates."""

    held_out_text: str = ""
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("edge-runtime",)
    tolerance_points: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 0.2
    timeout_seconds: Duration = 1_800


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`aggregator.toml`. `database` is an SQLAlchemy URL; empty means SQLite in the data directory."""

    database: str = ""
    keep_updates_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 30
    http: HttpSettings = HttpSettings()
    broker: BrokerSettings = BrokerSettings()
    gate: GateSettings = GateSettings()


DEFAULT_FILE = """\
# What `cloud-aggregator serve` reads. Every key is optional; these are the defaults.
# database = ""                 # an SQLAlchemy URL; empty: SQLite in this directory
# keep_updates_days = 30        # sealed updates are deleted after that

[http]
host = "127.0.0.1"
port = 8080
# public_url = "https://fleet.example"   # where devices find it

[broker]
# url = "mqtt://127.0.0.1:1883"  # empty: mosquitto, or else iotcore, is started on loopback

[gate]
# held_out_text = "held-out.txt" # text that nobody trained on; without it releases are not judged
"""
