"""The public vocabulary: the most frequent words of text that anyone may use, weighted by source.

Only sources named here are counted (Brown and donors); no train, dev or test person's words enter. A word's score is
the weighted mean of its relative frequencies; equal scores stand in alphabetical order, so the file is reproducible.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from model_export.corpus import Author
from wire_contract.vocabulary import MAX_WORD_CHARACTERS, SPECIALS, Vocabulary

DONOR_SHARE = 0.7


def count_words(authors: Iterable[Author]) -> Counter[str]:
    """Return how often each ordinary word occurs; numbers and over-long words are left out."""
    counts: Counter[str] = Counter()
    for author in authors:
        for sentence in author.sentences():
            counts.update(word for word in sentence if word not in SPECIALS and len(word) <= MAX_WORD_CHARACTERS)
    return counts


def make_vocabulary(sources: Sequence[tuple[float, Counter[str]]], entries: int) -> Vocabulary:
    """Return a vocabulary of `entries` (the four specials among them) from (share, counts) of each source.

    Raises `ValueError` where the sources hold too few different words.
    """
    scores: dict[str, float] = {}
    for share, counts in sources:
        total = sum(counts.values())
        for word, count in counts.items():
            scores[word] = scores.get(word, 0.0) + share * count / total
    wanted = entries - len(SPECIALS)
    if len(scores) < wanted:
        raise ValueError(f"a vocabulary of {entries} needs {wanted} different words, got {len(scores)}")
    ranked = sorted(scores, key=lambda word: (-scores[word], word))
    return Vocabulary.from_words(ranked[:wanted])
