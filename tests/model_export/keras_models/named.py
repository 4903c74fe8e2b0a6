"""Models as Keras's guides build them, small: each with its loss and what stays frozen. Import inside a test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

SPARSE, BINARY, SQUARED = "sparse_categorical_crossentropy", "binary_crossentropy", "mean_squared_error"


@dataclass(frozen=True)
class Named:
    """One model: `build` makes it, `loss` is what it learns, `frozen` the layers that stay as they are."""

    name: str
    loss: str
    build: Callable[[], Any]
    frozen: tuple[str, ...] = ()


NAMED: dict[str, Named] = {}


def named(loss: str, frozen: tuple[str, ...] = ()) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        NAMED[build.__name__] = Named(build.__name__, loss, build, frozen)
        return build

    return register


def built(name: str) -> Any:
    """Return a model whose every weight differs from its initial value, so that nothing hides behind a 0 or a 1."""
    keras.utils.set_random_seed(7)
    model = NAMED[name].build()
    rng = np.random.Generator(np.random.PCG64(7))
    for weight in model.weights:
        noise = rng.normal(0, 0.1, weight.shape)
        weight.assign(weight + (np.abs(noise) if "variance" in weight.path else noise))
    return model


@named(SPARSE)
def multilayer_perceptron():
    return keras.Sequential(
        [
            keras.Input((20,), name="measurements"),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(32, activation="gelu"),
            layers.Dense(5, activation="softmax"),
        ]
    )


@named(SPARSE)
def convolutional_network():
    return keras.Sequential(
        [
            keras.Input((14, 14, 1), name="image"),
            layers.Rescaling(1 / 2, offset=0.1),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, padding="same", strides=2, activation="relu"),
            layers.AveragePooling2D(2, padding="same"),
            layers.Flatten(),
            layers.Dense(6),
        ]
    )


@named(SPARSE)
def depthwise_separable_network():
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs)
    for channels in (12, 16):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU(6.0)(x)
        x = layers.SeparableConv2D(channels, 3, padding="same", activation="silu")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


@named(SPARSE)
def residual_network():
    inputs = keras.Input((10, 10, 2), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    for _ in range(2):
        y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
        y = layers.Activation("relu")(y)
        y = layers.Conv2D(8, 3, padding="same")(y)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalMaxPooling2D()(x)))


@named(BINARY)
def text_convolution():
    return keras.Sequential(
        [
            keras.Input((16,), name="words"),
            layers.Embedding(120, 12),
            layers.Conv1D(16, 3, padding="causal", dilation_rate=2, activation="elu"),
            layers.MaxPooling1D(2),
            layers.Conv1D(8, 3, strides=2, activation="tanh"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


@named(SPARSE)
def long_short_term_memory():
    return keras.Sequential(
        [
            keras.Input((9, 5), name="series"),
            layers.LSTM(18, return_sequences=True),
            layers.LSTM(8, go_backwards=True),
            layers.Dense(4, activation="softmax"),
        ]
    )


@named(SQUARED)
def gated_recurrent_unit():
    inputs = keras.Input((8, 4), name="series")
    x = layers.GRU(12, return_sequences=True)(inputs)
    x = layers.GRU(6, reset_after=False, recurrent_activation="hard_sigmoid")(x)
    return keras.Model(inputs, layers.Dense(1)(x))


@named(BINARY)
def bidirectional_tagger():
    return keras.Sequential(
        [
            keras.Input((7,), dtype="int32", name="words"),
            layers.Embedding(90, 12),
            layers.Bidirectional(layers.LSTM(6, return_sequences=True)),
            layers.Bidirectional(layers.SimpleRNN(5, return_sequences=True), merge_mode="sum"),
            layers.TimeDistributed(layers.Dense(3, activation="sigmoid")),
        ]
    )


@named(SPARSE)
def attention_block():
    inputs = keras.Input((8,), dtype="int32", name="tokens")
    angles = np.arange(8)[:, np.newaxis] / 10.0 ** np.linspace(0, 4, 16)
    x = layers.Embedding(70, 16)(inputs) + np.sin(angles).astype(np.float32)
    y = layers.MultiHeadAttention(num_heads=2, key_dim=8, dropout=0.1)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(16)(layers.Dense(32, activation="relu")(x))
    x = layers.LayerNormalization()(x + y)
    return keras.Model(inputs, layers.Dense(70, activation="softmax")(x))


@named(SQUARED)
def normalized_regression():
    normalization = layers.Normalization(mean=[0.1] * 10, variance=[2.0] * 10)
    inputs = keras.Input((10,), name="features")
    x = normalization(inputs)
    for units in (40, 30):
        x = layers.LayerNormalization()(layers.Dense(units, activation="selu")(x))
    return keras.Model(inputs, layers.Dense(2)(x))


@named(BINARY)
def two_towers():
    numbers = keras.Input((6,), name="numbers")
    kinds = keras.Input((3,), dtype="int32", name="kinds")
    x = layers.Dense(16, activation="relu")(numbers)
    y = layers.Flatten()(layers.Embedding(100, 12)(kinds))
    y = layers.Dense(16, activation="tanh")(y)
    merged = layers.Concatenate()([x, y, layers.Multiply()([x, y])])
    return keras.Model([numbers, kinds], layers.Dense(1)(layers.Dense(12, activation="softplus")(merged)))


@named(SQUARED)
def image_autoencoder():
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(12, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.UpSampling2D(2)(x)
    return keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x))


@named(BINARY)
def binary_classifier():
    return keras.Sequential(
        [
            keras.Input((15,), name="features"),
            layers.Dense(80, activation="leaky_relu"),
            layers.Dense(16, activation="mish"),
            layers.Dense(4, activation="sigmoid"),
        ]
    )


@named(SPARSE, frozen=("base",))
def frozen_base_with_head():
    base = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.DepthwiseConv2D(3, strides=2, padding="same"),
            layers.Conv2D(64, 3),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.GlobalAveragePooling2D(),
        ],
        name="base",
    )
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Dense(24, activation="relu", name="hidden")(base(inputs))
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="head")(x))
