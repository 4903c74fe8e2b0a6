"""Which questions a version's golden vectors ask, and which answers are fit to be demanded exactly.

A golden vector is refused where another interpreter may round the other way, so only answers with room to spare are
taken. Interpreters quantize activations a little differently: over 400 contexts of the starter model the differences
between any two of the eight likeliest words' log probabilities moved by at most 0.203 nats between LiteRT and
tflite-runtime, and by at most 0.211 between LiteRT and float32 arithmetic on the dequantized weights. Two words that
lie `MARGIN` = 0.25 nats apart therefore keep their order in all three. The rules:
- context number i is made from the vocabulary's size, the length and i alone, so that anybody can ask it again;
- it begins with `<s>` and goes on with ordinary words, half of them of the most frequent 256: like text, it is answered
  with conviction often enough;
- text: the three likeliest words, best first, if each lies `MARGIN` above the next, the third above the fourth;
- arrays: the largest outputs, at most three, while each lies `ARRAY_MARGIN` of the largest magnitude above the next;
- of the candidates in order the first that are fit are taken; a model that is sure of nothing has none.

Pure Python, no numpy: exporter, cloud and device use it alike.
"""

from collections.abc import Callable, Iterator, Sequence
from heapq import nlargest
from itertools import islice, pairwise
from math import isfinite, isnan
from typing import Final

from wire_contract.manifest import GoldenVector
from wire_contract.vocabulary import PAD, SPECIALS, START

MARGIN: Final = 0.25
ARRAY_MARGIN: Final = 0.1
VECTORS: Final = 16
CANDIDATES: Final = 512
ANSWERS: Final = 3
_FREQUENT: Final = 256
_ORDINARY: Final = len(SPECIALS)


def context(words: int, length: int, number: int) -> tuple[int, ...]:
    """Return context `number` of a vocabulary of `words` words: `<s>` and 1 to `length` - 1 ordinary ids, unpadded.

    Ids come from Knuth's 64-bit linear congruential generator (MMIX), whose upper bits are used.
    """
    if words <= _ORDINARY or length < 2:
        raise ValueError(f"a context has ordinary words and two or more places, got {words} words, {length} places")
    ordinary = words - _ORDINARY
    state = (number + 1) * 0x9E3779B97F4A7C15 & _MASK
    ids = [START]
    for place in range(1 + number % (length - 1)):
        state = (state * 6364136223846793005 + 1442695040888963407) & _MASK
        ids.append(_ORDINARY + (state >> 33) % (min(_FREQUENT, ordinary) if place % 2 == 0 else ordinary))
    return tuple(ids)


_MASK: Final = (1 << 64) - 1


def padded(ids: Sequence[int], length: int) -> tuple[int, ...]:
    """Return a context as `suggest_context` takes it: `length` ids, `<pad>` on the left. Raises `ValueError`."""
    if not 1 <= len(ids) <= length:
        raise ValueError(f"a context has 1 to {length} tokens, got {len(ids)}")
    return (PAD,) * (length - len(ids)) + tuple(ids)


def choose(log_probs: Sequence[float]) -> tuple[int, ...] | None:
    """Return the three likeliest ids, best first, or None if another interpreter might order them otherwise.

    `log_probs` (nats) are of the whole vocabulary, as `suggest_context` gives them; hand over a list, an array is slow.
    """
    best = nlargest(ANSWERS + 1, range(len(log_probs)), key=log_probs.__getitem__)
    values = [float(log_probs[i]) for i in best]
    if len(best) <= ANSWERS or min(best[:ANSWERS]) < _ORDINARY or not all(map(isfinite, values)):
        return None
    if isnan(sum(log_probs)):
        # What is not a number has no place in the order.
        return None
    apart = all(above - below >= MARGIN for above, below in pairwise(values))
    return tuple(best[:ANSWERS]) if apart else None


def choose_positions(outputs: Sequence[float]) -> tuple[int, ...] | None:
    """Return the positions of the largest outputs of `predict`, largest first, as many as are surely so; else None."""
    best = nlargest(ANSWERS + 1, range(len(outputs)), key=outputs.__getitem__)
    values = [float(outputs[i]) for i in best]
    if len(best) < 2 or not all(isfinite(float(value)) for value in outputs):
        return None
    least = ARRAY_MARGIN * max(abs(float(value)) for value in outputs)
    kept = 0
    # All outputs alike, of which none is the largest: no gap, though `least` may be 0.
    while kept < len(best) - 1 and kept < ANSWERS and values[kept] - values[kept + 1] >= max(least, 1e-30):
        kept += 1
    return tuple(best[:kept]) or None


def text_vectors(
    words: int, length: int, ask: Callable[[tuple[int, ...]], Sequence[float]], count: int = VECTORS
) -> tuple[GoldenVector, ...]:
    """Return up to `count` golden vectors of a next-word version.

    `ask` gives `log_probs` of `suggest_context` for `length` padded ids, in the interpreter that the device runs.
    """
    return tuple(islice(_asked_texts(words, length, ask), count))


def array_vectors(ask: Callable[[int], Sequence[float]], count: int = VECTORS) -> tuple[GoldenVector, ...]:
    """Return up to `count` golden vectors of an arrays version; `ask` gives `predict`'s first row, flat, on synthetic
    example `number`."""
    return tuple(islice(_asked_examples(ask), count))


def _asked_texts(words: int, length: int, ask: Callable[[tuple[int, ...]], Sequence[float]]) -> Iterator[GoldenVector]:
    for number in range(CANDIDATES):
        ids = context(words, length, number)
        answer = choose(ask(padded(ids, length)))
        if answer is not None:
            yield GoldenVector(context=ids, ids=answer)


def _asked_examples(ask: Callable[[int], Sequence[float]]) -> Iterator[GoldenVector]:
    for number in range(CANDIDATES):
        answer = choose_positions(ask(number))
        if answer is not None:
            yield GoldenVector(example=number, ids=answer)
