"""A version's files as they lie on disk: a folder, a lone `.tflite` with its manifest, or an offline bundle.

The rules:
- a folder holds `model.tflite` and `manifest.bin`; a model of text also `vocabulary.txt`;
- a lone file's manifest is named, or lies beside it as `NAME.manifest.bin` or `manifest.bin`;
- hashes are compared before anything is believed; signatures are the caller's to ask for.
"""

import hashlib
from pathlib import Path
from typing import Final

from model_export.bundle import KEY_FILE, MANIFEST_FILE, MODEL_FILE, VOCABULARY_FILE, Bundle
from wire_contract import envelope
from wire_contract.errors import Malformed, Untrusted
from wire_contract.manifest import ARRAY_FAMILY, MAX_MODEL_BYTES, Manifest, decode_manifest, template_hash
from wire_contract.offline_bundle import MAGIC
from wire_contract.vocabulary import MAX_FILE_BYTES, Vocabulary

UNSIGNED: Final = b""


def is_offline_bundle(path: Path) -> bool:
    """Whether a file begins as an offline bundle does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_version(path: Path, manifest_path: Path | None = None) -> Bundle:
    """Return a version whose hashes agree; its signature is not checked, and its key is `UNSIGNED`.

    Raises the contract's errors, or `FileNotFoundError`.
    """
    if not path.exists():
        raise FileNotFoundError(2, "no such file or folder", str(path))
    model_path = path / MODEL_FILE if path.is_dir() else path
    signed = read_limited(manifest_path or _manifest_of(model_path), envelope.MAX_ENVELOPE_BYTES)
    manifest = decode_manifest(envelope.read_envelope(signed).body)
    model = read_limited(model_path, MAX_MODEL_BYTES)
    vocabulary_path = model_path.parent / VOCABULARY_FILE
    # A lone file comes without one; a folder of a model of text does not.
    needed = path.is_dir() and manifest.family != ARRAY_FAMILY
    text = read_limited(vocabulary_path, MAX_FILE_BYTES) if needed or vocabulary_path.is_file() else None
    check_hashes(model, manifest)
    return Bundle(model, _vocabulary(text, manifest), manifest, signed, UNSIGNED)


def check_hashes(model: bytes, manifest: Manifest) -> None:
    """Raise `Untrusted` unless the model is the manifest's, and outside the weights the manifest's template."""
    if len(model) != manifest.size_bytes or hashlib.sha256(model).hexdigest() != manifest.sha256:
        raise Untrusted(f"the model hashes to what the manifest says, {manifest.sha256[:12]}..., and does not here")
    if template_hash(model, manifest) != manifest.template_sha256:
        raise Untrusted("the model outside the weights hashes to template_sha256, and does not here")


def key_beside(path: Path) -> bytes | None:
    """Return the public key that lies beside a version's files, or None. Raises `Malformed`."""
    key_path = (path if path.is_dir() else path.parent) / KEY_FILE
    if not key_path.is_file():
        return None
    text = read_limited(key_path, 200).decode("ascii", "replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise Malformed(f"{KEY_FILE} holds 64 hex digits, got {text[:80]!r}")
    return key


def read_limited(path: Path, limit: int) -> bytes:
    """Return a file's bytes. Raises `Malformed` for more than `limit`, or `OSError`."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Malformed(f"{path.name} has at most {limit} bytes")
    return data


def _manifest_of(model_path: Path) -> Path:
    named = model_path.with_suffix(".manifest.bin")
    return named if named.is_file() else model_path.parent / MANIFEST_FILE


def _vocabulary(text: bytes | None, manifest: Manifest) -> Vocabulary | None:
    if text is None or manifest.family == ARRAY_FAMILY:
        return None
    vocabulary = Vocabulary.from_bytes(text)
    if vocabulary.sha256() != manifest.vocabulary_sha256 or len(vocabulary) != manifest.vocabulary_words:
        raise Untrusted(f"{VOCABULARY_FILE} hashes to what the manifest says, and does not here")
    return vocabulary
