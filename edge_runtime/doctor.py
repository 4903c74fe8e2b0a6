"""`edge-runtime doctor`: everything that a night needs, checked one by one, each with what would mend it."""

import importlib.util
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, table
from edge_runtime import identity
from edge_runtime.adapters.child_trainer import ChildTrainer, TrainerTerms
from edge_runtime.adapters.clock import FLOOR_FILE, SystemClock
from edge_runtime.adapters.runtime_name import runtime_name
from edge_runtime.adapters.sensors.linux import LinuxSensors
from edge_runtime.broker_address import parse_addresses
from edge_runtime.config import SETTINGS_FILE, Settings, read_settings
from edge_runtime.eligibility import Moment, Policy, Reading, Readings, Standing, Stop, Usage
from edge_runtime.explain_commands import hint_of_settings
from edge_runtime.explanation import explain
from edge_runtime.history import STATE_FILE
from edge_runtime.home_opening import open_agent
from edge_runtime.identity import NotEnrolled
from edge_runtime.model_slots import VersionRefused
from edge_runtime.ports import PortError
from wire_contract.topics import Track

FREE_BYTES = 32 * 1024 * 1024
CONNECT_S = 3.0
UNKNOWN = ("charging_unknown", "battery_unknown", "heat_unknown", "idle_unknown", "link_unknown")
UNITS = {"battery": " %", "heat": " C", "battery heat": " C", "last use": " s ago", "load": " % of the time"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, whether it holds, and what was seen or what to do.

    `setting` is the line of [policy] by which the owner's word would mend it, "" where none can.
    """

    name: str
    ok: bool
    message: str
    setting: str = ""


def examine(home: Path) -> Result:
    """Return all findings; the exit code is 1 if one is not ok."""
    file = home / SETTINGS_FILE
    try:
        settings = read_settings(home)
        findings = [
            Finding("settings", True, f"{file} {'was read' if file.exists() else 'is not there: all defaults'}")
        ]
    except CommandError as e:
        settings, findings = Settings(), [Finding("settings", False, e.message)]
    findings += [
        _finding("disk", lambda: _disk(home)),
        _finding("interpreter", lambda: _interpreter(settings)),
        _finding("no TensorFlow", _no_tensorflow),
        _finding("trainer", lambda: _trainer(home, settings)),
        *_conditions(home, settings),
        _finding("identity", lambda: _identity(home)),
        _finding("state", lambda: _state(home)),
        _finding("model", lambda: _model(home)),
        _finding("examples", lambda: _examples(home)),
        _finding("broker", lambda: _reach_broker(identity.load_enrolled(home).broker_url)),
        _finding("model server", lambda: _reach_server(identity.load_enrolled(home).model_url)),
    ]
    rows = [("ok" if f.ok else "NO", f.name, f.message) for f in findings]
    items = [{"name": f.name, "ok": f.ok, "finding": f.message} for f in findings]
    failed = sum(not f.ok for f in findings)
    code = ExitCode.FAILED if failed else ExitCode.OK
    # Beside a file with mistakes the defaults were looked at: what it says already is not known.
    mended_by = tuple(dict.fromkeys(f.setting for f in findings if f.setting)) if findings[0].ok else ()
    hint = hint_of_settings(mended_by, home)
    return Result(
        {"items": items, "failed": failed, "settings": list(mended_by)},
        text=table(rows, ("", "check", "finding")) + (f"\n\n{hint}" if hint else ""),
        next_command="" if findings[0].ok else f"edge-runtime config check --home {home}",
        exit_code=code,
    )


class _Amiss(Exception):  # noqa: N818
    """A check that does not hold."""


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except NotEnrolled as e:
        return Finding(name, False, f"{e}: edge-runtime enrol SERVER --token-file FILE")
    except (_Amiss, PortError, VersionRefused) as e:
        return Finding(name, False, str(e))
    except CommandError as e:
        return Finding(name, False, e.message)


def _is_roomy(home: Path) -> bool:
    # Nothing that cannot be read for want of room is broken.
    return shutil.disk_usage(home).free >= FREE_BYTES


def _disk(home: Path) -> str:
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < FREE_BYTES:
        raise _Amiss(f"{free} bytes free at {place}: a model and its update need {FREE_BYTES}")
    return f"{free // (1024 * 1024)} MB free"


def _interpreter(settings: Settings) -> str:
    name = runtime_name(settings.runtime)
    if name == "none":
        raise _Amiss("none installed: pip install ai-edge-litert, or tflite-runtime on Python 3.11")
    return name


def _trainer(home: Path, settings: Settings) -> str:
    if settings.trainer != "child":
        return "in the agent's own process, as the settings say"
    trainer = ChildTrainer(home, SystemClock(writes=False), TrainerTerms(runtime=settings.runtime))
    try:
        limits = trainer.limits()
    finally:
        trainer.close()
    if not limits:
        raise _Amiss("its process does not start: edge-runtime run would say why on stderr")
    without = [f"{limit.name} ({limit.detail})" for limit in limits if not limit.took_effect]
    told = f"starts, {len(limits) - len(without)} of {len(limits)} limits hold"
    return f"{told}; without: {', '.join(without)}" if without else told


def _no_tensorflow() -> str:
    if importlib.util.find_spec("tensorflow") is not None:
        raise _Amiss("TensorFlow is importable here: a device needs none (it costs 500 MB of memory)")
    return "not importable"


def _conditions(home: Path, settings: Settings) -> list[Finding]:
    """Return a finding for each sensor and for the clock, and what the policy makes of them."""
    policy = settings.policy.as_policy()
    floor = home / FLOOR_FILE
    clock = SystemClock(floor, trust_rtc=settings.policy.clock == "rtc", writes=False)
    moment = Moment(clock.now(), clock.elapsed(), clock.trusted())
    readings = _read(Path(settings.sensors_root), moment.now)
    # What stops training beside having to wait: as if all that holds had held long enough.
    settled = Standing(looked_at=moment.elapsed, good_since=moment.elapsed - policy.settle_s)
    told = explain(settled, readings, policy, _usage(home, moment.now), moment, training=False)
    stops = {stop.code: stop for stop in (*told.decision.stops, *told.decision.send_stops)}
    sensors: tuple[tuple[str, Reading[Any], str], ...] = (
        ("charging", readings.charging, "charging_unknown"),
        ("battery", readings.battery, "battery_unknown"),
        ("heat", readings.celsius, "heat_unknown"),
        ("battery heat", readings.battery_celsius, ""),
        ("last use", readings.idle_s, "idle_unknown"),
        ("metered", readings.metered, "link_unknown"),
        ("load", readings.load, ""),
        ("under-voltage", readings.under_voltage, ""),
    )
    findings = [_sensor(name, reading, policy, stops.get(code)) for name, reading, code in sensors]
    unknown = [stop for code, stop in stops.items() if code in UNKNOWN]
    lacking = "; ".join(stop.what for stop in unknown) or "all that the policy asks for"
    untold = stops.get("clock")
    setting = "" if untold is None or clock.contradicted else untold.setting
    return [
        *findings,
        Finding("sensors", not unknown, lacking),
        Finding("clock", untold is None, _clock(clock, moment, floor, untold), setting),
        Finding("training", True, f"{told.stops} {told.would_change}"),
        Finding("night", True, told.next_window.sentence),
    ]


def _read(root: Path, now: float) -> Readings:
    sensors = LinuxSensors(root)
    try:
        return sensors.read_answered(now)
    finally:
        sensors.close()


def _sensor(name: str, reading: Reading[Any], policy: Policy, stop: Stop | None) -> Finding:
    if stop is not None and reading.value is None:
        return Finding(name, False, f"unknown: {stop.remedy}", stop.setting)
    if reading.value is None:
        return Finding(name, True, "unknown, and not asked for")
    value = ("no", "yes")[reading.value] if isinstance(reading.value, bool) else f"{reading.value:.6g}{UNITS[name]}"
    source = f" from {reading.source}" if reading.source else ""
    told = f"{value}{source}, {reading.age_s:.0f} s old"
    if stop is not None:
        return Finding(
            name, False, f"{told}, which is older than {policy.maximum_age_s:.0f} s: {stop.remedy}", stop.setting
        )
    return Finding(name, True, told)


def _clock(clock: SystemClock, moment: Moment, floor: Path, stop: Stop | None) -> str:
    now = f"{datetime.fromtimestamp(moment.now, UTC):%Y-%m-%d %H:%M} UTC"
    if clock.contradicted:
        return f"{now}, and earlier than what was believed before: if that was wrong, delete {floor}"
    if moment.trusted:
        return f"{now}, believed"
    if stop is None:
        return f"{now}, not believed here, and no night depends on it"
    return f"{now}, not believed here ({stop.remedy}); an agent that runs may know more"


def _usage(home: Path, now: float) -> Usage:
    try:
        agent = open_agent(home, only_looks=True)
    except CommandError:
        # Another finding says what is wrong with the home.
        return Usage()
    try:
        return agent.usage(now)
    finally:
        agent.abandon()


def _identity(home: Path) -> str:
    enrolled = identity.load_enrolled(home)
    if identity.load(home).device != enrolled.device:
        raise _Amiss("the key and the enrolment are of two devices: enrol again")
    return f"device {enrolled.device} of {enrolled.population}"


def _state(home: Path) -> str:
    """Say whether state and slots can be read, and what becomes of a device whose owner moves a broken one away."""
    file = home / STATE_FILE
    try:
        agent = open_agent(home, only_looks=True)
    except CommandError as e:
        if str(file) not in e.message or not _is_roomy(home):
            raise
        anew = "begins anew: it loses an update that waits, and forgets in what it took part"
        raise _Amiss(f"{e.message}. Without that file the device {anew}") from e
    try:
        for track in get_args(Track):
            agent.slots.slot(track)
    except PortError as e:
        raise _Amiss(f"{e}. Without that file the device fetches the version anew, and would take an older one") from e
    finally:
        agent.abandon()
    return f"{file} and slots can be read"


def _model(home: Path) -> str:
    agent = open_agent(home, only_looks=True)
    try:
        held = agent.current()
        if held is None:
            raise _Amiss("no version is here yet: edge-runtime run --once fetches it")
        agent.check_version(held)
        return f"version {held.manifest.version} passes its golden check"
    finally:
        agent.abandon()


def _examples(home: Path) -> str:
    agent = open_agent(home, only_looks=True)
    try:
        words = agent.count_words()
    except PortError as e:
        if not _is_roomy(home):
            raise
        raise _Amiss(f"{e}. Without that file the device begins anew, with no text") from e
    finally:
        agent.abandon()
    return (
        f"{words} words or examples to learn from"
        if words
        else "nothing to learn from yet: typing, edge-runtime add, or edge-runtime add-arrays adds some"
    )


def _reach_broker(url: str) -> str:
    """Say which of the broker's addresses answer: one is enough, for the agent tries them in order."""
    silences = {address: _silence(address.host, address.port) for address in parse_addresses(url)}
    told = [f"{address} does not answer: {why}" if why else f"{address} answers" for address, why in silences.items()]
    message = "; ".join(told)
    if all(silences.values()):
        raise _Amiss(message)
    return message


def _reach_server(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as e:
        raise _Amiss(f"{url} is no address: {e}") from e
    silence = _silence(host, port)
    if silence:
        raise _Amiss(f"{url} does not answer: {silence}")
    return f"{url} answers"


def _silence(host: str, port: int) -> str:
    """Return why nobody answers at a port, or "" if somebody does."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return ""
    except (OSError, UnicodeError) as e:
        # A name with an empty or overlong label is an error of its encoding.
        return str(e)
