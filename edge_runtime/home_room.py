"""The room on a home's disk: enough for a training, and something kept for the moment when there is none.

The rules (`room`, `adapters.ballast`): a training starts where three times the model is free; the ballast is given back
when a write found the disk full, and laid out again once it does not stand in a training's way.
"""

from contextlib import suppress
from pathlib import Path

from edge_runtime import room
from edge_runtime.adapters import ballast
from edge_runtime.model_slots import ModelSlots
from edge_runtime.ports import StorageFailed


class HomeRoom:
    """One home's room. `ballast_bytes` 0: nothing is kept."""

    def __init__(self, home: Path, slots: ModelSlots, ballast_bytes: int) -> None:
        self._home = home
        self._slots = slots
        self._ballast_bytes = ballast_bytes

    def for_training(self) -> bool:
        """Whether a training may start. Raises `StorageFailed`."""
        return room.enough(ballast.free_bytes(self._home), self._model_bytes())

    def keep(self) -> None:
        """Lay out the ballast if there is room for it. Raises `StorageFailed`."""
        ballast.reserve(self._home, self._ballast_bytes, model_bytes=self._model_bytes())

    def give_back(self) -> None:
        """Give the ballast back: a write found no room."""
        with suppress(StorageFailed):
            ballast.release(self._home)

    def _model_bytes(self) -> int:
        held = (self._slots.slot("training").current, self._slots.slot("refresh").current)
        paths = [self._home / "models" / f"{sha256}.tflite" for sha256 in held if sha256]
        return max((path.stat().st_size for path in paths if path.exists()), default=0)
