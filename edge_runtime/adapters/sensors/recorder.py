"""Writing a trace of what the sensors said: a wrapper around the Sensors port, for an owner who wants to know why.

The rules:
- a look is written when a reading's value, the training, its lease or whether the clock is believed has changed, and
  else once in `EVERY_S`: no flip is missed, and a night takes some megabytes at most;
- the file ends at `MAX_BYTES`, and recording ends with it. A write that fails ends it, too: the night goes on without a
  trace;
- the lines are appended, so a trace may hold several nights; they are not synced one by one.
"""

from collections.abc import Callable
from pathlib import Path

from edge_runtime.eligibility import Moment, Reading, Readings, Usage
from edge_runtime.ports import Clock, Sensors
from edge_runtime.trace import Look, encode_look

EVERY_S = 5.0
MAX_BYTES = 16 * 1024 * 1024


class RecordingSensors:
    """Implements the Sensors port. `usage` and `training` are asked for the rest of what `decide` is told.

    `ended` says why nothing is written any more, "" while it is.
    """

    def __init__(
        self,
        sensors: Sensors,
        clock: Clock,
        path: Path,
        *,
        usage: Callable[[float], Usage],
        training: Callable[[], bool],
        lease_until: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._sensors = sensors
        self._clock = clock
        self._path = path
        self._usage = usage
        self._training = training
        self._lease_until = lease_until
        self._seen: tuple[object, ...] = ()
        self._written_at = float("-inf")
        self.ended = ""

    def read(self, now: float) -> Readings:
        """Read, and write the look down if it says something new."""
        readings = self._sensors.read(now)
        if not self.ended:
            self._record(now, readings)
        return readings

    def _record(self, now: float, readings: Readings) -> None:
        moment = Moment(now, self._clock.elapsed(), self._clock.trusted())
        training, lease_until, elapsed = self._training(), self._lease_until(), moment.elapsed
        seen = (
            training,
            lease_until,
            moment.trusted,
            *(_value(getattr(readings, name)) for name in Readings.__dataclass_fields__),
        )
        if seen == self._seen and 0.0 <= elapsed - self._written_at < EVERY_S:
            return
        self._seen, self._written_at = seen, elapsed
        look = Look(
            moment=moment,
            readings=readings,
            usage=self._usage(now),
            training=training,
            lease_until=lease_until,
        )
        try:
            with self._path.open("ab") as file:
                line = encode_look(look)
                if file.tell() + len(line) > MAX_BYTES:
                    self.ended = f"a trace has at most {MAX_BYTES} bytes"
                    return
                file.write(line)
        except OSError as e:
            self.ended = f"{self._path} cannot be written: {e}"


def _value(field: object) -> object:
    value = field.value if isinstance(field, Reading) else field
    if not isinstance(value, float):
        return value
    # Heat and load flicker: whole degrees and percent are news, tenths are not. Long idleness counts up by itself.
    return round(value) if abs(value) < 200.0 else "many"
