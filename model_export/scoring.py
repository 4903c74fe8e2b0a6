"""Next-word recall of weights on people's text, by the `evaluate` signature with the state carried along.

The rules (data.md's metric): targets <s>, <num> and <pad> are not scored; a target <unk> is scored and is a miss; the
specials are never suggested; each person begins at the zero state.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.network import BATCH, LENGTH, NetworkSize
from wire_contract.layout import Tensors
from wire_contract.vocabulary import NUMBER, PAD, START

Arrays = Mapping[str, NDArray[np.generic]]
Evaluate = Callable[[dict[str, NDArray[np.generic]]], Arrays]
_NOT_SCORED = (PAD, START, NUMBER)


@dataclass(frozen=True, slots=True)
class Recall:
    """Words scored, share of them hit by the first suggestion and by the first three (percent), nats a word."""

    words: int
    top1: float
    top3: float
    loss: float


@dataclass(frozen=True, slots=True)
class Slice:
    """One call: tokens, targets, weights [BATCH, LENGTH], and which rows begin a new person."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    begins: NDArray[np.bool_]


def slices(streams: Sequence[Sequence[int]]) -> Iterator[Slice]:
    """Yield the calls that score all streams, BATCH of them side by side, the longest first."""
    waiting = deque(sorted((np.asarray(s, np.int32) for s in streams if len(s) > 1), key=len, reverse=True))
    lanes: list[NDArray[np.int32] | None] = [None] * BATCH
    places = [0] * BATCH
    while waiting or any(lane is not None for lane in lanes):
        tokens = np.full((BATCH, LENGTH), PAD, np.int32)
        targets = np.full((BATCH, LENGTH), PAD, np.int32)
        begins = np.zeros(BATCH, np.bool_)
        for row in range(BATCH):
            if lanes[row] is None and waiting:
                lanes[row], places[row], begins[row] = waiting.popleft(), 0, True
            stream = lanes[row]
            if stream is None:
                continue
            part = stream[places[row] : places[row] + LENGTH + 1]
            tokens[row, : len(part) - 1], targets[row, : len(part) - 1] = part[:-1], part[1:]
            places[row] += LENGTH
            if places[row] + 1 >= len(stream):
                lanes[row] = None
        yield Slice(tokens, targets, (~np.isin(targets, _NOT_SCORED)).astype(np.float32), begins)


def recall(evaluate: Evaluate, size: NetworkSize, packed: Tensors, streams: Sequence[Sequence[int]]) -> Recall:
    """Return the recall over all streams; `packed` are the train inputs of the weights."""
    state_h = np.zeros((size.width, BATCH), np.float32)
    state_c = np.zeros((size.cells, BATCH), np.float32)
    sums = dict.fromkeys(("loss", "hits1", "hits3", "count"), 0.0)
    for call in slices(streams):
        state_h[:, call.begins] = 0.0
        state_c[:, call.begins] = 0.0
        outputs = evaluate(
            {
                "tokens": call.tokens,
                "targets": call.targets,
                "weights": call.weights,
                "state_h": state_h,
                "state_c": state_c,
                **packed,
            }
        )
        for name in sums:
            sums[name] += float(outputs[name])
        state_h = np.array(outputs["next_state_h"], np.float32)
        state_c = np.array(outputs["next_state_c"], np.float32)
    count = max(sums["count"], 1.0)
    return Recall(
        words=int(sums["count"]),
        top1=100.0 * sums["hits1"] / count,
        top3=100.0 * sums["hits3"] / count,
        loss=sums["loss"] / count,
    )
