"""What stops training now, what would change it, and when the next window opens: sentences for a person. Pure.

`eligibility.decide` gives the answer that the agent acts on; this says more of the same answer, and never another one.
"""

from dataclasses import dataclass
from datetime import datetime

from edge_runtime import night_window
from edge_runtime.eligibility import (
    Decision,
    Moment,
    Policy,
    Readings,
    Standing,
    Stop,
    Usage,
    clock_time,
    decide,
    in_window,
    zone,
)


@dataclass(frozen=True, slots=True)
class NextWindow:
    """When the night window opens next and when an open one closes, in Unix seconds, and the sentence that says it.

    `opens_at` is None where the window is always open, where it does not open within days, and where the clock cannot
    be believed; `closes_at` is None unless it is open.
    """

    opens_at: float | None
    closes_at: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`stops`: what stops training now, and sending; `would_change`: what would change that; a sentence or two each.

    `settings`: the lines of the settings' [policy] by which the owner's word would change it, if it is true.
    """

    stops: str
    would_change: str
    next_window: NextWindow
    decision: Decision
    settings: tuple[str, ...] = ()


def explain(
    standing: Standing,
    readings: Readings,
    policy: Policy,
    usage: Usage,
    moment: Moment,
    *,
    training: bool,
    lease_until: float | None = None,
) -> Explanation:
    """Return the explanation of what `decide` answers to the same arguments."""
    _, decision = decide(standing, readings, policy, usage, moment, training=training, lease_until=lease_until)
    every = (*decision.stops, *decision.send_stops)
    settings = tuple(dict.fromkeys(stop.setting for stop in every if stop.setting))
    stops = _what_stops(decision, training=training)
    return Explanation(stops, _would_change(every), next_window(policy, moment), decision, settings)


# What each of those lines says of the device: nobody should write one down that is not true of it.
_MEANINGS = {
    'profile = "mains"': "it hangs on the mains",
    'idle = "if_known"': "where nothing tells whether somebody uses it, nobody does",
    'heat = "if_known"': "where nothing tells the temperature, it is cool",
    'link = "if_known"': "where nothing tells whether the link is metered, it is not",
    'clock = "rtc"': "the wall clock is right from the start",
}


def owners_words(settings: tuple[str, ...]) -> str:
    """Return the lines as they may be written into the settings, each with what it says."""
    width = max((len(line) for line in settings), default=0)
    return "\n".join(f"    {line.ljust(width)}  # {_MEANINGS[line]}" for line in settings)


def _what_stops(decision: Decision, *, training: bool) -> str:
    if not decision.stops:
        state = "Nothing stops training: it trains now" if training else "Nothing stops training: it may start now"
        if decision.send_stops:
            return f"{state}, but sends nothing, since {_joined(decision.send_stops)}."
        return f"{state}."
    verb = "Its training is stopped" if training else "It does not train"
    sends = f" It sends nothing either, since {_joined(decision.send_stops)}." if decision.send_stops else ""
    return f"{verb} because {_joined(decision.stops)}.{sends}"


def _joined(stops: tuple[Stop, ...]) -> str:
    parts = [stop.what for stop in stops]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f", and {parts[-1]}"


def _would_change(stops: tuple[Stop, ...]) -> str:
    if not stops:
        return "Nothing has to change."
    remedies = list(dict.fromkeys(stop.remedy for stop in stops))
    sentence = "; ".join(remedies)
    return f"{sentence[0].upper()}{sentence[1:]}."


def next_window(policy: Policy, moment: Moment) -> NextWindow:
    """Return when the window opens next."""
    name, start, end = policy.time_zone, policy.night_start, policy.night_end
    if start == end:
        return NextWindow(
            None, None, f"The window is always open; its budgets begin anew at {clock_time(start)} ({name})."
        )
    if not moment.trusted:
        times = f"from {clock_time(start)} to {clock_time(end)} ({name})"
        return NextWindow(None, None, f"The window is open {times}, as soon as the clock can be believed.")
    opens_at = night_window.next_opening(name, start, end, moment.now)
    if in_window(policy, moment.now):
        closes_at = night_window.next_closing(name, start, end, moment.now)
        closing = (
            "for days" if closes_at is None else f"until {_at(name, closes_at)}, {_for(closes_at - moment.now)} more"
        )
        opening = "" if opens_at is None else f"; the next one opens on {_at(name, opens_at)}"
        return NextWindow(opens_at, closes_at, f"The window is open {closing}{opening}.")
    if opens_at is None:
        return NextWindow(None, None, f"The window does not open within days in {name}.")
    wait = _for(opens_at - moment.now)
    return NextWindow(opens_at, None, f"The next window opens on {_at(name, opens_at)}, in {wait}.")


def _at(time_zone: str, when: float) -> str:
    local = datetime.fromtimestamp(when, zone(time_zone))
    return f"{local:%Y-%m-%d %H:%M} ({time_zone})"


def _for(seconds: float) -> str:
    minutes = round(seconds / 60.0)
    if minutes < 1:
        return "less than a minute"
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes)
    return " ".join(parts)
