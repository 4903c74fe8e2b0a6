"""Which adapters a real device runs with."""

from pathlib import Path

from edge_runtime import identity
from edge_runtime.adapters.child_trainer import ChildTrainer, TrainerTerms
from edge_runtime.adapters.clock import FLOOR_FILE, SystemClock
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.lazy_runtime import LazyRuntime
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.adapters.sensors.linux import LinuxSensors
from edge_runtime.agent import Ports
from edge_runtime.config import Settings
from edge_runtime.ports import Clock, Trainer


def real_ports(home: Path, settings: Settings, *, only_looks: bool = False) -> Ports:
    """Return the ports of an enrolled device; `only_looks`: for a command beside the agent, which writes no time down.

    Raises `identity.NotEnrolled`, `Unreachable` for a bad broker address.
    """
    enrolled = identity.load_enrolled(home)
    clock = SystemClock(home / FLOOR_FILE, trust_rtc=settings.policy.clock == "rtc", writes=not only_looks)
    return Ports(
        clock=clock,
        sensors=LinuxSensors(Path(settings.sensors_root)),
        transport=MqttTransport(enrolled.broker_url, enrolled.device, ca_file=settings.broker_ca),
        downloads=HttpDownloads(ca_file=settings.server_ca),
        trainer=_trainer(home, settings, clock),
        entropy=identity.system_entropy,
    )


def _trainer(home: Path, settings: Settings, clock: Clock) -> Trainer:
    if settings.trainer == "child":
        return ChildTrainer(home, clock, TrainerTerms(runtime=settings.runtime, held_out_share=settings.held_out_share))
    runtime = LazyRuntime(settings.runtime)
    return InProcessTrainer(home, runtime, identity.system_entropy, clock, settings.held_out_share)
