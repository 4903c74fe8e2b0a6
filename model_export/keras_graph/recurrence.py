"""Recurrent layers, unrolled: a loop's gradient needs lists of tensors, which no device has.

The inputs of all steps are multiplied at once; each step adds only its recurrent product. Steps are taken apart and
put together by unpack and pack, never by an index.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from model_export.keras_graph.activations import activation_of
from model_export.keras_graph.dense import product, row_product
from model_export.keras_graph.table import Call, Complaint, Use, rule

LONGEST = 128
States = list[Any]
Cell = Callable[[Any, States], States]
WeightOf = Callable[[Any], Any]


def _refuse_recurrent(layer: Any) -> Iterator[Complaint]:
    if layer.stateful:
        yield "keeps its state from one batch to the next, which a device does not", "set stateful=False"


def _refuse_length(use: Use) -> Iterator[Complaint]:
    steps = use.shapes[0][1]
    if steps is not None and steps > LONGEST:
        yield (
            f"is unrolled, and so takes at most {LONGEST} steps, got {steps}",
            "shorten the sequence, or pool it with a strided Conv1D before",
        )


def lstm_cell(layer: Any, weight: WeightOf) -> Cell:
    """Return one step of Keras's LSTM: [h, c] from the input's product and [h, c]."""
    recurrent = weight(layer.cell.recurrent_kernel)
    act, gate = activation_of(layer), activation_of(layer, "recurrent_activation")

    def step(x: Any, states: States) -> States:
        h, c = states
        i, f, g, o = tf.split(x + row_product(h, recurrent), 4, axis=1)
        fresh = gate(f) * c + gate(i) * act(g)
        return [gate(o) * act(fresh), fresh]

    return step


def gru_cell(layer: Any, weight: WeightOf) -> Cell:
    """Return one step of Keras's GRU, the reset gate before or after the recurrent product."""
    cell, units = layer.cell, layer.units
    act, gate = activation_of(layer), activation_of(layer, "recurrent_activation")
    kernel = weight(cell.recurrent_kernel)
    gates, candidate = tf.split(kernel, [2 * units, units], axis=1)
    bias = tf.unstack(weight(cell.bias))[1] if cell.use_bias and cell.reset_after else None

    def step(x: Any, states: States) -> States:
        (h,) = states
        x_z, x_r, x_h = tf.split(x, 3, axis=1)
        if cell.reset_after:
            made = row_product(h, kernel)
            r_z, r_r, r_h = tf.split(made if bias is None else made + bias, 3, axis=1)
            z, r = gate(x_z + r_z), gate(x_r + r_r)
            fresh = act(x_h + r * r_h)
        else:
            r_z, r_r = tf.split(row_product(h, gates), 2, axis=1)
            z, r = gate(x_z + r_z), gate(x_r + r_r)
            fresh = act(x_h + row_product(r * h, candidate))
        return [z * h + (1.0 - z) * fresh]

    return step


def simple_cell(layer: Any, weight: WeightOf) -> Cell:
    """Return one step of Keras's SimpleRNN."""
    recurrent, act = weight(layer.cell.recurrent_kernel), activation_of(layer)
    return lambda x, states: [act(x + row_product(states[0], recurrent))]


CELLS: dict[str, tuple[Callable[[Any, WeightOf], Cell], int]] = {
    "LSTM": (lstm_cell, 2),
    "GRU": (gru_cell, 1),
    "SimpleRNN": (simple_cell, 1),
}


def _input_bias(layer: Any, weight: WeightOf) -> Any:
    bias = weight(layer.cell.bias)
    return tf.unstack(bias)[0] if type(layer).__name__ == "GRU" and layer.cell.reset_after else bias


def unrolled(layer: Any, x: Any, weight: WeightOf, states: Sequence[Any] | None) -> tuple[list[Any], States]:
    """Return the outputs of all steps, in the order in which they were made, and the last states."""
    make, count = CELLS[type(layer).__name__]
    batch, steps, _ = x.shape
    products = product(tf.transpose(x, [1, 0, 2]), weight(layer.cell.kernel))
    if layer.cell.use_bias:
        products += _input_bias(layer, weight)
    taken = tf.unstack(products)
    cell = make(layer, weight)
    now = list(states) if states else [tf.zeros([batch, layer.units], x.dtype)] * count
    outputs = []
    for t in range(steps)[:: -1 if layer.go_backwards else 1]:
        now = cell(taken[t], now)
        outputs.append(now[0])
    return outputs, now


def _answer(layer: Any, outputs: list[Any], states: States) -> Any:
    made = tf.stack(outputs, axis=1) if layer.return_sequences else outputs[-1]
    return [made, *states] if layer.return_state else made


def _initial(call: Call) -> Sequence[Any] | None:
    given = call.argument(1, "initial_state")
    if given is None or isinstance(given, list | tuple):
        return given
    return [given]


@rule("LSTM GRU SimpleRNN", "unrolled over its steps", _refuse_recurrent, refuse_call=_refuse_length)
def recurrent(call: Call) -> Any:
    return _answer(call.layer, *unrolled(call.layer, call.x, call.weight, _initial(call)))


def _refuse_bidirectional(layer: Any) -> Iterator[Complaint]:
    for inner in (layer.forward_layer, layer.backward_layer):
        if type(inner).__name__ not in CELLS:
            yield f"runs LSTM, GRU or SimpleRNN, got {type(inner).__name__}", "wrap one of these"
            return
        yield from _refuse_recurrent(inner)
    if layer.return_state:
        yield "does not give its states back", "set return_state=False"


def _refuse_both(use: Use) -> Iterator[Complaint]:
    yield from _refuse_length(use)
    if use.argument(1, "initial_state") is not None:
        yield "begins with states of zero", "leave initial_state out"


MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "concat": lambda a, b: tf.concat([a, b], axis=-1),
    "sum": tf.add,
    "mul": tf.multiply,
    "ave": lambda a, b: (a + b) / 2.0,
}


@rule("Bidirectional", "unrolled over its steps, in both directions", _refuse_bidirectional, refuse_call=_refuse_both)
def bidirectional(call: Call) -> Any:
    layer = call.layer
    forward, backward = layer.forward_layer, layer.backward_layer
    ahead, _ = unrolled(forward, call.x, call.weight, None)
    behind, _ = unrolled(backward, call.x, call.weight, None)
    if forward.return_sequences:
        pair = tf.stack(ahead, axis=1), tf.stack(behind[::-1], axis=1)
    else:
        pair = ahead[-1], behind[-1]
    return list(pair) if layer.merge_mode is None else MERGES[layer.merge_mode](*pair)


def _refuse_distributed(layer: Any) -> Iterator[Complaint]:
    if type(layer.layer).__name__ not in ("Dense", "Activation", "Dropout"):
        kind = type(layer.layer).__name__
        yield f"spreads Dense over steps, got {kind}", "use Dense, or fold the steps into the batch by Reshape"


@rule("TimeDistributed", "its Dense over all steps at once", _refuse_distributed)
def time_distributed(call: Call) -> Any:
    from model_export.keras_graph.table import rules

    inner = call.layer.layer
    return rules()[type(inner).__name__].emit(
        Call(inner, call.args, {}, call.weight_of, call.dtype, call.bare, call.differentiated)
    )
