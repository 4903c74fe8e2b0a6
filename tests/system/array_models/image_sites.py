"""A small image classifier for sites that see different digits under different light. Data: drawn here, by numpy.

Clean images teach a convolutional network; it is then frozen up to its features, and its head is cut off and made anew,
untrained. The fleet trains that head: each site has four of the ten digits and a contrast, background and noise of its
own, so that no site alone can learn the task.
"""

import sys
from pathlib import Path

import numpy as np

SIDE, CLASSES, SITES = 14, 10, 6
HEAD = "head"
_GLYPHS = (
    "###|#.#|#.#|#.#|###", ".#.|##.|.#.|.#.|###", "###|..#|###|#..|###", "###|..#|.##|..#|###", "#.#|#.#|###|..#|..#",
    "###|#..|###|..#|###", "###|#..|###|#.#|###", "###|..#|.#.|.#.|.#.", "###|#.#|###|#.#|###", "###|#.#|###|..#|###",
)  # fmt: skip


def draw(digits, rng, *, contrast=1.0, background=0.0, noise=0.1):
    """Return float32 [n, 14, 14, 1]: each digit twice as large as its glyph, somewhere on the canvas."""
    images = np.full((len(digits), SIDE, SIDE, 1), background, np.float64)
    for image, digit in zip(images, digits, strict=True):
        glyph = np.kron([[c == "#" for c in line] for line in _GLYPHS[digit].split("|")], np.ones((2, 2)))
        top, left = rng.integers(1, SIDE - 10), rng.integers(1, SIDE - 6)
        image[top : top + 10, left : left + 6, 0] += contrast * glyph * rng.uniform(0.8, 1.2)
    return (images + noise * rng.normal(size=images.shape)).astype(np.float32)


def light(number):
    """Return what a site's camera makes of its images."""
    return {"contrast": 0.8 + 0.08 * number, "background": 0.2 - 0.08 * number, "noise": 0.05 + 0.02 * number}


def site(number, count=120):
    """Return the arrays of one site: four of the ten digits, its own light."""
    rng = np.random.default_rng(100 + number)
    seen = [(number * 5 + k * 3) % CLASSES for k in range(4)]
    digits = rng.choice(seen, count).astype(np.int32)
    return {"image": draw(digits, rng, **light(number)), "target": digits}


def held_out(count=600):
    """Return images of every digit under every site's light, none of them any site's."""
    rng = np.random.default_rng(7)
    digits = rng.integers(0, CLASSES, count).astype(np.int32)
    images = np.empty((count, SIDE, SIDE, 1), np.float32)
    for number in range(SITES):
        mine = np.arange(count) % SITES == number
        images[mine] = draw(digits[mine], rng, **light(number))
    return {"image": images, "target": digits}


def build():
    """Return the Keras model: a base that one site has taught, and a head that knows nothing."""
    import keras

    keras.utils.set_random_seed(11)
    image = keras.Input((SIDE, SIDE, 1), name="image")
    x = keras.layers.Conv2D(12, 3, strides=2, padding="same", name="base_conv_1")(image)
    x = keras.layers.BatchNormalization(name="base_norm")(x)
    x = keras.layers.ReLU(name="base_relu_1")(x)
    x = keras.layers.Conv2D(24, 3, strides=2, padding="same", activation="relu", name="base_conv_2")(x)
    x = keras.layers.Flatten(name="base_flat")(x)
    features = keras.layers.Dense(48, activation="relu", name="base_dense")(x)
    teacher = keras.Model(image, keras.layers.Dense(CLASSES, activation="softmax", name="teacher")(features))
    rng = np.random.default_rng(5)
    digits = rng.integers(0, CLASSES, 1500).astype(np.int32)
    teacher.compile("adam", "sparse_categorical_crossentropy")
    teacher.fit(draw(digits, rng), digits, batch_size=32, epochs=4, verbose=0)
    return keras.Model(image, keras.layers.Dense(CLASSES, activation="softmax", name=HEAD)(features))


if __name__ == "__main__":
    build().save(Path(sys.argv[1]))
