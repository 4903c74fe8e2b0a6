"""From an update's bytes to the sums: decode, weigh, add. Two kernels, bit for bit the same; one of them is compiled.

The rules:
- the plain kernel is `codec.decode` and the buffer's rule, nothing else: it is the reference and needs only numpy;
- the compiled kernel (`compiled_kernel`, numba) only ever says yes: what it does not know or does not like goes to the
  reference, which refuses it in its own words or takes it; so errors are the same by construction;
- all that the bytes say is checked before anything is written: a refused update leaves the sums as they were;
- the kernel is the machine's matter, never the round's: any mixture of kernels, orders and shards gives the same sums.

Which one runs: "numpy", "numba", or "auto" (the default), which begins with numpy and compiles after
`COMPILE_AFTER` updates, when the time that compiling takes will have been saved: a small fleet and the demo never wait
for a compiler.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from cloud_aggregator.buffer import Accumulator, check_room, check_weight
from wire_contract import codec
from wire_contract.codec import SparseVector
from wire_contract.index_set import IndexSet
from wire_contract.messages import CodecPlan

KERNEL_VARIABLE: Final = "EDGE_FEDERATION_KERNEL"
KERNEL_NAMES: Final = ("auto", "numpy", "numba")
# Importing and compiling take 1 to 2 s; an update is then about 0.3 ms cheaper.
COMPILE_AFTER: Final = 5_000


class KernelUnavailable(Exception):  # noqa: N818 - the machine's state, not a mistake
    """The compiled kernel cannot run here: numba is missing, or does not compile; fall back to numpy."""


class Kernel(Protocol):
    """Decodes updates and adds them to sums. Both methods raise `ContractError` for bytes that break the contract."""

    @property
    def name(self) -> str:
        """Which code runs now: "numpy" or "numba"."""

    @property
    def unavailable(self) -> str:
        """Why it is not the compiled one although that was wanted; empty if it is, or was not wanted yet."""

    def decode(
        self, data: bytes, *, size: int, plan: CodecPlan | None = None, index_set: IndexSet | None = None
    ) -> SparseVector:
        """Return exactly what `codec.decode` returns, or raise what it raises."""

    def fold(self, into: Accumulator, data: bytes, weight: float, *, index_set: IndexSet | None = None) -> None:
        """Decode an update and add it; the same sums, bit for bit, as decoding and `Accumulator.fold`.

        For updates that were admitted before (replay, re-aggregation, shards): the norm is not looked at. Raises
        `ContractError` for the bytes and `ValueError` for a weight, value or count out of bounds; then `into` is as it
        was.
        """


class NumpyKernel:
    """The reference: the contract's decoder and the buffer's rule."""

    name = "numpy"
    unavailable = ""

    def decode(
        self, data: bytes, *, size: int, plan: CodecPlan | None = None, index_set: IndexSet | None = None
    ) -> SparseVector:
        """See `Kernel`."""
        return codec.decode(data, size=size, plan=plan, index_set=index_set)

    def fold(self, into: Accumulator, data: bytes, weight: float, *, index_set: IndexSet | None = None) -> None:
        """See `Kernel`."""
        check_room(into.count)
        check_weight(weight)
        into.fold(codec.decode(data, size=len(into.sums), index_set=index_set), weight)


NUMPY_KERNEL: Final = NumpyKernel()


class PatientKernel:
    """numpy first; the compiled kernel once `after` updates have come, if it can be had."""

    def __init__(self, after: int = COMPILE_AFTER) -> None:
        self._kernel: Kernel = NumpyKernel()
        self._left = after
        self._unavailable = ""

    @property
    def name(self) -> str:
        """Which code runs now."""
        return self._kernel.name

    @property
    def unavailable(self) -> str:
        """See `Kernel`."""
        return self._unavailable

    def decode(
        self, data: bytes, *, size: int, plan: CodecPlan | None = None, index_set: IndexSet | None = None
    ) -> SparseVector:
        """See `Kernel`."""
        return self._next().decode(data, size=size, plan=plan, index_set=index_set)

    def fold(self, into: Accumulator, data: bytes, weight: float, *, index_set: IndexSet | None = None) -> None:
        """See `Kernel`."""
        self._next().fold(into, data, weight, index_set=index_set)

    def _next(self) -> Kernel:
        if self._left > 0:
            self._left -= 1
        elif self._left == 0:
            self._left = -1
            try:
                self._kernel = compiled_kernel()
            except KernelUnavailable as e:
                self._unavailable = str(e)
        return self._kernel


def compiled_kernel() -> Kernel:
    """Return the compiled kernel, compiling it now (1 to 2 s; later starts read it from the user's cache).

    Raises `KernelUnavailable` where numba is missing or does not compile.
    """
    # numba takes half a second to import: only who asks for it pays.
    from cloud_aggregator.compiled_kernel import CompiledKernel

    return CompiledKernel.load()


def choose_kernel(name: str) -> Kernel:
    """Return the kernel of that name ("auto", "numpy", "numba").

    Raises `ValueError` for another name and `KernelUnavailable` if "numba" was asked for and cannot be had.
    """
    if name == "numpy":
        return NumpyKernel()
    if name == "numba":
        return compiled_kernel()
    if name == "auto":
        return PatientKernel()
    raise ValueError(f"a kernel is one of {KERNEL_NAMES}, got {name!r}")


def kernel_of(environment: Mapping[str, str]) -> Kernel:
    """Return the kernel that `EDGE_FEDERATION_KERNEL` names, "auto" if it names none; errors as `choose_kernel`."""
    return choose_kernel(environment.get(KERNEL_VARIABLE, "auto"))
