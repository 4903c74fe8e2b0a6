"""Starting weights from public text: Keras and Adam over a sampled softmax. Imports TensorFlow.

The recipe: 3,600 steps of 64 rows x 24 tokens, rows drawn at random offsets of the sources' streams, dropout 0.3 on
the output state, gradient clipped to norm 1, learning rate 1.2e-2 falling linearly to 0 (chosen on dev). The loss is
`tf.nn.sampled_softmax_loss` (Jean et al. 2015, arXiv 1412.2007): 512 log-uniform negatives shared by the batch,
log-expected-count corrected, accidental hits masked. Every target counts, the specials too, as on the devices.

One seed gives one result on one machine and thread count; another CPU may round a sum otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model_export.keras_network import NextWordModel
from model_export.network import NetworkSize, initial_tensors, layout_without_file
from model_export.scoring import Evaluate
from model_export.signatures import training_signatures
from wire_contract.layout import Tensors

Tensor = Any
Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of one pretraining run."""

    steps: int = 3_600
    rows: int = 64
    length: int = 24
    negatives: int = 512
    learning_rate: float = 1.2e-2
    dropout: float = 0.3
    clip_norm: float = 1.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Source:
    """One stream of ids and the share of rows that is drawn from it."""

    name: str
    ids: NDArray[np.int32]
    share: float


class RowSampler:
    """Draws [rows, length + 1] of ids; which source and which offset come from `rng` alone."""

    def __init__(self, sources: Sequence[Source], recipe: Recipe, rng: np.random.Generator) -> None:
        for source in sources:
            if len(source.ids) <= recipe.length + 1:
                raise ValueError(f"a source has more than {recipe.length + 1} ids, got {len(source.ids)} {source.name}")
        self.sources, self.recipe, self.rng = sources, recipe, rng
        total = sum(source.share for source in sources)
        self.shares = [source.share / total for source in sources]

    def draw(self) -> NDArray[np.int32]:
        """Return the next batch of rows."""
        width = self.recipe.length + 1
        chosen = self.rng.choice(len(self.sources), size=self.recipe.rows, p=self.shares)
        rows = []
        for index in chosen:
            ids = self.sources[index].ids
            start = int(self.rng.integers(0, len(ids) - width))
            rows.append(ids[start : start + width])
        return np.stack(rows)


def evaluator(size: NetworkSize) -> Evaluate:
    """Return the `evaluate` signature's graph as a function of numpy arrays, run by TensorFlow."""
    function = training_signatures(size)["evaluate"]

    def evaluate(inputs: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        outputs = function(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items() if name != "logits"}

    return evaluate


def pretrain(
    size: NetworkSize, sources: Sequence[Source], recipe: Recipe, progress: Progress, threads: int = 1
) -> Tensors:
    """Return trained tensors; `progress(step, loss)` is called after every step."""
    _set_threads(threads)
    tf.keras.utils.set_random_seed(recipe.seed)
    rng = np.random.Generator(np.random.PCG64(recipe.seed))
    model = NextWordModel(size, recipe.dropout)
    model.load(initial_tensors(size, rng))
    schedule = keras.optimizers.schedules.PolynomialDecay(recipe.learning_rate, recipe.steps, end_learning_rate=0.0)
    optimizer = keras.optimizers.Adam(schedule)
    variables = model.trainable_variables
    optimizer.build(variables)

    def step(rows: Tensor) -> Tensor:
        tokens, labels = rows[:, :-1], tf.reshape(rows[:, 1:], [-1, 1])
        negatives = tf.random.log_uniform_candidate_sampler(
            true_classes=tf.cast(labels, tf.int64),
            num_true=1,
            num_sampled=recipe.negatives,
            unique=True,
            range_max=size.words,
            seed=recipe.seed,
        )
        with tf.GradientTape() as tape:
            states = tf.reshape(model.states(tokens, training=True), [-1, size.width])
            losses = tf.nn.sampled_softmax_loss(
                weights=model.embedding.value,
                biases=model.output_bias.value,
                labels=labels,
                inputs=states,
                num_sampled=recipe.negatives,
                num_classes=size.words,
                sampled_values=negatives,
            )
            loss = tf.reduce_mean(losses)
        # Dense, because Adam's moments decay for every row; a sparse update would leave them standing.
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        clipped, _ = tf.clip_by_global_norm(gradients, recipe.clip_norm)
        optimizer.apply_gradients(zip(clipped, variables, strict=True))
        return loss

    compiled = tf.function(step, input_signature=[tf.TensorSpec((recipe.rows, recipe.length + 1), tf.int32)])
    sampler = RowSampler(sources, recipe, rng)
    for number in range(1, recipe.steps + 1):
        progress(number, float(compiled(tf.constant(sampler.draw()))))
    return model.tensors()


def _set_threads(threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        # Already running in this process with other threads: the result may then differ in the last bits.
        return


def pack(size: NetworkSize, tensors: Tensors) -> Tensors:
    """Return the train inputs of `tensors`."""
    return layout_without_file(size).pack(tensors)
