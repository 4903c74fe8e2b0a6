"""Next-word recall on people's id streams, by the `evaluate` signature with the state carried along.

The rules (data.md 3):
- a target `<s>`, `<num>` or `<pad>` is not scored; a target `<unk>` is scored and is a miss; specials are never
  suggested;
- each person begins at the zero state; as many streams as the signature has rows are scored side by side;
- an observer sees the logits of every position, so that a mixture can be scored on exactly the same words.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.model_check import zero_states
from edge_runtime.ports import SignatureRunner
from wire_contract.layout import Tensors
from wire_contract.manifest import SignatureSpec
from wire_contract.vocabulary import NUMBER, PAD, SPECIALS, START

NOT_SCORED = (PAD, START, NUMBER)
SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class Score:
    """Words scored, how many the first suggestion and the first three hit, and the summed loss in nats."""

    count: int = 0
    hits1: int = 0
    hits3: int = 0
    loss: float = 0.0

    @property
    def top1(self) -> float:
        """Percent of words hit by the first suggestion."""
        return 100.0 * self.hits1 / max(1, self.count)

    @property
    def top3(self) -> float:
        """Percent of words hit by the first three."""
        return 100.0 * self.hits3 / max(1, self.count)

    @property
    def mean_loss(self) -> float:
        """Nats a word."""
        return self.loss / max(1, self.count)


@dataclass(frozen=True, slots=True)
class Slice:
    """One call. `streams` [rows]: which stream a row reads, -1 for none; `starts` [rows]: position of its first token;
    tokens, targets int32 and weights float32 [rows, length]; `begins` [rows]: whether the state starts at zero."""

    streams: NDArray[np.int64]
    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    begins: NDArray[np.bool_]


Observer = Callable[[Slice, NDArray[np.float32]], None]
"""Called with a slice and its logits [length, rows, words]."""


def slices(streams: Sequence[Sequence[int]], spec: SignatureSpec, first_scored: Sequence[int] = ()) -> Iterator[Slice]:
    """Yield the calls that score all streams, the longest first.

    `first_scored[i]` is the position of stream i's first target that counts (default 1: all of them).
    """
    order = sorted((i for i in range(len(streams)) if len(streams[i]) > 1), key=lambda i: -len(streams[i]))
    waiting = deque(order)
    lanes = np.full(spec.batch, -1, dtype=np.int64)
    places = np.zeros(spec.batch, dtype=np.int64)
    while waiting or (lanes >= 0).any():
        shape = (spec.batch, spec.length)
        tokens, targets = np.full(shape, PAD, np.int32), np.full(shape, PAD, np.int32)
        scored = np.zeros(shape, np.bool_)
        begins = np.zeros(spec.batch, np.bool_)
        for row in range(spec.batch):
            if lanes[row] < 0 and waiting:
                lanes[row], places[row], begins[row] = waiting.popleft(), 0, True
            if lanes[row] < 0:
                continue
            stream, place = lanes[row], int(places[row])
            part = np.asarray(streams[stream][place : place + spec.length + 1], dtype=np.int32)
            tokens[row, : len(part) - 1], targets[row, : len(part) - 1] = part[:-1], part[1:]
            first = first_scored[stream] if len(first_scored) else 1
            scored[row, : len(part) - 1] = np.arange(place + 1, place + len(part)) >= first
        weights = (scored & ~np.isin(targets, NOT_SCORED)).astype(np.float32)
        yield Slice(lanes.copy(), places.copy(), tokens, targets, weights, begins)
        places += spec.length
        for row in range(spec.batch):
            if lanes[row] >= 0 and places[row] + 1 >= len(streams[lanes[row]]):
                lanes[row] = -1


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of one stream: its ids, where they begin in the stream, and the first position of them that counts."""

    ids: Sequence[int]
    start: int
    first_scored: int


def windows(stream: Sequence[int], pieces: int, context: int, first_scored: int = 1) -> list[Window]:
    """Cut a long stream into at most `pieces` that can be scored side by side; each position counts in exactly one.

    Before what it scores, each window reads `context` tokens from the zero state, as a keyboard does that knows the
    last 20 words. A call of `evaluate` costs the same for one row as for all of them.
    """
    count = len(stream) - first_scored
    share = max(context, -(-count // pieces))
    cut = []
    for first in range(first_scored, len(stream), share):
        start = max(0, first - context)
        cut.append(Window(stream[start : first + share], start, first - start))
    return cut


def score(
    runner: SignatureRunner,
    spec: SignatureSpec,
    packed: Tensors,
    streams: Sequence[Sequence[int]],
    *,
    first_scored: Sequence[int] = (),
    observe: Observer | None = None,
) -> Score:
    """Return the score of weights (`packed`: the train inputs) on id streams. Raises `RuntimeFailed`."""
    states = zero_states(packed, spec.batch)
    sums = np.zeros(4)
    for call in slices(streams, spec, first_scored):
        for state in states.values():
            state[:, call.begins] = 0.0
        outputs = runner.run(
            "evaluate",
            {"tokens": call.tokens, "targets": call.targets, "weights": call.weights, **states, **packed},
        )
        sums += [float(outputs[name]) for name in ("count", "hits1", "hits3", "loss")]
        states = {"state_h": outputs["next_state_h"], "state_c": outputs["next_state_c"]}
        if observe is not None:
            observe(call, outputs["logits"].reshape(spec.length, spec.batch, -1))
    return Score(round(sums[0]), round(sums[1]), round(sums[2]), float(sums[3]))


def hits_of(
    runner: SignatureRunner,
    spec: SignatureSpec,
    packed: Tensors,
    streams: Sequence[Sequence[int]],
    *,
    first_scored: Sequence[int] = (),
) -> tuple[Score, dict[tuple[int, int], bool]]:
    """Return the score, and of each scored word, by (stream, position), whether the first three suggestions hit it.

    What two versions are compared by, word for word. Raises `RuntimeFailed`.
    """
    hits: dict[tuple[int, int], bool] = {}

    def observe(call: Slice, logits: NDArray[np.float32]) -> None:
        for row, t in zip(*np.nonzero(call.weights), strict=True):
            place = (int(call.streams[row]), int(call.starts[row]) + int(t) + 1)
            hits[place] = _is_among_three(logits[t, row], int(call.targets[row, t]))

    found = score(runner, spec, packed, streams, first_scored=first_scored, observe=observe)
    return found, hits


def _is_among_three(logits: NDArray[np.float32], target: int) -> bool:
    if target < len(SPECIALS):
        return False
    ordinary, place = logits[len(SPECIALS) :], target - len(SPECIALS)
    above = np.count_nonzero(ordinary > ordinary[place])
    # Ties go to the lower id.
    return bool(above + np.count_nonzero(ordinary[:place] == ordinary[place]) < SUGGESTIONS)
