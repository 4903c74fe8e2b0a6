"""Where starting weights come from: the shipped checkpoint, a file, or none (`untrained`, for tests).

The shipped folder `starter/` holds `<preset>.npz`, `vocabulary.txt` and `provenance.json`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.checkpoint import load_checkpoint
from model_export.network import PRESETS, NetworkSize, initial_tensors
from wire_contract.layout import Tensors
from wire_contract.vocabulary import MAX_FILE_BYTES, SPECIALS, Vocabulary

STARTER_FOLDER = Path(__file__).parent / "starter"
SHIPPED, UNTRAINED = "starter", "untrained"


class NoStarter(Exception):  # noqa: N818 - named for what is missing
    """There are no shipped weights of this preset; the message says how to make some."""


@dataclass(frozen=True, slots=True)
class Start:
    """Weights and vocabulary that a version 1 is made of."""

    size: NetworkSize
    tensors: Tensors
    vocabulary: Vocabulary


def load_start(preset: str, checkpoint: str, vocabulary: Path | None) -> Start:
    """Return the start that `--preset`, `--checkpoint` and `--vocabulary` name.

    A vocabulary longer than the preset's is cut: its words stand in order of frequency. Raises `NoStarter`,
    `checkpoint.BadCheckpoint`, the contract's `Malformed`, or `OSError`.
    """
    size = PRESETS[preset]
    words = load_vocabulary(vocabulary or STARTER_FOLDER / "vocabulary.txt", size.words)
    if checkpoint == UNTRAINED:
        return Start(size, initial_tensors(size, np.random.Generator(np.random.PCG64(1))), words)
    path = STARTER_FOLDER / f"{preset}.npz" if checkpoint == SHIPPED else Path(checkpoint)
    if checkpoint == SHIPPED and not path.exists():
        shipped = ", ".join(sorted(p.stem for p in STARTER_FOLDER.glob("*.npz"))) or "none"
        raise NoStarter(f"starting weights are shipped for: {shipped}; there are none for {preset}")
    return Start(size, load_checkpoint(path, size), words)


def load_vocabulary(path: Path, entries: int) -> Vocabulary:
    """Return the first `entries` of a vocabulary file. Raises `Malformed` or `OSError`."""
    with path.open("rb") as file:
        vocabulary = Vocabulary.from_bytes(file.read(MAX_FILE_BYTES + 1))
    return Vocabulary.from_words(vocabulary.words[len(SPECIALS) : entries])


def file_sha256(path: Path) -> str:
    """Return a file's hash, for the provenance."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
