"""Attention as batched matrix products and a softmax (Vaswani et al. 2017, arXiv 1706.03762)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from model_export.keras_graph.activations import activation_of, softmax
from model_export.keras_graph.dense import product
from model_export.keras_graph.table import Call, Complaint, Use, rule

# Beside every score of a real model; its exponential is 0 in float32.
_HIDDEN = -1e9


def _refuse_heads(layer: Any) -> Iterator[Complaint]:
    if layer._attention_axes not in (None, (1,), [1]):
        yield f"attends along the steps, got attention_axes={layer._attention_axes}", "leave attention_axes out"
    if getattr(layer, "_use_gate", False):
        yield "has no gate", "set use_gate=False"
    if getattr(layer, "_sliding_window", None):
        yield "attends over all steps", "leave sliding_window out"


def _refuse_masks(use: Use) -> Iterator[Complaint]:
    for name in ("query_mask", "value_mask", "key_mask", "attention_mask"):
        if use.kwargs.get(name) is not None:
            yield f"takes no {name}", "use use_causal_mask=True, or leave the mask out"
    if use.kwargs.get("return_attention_scores"):
        yield "gives back no scores", "leave return_attention_scores out"


def _heads(x: Any, layer: Any, call: Call) -> Any:
    """Return x projected and split: [batch, heads, steps, size]."""
    kernel = call.weight(layer.kernel)
    _, heads, size = kernel.shape
    y = product(x, tf.reshape(kernel, [kernel.shape[0], heads * size]))
    if layer.bias is not None:
        y += tf.reshape(call.weight(layer.bias), [heads * size])
    return tf.transpose(tf.reshape(y, [x.shape[0], x.shape[1], heads, size]), [0, 2, 1, 3])


def _hide_the_future(scores: Any) -> Any:
    queries, keys = scores.shape[-2:]
    hidden = np.triu(np.full((queries, keys), _HIDDEN), 1)
    return scores + tf.constant(hidden, scores.dtype)


@rule("MultiHeadAttention", "batched matrix products and a softmax", _refuse_heads, refuse_call=_refuse_masks)
def multi_head_attention(call: Call) -> Any:
    layer = call.layer
    query, value = call.argument(0, "query"), call.argument(1, "value")
    key = call.argument(2, "key")
    q = _heads(query, layer._query_dense, call)
    k = _heads(value if key is None else key, layer._key_dense, call)
    v = _heads(value, layer._value_dense, call)
    scores = tf.matmul(q * (layer._key_dim**-0.5), k, transpose_b=True)
    if call.kwargs.get("use_causal_mask"):
        scores = _hide_the_future(scores)
    seen = tf.transpose(tf.matmul(softmax(scores), v), [0, 2, 1, 3])
    kernel = call.weight(layer._output_dense.kernel)
    y = product(tf.reshape(seen, [*seen.shape[:2], -1]), tf.reshape(kernel, [-1, kernel.shape[-1]]))
    return y if layer._output_dense.bias is None else y + call.weight(layer._output_dense.bias)


def _refuse_attention(layer: Any) -> Iterator[Complaint]:
    if getattr(layer, "score_mode", "dot") != "dot":
        yield f"scores are dot products, got score_mode={layer.score_mode!r}", "use score_mode='dot'"


@rule("Attention", "matrix products and a softmax", _refuse_attention, refuse_call=_refuse_masks)
def attention(call: Call) -> Any:
    query, value, *rest = call.x
    key = rest[0] if rest else value
    scores = tf.matmul(query, key, transpose_b=True)
    if call.layer.scale is not None:
        scores *= call.weight(call.layer.scale)
    if call.kwargs.get("use_causal_mask"):
        scores = _hide_the_future(scores)
    return tf.matmul(softmax(scores), value)


def _refuse_einsum(layer: Any) -> Iterator[Complaint]:
    ins, _, out = layer.equation.partition("->")
    x, _, kernel = ins.partition(",")
    if len(kernel) != 2 or not x.endswith(kernel[0]) or out != x[:-1] + kernel[1]:
        yield f"multiplies the last axis by a matrix, got {layer.equation!r}", "use Dense, or '...a,ab->...b'"


@rule("EinsumDense", "a matrix product", _refuse_einsum)
def einsum_dense(call: Call) -> Any:
    y = product(call.x, call.weight(call.layer.kernel))
    if call.layer.bias is not None:
        y += call.weight(call.layer.bias)
    return y if call.bare else activation_of(call.layer)(y)
