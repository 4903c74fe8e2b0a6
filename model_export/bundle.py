"""A bundle: what a population is started from. A folder with four files, three for a model of arrays.

    model.tflite       the template with version 1's weights
    vocabulary.txt     one word a line, specials first; only a model of text has one
    manifest.bin       the signed manifest (envelope kind "manifest")
    manifest_key.pub   the signer's public key, 64 hex digits, to be compared by other means before it is trusted

A bundle is written beside its final name, synced, and renamed, so that a half-written one never stands there. It takes
the place of an older bundle and of nothing else: neither of a file nor of a folder in which something else lies.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from model_export.array_model import ArrayTemplate
from model_export.convert import Template
from model_export.network import LENGTH, signature_specs, size_of, train_inputs
from model_export.reference import template_loss
from wire_contract import envelope
from wire_contract.errors import Malformed, Untrusted
from wire_contract.layout import Tensors
from wire_contract.lineage import Lineage
from wire_contract.manifest import (
    ARRAY_FAMILY,
    MAX_MANIFEST_BYTES,
    MAX_MODEL_BYTES,
    Golden,
    GoldenVector,
    Manifest,
    Part,
    SignatureSpec,
    TrainInput,
    decode_manifest,
    encode_manifest,
    fingerprint,
    template_hash,
)
from wire_contract.patch import patch
from wire_contract.vocabulary import MAX_FILE_BYTES, Vocabulary

MODEL_FILE, VOCABULARY_FILE, MANIFEST_FILE, KEY_FILE = (
    "model.tflite", "vocabulary.txt", "manifest.bin", "manifest_key.pub",
)  # fmt: skip
LOSS_TOLERANCE = 1e-4
# Between `predict` and `evaluate` on the same weights, both in float32, relative to the largest value above 1.
ARRAY_TOLERANCE = 1e-3
GOLDEN_CONTEXT = tuple(4 + 7 * i for i in range(LENGTH))
_PLACEHOLDER = "0" * 64


@dataclass(frozen=True, slots=True)
class Bundle:
    """A read and checked bundle."""

    model: bytes
    vocabulary: Vocabulary | None
    manifest: Manifest
    signed_manifest: bytes
    public_key: bytes


def make_manifest(
    template: Template,
    tensors: Tensors,
    vocabulary: Vocabulary,
    *,
    population: str,
    candidates: int,
    logit_tolerance: float,
    now: int,
    valid_s: int,
    variants: Sequence[tuple[int, int]] = (),
    golden_vectors: tuple[GoldenVector, ...] = (),
    needs: tuple[str, ...] = (),
    minimum_runtime: str = "",
    lineage: Lineage | None = None,
) -> tuple[bytes, Manifest]:
    """Return version 1's file and manifest: `tensors` patched into `template`. Raises `Malformed`.

    variants: the (batch, length) pairs that the template was converted with. The rest: see `Manifest`.
    """
    size = size_of(tensors)
    draft = Manifest(
        population=population,
        version=1,
        kind="refresh",
        sha256=_PLACEHOLDER,
        size_bytes=len(template.data),
        template_sha256=_PLACEHOLDER,
        layout_fingerprint=fingerprint(template.tensors),
        tensors=template.tensors,
        train_inputs=train_inputs(size),
        signatures=signature_specs(candidates, variants),
        vocabulary_sha256=vocabulary.sha256(),
        vocabulary_words=len(vocabulary),
        golden=Golden(
            tokens=GOLDEN_CONTEXT,
            template_loss=template_loss(size),
            loss_tolerance=LOSS_TOLERANCE,
            logit_tolerance=logit_tolerance,
        ),
        created_at=now,
        expires_at=now + valid_s,
        golden_vectors=golden_vectors,
        needs=needs,
        minimum_runtime=minimum_runtime,
        lineage=lineage,
    )
    if len(vocabulary) != size.words:
        raise Malformed(f"the embedding has a row for each word: {size.words}, got {len(vocabulary)} words")
    return _patched(template.data, draft, tensors)


def make_array_manifest(
    template: ArrayTemplate,
    tensors: Tensors,
    *,
    population: str,
    now: int,
    valid_s: int,
    golden_vectors: tuple[GoldenVector, ...] = (),
    needs: tuple[str, ...] = (f"family:{ARRAY_FAMILY}",),
    minimum_runtime: str = "",
    lineage: Lineage | None = None,
) -> tuple[bytes, Manifest]:
    """Return version 1's file and manifest of a model of arrays. Raises `Malformed`.

    Each fleet tensor is a train input of its own name and shape; there is no vocabulary.
    """
    steps = SignatureSpec(batch=template.batch, length=1)
    draft = Manifest(
        population=population,
        version=1,
        kind="refresh",
        sha256=_PLACEHOLDER,
        size_bytes=len(template.data),
        template_sha256=_PLACEHOLDER,
        layout_fingerprint=fingerprint(template.tensors),
        tensors=template.tensors,
        train_inputs=tuple(
            TrainInput(
                name=entry.name,
                shape=entry.shape,
                parts=(Part(tensor=entry.name, start=0, stop=entry.shape[1] if len(entry.shape) == 2 else 1),),
            )
            for entry in template.tensors
        ),
        signatures={"train": steps, "evaluate": steps, "predict": SignatureSpec(batch=1, length=1)},
        vocabulary_sha256="",
        vocabulary_words=0,
        golden=Golden(
            tokens=(),
            template_loss=template.template_loss,
            loss_tolerance=LOSS_TOLERANCE * max(1.0, abs(template.template_loss)),
            logit_tolerance=ARRAY_TOLERANCE,
        ),
        created_at=now,
        expires_at=now + valid_s,
        family=ARRAY_FAMILY,
        examples=template.examples,
        loss=template.loss,
        golden_vectors=golden_vectors,
        needs=needs,
        minimum_runtime=minimum_runtime,
        lineage=lineage,
    )
    return _patched(template.data, draft, tensors)


def _patched(template: bytes, draft: Manifest, tensors: Tensors) -> tuple[bytes, Manifest]:
    model = patch(template, draft, tensors)
    return model, msgspec.structs.replace(
        draft, sha256=hashlib.sha256(model).hexdigest(), template_sha256=template_hash(model, draft)
    )


def check_place(folder: Path) -> None:
    """Raise `FileExistsError` where a bundle in `folder` would take the place of something that is no bundle.

    `write_bundle` asks, too; a command asks before it converts for minutes.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(17, "is no folder", str(folder))
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name not in (MODEL_FILE, VOCABULARY_FILE, MANIFEST_FILE, KEY_FILE):
            raise FileExistsError(17, "is no part of a bundle", str(path))


def write_bundle(
    folder: Path, model: bytes, vocabulary: Vocabulary | None, manifest: Manifest, key: Ed25519PrivateKey
) -> None:
    """Sign and write a bundle to `folder`, replacing an older one there. A model of arrays has no vocabulary.

    Raises `FileExistsError` where something lies there that is no bundle; it stays.
    """
    check_place(folder)
    signed = envelope.sign(key, "manifest", encode_manifest(manifest))
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(fresh / MODEL_FILE, model)
        if vocabulary is not None:
            _write(fresh / VOCABULARY_FILE, vocabulary.to_bytes())
        _write(fresh / MANIFEST_FILE, signed)
        _write(fresh / KEY_FILE, envelope.public_bytes(key).hex().encode() + b"\n")
        fresh.chmod(0o755)
        _replace(folder, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, fresh: Path) -> None:
    """Put `fresh` where `folder` is. A folder cannot be renamed over one that is not empty, so that one goes aside."""
    if not folder.exists():
        fresh.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        folder.rename(aside / folder.name)
        try:
            fresh.rename(folder)
        except BaseException:
            (aside / folder.name).rename(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_bundle(folder: Path, public_key: bytes | None = None) -> Bundle:
    """Return the bundle in `folder` after checking signature, hashes, layout and vocabulary.

    public_key: the key that is trusted; without it the one that lies in the bundle is taken, which proves only that
    the bundle is whole. Raises the contract's errors, or `FileNotFoundError`.
    """
    key = public_key or _read_public_key(folder)
    signed = _read(folder / MANIFEST_FILE, envelope.MAX_ENVELOPE_BYTES + MAX_MANIFEST_BYTES)
    manifest = decode_manifest(envelope.verify(signed, "manifest", key))
    model = _read(folder / MODEL_FILE, MAX_MODEL_BYTES)
    if len(model) != manifest.size_bytes or hashlib.sha256(model).hexdigest() != manifest.sha256:
        raise Untrusted(f"{MODEL_FILE} hashes to what the manifest says, {manifest.sha256[:12]}..., and does not here")
    if template_hash(model, manifest) != manifest.template_sha256:
        raise Untrusted(f"{MODEL_FILE} outside the weights hashes to template_sha256, and does not here")
    if manifest.family == ARRAY_FAMILY:
        return Bundle(model, None, manifest, signed, key)
    vocabulary = Vocabulary.from_bytes(_read(folder / VOCABULARY_FILE, MAX_FILE_BYTES))
    if vocabulary.sha256() != manifest.vocabulary_sha256 or len(vocabulary) != manifest.vocabulary_words:
        raise Untrusted(f"{VOCABULARY_FILE} hashes to what the manifest says, and does not here")
    return Bundle(model, vocabulary, manifest, signed, key)


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Malformed(f"{path.name} has at most {limit} bytes")
    return data


def _read_public_key(folder: Path) -> bytes:
    text = _read(folder / KEY_FILE, 200).decode("ascii", "replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise Malformed(f"{KEY_FILE} holds 64 hex digits, got {text[:80]!r}")
    return key
