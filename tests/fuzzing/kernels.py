"""Gives every update of the fuzz corpus to two aggregation kernels and remembers where they disagree."""

from dataclasses import dataclass, field

from cloud_aggregator.aggregation_kernel import Kernel
from cloud_aggregator.buffer import Accumulator
from tests.fuzzing.target import Target
from tests.fuzzing.update_targets import SET, SIZE
from wire_contract.errors import ContractError

WEIGHT = 0.7


@dataclass(slots=True)
class KernelPair:
    """Two kernels with an accumulator each; `see` is the harness's `watch`."""

    one: Kernel
    other: Kernel
    seen: int = 0
    accepted: int = 0
    disagreements: list[str] = field(default_factory=list)
    _sums: tuple[Accumulator, Accumulator] = field(
        default_factory=lambda: (Accumulator.empty(SIZE), Accumulator.empty(SIZE))
    )

    def see(self, data: bytes, target: Target) -> None:
        """Fold one input with both: the same refusal in the same words, or the same sums; never something between."""
        if not target.name.startswith("codec"):
            return
        self.seen += 1
        before = self._sums[0].sums.tobytes()
        first, second = self._fold(self.one, self._sums[0], data), self._fold(self.other, self._sums[1], data)
        sums, others = self._sums[0].sums.tobytes(), self._sums[1].sums.tobytes()
        if (first, sums) != (second, others):
            self._disagree(f"{first} against {second}", data)
        if first and (sums != before or others != before):
            self._disagree(f"refused, and the sums are others: {first}", data)
        self.accepted += not first

    def _fold(self, kernel: Kernel, into: Accumulator, data: bytes) -> str:
        # The sums may grow without end here; the count's bound is not what is tested.
        into.count = 0
        try:
            kernel.fold(into, data, WEIGHT, index_set=SET)
        except (ContractError, ValueError) as e:
            return f"{type(e).__name__}: {e}"
        except Exception as e:  # noqa: BLE001 - any other exception is what is looked for
            self._disagree(f"{kernel.name} crashed with {type(e).__name__}: {e}", data)
        return ""

    def _disagree(self, why: str, data: bytes) -> None:
        if len(self.disagreements) < 20:
            self.disagreements.append(f"{why}: {data.hex()}")
