"""A runner that asks before every call whether the work may go on: long work stops between two calls of the model."""

from collections.abc import Callable
from typing import Any

from edge_runtime.ports import Arrays, SignatureRunner


class NotNow(Exception):  # noqa: N818 - an answer, not a fault
    """A condition fell: the work ends here, and is done another time."""


class WatchedRunner:
    """Implements SignatureRunner over another one. `run` raises `NotNow` once `may_go_on` says no."""

    def __init__(self, inner: SignatureRunner, may_go_on: Callable[[], bool]) -> None:
        self._inner = inner
        self._may_go_on = may_go_on

    def run(self, name: str, inputs: Arrays) -> dict[str, Any]:
        """See `ports.SignatureRunner`."""
        if not self._may_go_on():
            raise NotNow("a condition fell")
        return self._inner.run(name, inputs)
