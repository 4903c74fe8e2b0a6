"""People who really typed: the chitchat corpus, cut into persons, cleaned, and split by person.

`chitchat-dataset` 0.9.0 (MIT, BYU Chit-Chat Challenge 2018) holds typed conversations of 1,315 pseudonymous people. The
rules:
- a person's split is SHA-256 of `edge-split-v1:` and the person's id, modulo 10: 0 and 1 test, 2 dev, 3 donors,
  4 to 8 train; **9 is reserved: it is dropped here, in the loader, and nothing reads it**;
- donors stand for people who gave their text: they may make vocabulary and starting weights, and are never trained
  federatedly nor scored; train, dev and test persons' words never enter the vocabulary;
- a contest ran on this corpus and some played for points: a sentence of four words or more with one word over half of
  it, single-letter noise, and the fourth copy of the same sentence are left out;
- a person has at least 100 words, and of each only the first 20,000 are read, in order of time.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from wire_contract.vocabulary import split_sentences

Split = Literal["test", "dev", "donors", "train"]
SPLIT_OF_RESIDUE: Mapping[int, Split] = {
    0: "test", 1: "test", 2: "dev", 3: "donors", 4: "train", 5: "train", 6: "train", 7: "train", 8: "train",
}  # fmt: skip
RESERVED_RESIDUE = 9
MINIMUM_WORDS = 100
MAXIMUM_WORDS = 20_000
HEAD_SHARE = 0.8
COPIES_KEPT = 3

_BREAK = re.compile(r"(?<=[.!?\n])")


@dataclass(frozen=True, slots=True)
class Message:
    """One thing a person sent: Unix-comparable ISO 8601 time and the raw text, junk sentences left out."""

    sent_at: str
    text: str


@dataclass(frozen=True, slots=True)
class Person:
    """One typist; `messages` in order of time."""

    user: str
    messages: tuple[Message, ...]
    words: int

    def head_and_tail(self) -> tuple[list[str], list[str]]:
        """Return the texts of the first 80 % of the words (to learn from) and of the rest (to be scored)."""
        head: list[str] = []
        tail: list[str] = []
        seen = 0
        for message in self.messages:
            (head if seen < HEAD_SHARE * self.words else tail).append(message.text)
            seen += count_words(message.text)
        return head, tail


def residue(user: str) -> int:
    """Return the person's place in the split, 0 to 9."""
    return int(hashlib.sha256(f"edge-split-v1:{user}".encode()).hexdigest(), 16) % 10


def count_words(text: str) -> int:
    """Return the number of tokens of `text`."""
    return sum(len(tokens) for tokens in split_sentences(text))


def clean(texts: Iterable[Message]) -> tuple[tuple[Message, ...], int]:
    """Return the messages without junk sentences, at most 20,000 words of them, and the number of words."""
    seen: Counter[tuple[str, ...]] = Counter()
    kept_messages: list[Message] = []
    words = 0
    for message in texts:
        parts = []
        for part in _BREAK.split(message.text):
            tokens = [token for tokens in split_sentences(part) for token in tokens]
            if not tokens or _is_junk(tokens, seen):
                continue
            if words + len(tokens) > MAXIMUM_WORDS:
                break
            words += len(tokens)
            parts.append(part.strip())
        if parts:
            kept_messages.append(Message(message.sent_at, "\n".join(parts)))
    return tuple(kept_messages), words


def _is_junk(tokens: list[str], seen: Counter[tuple[str, ...]]) -> bool:
    if all(len(token) == 1 and token not in ("i", "a", "u", "k") for token in tokens):
        return True
    if len(tokens) < 4:
        return False
    if max(Counter(tokens).values()) > len(tokens) / 2:
        return True
    seen[tuple(tokens)] += 1
    return seen[tuple(tokens)] > COPIES_KEPT


def persons_of(conversations: Iterable[Mapping[str, object]], split: Split) -> list[Person]:
    """Return the persons of a split, ordered by id, out of conversations in the corpus's JSON form."""
    typed: dict[str, list[Message]] = {}
    for user, message in _messages(conversations):
        place = residue(user)
        if place == RESERVED_RESIDUE or SPLIT_OF_RESIDUE[place] != split:
            continue
        typed.setdefault(user, []).append(message)
    persons = []
    for user in sorted(typed):
        messages, words = clean(sorted(typed[user], key=lambda message: message.sent_at))
        if words >= MINIMUM_WORDS:
            persons.append(Person(user, messages, words))
    return persons


def _messages(conversations: Iterable[Mapping[str, object]]) -> Iterator[tuple[str, Message]]:
    for conversation in conversations:
        turns = conversation["messages"]
        assert isinstance(turns, list)
        for turn in turns:
            for message in turn:
                yield message["sender"], Message(message["timestamp"], message["text"])


def read_persons(split: Split) -> list[Person]:
    """Return the installed corpus's persons of one split (about two seconds). Raises `ModuleNotFoundError` without
    the `demo` extra."""
    import chitchat_dataset

    return persons_of(chitchat_dataset.Dataset().values(), split)
