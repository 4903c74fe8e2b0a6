"""One training step, from a closed buffer to the next version's file. The service and a replay both call this.

mean delta = sums / 2^32 / goal count, turned back if the plan names a basis;  the server optimizer moves the float32
master weights along it;  the file is the version before it with those weights patched in, with hysteresis
(`wire_contract.patch`). A pure function of its arguments, so that a step can be done again bit for bit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud_aggregator import buffer as buffers
from cloud_aggregator import server_optimizer
from cloud_aggregator.buffer import Summed
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.server_optimizer import OptimizerState
from wire_contract.basis import Basis, turn_back
from wire_contract.layout import Layout
from wire_contract.manifest import Manifest
from wire_contract.patch import patch


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a step made: the optimizer's state, the version's file, and the mean delta (float32, layout order)."""

    optimizer: OptimizerState
    file: bytes
    delta: NDArray[np.float32]


def take_step(
    file: bytes,
    optimizer: OptimizerState,
    buffer: Summed,
    *,
    manifest: Manifest,
    layout: Layout,
    settings: PopulationSettings,
    basis: Basis | None = None,
) -> Step:
    """Return the step of `buffer` from the version whose file is `file` and whose state is `optimizer`.

    `basis` is the one that the updates were sent in. Raises `ValueError` where the new weights would not be finite.
    """
    delta = buffers.close(buffer, settings.goal_count)
    if basis is not None:
        delta = turn_back(delta, layout, basis)
    moved = server_optimizer.step(optimizer, delta, settings.optimizer)
    weights = layout.unflatten(moved.master)
    return Step(moved, patch(file, manifest, weights, keep=settings.hysteresis), delta)
