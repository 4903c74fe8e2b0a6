"""The CIFG cell over a batch of rows, forward and back through time, in float32. Pure.

Every activation is [features, batch], as in the exported file: the weights are the left operand of each product, as
they lie in memory, and a time step's small operand is the only one that changes. What does not depend on the state
(the input's part of the gates, and all weight gradients) is one large product over all steps; only `state part @ h`
stays inside the loop.

    z = kernel_rows [x; h; 1]   rows forget | output | candidate
    f, o = sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g);  c = g + f (c_before - g);  h = projection (o tanh c)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_HALF, _ONE = np.float32(0.5), np.float32(1.0)


@dataclass(frozen=True, slots=True)
class Unrolled:
    """What a forward pass keeps for the way back, over steps: [length, features, batch]; `cells` is the last state."""

    inputs: Floats
    forget: Floats
    output: Floats
    candidate: Floats
    cells_before: Floats
    cells_tanh: Floats
    gated: Floats
    states: Floats
    cells: Floats


@dataclass(frozen=True, slots=True)
class Backward:
    """Gradients at the gates [length, 3 cells, batch], and at states and inputs [length, width, batch]."""

    gates: Floats
    states: Floats
    inputs: Floats


def sigmoid(z: Floats) -> Floats:
    """Return 1 / (1 + exp(-z)), written so that no exponent overflows."""
    half = np.multiply(z, _HALF)
    np.tanh(half, out=half)
    half += _ONE
    half *= _HALF
    return half


def unroll(inputs: Floats, kernel_rows: Floats, projection: Floats, state_h: Floats, state_c: Floats) -> Unrolled:
    """Run the cell over inputs [length, width, batch] from state_h [width, batch] and state_c [cells, batch]."""
    length, width, batch = inputs.shape
    cells = projection.shape[1]
    gates = kernel_rows[:, :width] @ by_step(inputs)
    gates += kernel_rows[:, 2 * width :]
    from_input = gates.reshape(3 * cells, length, batch)
    recurrent = np.ascontiguousarray(kernel_rows[:, width : 2 * width])
    forget, output, candidate, before, tanh_c, gated = (np.empty((length, cells, batch), np.float32) for _ in range(6))
    states = np.empty((length, width, batch), np.float32)
    h, c = state_h, state_c
    for t in range(length):
        z = recurrent @ h
        z += from_input[:, t]
        f, o, g = sigmoid(z[:cells]), sigmoid(z[cells : 2 * cells]), np.tanh(z[2 * cells :])
        forget[t], output[t], candidate[t], before[t] = f, o, g, c
        c = c - g
        c *= f
        c += g
        np.tanh(c, out=tanh_c[t])
        np.multiply(o, tanh_c[t], out=gated[t])
        np.matmul(projection, gated[t], out=states[t])
        h = states[t]
    return Unrolled(inputs, forget, output, candidate, before, tanh_c, gated, states, c)


def go_back(kept: Unrolled, states_gradient: Floats, kernel_rows: Floats, projection: Floats) -> Backward:
    """Return the gradients at gates, states and inputs; states_gradient [length, width, batch] is used up."""
    length, width, batch = states_gradient.shape
    cells = projection.shape[1]
    recurrent = np.ascontiguousarray(kernel_rows[:, width : 2 * width].T)
    projected = np.ascontiguousarray(projection.T)
    gates = np.empty((length, 3 * cells, batch), np.float32)
    dh_next: Floats = np.zeros((width, batch), np.float32)
    dc: Floats = np.zeros((cells, batch), np.float32)
    for t in reversed(range(length)):
        f, o, g, tanh_c = kept.forget[t], kept.output[t], kept.candidate[t], kept.cells_tanh[t]
        dh = states_gradient[t]
        dh += dh_next
        dm = projected @ dh
        dmo = dm * o
        dc += dmo
        dmo *= tanh_c
        dmo *= tanh_c
        dc -= dmo
        dc_before = dc * f
        dc -= dc_before
        dz = gates[t]
        np.multiply(dc, f, out=dz[:cells])
        dz[:cells] *= kept.cells_before[t] - g
        dm *= kept.gated[t]
        np.multiply(dm, _ONE - o, out=dz[cells : 2 * cells])
        np.multiply(dc, _ONE - g * g, out=dz[2 * cells :])
        dh_next = recurrent @ dz
        dc = dc_before
    inputs = np.empty((length, width, batch), np.float32)
    by_input = np.ascontiguousarray(kernel_rows[:, :width].T)
    np.matmul(by_input, gates, out=inputs)
    return Backward(gates, states_gradient, inputs)


def by_step(steps: Floats) -> Floats:
    """Return [features, length x batch] of [length, features, batch]: position step * batch + row."""
    length, features, batch = steps.shape
    return np.ascontiguousarray(steps.transpose(1, 0, 2)).reshape(features, length * batch)


def by_row(steps: Floats) -> Floats:
    """Return [features, batch x length] of [length, features, batch]: position row * length + step."""
    length, features, batch = steps.shape
    return np.ascontiguousarray(steps.transpose(1, 2, 0)).reshape(features, batch * length)


def kernel_inputs(kept: Unrolled, state_h: Floats) -> Floats:
    """Return what the kernel was multiplied with, [length, 2 width + 1, batch]: inputs, states before, ones."""
    before = np.concatenate([state_h[np.newaxis], kept.states[:-1]])
    ones = np.ones((kept.inputs.shape[0], 1, kept.inputs.shape[2]), np.float32)
    return np.concatenate([kept.inputs, before, ones], axis=1)
