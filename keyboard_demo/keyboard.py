"""The keyboard's mind: text so far in, three suggestions out; a key in, the next text out. Pure.

The rules (see docs/glossary.md for the words):
- the strip has three places: the most likely word stands in the middle, the second left, the third right, and the
  order stays while the same three are suggested;
- while letters of a word are typed the same three places complete it;
- accepting puts the word and a space; a backspace right after an acceptance takes the whole acceptance back;
- a line break ends a message: that is what the device may learn from. Nothing else leaves this module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wire_contract.vocabulary import PAD, SPECIALS, Vocabulary

CONTEXT_TOKENS = 20
PLACES = 3
# Places of the strip by rank: the best in the middle, where the thumb rests.
PLACE_OF_RANK = (1, 0, 2)

Predict = Callable[[tuple[int, ...]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Typing:
    """What stands in the field: text, the strip from left to right ("" where there is none), counters, and what a
    backspace takes back after an acceptance."""

    text: str = ""
    strip: tuple[str, ...] = ("", "", "")
    keys: int = 0
    accepted: int = 0
    before_accept: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A finished message: the text that a device may learn from."""

    text: str


def context_of(text: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the last 20 token ids before the word that is being typed, left-padded with `<pad>`."""
    finished, _ = split_prefix(text)
    ids = vocabulary.encode_text(finished)
    if not finished.strip() or finished.rstrip()[-1:] in ".!?\n":
        ids.append(vocabulary.index["<s>"])
    ids = ids[-CONTEXT_TOKENS:]
    return (PAD,) * (CONTEXT_TOKENS - len(ids)) + tuple(ids)


def split_prefix(text: str) -> tuple[str, str]:
    """Return the text up to the word being typed, and the letters of that word so far (lower case, "" if none)."""
    end = len(text)
    while end and (text[end - 1].isalpha() or text[end - 1] == "'"):
        end -= 1
    return text[:end], text[end:].lower()


def rank_words(probabilities: Sequence[float], prefix: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the up to three likeliest words that begin with `prefix`, most likely first; never a special.

    `probabilities` has one entry for each word of the vocabulary.
    """
    if prefix:
        candidates = [i for i in range(len(SPECIALS), len(vocabulary)) if vocabulary.words[i].startswith(prefix)]
    else:
        candidates = list(range(len(SPECIALS), len(vocabulary)))
    best = sorted(candidates, key=lambda i: (-probabilities[i], i))[:PLACES]
    return tuple(vocabulary.words[i] for i in best if probabilities[i] > 0)


def lay_out(ranked: Sequence[str], shown: tuple[str, ...]) -> tuple[str, ...]:
    """Return the strip for the ranked words; the strip that is shown stays if it holds the same words."""
    if set(ranked) == set(shown) - {""} and ranked:
        return shown
    strip = [""] * PLACES
    for place, word in zip(PLACE_OF_RANK, ranked, strict=False):
        strip[place] = word
    return tuple(strip)


def suggest(typing: Typing, vocabulary: Vocabulary, predict: Predict) -> Typing:
    """Return `typing` with the strip for its text; `predict` maps 20 ids to a probability for each word."""
    _, prefix = split_prefix(typing.text)
    ranked = rank_words(predict(context_of(typing.text, vocabulary)), prefix, vocabulary)
    return replace(typing, strip=lay_out(ranked, typing.strip))


def press(typing: Typing, key: str) -> Typing | Message:
    """Return what one key makes of `typing`: a character, `\\b` (backspace), `\\n` (end of the message), `1` to `3`
    (accept the word at that place while one is shown there; else the digit itself)."""
    counted = replace(typing, keys=typing.keys + 1, before_accept=None)
    if key == "\n":
        return Message(typing.text)
    if key == "\b":
        undone = typing.before_accept if typing.before_accept is not None else typing.text[:-1]
        return replace(counted, text=undone, accepted=typing.accepted - (typing.before_accept is not None))
    if key in "123" and typing.strip[int(key) - 1]:
        finished, _ = split_prefix(typing.text)
        word = typing.strip[int(key) - 1]
        return replace(counted, text=f"{finished}{word} ", accepted=typing.accepted + 1, before_accept=typing.text)
    return replace(counted, text=typing.text + key)
