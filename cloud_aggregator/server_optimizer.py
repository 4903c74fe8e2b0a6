"""The step from one training version to the next: FedAvg, FedAvgM and FedAdam on the buffer's mean delta.

FedAdam is Algorithm 2 of Reddi et al. 2021 (Adaptive Federated Optimization) with Adam's bias correction (Kingma and
Ba 2015), which the paper leaves out: without it the first steps with beta2 0.99 would be about ten times too long:
    m = b1 m + (1 - b1) d        v = b2 v + (1 - b2) d^2
    x = x + lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)
FedAvgM is m = b1 m + d, x = x + lr m (Hsu et al. 2019). beta1 is 0.5 by default: server momentum and staleness multiply
(0.9 lost a whole point of recall at mixed staleness 0 to 3). Everything is numpy in float64 with one cast to float32 an
array, so that one seed gives one model.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from wire_contract.messages import Positive, Share

Vector = NDArray[np.float32]
Decay = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]


class OptimizerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The server optimizer of a population.

    The learning rate rises linearly over `warmup_steps`, then falls linearly until step `decay_steps` to
    `final_share` of itself and stays there; `decay_steps` 0 means that it does not fall.
    """

    name: Literal["fedavg", "fedavgm", "fedadam"] = "fedadam"
    learning_rate: Positive = 0.015
    beta1: Decay = 0.5
    beta2: Decay = 0.99
    epsilon: Positive = 1e-4
    warmup_steps: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 10
    decay_steps: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    final_share: Share = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class OptimizerState:
    """float32 master weights and moments in layout order (`m`, `v` all zero where unused), and steps taken."""

    master: Vector
    m: Vector
    v: Vector
    step: int = 0

    @classmethod
    def start(cls, master: Vector) -> "OptimizerState":
        """Return the state before the first step."""
        return cls(master.astype(np.float32), np.zeros_like(master), np.zeros_like(master))


def learning_rate(step: int, settings: OptimizerSettings) -> float:
    """Return the rate of step `step` (the first is 1)."""
    rate = settings.learning_rate
    if step <= settings.warmup_steps:
        return rate * step / settings.warmup_steps
    if not settings.decay_steps:
        return rate
    span = max(1, settings.decay_steps - settings.warmup_steps)
    done = min(1.0, (step - settings.warmup_steps) / span)
    return rate * (1.0 - done * (1.0 - settings.final_share))


def step(state: OptimizerState, delta: Vector, settings: OptimizerSettings) -> OptimizerState:
    """Return the state after one step along the mean delta (float32, layout order).

    Raises `ValueError` where sizes differ or the new weights would not be finite.
    """
    if delta.shape != state.master.shape:
        raise ValueError(f"delta and master have one shape, got {delta.shape} and {state.master.shape}")
    t = state.step + 1
    rate = learning_rate(t, settings)
    d = delta.astype(np.float64)
    m, v = state.m, state.v
    match settings.name:
        case "fedavg":
            move = d
        case "fedavgm":
            move = settings.beta1 * m.astype(np.float64) + d
            m = move.astype(np.float32)
        case "fedadam":
            first = settings.beta1 * m.astype(np.float64) + (1.0 - settings.beta1) * d
            second = settings.beta2 * v.astype(np.float64) + (1.0 - settings.beta2) * d * d
            m, v = first.astype(np.float32), second.astype(np.float32)
            unbiased = second / (1.0 - settings.beta2**t)
            move = first / (1.0 - settings.beta1**t) / (np.sqrt(unbiased) + settings.epsilon)
    with np.errstate(over="ignore"):
        master = (state.master.astype(np.float64) + rate * move).astype(np.float32)
    if not np.isfinite(master).all():
        raise ValueError("weights stay finite, got NaN or Inf after the server's step")
    return OptimizerState(master, m, v, t)
