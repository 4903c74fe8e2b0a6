"""The direction of one training step under a plan's rules: see `local_rules` for the formulas. Pure.

A gradient comes as the step's own difference: the train signatures return w - rate x g, and with the rate `PROBE`, a
power of two that is large beside the weights, g comes back from the difference with float32's own relative error.
`train_private` gives the mean of clipped gradients in the same way, and `example-noise` is added to that.
The sampled signature moves a few rows of `output_rows` only: there a gradient is row numbers and their values, and rows
that no batch has touched stay bit for bit what they were (their velocity and their pull towards w0 are exactly 0).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime import local_rules
from edge_runtime.example_noise import Normals
from wire_contract.layout import Tensors
from wire_contract.manifest import Manifest
from wire_contract.messages import Plan

PROBE = 256.0
# 16,384 x 8 bytes of a temporary stay in a first- or second-level cache.
_NOISE_BLOCK = 1 << 14


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of one packed tensor: dense, or `values` [n, columns] of the rows [n], each once."""

    values: NDArray[np.float32]
    rows: NDArray[np.int64] | None = None

    def add_to(self, tensor: NDArray[np.float32]) -> None:
        """Add this to a tensor, in place."""
        if self.rows is None:
            tensor += self.values
        else:
            tensor[self.rows] += self.values


def of_rows(shape: tuple[int, ...], parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> Gradient:
    """Return the sum of several (row numbers, values): rows may repeat; values may have fewer columns than `shape`."""
    rows = np.unique(np.concatenate([ids for ids, _ in parts]))
    values = np.zeros((len(rows), *shape[1:]), np.float32)
    for ids, part in parts:
        np.add.at(values[:, : part.shape[1]], np.searchsorted(rows, ids), part)
    return Gradient(values, rows)


class LocalOptimizer:
    """Applies a plan's rules to one step after another. `base` are the received weights, packed; they are not changed.

    `velocity` begins as given (a checkpoint's), or at zero; read it between steps.
    """

    def __init__(
        self, plan: Plan, manifest: Manifest, base: Mapping[str, NDArray[np.float32]], velocity: Tensors | None = None
    ) -> None:
        local_rules.check_rules(plan, [entry.name for entry in manifest.tensors])
        self._rules = plan.rules
        # Looked at in each step, or never.
        self._base: Tensors = dict(base) if local_rules.value_of(plan, "proximal") is not None else {}
        named = {tensor for rule in plan.rules if rule.name == "freeze" for tensor in rule.tensors}
        self._frozen = _columns(manifest, named)
        self._fleet = _columns(manifest, {entry.name for entry in manifest.tensors})
        self._deviation = noise_deviation(plan, manifest)
        self.velocity: Tensors | None = None
        if local_rules.has_velocity(plan):
            given = velocity or {}
            self.velocity = {
                name: np.array(given[name]) if name in given else np.zeros_like(value) for name, value in base.items()
            }

    def step(
        self, packed: Tensors, gradients: dict[str, Gradient], rate: float, share: float, normals: Normals | None = None
    ) -> None:
        """Change `packed` in place by one step; the gradients' arrays are used up. `normals` are the step's own noise.

        Raises `ValueError` if the plan asks for noise and there is none.
        """
        # The pull towards w0 is dense: added last, so that clipping need not carry it through the sparse rows.
        pull, nesterov, beta = 0.0, False, 0.0
        for rule in self._rules:
            if rule.name == "freeze":
                self._freeze(gradients)
            elif rule.name == "example-noise" and self._deviation > 0.0:
                if normals is None:
                    raise ValueError(f"'example-noise' of {rule.value} needs the device's noise, got none")
                self._add_noise(gradients, normals)
            elif rule.name == "clip":
                scale = self._clipping(packed, gradients, pull, rule.value)
                for gradient in gradients.values():
                    np.multiply(gradient.values, np.float32(scale), out=gradient.values)
                pull *= scale
            elif rule.name == "proximal":
                pull = rule.value
            elif rule.name in ("momentum", "nesterov"):
                nesterov, beta = rule.name == "nesterov", rule.value
        for name, weights in packed.items():
            direction = self._direction(name, weights, gradients[name], pull)
            self._move(weights, direction, name, rate, share, beta, nesterov)

    def _add_noise(self, gradients: dict[str, Gradient], normals: Normals) -> None:
        """Add to every value of every fleet tensor; the order of names and values is the manifest's."""
        for name, columns in self._fleet.items():
            values = gradients[name].values
            for start, stop in columns:
                rows = max(1, _NOISE_BLOCK // values[:1][..., start:stop].size)
                for first in range(0, len(values), rows):
                    block = values[first : first + rows][..., start:stop]
                    block += (self._deviation * normals.draw(block.size)).astype(np.float32).reshape(block.shape)

    def _freeze(self, gradients: dict[str, Gradient]) -> None:
        for name, columns in self._frozen.items():
            for start, stop in columns:
                gradients[name].values[..., start:stop] = 0.0

    def _clipping(self, packed: Tensors, gradients: dict[str, Gradient], pull: float, most: float) -> float:
        squares = 0.0
        for name, gradient in gradients.items():
            direction = self._direction(name, packed[name], gradient, pull)
            squares += float(np.sum(np.square(direction.values, dtype=np.float64)))
        norm = float(np.sqrt(squares))
        return min(1.0, most / norm) if norm > 0.0 else 1.0

    def _direction(self, name: str, weights: NDArray[np.float32], gradient: Gradient, pull: float) -> Gradient:
        """Return the gradient with the pull in it."""
        if pull == 0.0:
            return gradient
        dense = weights - self._base[name]
        dense *= np.float32(pull)
        gradient.add_to(dense)
        return Gradient(dense)

    def _move(
        self, weights: NDArray[np.float32], direction: Gradient, name: str, rate: float, share: float, beta: float,
        nesterov: bool,
    ) -> None:  # fmt: skip
        if self.velocity is None:
            Gradient(direction.values * np.float32(-rate * share), direction.rows).add_to(weights)
            return
        velocity = self.velocity[name]
        velocity *= np.float32(beta)
        shared = Gradient(direction.values * np.float32(share), direction.rows)
        shared.add_to(velocity)
        if nesterov:
            weights -= velocity * np.float32(rate * beta)
            Gradient(shared.values * np.float32(-rate), shared.rows).add_to(weights)
        else:
            weights -= velocity * np.float32(rate)


def noise_deviation(plan: Plan, manifest: Manifest) -> float:
    """Return the standard deviation of the noise in one value of a step's mean gradient: z C / batch."""
    clip, multiplier = local_rules.value_of(plan, "example-clip"), local_rules.value_of(plan, "example-noise")
    if not clip or not multiplier:
        return 0.0
    # The graph clips to the float32 nearest to C.
    return multiplier * float(np.float32(clip)) / manifest.signatures[plan.signature].batch


def _columns(manifest: Manifest, named: Collection[str]) -> dict[str, list[tuple[int, int]]]:
    """Return, by packed tensor, the columns that hold the named fleet tensors."""
    shapes = {entry.name: entry.shape for entry in manifest.tensors}
    columns: dict[str, list[tuple[int, int]]] = {}
    for spec in manifest.train_inputs:
        for part in spec.parts:
            if part.tensor in named:
                whole = shapes[part.tensor] == spec.shape
                columns.setdefault(spec.name, []).append((0, spec.shape[-1]) if whole else (part.start, part.stop))
    return columns
