"""May this device train, and may it use the network, now? Pure: what is remembered, readings, policy, usage and the
moment are arguments; the answer comes with what is to be remembered until the next look.

The rules:
- an unknown reading counts against training, and so does one that is outdated, dated in the future by as much, or no
  finite number. The exceptions are the owner's word, and each is a setting that the reason names: `profile = "mains"`
  (unknown power is plugged in, an unknown battery full), `idle`, `heat` and `link = "if_known"`, `idle = "ignore"`;
  what a sensor does say counts all the same, save for `idle = "ignore"`. Load and under-voltage stop where they are
  known: most kernels and boards cannot tell them, and the trainer runs at idle priority, so that not knowing them
  costs nobody anything;
- where the sensors see no battery at all (a desktop with a mains adapter), there is none to know: the adapter alone
  says whether it charges. A battery that is there and does not say how full it is counts as unknown;
- training asks for all of: a wall clock that can be believed, inside the local night window, charging, battery above
  the floor, idle, cool, no under-voltage, little load, budgets left;
- it starts when all of that has held for `settle_s` without a break, `cool_down_s` after the last stop, with
  `minimum_window_s` of window (and of lease) left, and at most `starts` times a night. The floors are stricter for a
  start than for going on, so that nothing flaps around them;
- it stops at once, save for load, which must last `grace_s`. A stop stands until the trainer has ended: a cable that
  is back in between does not take it back;
- looks that lie more than `maximum_age_s` apart do not show that anything held between them;
- durations are of the elapsed clock, which never jumps; the wall clock serves the window and the night's name alone;
- the network asks for an unmetered link and bytes left in the night's budget. A link that becomes metered while it is
  used may be used for `grace_s` more, so that a flap does not cut a session. It does not ask for a clock: a signed
  message may be what sets it;
- the reason is one sentence: what stops it, and what would change that. The first stop in the order above is named.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from edge_runtime import night_window
from edge_runtime.night_window import zone

__all__ = [
    "Decision", "Moment", "Policy", "Reading", "Readings", "Standing", "Stop", "Usage", "decide", "in_window",
    "night_of", "zone",
]  # fmt: skip

Value = TypeVar("Value", bound=float)
HOLDS = "every condition holds"


@dataclass(frozen=True, slots=True)
class Reading(Generic[Value]):
    """A sensor's value, None if unknown, how many seconds ago it was taken (negative: dated in the future), and where
    it comes from."""

    value: Value | None = None
    age_s: float = 0.0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything the sensors say: power, battery in percent, heat in Celsius, seconds since the last touch, link, load.

    `has_battery` is false only where the sensors looked and found none. `battery_celsius` is the battery's own heat,
    which has lower limits than the board's. `load` is the percentage of time in which others waited for the processor,
    the disk or memory; `load_is_others` is false where this device's own trainer cannot be told from them.
    """

    charging: Reading[bool] = Reading()
    battery: Reading[float] = Reading()
    celsius: Reading[float] = Reading()
    idle_s: Reading[float] = Reading()
    metered: Reading[bool] = Reading()
    has_battery: bool = True
    load: Reading[float] = Reading()
    under_voltage: Reading[bool] = Reading()
    battery_celsius: Reading[float] = Reading()
    load_is_others: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """What this night has used already: seconds of training, CPU seconds of the trainer, bytes sent and written, and
    how often a training was started or gone on with."""

    training_s: float = 0.0
    sent_bytes: int = 0
    cpu_s: float = 0.0
    written_bytes: int = 0
    starts: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """The owner's terms; `policy_settings` reads and checks them. Every number is the default of a setting.

    `night_start` and `night_end` are minutes after local midnight; equal means always. `watts` is what the device
    draws for one busy core: the night's energy, `energy_wh`, is counted as CPU seconds times it.
    """

    profile: Literal["battery", "mains"] = "battery"
    time_zone: str = "UTC"
    night_start: int = 23 * 60
    night_end: int = 6 * 60
    idle: Literal["required", "if_known", "ignore"] = "required"
    heat: Literal["required", "if_known"] = "required"
    link: Literal["required", "if_known"] = "required"
    minimum_idle_s: float = 120.0
    start_battery: float = 60.0
    stop_battery: float = 40.0
    start_celsius: float = 70.0
    stop_celsius: float = 80.0
    start_battery_celsius: float = 38.0
    stop_battery_celsius: float = 42.0
    maximum_load: float = 40.0
    settle_s: float = 120.0
    grace_s: float = 10.0
    cool_down_s: float = 600.0
    minimum_window_s: float = 900.0
    training_s: float = 7200.0
    energy_wh: float = 20.0
    watts: float = 5.0
    written_bytes: int = 64 * 1024 * 1024
    sent_bytes: int = 32 * 1024 * 1024
    starts: int = 2
    maximum_age_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Moment:
    """When a look is taken: Unix seconds by the wall clock, seconds since the device started, and whether the wall
    clock can be believed."""

    now: float
    elapsed: float
    trusted: bool = True


@dataclass(frozen=True, slots=True)
class Standing:
    """What the policy remembers between two looks, in elapsed seconds; `Standing()` is an agent that just started.

    `good_since`: since when every condition held; `load_since`, `metered_since`: since when a grace runs;
    `cool_until`: no start before; `stopping`: a running training was told to stop, and why.
    """

    looked_at: float | None = None
    good_since: float | None = None
    load_since: float | None = None
    metered_since: float | None = None
    sending: bool = False
    cool_until: float = -math.inf
    stopping: str = ""


JUST_STARTED = Standing()


@dataclass(frozen=True, slots=True)
class Stop:
    """One thing that stops training or sending: a stable name, what it is, and what would change it.

    `immediate`: it concerns the person or the hardware, so a running trainer is to be stopped before anything else is
    done; what is not (the window, a budget, load) leaves time for a checkpoint. `setting`: the line of the policy by
    which the owner's word would change it, "" where no word can.
    """

    code: str
    what: str
    remedy: str
    immediate: bool = False
    setting: str = ""

    @property
    def reason(self) -> str:
        """The stop as one sentence."""
        return f"{self.what}: {self.remedy}"


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, and why: the first stop's sentence, name and remedy, and all stops for who wants to know more."""

    may_train: bool
    may_send: bool
    reason: str
    code: str = ""
    remedy: str = ""
    immediate: bool = False
    stops: tuple[Stop, ...] = ()
    send_stops: tuple[Stop, ...] = ()


def night_of(policy: Policy, now: float) -> str:
    """Return the name of the night that `now` belongs to, for its budget: the local date on which it began."""
    return night_window.night_name(policy.time_zone, policy.night_start, now)


def in_window(policy: Policy, now: float) -> bool:
    """Whether the local wall clock stands inside the night window (which may cross midnight)."""
    return night_window.is_open(policy.time_zone, policy.night_start, policy.night_end, now)


def decide(
    standing: Standing,
    readings: Readings,
    policy: Policy,
    usage: Usage,
    moment: Moment,
    *,
    training: bool,
    lease_until: float | None = None,
) -> tuple[Standing, Decision]:
    """Return what to remember, and whether the device may train and may send.

    `training`: a trainer runs now (or is ending). `lease_until`: when the lease of the task in hand ends, in Unix
    seconds, if there is one.
    """
    elapsed = moment.elapsed
    unbroken = standing.looked_at is not None and 0.0 <= elapsed - standing.looked_at <= policy.maximum_age_s
    stops = list(_conditions(readings, policy, usage, moment, training=training))
    busy = _load_stop(readings, policy, training=training)
    load_since = None
    if busy is not None:
        load_since = standing.load_since if unbroken and standing.load_since is not None else elapsed
        if not training or elapsed - load_since >= policy.grace_s:
            stops.append(busy)
    stopping, cool_until, good_since = "", standing.cool_until, None
    if not stops:
        good_since = standing.good_since if unbroken and standing.good_since is not None else elapsed
    if training:
        if standing.stopping and not stops:
            stops.append(Stop("stopping", standing.stopping, "the training that this stopped has yet to end", True))
        if stops:
            stopping, cool_until, good_since = stops[0].what, elapsed + policy.cool_down_s, None
    else:
        good_s = elapsed - good_since if good_since is not None else None
        stops += _start_stops(good_s, cool_until - elapsed, policy, usage, moment, lease_until)
    send_stops, metered_since = _send_stops(standing, readings, policy, usage, elapsed, unbroken=unbroken)
    after = Standing(elapsed, good_since, load_since, metered_since, not send_stops, cool_until, stopping)
    first = stops[0] if stops else send_stops[0] if send_stops else None
    if first is None:
        return after, Decision(True, True, HOLDS)
    answer = Decision(
        not stops, not send_stops, first.reason, first.code, first.remedy, first.immediate, tuple(stops), send_stops
    )
    return after, answer


def _fresh(reading: Reading[Value], policy: Policy) -> Value | None:
    # Written so that an age that is no number is outdated, too.
    timely = -policy.maximum_age_s <= reading.age_s <= policy.maximum_age_s
    return reading.value if timely and reading.value is not None and math.isfinite(reading.value) else None


def _conditions(readings: Readings, policy: Policy, usage: Usage, moment: Moment, *, training: bool) -> Iterator[Stop]:
    """Yield what must hold at every moment of a training and is false, in the order in which it is named."""
    yield from _night(policy, moment)
    yield from _power(readings, policy, training=training)
    yield from _person(readings, policy)
    yield from _heat(readings, policy, training=training)
    if _fresh(readings.under_voltage, policy):
        what = "its power supply is too weak just now"
        yield Stop("under_voltage", what, "a stronger supply or a shorter cable would change that", True)
    yield from _budgets(policy, usage)


def _night(policy: Policy, moment: Moment) -> Iterator[Stop]:
    if policy.night_start == policy.night_end:
        return
    if not moment.trusted:
        what = "its clock cannot be believed yet, so nobody knows whether it is night"
        setting = 'clock = "rtc"'
        remedy = f"network time, an answer from the aggregator, or {setting}, would change that"
        yield Stop("clock", what, remedy, setting=setting)
    elif not in_window(policy, moment.now):
        times = f"it trains from {clock_time(policy.night_start)} to {clock_time(policy.night_end)}"
        yield Stop("window", "it is not night here", times)


def _power(readings: Readings, policy: Policy, *, training: bool) -> Iterator[Stop]:
    charging, battery = _fresh(readings.charging, policy), _fresh(readings.battery, policy)
    mains = 'profile = "mains"'
    if charging is None and policy.profile != "mains":
        remedy = f"a power sensor, or {mains}, would change that"
        yield Stop("charging_unknown", "whether it charges is unknown", remedy, True, mains)
    if charging is False:
        yield Stop("unplugged", "it is not charging", "it trains when the cable is in", True)
    if battery is None:
        if readings.has_battery and policy.profile != "mains":
            remedy = f"a battery sensor, or {mains}, would change that"
            yield Stop("battery_unknown", "how full its battery is is unknown", remedy, True, mains)
        return
    floor = policy.stop_battery if training else policy.start_battery
    if battery < floor:
        yield Stop("battery_low", f"the battery is at {battery:.0f} %", f"it trains from {floor:.0f} %", True)


def _person(readings: Readings, policy: Policy) -> Iterator[Stop]:
    if policy.idle == "ignore":
        return
    idle_s = _fresh(readings.idle_s, policy)
    if idle_s is None:
        if policy.idle == "required":
            setting = 'idle = "if_known"'
            remedy = f"a desktop that tells, an idle hook, or {setting}, would change that"
            yield Stop("idle_unknown", "whether somebody uses it is unknown", remedy, True, setting)
    elif idle_s < policy.minimum_idle_s:
        remedy = f"it trains after {policy.minimum_idle_s:.0f} s of rest"
        yield Stop("in_use", f"somebody used it {idle_s:.0f} s ago", remedy, True)


def _heat(readings: Readings, policy: Policy, *, training: bool) -> Iterator[Stop]:
    board, battery = _fresh(readings.celsius, policy), _fresh(readings.battery_celsius, policy)
    if board is None and battery is None and policy.heat == "required":
        setting = 'heat = "if_known"'
        remedy = f"a thermal sensor, or {setting}, would change that"
        yield Stop("heat_unknown", "its temperature is unknown", remedy, True, setting)
    limit = policy.stop_celsius if training else policy.start_celsius
    if board is not None and board > limit:
        yield Stop("hot", f"it is {board:.0f} C warm", f"it trains at {limit:.0f} C or cooler", True)
    limit = policy.stop_battery_celsius if training else policy.start_battery_celsius
    if battery is not None and battery > limit:
        remedy = f"it trains with a battery at {limit:.0f} C or cooler"
        yield Stop("battery_hot", f"its battery is {battery:.0f} C warm", remedy, True)


def _budgets(policy: Policy, usage: Usage) -> Iterator[Stop]:
    tomorrow = "it goes on tomorrow night"
    if usage.training_s >= policy.training_s:
        yield Stop("training_budget", f"tonight's {policy.training_s:.0f} s of training are used up", tomorrow)
    if usage.cpu_s * policy.watts >= policy.energy_wh * 3600.0:
        yield Stop("energy_budget", f"tonight's {policy.energy_wh:g} Wh for training are used up", tomorrow)
    if usage.written_bytes >= policy.written_bytes:
        yield Stop("written_budget", f"tonight's {policy.written_bytes} bytes of writing are used up", tomorrow)


def _load_stop(readings: Readings, policy: Policy, *, training: bool) -> Stop | None:
    # While a trainer runs that cannot be told from others, its own waiting would stop it.
    load = _fresh(readings.load, policy) if readings.load_is_others or not training else None
    if load is None or load <= policy.maximum_load:
        return None
    what = f"others wait for the processor, the disk or memory {load:.0f} % of the time"
    return Stop("load", what, f"it trains at {policy.maximum_load:.0f} % or less")


def _start_stops(
    good_s: float | None, cool_s: float, policy: Policy, usage: Usage, moment: Moment, lease_until: float | None
) -> Iterator[Stop]:
    """Yield what forbids a start and would not end a running training."""
    if usage.starts >= policy.starts:
        times = "once" if policy.starts == 1 else f"{policy.starts} times"
        what = f"it started {times} tonight, and no start is left" if policy.starts else "no start is allowed"
        yield Stop("starts_budget", what, "it starts again tomorrow night")
    if cool_s > 0.0:
        yield Stop("cool_down", "its last training was stopped a short while ago", f"it starts again in {cool_s:.0f} s")
    if good_s is None:
        return
    if good_s < policy.settle_s:
        what = f"every condition has held for {good_s:.0f} s only"
        yield Stop("settling", what, f"it starts after {policy.settle_s:.0f} s without a break")
    start, end, least_s = policy.night_start, policy.night_end, policy.minimum_window_s
    if not night_window.stays_open(policy.time_zone, start, end, moment.now, least_s):
        what = f"the night is over in less than {least_s / 60.0:.0f} minutes"
        yield Stop("window_short", what, "it starts tomorrow night")
    if lease_until is not None and lease_until - moment.now < least_s:
        what = f"the task's lease is over in less than {least_s / 60.0:.0f} minutes"
        yield Stop("lease_short", what, "it asks for another task then")


def _send_stops(
    standing: Standing, readings: Readings, policy: Policy, usage: Usage, elapsed: float, *, unbroken: bool
) -> tuple[tuple[Stop, ...], float | None]:
    stops: list[Stop] = []
    metered, since = _fresh(readings.metered, policy), None
    if metered is None and policy.link == "required":
        setting = 'link = "if_known"'
        remedy = f"NetworkManager, a network hook, or {setting}, would change that"
        stops.append(Stop("link_unknown", "whether the link is metered is unknown", remedy, setting=setting))
    if metered:
        begun = standing.metered_since if standing.metered_since is not None else elapsed
        if unbroken and standing.sending and elapsed - begun < policy.grace_s:
            since = begun
        else:
            stops.append(Stop("metered", "the link is metered", "it sends and fetches on an unmetered one"))
    if usage.sent_bytes >= policy.sent_bytes:
        what = f"tonight's {policy.sent_bytes} bytes are used up"
        stops.append(Stop("sent_budget", what, "it sends again tomorrow night"))
    return tuple(stops), since


def clock_time(minute: int) -> str:
    """Return minutes after midnight as a clock shows them."""
    return f"{minute // 60:02}:{minute % 60:02}"
