"""What the operator sets: one TOML file for the service, one for each population.

`aggregator.toml` stands in the data directory; `cloud-aggregator init` writes it. A population's file is given to
`population import` and stored in the database. Unknown keys, wrong types and broken rules are told with file and line.
"""

from typing import Annotated, Literal

import msgspec

from cloud_aggregator.errors import InvalidSetting
from cloud_aggregator.schedule import next_due
from cloud_aggregator.server_optimizer import OptimizerSettings
from wire_contract.codec import check_plan
from wire_contract.errors import ContractError
from wire_contract.messages import LOCAL_RULES, Plan, Share
from wire_contract.patch import MAX_KEEP, SMALLEST_KEEP

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


class DownlinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How versions get to devices: see `deltas` and `model_chunks`.

    `delta_versions`: a device that holds one of the last so many versions of a track can have a delta (0: none can).
    `mqtt`: what a device that cannot reach the HTTP side may have over the broker, nothing ("off"), deltas only, or
    whole files too; `mqtt_bytes_a_day` bounds that for each device.
    """

    delta_versions: Annotated[int, msgspec.Meta(ge=0, le=16)] = 8
    mqtt: Literal["off", "deltas", "files"] = "deltas"
    mqtt_bytes_a_day: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 2 * 1024 * 1024


class IndexSetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the public index set of a `shared` plan is made: see `index_sets`.

    `explore_share` of it is drawn at random; the rest moved most over the last `versions` steps.
    """

    explore_share: Share = 0.15
    versions: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8


class PopulationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one population learns. Times are seconds; see `rounds.RoundRules`, `leases`, `admission.Rules`.

    `principal_axes`, for mode "topk" alone: the aggregator makes a basis at the import, and updates are in its axes;
    see `bases`. `hysteresis`: how many codes a weight moves before its published code follows (0: every code is the
    nearest); see `wire_contract.patch`.
    """

    goal_count: Count = 20
    minimum_updates: Count = 5
    report_deadline_seconds: Duration = 3 * 86_400
    lease_seconds: Duration = 21_600
    lease_grace_seconds: Duration = 3_600
    maximum_age_seconds: Duration = 21 * 86_400
    manifest_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 90
    plan: Plan = Plan()
    index_set: IndexSetSettings = IndexSetSettings()
    principal_axes: bool = False
    optimizer: OptimizerSettings = OptimizerSettings()
    pace: PaceSettings = PaceSettings()
    release: ReleaseSettings = ReleaseSettings()
    downlink: DownlinkSettings = DownlinkSettings()
    hysteresis: Annotated[float, msgspec.Meta(ge=0.0, le=MAX_KEEP)] = 0.5


def check_population(settings: PopulationSettings) -> None:
    """Raise `InvalidSetting` naming every rule between the settings that does not hold, each with its key."""
    wrong = []
    if settings.minimum_updates > settings.goal_count:
        wrong.append(f"minimum_updates is at most goal_count, got {settings.minimum_updates} > {settings.goal_count}")
    if settings.plan.clip_norm > MAX_CLIP_NORM:
        wrong.append(f"plan.clip_norm is at most {MAX_CLIP_NORM}, got {settings.plan.clip_norm}")
    try:
        check_plan(settings.plan.codec)
    except ContractError as e:
        wrong.append(f"plan.codec: {e}")
    unknown = sorted({rule.name for rule in settings.plan.rules} - LOCAL_RULES)
    if unknown:
        known = ", ".join(sorted(LOCAL_RULES))
        wrong.append(f"plan.rules are names that devices know ({known}), got {', '.join(unknown)}")
    if settings.plan.codec.index_set:
        wrong.append("plan.codec.index_set is the aggregator's to name, leave it out")
    if settings.plan.codec.basis:
        wrong.append("plan.codec.basis is the aggregator's to name, leave it out and set principal_axes")
    if settings.principal_axes and settings.plan.codec.mode != "topk":
        wrong.append(f'principal_axes goes with plan.codec.mode "topk" alone, got {settings.plan.codec.mode[:40]!r}')
    if settings.pace.minimum_seconds > settings.pace.maximum_seconds:
        pace = settings.pace
        wrong.append(
            f"pace.minimum_seconds is at most pace.maximum_seconds, got {pace.minimum_seconds} > {pace.maximum_seconds}"
        )
    if settings.maximum_age_seconds < settings.lease_seconds:
        wrong.append(f"maximum_age_seconds is at least lease_seconds, got {settings.maximum_age_seconds}")
    if 0.0 < settings.hysteresis < SMALLEST_KEEP:
        wrong.append(f"hysteresis is 0 or at least {SMALLEST_KEEP}, got {settings.hysteresis}")
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
    """Which broker to use (empty URL: start one on loopback), and what devices are told (empty: the same).

    `public_url` may hold several addresses, see `adapters.broker_addresses`. User and password in either are ours
    alone: devices are told the URL without them. `websocket_port`, for a mosquitto that is started here: where it
    listens for WebSockets, too (0: nowhere).
    """

    url: str = ""
    public_url: str = ""
    websocket_port: Port = 0


class GateSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The held-out text a release is judged by (empty: releases are not judged), and who evaluates."""

    held_out_text: str = ""
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("edge-runtime",)
    tolerance_points: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 0.2
    timeout_seconds: Duration = 1_800


class IntakeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How messages are stored: at most that many updates, or milliseconds, in one commit; when work is turned away.

    No lease is offered while what waits would take longer than `backlog_seconds` to store, or while less than
    `reserve_megabytes` are left on the disk.
    """

    group_updates: Annotated[int, msgspec.Meta(ge=1, le=64)] = 64
    group_milliseconds: Annotated[int, msgspec.Meta(ge=1, le=20)] = 20
    checkpoint_updates: Count = 256
    backlog_seconds: Annotated[int, msgspec.Meta(ge=1, le=3_600)] = 10
    reserve_megabytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 64


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`aggregator.toml`. `database` is an SQLAlchemy URL; empty means SQLite in the data directory."""

    database: str = ""
    keep_updates_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 30
    keep_updates_refreshes: Annotated[int, msgspec.Meta(ge=1, le=520)] = 4
    http: HttpSettings = HttpSettings()
    broker: BrokerSettings = BrokerSettings()
    intake: IntakeSettings = IntakeSettings()
    gate: GateSettings = GateSettings()


DEFAULT_FILE = """\
# What `cloud-aggregator serve` reads. Every key is optional; these are the defaults.
# database = ""                 # an SQLAlchemy URL; empty: SQLite in this directory
# keep_updates_days = 30        # sealed updates are deleted after that, or ...
# keep_updates_refreshes = 4    # ... once this many refreshes went out after the one they are in

[http]
host = "127.0.0.1"
port = 8080
# public_url = "https://fleet.example"   # where devices find it

[broker]
# url = "mqtt://127.0.0.1:1883"  # empty: mosquitto, or else iotcore, is started on loopback
# websocket_port = 0            # where that mosquitto listens for WebSockets, too; 0: nowhere
# public_url = "mqtts://fleet.example wss://fleet.example/mqtt"   # what devices are told, the best first

[intake]
# group_updates = 64            # updates in one commit, at most 64; ...
# group_milliseconds = 20       # ... or this long after the first, at most 20
# backlog_seconds = 10          # no lease while storing what waits would take longer
# reserve_megabytes = 64        # no lease while less than this is left on the disk

[gate]
# held_out_text = "held-out.txt" # text that nobody trained on; without it releases are not judged
"""
