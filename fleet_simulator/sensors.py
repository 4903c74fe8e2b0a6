"""Sensors that play a fate: they write the files, and the device's real readers read them.

Only what a fate says is played. The flips happen at the moment the device asks: an unplugged cable or a kill falls
between two training steps, a link becomes metered when the update is ready to go.
"""

from collections.abc import Callable
from pathlib import Path

from edge_runtime.adapters.sensors.files import FileSensors, write_fixture
from edge_runtime.eligibility import Readings
from edge_runtime.session import Phase
from fleet_simulator.nights import Visit

RESTED_S = 3600.0
COOL_C, WARM_C = 41.0, 78.0


class Killed(BaseException):
    """The process of a device ends here; not an `Exception`, so that nothing on the device catches it."""


class PlayedSensors:
    """Implements the Sensors port of one device over the fixture folder `root`; `phase` says what the device does."""

    def __init__(self, root: Path, phase: Callable[[], Phase]) -> None:
        self._root = root
        self._phase = phase
        self._reader = FileSensors(root)
        self._visit: Visit | None = None
        self._training_reads = 0
        self._played: tuple[bool, float, bool, float] | None = None
        self.rest()

    def rest(self) -> None:
        """Play a device in use on an unmetered link: it does not train, and what waits in its outbox may go."""
        self._visit = None
        self._write(charging=False, idle=0.0)

    def meet(self, visit: Visit) -> None:
        """Play `visit` from now on."""
        self._visit = visit
        self._training_reads = 0
        match visit.fate:
            case "busy":
                self._write(idle=4.0)
            case "battery":
                self._write(charging=False)
            case "warm":
                self._write(celsius=WARM_C)
            case _:
                self._write()

    def _write(
        self, *, charging: bool = True, idle: float = RESTED_S, metered: bool = False, celsius: float = COOL_C
    ) -> None:
        write_fixture(self._root, charging=charging, battery=90.0, idle_seconds=idle, metered=metered, celsius=celsius)

    def read(self, now: float) -> Readings:
        """Let the fate fall if it is time, then read the files. Raises `Killed`."""
        visit, phase = self._visit, self._phase()
        if visit is not None and visit.fate == "metered" and phase is Phase.SENDING:
            self._write(metered=True)
        if visit is not None and visit.step and phase is Phase.TRAINING:
            # The first question of a training comes before its first step.
            self._training_reads += 1
            if self._training_reads > visit.step:
                if visit.fate == "killed":
                    self._visit = None
                    raise Killed
                self._write(charging=False)
        return self._reader.read(now)
