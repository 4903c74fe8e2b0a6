"""The vocabulary and the one way that text becomes tokens.

Exporter and device must cut text alike, byte for byte: the exporter counts words to make the vocabulary, the device
turns what is typed into ids of the same vocabulary. The rules:
- lower case; e-mail addresses, mentions and URLs are removed before anything else sees the text;
- a word is `[a-z]+(?:'[a-z]+)*`; a number, and any word with a digit in it, is the token `<num>`: the rest is gone;
- a sentence ends at `.`, `!`, `?` or a line break; punctuation is no token and is never predicted;
- the first four ids are `<pad>`, `<s>` (start of a sentence), `<unk>` and `<num>`; none of them is ever suggested.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wire_contract.errors import Malformed

PAD, START, UNKNOWN, NUMBER = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "<unk>", "<num>")
MAX_WORDS = 65_536
MAX_FILE_BYTES = 2_097_152
MAX_WORD_CHARACTERS = 40

_CHUNK = re.compile(r"\S+")
_EDGE = "\"'`()[]{}<>,;!?*_~…"
_HOST = re.compile(r"[\w-]{1,63}(?:\.[\w-]{1,63})+\.?(?P<rest>[:/?#].*)?", re.DOTALL)
# Endings that are taken for a host's even without a path: every two-letter one, and these.
_TOP_LEVEL = frozenset(
    ("com", "org", "net", "edu", "gov", "mil", "int", "info", "biz", "name", "app", "dev", "xyz", "site", "online",
     "shop", "blog", "cloud", "tech")
)  # fmt: skip
_SENTENCE_END = re.compile(r"[.!?\n]+")
# A number with separators, or a run of letters, digits and apostrophes; both are matched in linear time.
_RUN = re.compile(r"[0-9]+(?:[.,:][0-9]+)+|[a-z0-9']+")
_DIGIT = re.compile(r"[0-9]")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def remove_identifiers(text: str) -> str:
    """Return `text` without e-mail addresses, mentions and URLs; call it before text is stored, shown or counted.

    Whole chunks between spaces are judged, in linear time: one goes if it holds `@` or `://`, begins with `www.`, or is
    a dotted host with a path, a port or a top-level ending (`bit.ly/x`, `secret.fr`). Two words with a forgotten space
    after a full stop (`ok.then`) stay; a few such pairs that look like a host (`yes.it`) are lost, which harms nobody.
    """
    return _CHUNK.sub(lambda found: " " if _is_identifier(found.group()) else found.group(), text)


def _is_identifier(chunk: str) -> bool:
    if "@" in chunk or "://" in chunk:
        return True
    bare = chunk.strip(_EDGE)
    host = _HOST.fullmatch(bare) if "." in bare else None
    if host is None:
        return bare.startswith("www.")
    if host["rest"] or bare.startswith("www."):
        return True
    ending = bare.rstrip(".").rsplit(".", 1)[1]
    return ending in _TOP_LEVEL or (len(ending) == 2 and ending.isalpha())


def split_sentences(text: str) -> list[list[str]]:
    """Cut raw text into sentences of tokens (words and `<num>`); sentences without a token are left out."""
    lowered = remove_identifiers(text.lower().replace("’", "'"))
    sentences = []
    for part in _SENTENCE_END.split(lowered):
        tokens: list[str] = []
        for run in _RUN.findall(part):
            # A run with a digit is one `<num>`, letters and all: `summer2019` may be somebody's password.
            tokens += ["<num>"] if _DIGIT.search(run) else _WORD.findall(run)
        if tokens:
            sentences.append(tokens)
    return sentences


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words of one model family, most frequent first after the four specials; ids are positions.

    Make one with `from_words` or `from_bytes`, which check it; the device ships with the file that the manifest hashes.
    """

    words: tuple[str, ...]
    index: dict[str, int] = field(repr=False, compare=False)

    @classmethod
    def from_words(cls, words: Sequence[str]) -> "Vocabulary":
        """Take ordinary words in order of frequency (without the specials) and return the vocabulary."""
        return cls._checked((*SPECIALS, *words))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Vocabulary":
        """Read the vocabulary file: UTF-8, one word a line, specials first. Raises `Malformed`."""
        if len(data) > MAX_FILE_BYTES:
            raise Malformed(f"a vocabulary file has at most {MAX_FILE_BYTES} bytes, got {len(data)}")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise Malformed(f"a vocabulary file is UTF-8, got an invalid byte at {e.start}") from e
        if not text.endswith("\n"):
            raise Malformed("a vocabulary file ends with a line break")
        return cls._checked(tuple(text[:-1].split("\n")))

    @classmethod
    def _checked(cls, words: tuple[str, ...]) -> "Vocabulary":
        if words[: len(SPECIALS)] != SPECIALS:
            raise Malformed(f"a vocabulary begins with {SPECIALS}, got {words[:4]}")
        if not len(SPECIALS) < len(words) <= MAX_WORDS:
            raise Malformed(f"a vocabulary has 5 to {MAX_WORDS} entries, got {len(words)}")
        for word in words[len(SPECIALS) :]:
            if len(word) > MAX_WORD_CHARACTERS or not _WORD.fullmatch(word):
                raise Malformed(f"a word is letters and inner apostrophes, at most 40, got {word[:60]!r}")
        index = {word: position for position, word in enumerate(words)}
        if len(index) != len(words):
            raise Malformed(f"a vocabulary names each word once, got {len(words) - len(index)} repeated")
        return cls(words, index)

    def __len__(self) -> int:
        return len(self.words)

    def to_bytes(self) -> bytes:
        """Return the file's bytes; inverse of `from_bytes`."""
        return ("\n".join(self.words) + "\n").encode("utf-8")

    def sha256(self) -> str:
        """Return the hash that the manifest states, as hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return ids; a token outside the vocabulary becomes `<unk>`, so no unknown word can enter an example."""
        return [self.index.get(token, UNKNOWN) for token in tokens]

    def encode_text(self, text: str) -> list[int]:
        """Return the id stream of raw text: for each sentence `<s>` and its tokens."""
        return [i for tokens in split_sentences(text) for i in (START, *self.encode(tokens))]
