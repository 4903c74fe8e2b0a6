"""Every row of the table of layers at least once, gathered into a few models of many branches. Import inside a test."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as L  # noqa: N812 - Keras's usual short name
from keras import ops

Branch = Callable[[Any], Any]
BRANCHES_A_MODEL = 7

ACTIVATIONS = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "softplus", "softsign", "silu", "gelu", "tanh", "sigmoid",
    "exponential", "hard_sigmoid", "hard_silu", "mish", "softmax",
)  # fmt: skip
FUNCTIONS = (
    ops.tanh, ops.sigmoid, ops.relu, ops.relu6, ops.selu, ops.silu, ops.softplus, ops.softsign, ops.hard_sigmoid,
    ops.hard_silu, ops.gelu, ops.leaky_relu, ops.elu, ops.softmax,
)  # fmt: skip


def _chain(*layers: Any) -> Branch:
    def run(x: Any) -> Any:
        for layer in layers:
            x = layer(x)
        return x

    return run


def _joined(layer: Any) -> Branch:
    return lambda x: layer([x, L.Dense(x.shape[-1])(x)])


# Branches on images [6, 5, 3], on series [6, 4] and on vectors [5].
IMAGE: list[Callable[[], Branch]] = [
    lambda: L.Conv2D(4, (3, 2), strides=2, padding="same", activation="relu", use_bias=False),
    lambda: L.Conv2D(4, 2, dilation_rate=2),
    lambda: L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
    lambda: L.DepthwiseConv2D(2, strides=2, activation="tanh"),
    lambda: L.SeparableConv2D(4, 3, depth_multiplier=2, activation="elu"),
    lambda: L.Conv2DTranspose(2, 3, strides=2, activation="relu"),
    lambda: L.Conv2DTranspose(2, 2, strides=3, padding="same"),
    lambda: L.MaxPooling2D(3, strides=2, padding="same"),
    lambda: L.AveragePooling2D((3, 2), strides=2, padding="same"),
    lambda: L.GlobalAveragePooling2D(keepdims=True),
    lambda: L.GlobalMaxPooling2D(),
    lambda: _chain(L.ZeroPadding2D(((1, 2), (0, 3))), L.Cropping2D((2, 1))),
    lambda: _chain(L.ZeroPadding2D((1, 2)), L.Cropping2D(1)),
    lambda: L.UpSampling2D((2, 3)),
    lambda: L.LayerNormalization(axis=[1, 2]),
    lambda: L.BatchNormalization(),
    lambda: L.Rescaling([0.5, 1.0, 2.0], offset=0.1),
    lambda: _chain(L.SpatialDropout2D(0.2), L.ActivityRegularization(0.0), L.RandomFlip(), L.RandomRotation(0.1)),
    lambda: _chain(L.RandomZoom(0.1), L.RandomTranslation(0.1, 0.1), L.RandomContrast(0.1), L.RandomBrightness(0.1)),
]
SERIES: list[Callable[[], Branch]] = [
    lambda: L.EinsumDense("abc,cd->abd", (6, 3), bias_axes="d", activation="relu"),
    lambda: L.Conv1D(3, 3, padding="causal", activation="tanh"),
    lambda: L.Conv1D(3, 3, strides=2),
    lambda: L.DepthwiseConv1D(3, dilation_rate=2),
    lambda: L.SeparableConv1D(4, 2, strides=2, padding="same"),
    lambda: L.Conv1DTranspose(3, 3, strides=2, padding="same", use_bias=False),
    lambda: L.MaxPooling1D(2),
    lambda: L.AveragePooling1D(3, strides=1),
    lambda: L.GlobalAveragePooling1D(),
    lambda: L.GlobalMaxPooling1D(),
    lambda: _chain(L.ZeroPadding1D((2, 1)), L.Cropping1D(1)),
    lambda: L.UpSampling1D(2),
    lambda: _chain(L.Flatten(), L.Reshape((-1, 8)), L.Permute((2, 1))),
    lambda: L.LayerNormalization(center=False, scale=False),
    lambda: L.RMSNormalization(),
    lambda: L.UnitNormalization(),
    lambda: L.GroupNormalization(groups=2),
    lambda: L.BatchNormalization(axis=1, center=False),
    lambda: L.LSTM(3, go_backwards=True, return_sequences=True, use_bias=False),
    lambda: L.GRU(3, use_bias=False),
    lambda: L.GRU(3, reset_after=False, activation="relu"),
    lambda: L.SimpleRNN(3, return_sequences=True),
    lambda: L.Bidirectional(L.GRU(3), merge_mode="mul"),
    lambda: L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode="ave"),
    lambda: L.TimeDistributed(L.Dense(3, activation="relu")),
    lambda: lambda x: L.MultiHeadAttention(2, 3, value_dim=2, use_bias=False, output_shape=6)(
        x, x[:, 1:4], key=L.Dense(5)(x[:, 1:4])),
    lambda: lambda x: L.Attention(use_scale=True)([x, x[:, 1:]], use_causal_mask=True),
    lambda: _joined(L.Concatenate(axis=1)),
    lambda: _chain(L.Identity(), L.Dropout(0.5), L.SpatialDropout1D(0.5), L.AlphaDropout(0.5)),
    lambda: _chain(L.GaussianDropout(0.5), L.GaussianNoise(0.5)),
    lambda: lambda x: ops.stack([ops.mean(x, axis=1), ops.sum(x, 1), ops.max(x, axis=1), ops.min(x, axis=1)], axis=1),
    lambda: lambda x: ops.transpose(ops.reshape(x, (-1, 3, 8)), (0, 2, 1)),
    lambda: lambda x: ops.matmul(x, ops.transpose(L.Dense(4)(x), (0, 2, 1))),
    lambda: lambda x: ops.concatenate([x[:, -1], x[:, 0, :], x[..., 2]], axis=1),
]  # fmt: skip
VECTOR: list[Callable[[], Branch]] = [
    lambda: lambda x: L.Concatenate()([L.Dense(4, activation=name)(x) for name in ACTIVATIONS]),
    lambda: _chain(L.Activation("swish"), L.ReLU(max_value=0.7, negative_slope=0.1, threshold=0.05)),
    lambda: lambda x: L.Concatenate()([L.ReLU(max_value=0.5)(x), L.LeakyReLU(negative_slope=0.15)(x)]),
    lambda: lambda x: L.Concatenate()([L.ELU(alpha=0.6)(x), L.PReLU()(x), L.Softmax()(x)]),
    lambda: L.RepeatVector(3),
    lambda: L.Normalization(mean=[0.1, 0.2, 0.3, 0.4, 0.5], variance=[1, 2, 3, 4, 5]),
    lambda: L.Normalization(mean=0.3, variance=2.0, invert=True),
    lambda: lambda x: L.Concatenate()([_joined(join())(x) for join in (L.Add, L.Subtract, L.Multiply, L.Average)]),
    lambda: lambda x: L.Concatenate()([_joined(join())(x) for join in (L.Maximum, L.Minimum)]),
    lambda: _joined(L.Dot(axes=1)),
    lambda: _joined(L.Dot(axes=-1, normalize=True)),
    lambda: lambda x: -((x * 2.0 + 1.0 - x) / 3.0),
    lambda: lambda x: ops.divide(x, ops.add(ops.square(x), 1.0)),
    lambda: lambda x: ops.maximum(ops.minimum(x, 0.4), -0.3),
    lambda: lambda x: ops.log(ops.sqrt(ops.square(x) + 0.1) + ops.exp(x) + ops.abs(x)),
    lambda: lambda x: ops.concatenate([function(x) for function in FUNCTIONS], axis=-1),
    lambda: lambda x: ops.clip(x, -0.3, 0.5) + x**2,
    lambda: lambda x: ops.concatenate([ops.stack([x, x * x], axis=1), ops.stack([x, x], axis=-2)], axis=1),
    lambda: lambda x: ops.squeeze(ops.expand_dims(ops.expand_dims(x, 1), -1), axis=1),
]


def _states() -> Any:
    inputs = keras.Input((6, 4))
    whole, h, c = L.LSTM(3, return_sequences=True, return_state=True)(inputs)
    answer = L.LSTM(3)(whole, initial_state=[h, c])
    answer = L.Concatenate()([answer, L.GRU(2)(whole, initial_state=L.Dense(2)(h))])
    return keras.Model(inputs, L.Dense(2)(answer))


def _shared() -> Any:
    a, b = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    tower = keras.Sequential([keras.Input((5,)), L.Dense(6, activation="tanh"), L.Dense(4)], name="tower")
    return keras.Model([a, b], L.Dense(2)(L.Subtract()([tower(a), tower(b)])))


def _whole_numbers() -> Any:
    inputs = keras.Input((4,), dtype="int32", name="kinds")
    ids = L.Embedding(9, 3)(inputs[:, :3])
    scaled = L.Rescaling(0.5, offset=-1.0)(inputs)
    moved = L.Flatten()(L.Embedding(12, 2)(inputs + 3))
    mixed = 1.5 - inputs * 0.25 + inputs / 3
    return keras.Model(inputs, L.Dense(2)(L.Concatenate()([L.Flatten()(ids), scaled, moved, mixed])))


def _named_inputs() -> Any:
    inputs = {"b": keras.Input((3,), name="b"), "a": keras.Input((2,), name="a")}
    return keras.Model(inputs, L.Dense(2)(L.Concatenate()([inputs["b"], inputs["a"]])))


def _of_branches(shape: tuple[int, ...], branches: list[Callable[[], Branch]]) -> Any:
    inputs = keras.Input(shape)
    x = L.Dense(shape[-1], name="first")(inputs)
    ends = [L.Flatten()(branch()(x)) for branch in branches]
    return keras.Model(inputs, L.Dense(2, name="last")(L.Concatenate()(ends)))


PIECES: dict[str, Callable[[], Any]] = {
    "states given": _states,
    "a tower used twice": _shared,
    "whole numbers": _whole_numbers,
    "inputs by name": _named_inputs,
    **{
        f"{name} {first}": (
            lambda shape=shape, part=branches[first : first + BRANCHES_A_MODEL]: _of_branches(shape, part)
        )
        for name, shape, branches in (("image", (6, 5, 3), IMAGE), ("series", (6, 4), SERIES), ("vector", (5,), VECTOR))
        for first in range(0, len(branches), BRANCHES_A_MODEL)
    },
}
