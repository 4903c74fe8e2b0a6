"""`edge-runtime doctor`: everything that a night needs, checked one by one, each with what would mend it."""

import importlib.util
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, table
from edge_runtime import eligibility, identity
from edge_runtime.adapters.power import FileSensors
from edge_runtime.config import Settings
from edge_runtime.device_commands import open_agent, read_settings
from edge_runtime.identity import NotEnrolled
from edge_runtime.model_slots import VersionRefused
from edge_runtime.ports import PortError
from edge_runtime.wiring import LazyRuntime

FREE_BYTES = 32 * 1024 * 1024
CONNECT_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, whether it holds, and what was seen or what to do."""

    name: str
    ok: bool
    message: str


def examine(home: Path) -> Result:
    """Return all findings; the exit code is 1 if one is not ok."""
    try:
        settings = read_settings(home)
        findings = [Finding("settings", True, "read")]
    except CommandError as e:
        settings, findings = Settings(), [Finding("settings", False, e.message)]
    findings += [
        _finding("disk", lambda: _disk(home)),
        _finding("interpreter", lambda: _interpreter(settings)),
        _finding("no TensorFlow", _no_tensorflow),
        _finding("sensors", lambda: _sensors(settings)),
        _finding("identity", lambda: _identity(home)),
        _finding("model", lambda: _model(home)),
        _finding("broker", lambda: _reach(identity.load_enrolled(home).broker_url, 1883)),
        _finding("model server", lambda: _reach(identity.load_enrolled(home).model_url, 80)),
    ]
    rows = [("ok" if f.ok else "NO", f.name, f.message) for f in findings]
    items = [{"name": f.name, "ok": f.ok, "finding": f.message} for f in findings]
    failed = sum(not f.ok for f in findings)
    code = ExitCode.FAILED if failed else ExitCode.OK
    return Result({"items": items, "failed": failed}, text=table(rows, ("", "check", "finding")), exit_code=code)


class _Amiss(Exception):  # noqa: N818
    """A check that does not hold."""


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (_Amiss, PortError, NotEnrolled, VersionRefused) as e:
        return Finding(name, False, str(e))
    except CommandError as e:
        return Finding(name, False, e.message)


def _disk(home: Path) -> str:
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < FREE_BYTES:
        raise _Amiss(f"{free} bytes free at {place}: a model and its update need {FREE_BYTES}")
    return f"{free // (1024 * 1024)} MB free"


def _interpreter(settings: Settings) -> str:
    name = LazyRuntime(settings).name
    if name == "none":
        raise _Amiss("none installed: pip install ai-edge-litert, or tflite-runtime on Python 3.11")
    return name


def _no_tensorflow() -> str:
    if importlib.util.find_spec("tensorflow") is not None:
        raise _Amiss("TensorFlow is importable here: a device needs none (it costs 500 MB of memory)")
    return "not importable"


def _sensors(settings: Settings) -> str:
    from edge_runtime.adapters.clock import SystemClock

    now = SystemClock().now()
    policy = settings.policy.as_policy()
    readings = FileSensors(Path(settings.sensors_root)).read(now)
    decision = eligibility.decide(readings, policy, eligibility.Usage(), now)
    if "unknown" in decision.reason:
        raise _Amiss(decision.reason)
    return decision.reason


def _identity(home: Path) -> str:
    enrolled = identity.load_enrolled(home)
    if identity.load(home).device != enrolled.device:
        raise _Amiss("the key and the enrolment are of two devices: enrol again")
    return f"device {enrolled.device} of {enrolled.population}"


def _model(home: Path) -> str:
    agent = open_agent(home)
    try:
        held = agent.current()
        if held is None:
            raise _Amiss("no version is here yet: edge-runtime run --once fetches it")
        agent.check_version(held)
        return f"version {held.manifest.version} passes its golden check"
    finally:
        agent.abandon()


def _reach(url: str, default_port: int) -> str:
    parts = urlsplit(url)
    place = (parts.hostname or "", parts.port or default_port)
    try:
        with socket.create_connection(place, timeout=CONNECT_S):
            return f"{url} answers"
    except OSError as e:
        raise _Amiss(f"{url} does not answer: {e}") from e
