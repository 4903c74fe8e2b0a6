"""Deltas shaped like a phone's, for benchmarks that run where there are no real ones.

A real delta of the reference model is clustered: the rows of a few hundred words and of some units hold most of its
energy. Here a row's or unit's strength is log-normal and its values are Student's t, tuned so that the top 1 % takes
the bytes that real ones took when they were measured (11 to 13 kB, median 11.6). Their energy is more concentrated than
a real delta's, so they say nothing of learning, only of the cost of bytes. Pure: the same seed gives the same deltas.
"""

import numpy as np
from numpy.typing import NDArray

ROWS, WIDTH, CELLS = 10_000, 96, 670
KERNEL_ROWS, KERNEL_COLUMNS = 3 * CELLS, 2 * WIDTH
PARAMETERS = ROWS * WIDTH + ROWS + KERNEL_ROWS * KERNEL_COLUMNS + KERNEL_ROWS + CELLS * WIDTH
WORDS_TYPED = 400


def synthetic_delta(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return one delta, float32 [1,422,250]: rows, row biases, the kernel by units, its bias, the projection."""
    # Words in use, the frequent ones likelier: ids are in order of frequency.
    words = np.unique((np.exp(rng.random(WORDS_TYPED) * np.log(ROWS)) - 1).astype(np.int64))
    strength = np.full(ROWS, 0.01)
    strength[words] = rng.lognormal(0.0, 1.2, len(words))
    rows = rng.standard_t(12, (ROWS, WIDTH)) * strength[:, None]
    biases = rng.standard_t(12, ROWS) * strength
    units = rng.lognormal(0.0, 2.4, KERNEL_ROWS)
    inputs = rng.lognormal(0.0, 0.8, KERNEL_COLUMNS)
    kernel = rng.standard_t(12, (KERNEL_ROWS, KERNEL_COLUMNS)) * np.outer(units, inputs) * 0.02
    kernel_bias = rng.standard_t(12, KERNEL_ROWS) * units * 0.1
    projection = rng.standard_t(12, (CELLS, WIDTH)) * rng.lognormal(0.0, 1.0, (CELLS, 1)) * 0.05
    parts = [part.reshape(-1) for part in (rows, biases, kernel, kernel_bias, projection)]
    return (1e-3 * np.concatenate(parts)).astype(np.float32)
