"""What of a person's text may become an example. Pure.

The rules (data.md 5):
- e-mail addresses, mentions and URLs are cut out before anything else sees the text; the rest of their sentence stays;
- a number is `<num>`, whatever its length, and so is a word with a digit in it (`hunter2`), whole: no digit and no
  letter of it is kept, and it is no new word;
- a word outside the public vocabulary is `<unk>`: no name and no typo can enter an example;
- a person's own new words (letters only, outside the vocabulary) come out separately; training never reads them;
- a password of letters alone, typed into an ordinary field, cannot be told from words: what of it is in the vocabulary
  enters the example, and the rest is `<unk>` there and a new word here. Password fields never learn: the keyboard adds
  nothing from them (`SqliteExampleStore.add` with `learn=False`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from wire_contract.vocabulary import MAX_WORD_CHARACTERS, SPECIALS, UNKNOWN, Vocabulary, split_sentences

_LETTERS = re.compile(r"[a-z]{2,}(?:'[a-z]+)*")


@dataclass(frozen=True, slots=True)
class Filtered:
    """Sentences as tokens of the vocabulary, and the new words in the order in which they were typed."""

    sentences: tuple[tuple[str, ...], ...]
    new_words: tuple[str, ...]


def filter_text(text: str, vocabulary: Vocabulary) -> Filtered:
    """Return what may be stored of raw text; sentences without one known word are left out."""
    sentences, new_words = [], []
    for tokens in split_sentences(text):
        kept = tuple(token if token in vocabulary.index else SPECIALS[UNKNOWN] for token in tokens)
        new_words += [
            token
            for token in tokens
            if token not in vocabulary.index and len(token) <= MAX_WORD_CHARACTERS and _LETTERS.fullmatch(token)
        ]
        if any(token not in SPECIALS for token in kept):
            sentences.append(kept)
    return Filtered(tuple(sentences), tuple(new_words))


def id_stream(sentences: Iterable[str], vocabulary: Vocabulary) -> list[int]:
    """Return stored sentences (tokens joined by spaces) as one stream of ids, `<s>` before each.

    A word that a newer vocabulary does not know is `<unk>` again.
    """
    start = vocabulary.index["<s>"]
    return [i for sentence in sentences for i in (start, *vocabulary.encode(sentence.split(" ")))]
