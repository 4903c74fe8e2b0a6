"""`edge-runtime explain`: what stops training now, what would change it, when the next window opens; or what a recorded
night's looks decide.

It looks for itself, as a process beside the agent: what the agent alone knows (how long all conditions have held, a
cool-down) is taken as waited for, so that the answer is what has to change, not how long to wait.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, table
from edge_runtime.adapters.sensors.linux import LinuxSensors
from edge_runtime.agent import Agent, Ports
from edge_runtime.config import SETTINGS_FILE, Settings, read_settings
from edge_runtime.eligibility import Moment, Policy, Standing
from edge_runtime.explanation import Explanation, explain, owners_words
from edge_runtime.home_opening import opened
from edge_runtime.session import Phase
from edge_runtime.trace import MAX_LINE_BYTES, TraceInvalid, decode_looks, replay
from edge_runtime.wiring import real_ports

MAX_TRACE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a trace with one answer: from and until (Unix seconds), the stop's name, and its sentence.

    `seconds` are counted by the clock that never jumps; those of a stretch without a look are by the wall clock.
    """

    since: float
    until: float
    seconds: float
    code: str
    reason: str


UNSEEN = "no_look"

# One thing at a time (`session`): while it waits for the aggregator, no condition is what it waits for.
_WAITING = {
    Phase.CHECKING_IN: "It has asked for work and waits for the answer",
    Phase.SENDING: "An update waits to be sent, or for its receipt",
    Phase.REPORTING: "An evaluation's report waits to be sent, or for its receipt",
}


def explain_now(home: Path) -> Result:
    """Return the three sentences. Raises `CommandError`."""
    with opened(home) as agent:
        settings = read_settings(home)
        ports = real_ports(home, settings, only_looks=True)
        try:
            return _told(agent, look(agent, settings, ports), ports.clock.now(), home)
        finally:
            ports.trainer.close()


def look(agent: Agent, settings: Settings, ports: Ports) -> Explanation:
    """Return what the sensors and the policy say now, all waits aside."""
    policy, clock = settings.policy.as_policy(), ports.clock
    moment = Moment(clock.now(), clock.elapsed(), clock.trusted())
    settled = Standing(looked_at=moment.elapsed, good_since=moment.elapsed - policy.settle_s)
    sensors = ports.sensors
    # Commands that answer by themselves (Termux's) are waited for; an agent would look again.
    readings = sensors.read_answered(moment.now) if isinstance(sensors, LinuxSensors) else sensors.read(moment.now)
    return explain(settled, readings, policy, agent.usage(moment.now), moment, training=False)


def hint_of_settings(settings: tuple[str, ...], home: Path) -> str:
    """Return which lines the owner may write where, "" if none would change anything."""
    if not settings:
        return ""
    return f"What of this is true of the device may stand under [policy] in {home / SETTINGS_FILE}:\n" + owners_words(
        settings
    )


def _told(agent: Agent, explanation: Explanation, now: float, home: Path) -> Result:
    stops, change = explanation.stops, explanation.would_change
    state = agent.state
    if explanation.decision.may_train:
        if state.phase is Phase.RESTING and now < state.not_before:
            stops = f"It does not train because it was told to ask for work again {_utc(state.not_before)}."
            change = "Waiting until then; the aggregator spreads its fleet over the night."
        elif not agent.count_words():
            stops = "It does not train because there is nothing to learn from yet."
            change = "Typing, edge-runtime add, or edge-runtime add-arrays would change that."
        elif state.phase in _WAITING:
            stops = f"{_WAITING[state.phase]}, and it asks for nothing else before that."
            change = "The aggregator's answer; edge-runtime doctor says whether the broker answers."
    window = explanation.next_window
    data = {
        "stops": stops,
        "would_change": change,
        "next_window": window.sentence,
        "opens_at": None if window.opens_at is None else _utc(window.opens_at),
        "may_train": explanation.decision.may_train,
        "may_send": explanation.decision.may_send,
        "code": explanation.decision.code,
        "settings": list(explanation.settings),
        "phase": state.phase.value,
        "not_before": _utc(state.not_before) if state.not_before > now else None,
    }
    lines = (stops, change, window.sentence, hint_of_settings(explanation.settings, home))
    return Result(data, text="\n".join(line for line in lines if line))


def explain_trace(home: Path, trace: Path) -> Result:
    """Return what this home's policy decides on a recorded trace, stretch by stretch. Raises `CommandError`."""
    policy = read_settings(home).policy.as_policy()
    try:
        if trace.stat().st_size > MAX_TRACE_BYTES:
            raise CommandError(f"{trace}: a trace has at most {MAX_TRACE_BYTES} bytes", code="BAD_TRACE")
        with trace.open("rb") as lines:
            # A file that grows, or a pipe, has no size that says how much will come.
            found = list(stretches(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), policy))
    except FileNotFoundError as e:
        raise CommandError(f"{trace}: no such trace", exit_code=ExitCode.NOT_FOUND, code="NO_TRACE") from e
    except OSError as e:
        raise CommandError(f"{trace}: cannot be read: {e.strerror}", code="BAD_TRACE") from e
    except TraceInvalid as e:
        raise CommandError(f"{trace}: {e}", code="BAD_TRACE") from e
    items = [
        {
            "since": _utc(each.since), "until": _utc(each.until), "seconds": round(each.seconds, 1), "code": each.code,
            "reason": each.reason,
        }
        for each in found
    ]  # fmt: skip
    trained_s = sum(each.seconds for each in found if not each.code)
    rows = [(_utc(each.since), round(each.seconds), each.code or "may train", each.reason) for each in found]
    text = table(rows, ("since (utc)", "seconds", "answer", "reason"))
    return Result({"items": items, "might_train_s": round(trained_s, 1)}, text=text)


def stretches(lines: Iterator[bytes], policy: Policy) -> Iterator[Stretch]:
    """Yield the stretches of a trace's answers. Raises `TraceInvalid`.

    An answer lasts until the next look, if that comes while readings are still current; where it does not (another
    night, a restart), what was not seen is a stretch of its own and counts for nothing.
    """
    current: Stretch | None = None
    looked_at = 0.0
    for seen, decision in replay(decode_looks(lines), policy):
        now, passed = seen.moment.now, seen.moment.elapsed - looked_at
        looked_at = seen.moment.elapsed
        fresh = Stretch(now, now, 0.0, "" if decision.may_train else decision.code, decision.reason)
        if current is None:
            current = fresh
        elif not 0.0 <= passed <= policy.maximum_age_s:
            yield current
            yield Stretch(current.until, now, max(0.0, now - current.until), UNSEEN, "nobody looked")
            current = fresh
        else:
            current = replace(current, until=now, seconds=current.seconds + passed)
            if current.code != fresh.code:
                yield current
                current = fresh
    if current is not None:
        yield current


def _utc(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
