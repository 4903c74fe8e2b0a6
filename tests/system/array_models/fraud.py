"""A classifier of card payments for banks that see different customers and different fraud. Data: drawn here, by numpy.

Fraud is rare (about one payment in twelve) and has two patterns: large sums far from home at night, and many small ones
at a few kinds of merchant. Each bank sees mostly one of them, and customers of its own means.
"""

import sys
from pathlib import Path

import numpy as np

BANKS, MERCHANTS, NUMBERS = 6, 12, 5
_RISKY = (2, 7, 9)


def draw(count, rng, *, means=0.0, far_share=0.5, rate=0.08):
    """Return the arrays of `count` payments; of the frauds the share `far_share` is of the first pattern."""
    fraud = rng.random(count) < rate
    far = fraud & (rng.random(count) < far_share)
    small = fraud & ~far
    amount = rng.normal(means, 0.8, count) + 1.2 * far - 0.8 * small
    hour = np.where(far, rng.normal(4, 4, count), rng.normal(14, 4, count)) / 24 * 2 * np.pi
    distance = np.abs(rng.normal(0, 0.5, count)) + 0.9 * far
    before = np.abs(rng.normal(0.6, 0.4, count)) + 0.9 * small
    merchant = rng.integers(0, MERCHANTS, count)
    merchant = np.where(small & (rng.random(count) < 0.8), rng.choice(_RISKY, count), merchant)
    numbers = np.stack([amount, np.sin(hour), np.cos(hour), distance, before], axis=1)
    return {
        "numbers": numbers.astype(np.float32), "merchant": merchant.astype(np.int32), "target": fraud.astype(np.int32),
    }  # fmt: skip


def bank(number, count=400):
    """Return the payments of one bank."""
    rng = np.random.default_rng(200 + number)
    return draw(count, rng, means=-0.5 + 0.2 * number, far_share=0.9 if number % 2 else 0.1)


def held_out(count=3000):
    """Return payments of every bank, none of them any bank's own."""
    rng = np.random.default_rng(9)
    parts = [draw(count // BANKS, rng, means=-0.5 + 0.2 * number) for number in range(BANKS)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def auc(scores, target):
    """Return the area under the ROC curve: the chance that a fraud scores above an honest payment (Mann-Whitney)."""
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    frauds = target == 1
    count = int(frauds.sum())
    return float((ranks[frauds].sum() - count * (count + 1) / 2) / (count * (len(target) - count)))


def recall(scores, target, alarms=0.1):
    """Return the share of the frauds among the `alarms` share of payments with the highest scores."""
    alarmed = np.argsort(-scores, kind="stable")[: round(alarms * len(scores))]
    return float(target[alarmed].sum() / target.sum())


def build():
    """Return the Keras model, untrained: an embedding of the merchant's kind beside the numbers, two dense layers."""
    import keras

    keras.utils.set_random_seed(12)
    numbers = keras.Input((NUMBERS,), name="numbers")
    merchant = keras.Input((), dtype="int32", name="merchant")
    kind = keras.layers.Embedding(MERCHANTS, 4, name="merchant_embedding")(merchant)
    x = keras.layers.Concatenate(name="together")([numbers, kind])
    x = keras.layers.Dense(24, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(0.1, name="dropout")(x)
    return keras.Model([numbers, merchant], keras.layers.Dense(1, activation="sigmoid", name="fraud")(x))


if __name__ == "__main__":
    build().save(Path(sys.argv[1]))
