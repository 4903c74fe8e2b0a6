"""A source's vocabulary: one word a line, in the order of its embedding's rows; and where each row goes in ours.

The rules:
- UTF-8; line breaks are \\n or \\r\\n; a line that is empty, a duplicate, or no word of ours is refused by its number;
- words are what our tokenizer makes (lower-case letters, inner apostrophes): another word could never be typed in;
- the four specials may stand anywhere, also under other names (`[specials]` in the name map); what is missing is added
  in front: a row of zeros, and the smallest of the output biases, so that it takes no probability from the words;
- there are as many lines as the embedding has rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model_export.importing.refusal import BadImport
from model_export.network import EMBEDDING, OUTPUT_BIAS
from wire_contract.errors import Malformed
from wire_contract.layout import Tensors
from wire_contract.vocabulary import MAX_FILE_BYTES, MAX_WORDS, SPECIALS, Vocabulary

NO_ROW = -1


@dataclass(frozen=True, slots=True)
class Rows:
    """Our vocabulary, and for each of its ids the source's row (`NO_ROW`: the source has none)."""

    vocabulary: Vocabulary
    source_rows: tuple[int, ...]

    @property
    def source_words(self) -> int:
        """Number of rows that the source has."""
        return sum(row != NO_ROW for row in self.source_rows)

    def our_ids(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Return, for each row of the source, our id of it."""
        ids = np.zeros(self.source_words, np.int64)
        for ours, theirs in enumerate(self.source_rows):
            if theirs != NO_ROW:
                ids[theirs] = ours
        return ids


def read_rows(data: bytes, specials: Mapping[str, str], rows: int) -> Rows:
    """Read a vocabulary file beside an embedding of `rows` rows. Raises `BadImport` with the line's number.

    specials: the source's word for each of ours that it calls otherwise.
    """
    lines = _lines(data)
    theirs_of = {ours: specials.get(ours, ours) for ours in SPECIALS}
    ours_of = {theirs: ours for ours, theirs in theirs_of.items()}
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line in first_line:
            raise BadImport(
                f"vocabulary line {number}: a word stands once, got {line[:60]!r} of line {first_line[line]}"
            )
        first_line[line] = number
        if line == "" and line not in ours_of:
            raise BadImport(f"vocabulary line {number}: a line holds a word, got an empty one")
        if line not in ours_of:
            _check_word(line, number)
    if len(lines) != rows:
        place = f"line {len(lines)} is the last" if len(lines) < rows else f"line {rows + 1} is one too many"
        raise BadImport(f"the embedding has {rows} rows, one for each vocabulary line, got {len(lines)} lines: {place}")
    missing = [ours for ours, theirs in specials.items() if theirs not in first_line]
    if missing:
        raise BadImport(f"the name map says that {missing[0]} is called {specials[missing[0]]!r}, and no line says it")
    order = [first_line[theirs_of[s]] - 1 if theirs_of[s] in first_line else NO_ROW for s in SPECIALS]
    ordinary = [(line, number) for number, line in enumerate(lines) if line not in ours_of]
    try:
        vocabulary = Vocabulary.from_words([line for line, _ in ordinary])
    except Malformed as e:
        raise BadImport(str(e)) from e
    return Rows(vocabulary, (*order, *(number for _, number in ordinary)))


def _lines(data: bytes) -> list[str]:
    if len(data) > MAX_FILE_BYTES:
        raise BadImport(f"a vocabulary file has at most {MAX_FILE_BYTES} bytes, got {len(data)}")
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadImport("vocabulary line 1: a file is UTF-8 without a byte order mark")
    lines = []
    for number, raw in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            lines.append(raw.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as e:
            raise BadImport(f"vocabulary line {number}: a file is UTF-8, got byte {raw[e.start]:#04x}") from e
    if len(lines) > MAX_WORDS:
        raise BadImport(f"vocabulary line {MAX_WORDS + 1}: a vocabulary has at most {MAX_WORDS} words")
    return lines


def _check_word(word: str, number: int) -> None:
    try:
        Vocabulary.from_words([word])
    except Malformed as e:
        raise BadImport(f"vocabulary line {number}: {e}") from e


def in_our_order(tensors: Tensors, rows: Rows) -> Tensors:
    """Return the tensors with a row for each of our ids; an added special has zeros and the smallest output bias."""
    theirs = np.array(rows.source_rows)
    present = theirs != NO_ROW
    embedding = np.zeros((len(theirs), tensors[EMBEDDING].shape[1]), np.float32)
    embedding[present] = tensors[EMBEDDING][theirs[present]]
    bias = np.full(len(theirs), tensors[OUTPUT_BIAS].min(), np.float32)
    bias[present] = tensors[OUTPUT_BIAS][theirs[present]]
    return {**tensors, EMBEDDING: embedding, OUTPUT_BIAS: bias}
