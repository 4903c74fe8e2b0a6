"""What the exporter hands over: model.tflite, vocabulary.txt, manifest.bin; believed only after every check.

The rules:
- the manifest is signed by the exporter's key, which the operator pins or `manifest_key.pub` beside it names;
- the file's size, hash and template hash, and the vocabulary's hash and length, are the manifest's; a model of arrays
  has no vocabulary;
- the weights read out of the file are finite and fill the layout;
- the plan's signature exists in the model, and the plan asks for nothing that the model's family cannot do.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloud_aggregator.errors import NotFound, Refused
from wire_contract import envelope
from wire_contract.errors import ContractError
from wire_contract.layout import Layout
from wire_contract.manifest import ARRAY_FAMILY, MAX_MODEL_BYTES, Manifest, decode_manifest, template_hash
from wire_contract.messages import Plan
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import MAX_FILE_BYTES, Vocabulary

KEY_FILE = "manifest_key.pub"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle; `weights` is float32 in layout order, `vocabulary` is empty for a model of arrays."""

    manifest: Manifest
    signed_manifest: bytes
    manifest_key: bytes
    model: bytes
    vocabulary: bytes
    weights: NDArray[np.float32]


def parse_key(text: str) -> bytes:
    """Return the 32 bytes of a key written as 64 hex digits. Raises `Refused`."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise Refused(f"a manifest key is 64 hex digits, got {text.strip()[:70]!r}")
    return key


def read_bundle(folder: Path, manifest_key: bytes | None) -> Bundle:
    """Read and check the bundle in `folder`. Raises `NotFound` or `Refused` with the rule that does not hold."""
    if manifest_key is None:
        manifest_key = parse_key(_read(folder / KEY_FILE, 200).decode("ascii", "replace"))
    signed = _read(folder / "manifest.bin", envelope.MAX_ENVELOPE_BYTES)
    model = _read(folder / "model.tflite", MAX_MODEL_BYTES)
    try:
        stated = _stated(signed, manifest_key)
        vocabulary = b"" if stated.family == ARRAY_FAMILY else _read(folder / "vocabulary.txt", MAX_FILE_BYTES)
        return check_bundle(signed, manifest_key, model, vocabulary)
    except ContractError as e:
        raise Refused(f"{folder} is no bundle of this exporter: {e}") from e


def check_bundle(signed_manifest: bytes, manifest_key: bytes, model: bytes, vocabulary: bytes) -> Bundle:
    """Return the bundle if every rule holds. Raises `Refused` or a `ContractError`."""
    manifest = _stated(signed_manifest, manifest_key)
    found = sha256(model).hexdigest()
    if (len(model), found) != (manifest.size_bytes, manifest.sha256):
        raise Refused(f"model.tflite has {manifest.size_bytes} bytes and hash {manifest.sha256}, got {found}")
    if template_hash(model, manifest) != manifest.template_sha256:
        raise Refused("the bytes of model.tflite outside the patched ranges hash to the template, and do not here")
    _check_vocabulary(vocabulary, manifest)
    weights = Layout.of(manifest).flatten(read_tensors(model, manifest))
    return Bundle(manifest, signed_manifest, manifest_key, model, vocabulary, weights)


def _stated(signed_manifest: bytes, manifest_key: bytes) -> Manifest:
    return decode_manifest(envelope.verify(signed_manifest, "manifest", manifest_key))


def _check_vocabulary(vocabulary: bytes, manifest: Manifest) -> None:
    if manifest.family == ARRAY_FAMILY:
        if vocabulary:
            raise Refused(f"a model of arrays has no vocabulary, got one of {len(vocabulary)} bytes")
        return
    words = Vocabulary.from_bytes(vocabulary)
    if (words.sha256(), len(words)) != (manifest.vocabulary_sha256, manifest.vocabulary_words):
        raise Refused(f"vocabulary.txt hashes to {manifest.vocabulary_sha256}, got {words.sha256()}")


def check_plan(plan: Plan, manifest: Manifest) -> None:
    """Raise `Refused` unless the model has the plan's train signature, and what else the plan asks of its family."""
    if manifest.family == ARRAY_FAMILY:
        hint = 'in the population\'s settings: [plan] signature = "train", dropout = 0.0'
        if plan.signature != "train":
            raise Refused(f"a model of arrays trains by plan.signature 'train', got {plan.signature!r}", hint)
        if plan.dropout:
            raise Refused(f"a model of arrays has its dropout left out: plan.dropout is 0, got {plan.dropout}", hint)
    if plan.signature not in manifest.signatures:
        raise Refused(f"plan.signature is one of {sorted(manifest.signatures)}, got {plan.signature!r}")


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as e:
        raise NotFound(f"{path}: cannot be read: {e.strerror}") from e
    if len(data) > limit:
        raise Refused(f"{path} has at most {limit} bytes")
    return data
