"""Is a version that came up as good, here, as the one before it? What is measured, and the verdict. Pure.

The rules, for B on trial against A, on the same contexts and the same held-out text of the person:
- every answer is finite: `not_finite`;
- B's suggestion takes at most `MOST_LATENCY` times as long as A's, by the median over paired contexts: `too_slow`. The
  limit is generous: a phone is busy at times, and versions of one template cost the same;
- B's perplexity on the person's held-out sentences is at most `MOST_PERPLEXITY` times A's: `worse_on_your_text`.
  Fewer than `LEAST_WORDS` words say too little (of two versions that are as good, the difference of one word's loss
  strays by about 0.3 nats: with 400 words a twentieth is three standard errors): skipped, and said;
- without an A, or where A cannot be asked any more, only what B answers counts.
The third rule looks at text that the device never trains on, so a version is not preferred for having seen it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

MOST_LATENCY: Final = 3.0
MOST_PERPLEXITY: Final = 1.05
LEAST_WORDS: Final = 400
CONTEXTS: Final = 12


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict: `reason` is the stable name of the rule that is broken, "" for none; `said` is what was measured."""

    reason: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One version: seconds of each suggestion, in the order of the contexts; words scored and their summed loss in
    nats; whether everything was finite."""

    seconds: Sequence[float] = ()
    words: int = 0
    loss: float = 0.0
    finite: bool = True


def judge(new: Measured, old: Measured | None) -> Health:
    """Return the verdict on a version by what was measured of it and, if there is one, of the version before it."""
    if not new.finite or not math.isfinite(new.loss):
        return Health("not_finite", "an answer is not a finite number")
    if old is None:
        return Health(said="it came up")
    said = []
    ratio = _ratio(new.seconds, old.seconds)
    if ratio is None:
        said.append("latency not measured")
    else:
        said.append(f"{ratio:.2f} times the latency")
        if ratio > MOST_LATENCY:
            return Health("too_slow", f"a suggestion takes {ratio:.2f} times as long, at most {MOST_LATENCY} is right")
    if new.words < LEAST_WORDS or old.words < LEAST_WORDS or not math.isfinite(old.loss):
        said.append(f"perplexity not compared: {new.words} words are held out, {LEAST_WORDS} are wanted")
    else:
        times = math.exp(min(50.0, new.loss / new.words - old.loss / old.words))
        said.append(f"{times:.3f} times the perplexity on {new.words} held-out words")
        if times > MOST_PERPLEXITY:
            return Health("worse_on_your_text", f"{said[-1]}, at most {MOST_PERPLEXITY} is right")
    return Health(said=", ".join(said))


def _ratio(new: Sequence[float], old: Sequence[float]) -> float | None:
    """Return the median of paired ratios; None where the clock did not move, as in a simulation."""
    pairs = [a / b for a, b in zip(new, old, strict=False) if a > 0.0 and b > 0.0]
    return median(pairs) if pairs else None
