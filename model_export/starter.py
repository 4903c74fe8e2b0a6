"""Where starting weights come from: the shipped checkpoint, a file, or none (`untrained`, for tests).

The shipped folder `starter/` holds `<preset>.npz`, `vocabulary.txt` and `provenance.json`. Presets are names for
sizes: a checkpoint of any other size says its own.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.checkpoint import checkpoint_size, load_checkpoint
from model_export.network import PRESETS, NetworkSize, initial_tensors
from wire_contract.layout import Tensors
from wire_contract.vocabulary import MAX_FILE_BYTES, SPECIALS, Vocabulary

STARTER_FOLDER = Path(__file__).parent / "starter"
VOCABULARY_FILE = "vocabulary.txt"
SHIPPED, UNTRAINED = "starter", "untrained"
DEFAULT_PRESET = "small"


class NoStarter(Exception):  # noqa: N818 - named for what is missing
    """There are no shipped weights of this preset; the message says how to make some."""


@dataclass(frozen=True, slots=True)
class Start:
    """Weights and vocabulary that a version 1 is made of."""

    size: NetworkSize
    tensors: Tensors
    vocabulary: Vocabulary


def load_start(preset: str, checkpoint: str, vocabulary: Path | None) -> Start:
    """Return the start that `--preset`, `--checkpoint` and `--vocabulary` name; see `load_sized_start`."""
    return load_sized_start(PRESETS[preset], checkpoint, vocabulary)


def load_sized_start(size: NetworkSize, checkpoint: str, vocabulary: Path | None) -> Start:
    """Return the start of this size.

    Without a vocabulary the one beside the checkpoint's file is taken, else the shipped one. One longer than the size's
    is cut: its words stand in order of frequency. Raises `NoStarter`,
    `checkpoint.BadCheckpoint`, the contract's `Malformed`, or `OSError`.
    """
    words = load_vocabulary(vocabulary or _vocabulary_of(checkpoint), size.words)
    if checkpoint == UNTRAINED:
        return Start(size, initial_tensors(size, np.random.Generator(np.random.PCG64(1))), words)
    path = STARTER_FOLDER / f"{preset_of(size)}.npz" if checkpoint == SHIPPED else Path(checkpoint)
    if checkpoint == SHIPPED and not path.exists():
        shipped = ", ".join(sorted(p.stem for p in STARTER_FOLDER.glob("*.npz"))) or "none"
        raise NoStarter(f"starting weights are shipped for: {shipped}; there are none for {preset_of(size)}")
    return Start(size, load_checkpoint(path, size), words)


def _vocabulary_of(checkpoint: str) -> Path:
    """Return the vocabulary that `pretrain` and `import` write beside a checkpoint: its rows are those words."""
    beside = Path(checkpoint).parent / VOCABULARY_FILE
    is_file = checkpoint not in (SHIPPED, UNTRAINED)
    return beside if is_file and beside.is_file() else STARTER_FOLDER / VOCABULARY_FILE


def preset_of(size: NetworkSize) -> str:
    """Return the preset's name of a size, or the size in words where none has it."""
    named = [name for name, preset in PRESETS.items() if preset == size]
    return named[0] if named else f"{size.words} words x {size.width}, {size.cells} cells"


def wanted_size(
    preset: str | None, checkpoint: str, words: int | None, width: int | None, cells: int | None
) -> NetworkSize:
    """Return the size to export: a preset, three numbers, or what the checkpoint's file says; else the preset small.

    Raises `ValueError` where they are mixed or do not fit together, `BadCheckpoint` or `OSError` for the file.
    """
    numbers = (words, width, cells)
    if preset is not None:
        if any(n is not None for n in numbers):
            raise ValueError("a size is a preset or --words, --width and --cells, got both")
        return PRESETS[preset]
    if words is not None and width is not None and cells is not None:
        return NetworkSize(words, width, cells)
    if any(n is not None for n in numbers):
        raise ValueError(f"--words, --width and --cells come together, got {numbers}")
    if checkpoint in (SHIPPED, UNTRAINED):
        return PRESETS[DEFAULT_PRESET]
    return checkpoint_size(Path(checkpoint))


def load_vocabulary(path: Path, entries: int) -> Vocabulary:
    """Return the first `entries` of a vocabulary file. Raises `Malformed` or `OSError`."""
    with path.open("rb") as file:
        vocabulary = Vocabulary.from_bytes(file.read(MAX_FILE_BYTES + 1))
    return Vocabulary.from_words(vocabulary.words[len(SPECIALS) : entries])


def file_sha256(path: Path) -> str:
    """Return a file's hash, for the provenance."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
