"""Opening an enrolled home as a real device does: for the process that runs in it, and for commands beside that one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from edge_runtime.adapters.sensors.recorder import RecordingSensors
from edge_runtime.agent import Agent
from edge_runtime.config import read_settings
from edge_runtime.eligibility import JUST_STARTED, Standing
from edge_runtime.identity import NotEnrolled
from edge_runtime.ports import PortError
from edge_runtime.wiring import real_ports


def open_agent(
    home: Path, record: Path | None = None, *, only_looks: bool = False, standing: Standing = JUST_STARTED
) -> Agent:
    """Return the agent of an enrolled home; `record` is the trace that its looks go into.

    `standing` is what looks before it have seen. Raises `CommandError`.
    """
    settings = read_settings(home)
    try:
        ports = real_ports(home, settings, only_looks=only_looks)
        if record is None:
            return Agent(home, settings, ports, standing)
        recorder = RecordingSensors(
            ports.sensors, ports.clock, record,
            usage=lambda now: agent.usage(now), training=lambda: agent.works, lease_until=lambda: agent.lease_until,
        )  # fmt: skip
        agent = Agent(home, settings, replace(ports, sensors=recorder), standing)
        return agent
    except NotEnrolled as e:
        raise _not_enrolled(str(e)) from e
    except PortError as e:
        raise CommandError(str(e), code="HOME_BROKEN", hint="edge-runtime doctor") from e


@contextmanager
def opened(home: Path) -> Iterator[Agent]:
    """Open the home's agent for a command beside it: nothing is saved on leaving. Raises `CommandError`."""
    agent = open_agent(home, only_looks=True)
    try:
        yield agent
    except PortError as e:
        raise CommandError(str(e), code="HOME_BROKEN", hint="edge-runtime doctor") from e
    finally:
        agent.abandon()


def _not_enrolled(message: str) -> CommandError:
    hint = "edge-runtime enrol SERVER --token-file FILE"
    return CommandError(message, exit_code=ExitCode.REFUSED, code="NOT_ENROLLED", hint=hint)
