"""What a person sees while the fleet learns: a live line of progress on a terminal, plain lines elsewhere.

Everything goes to stderr, so that stdout holds the result alone. `NO_COLOR` and `TERM=dumb` are respected.
"""

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0
PLAYED = (
    "played: the clock, and the sensors for power, idleness, heat and link (through the real readers' files).",
    "real: export, keys, enrolment, broker, aggregator, stores, training, updates, receipts, releases.",
)


class Display:
    """Use as a context manager; `say` for a line that stays, `night` after each tick."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")), highlight=False)
        self._live = self._console.is_terminal and os.environ.get("TERM") != "dumb"
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said_at = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def say(self, text: str) -> None:
        """Print one line that stays, with the seconds since the beginning."""
        line = f"{time.monotonic() - self._began:5.1f} s  {text}"
        if self._live:
            self._console.print(line, markup=False, soft_wrap=True)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def begin_nights(self, ticks: int) -> None:
        """Start the progress of the nights."""
        if self._live:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=18),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._task = self._progress.add_task("nights", total=ticks, note="")
            self._progress.start()

    def night(self, done: int, ticks: int, *, night: int, version: int, accepted: int, refused: int) -> None:
        """Show where the fleet stands after `done` of `ticks` ticks, in night `night` (counted from 1)."""
        note = f"v{version} · {accepted} updates · {refused} refused"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
        elif not self._live and (time.monotonic() - self._said_at >= PLAIN_EVERY_S or done == ticks):
            self._said_at = time.monotonic()
            self.say(f"night {night}, {done} of {ticks} ticks: {note}")

    def end_nights(self) -> None:
        """Leave the last state of the progress standing."""
        self._stop()
