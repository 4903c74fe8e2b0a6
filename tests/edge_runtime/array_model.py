"""A model of arrays in numpy: two inputs, one hidden layer, softmax; a version's file of bytes, and its signatures.

Written from the formulas alone, in float64; it stands for an interpreter wherever only the host's side is tested.
"""

import hashlib

import msgspec
import numpy as np

from edge_runtime.ports import RuntimeFailed
from wire_contract.layout import Layout
from wire_contract.manifest import (
    ArraySpec,
    Golden,
    Manifest,
    Part,
    SignatureSpec,
    TensorEntry,
    TrainInput,
    fingerprint,
    template_hash,
)
from wire_contract.patch import patch, read_tensors

BATCH, CLASSES, HIDDEN = 4, 3, 6
WEIGHTS = ("hidden_kernel", "hidden_bias", "head_kernel", "head_bias")
SPECS = (
    ArraySpec(name="pixels", shape=(2, 3), dtype="float32"),
    ArraySpec(name="site", shape=(), dtype="int32"),
    ArraySpec(name="target", shape=(), dtype="int32", role="target"),
)
_SHAPES = {"hidden_kernel": (7, HIDDEN), "hidden_bias": (HIDDEN,), "head_kernel": (HIDDEN, CLASSES), "head_bias": (3,)}


def _entries():
    entries, place = [], 64
    for name, shape in _SHAPES.items():
        size = int(np.prod(shape))
        if len(shape) == 2:
            entries.append(
                TensorEntry(name=name, shape=shape, kind="int8", offsets=(place + 8,), scale_offsets=(place,))
            )
            place += 8 + -(-size // 8) * 8
        else:
            entries.append(TensorEntry(name=name, shape=shape, kind="float32", offsets=(place,)))
            place += 4 * size
    return tuple(entries), place + 40


ENTRIES, SIZE_BYTES = _entries()
_BLANK = bytes((7 * i) % 251 for i in range(SIZE_BYTES))


def whole(shape):
    return (0, shape[1] if len(shape) == 2 else 1)


def make(loss="sparse_categorical_crossentropy", seed=3):
    """Return (manifest, file) of a first version."""
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(scale=0.4, size=shape).astype(np.float32) for name, shape in _SHAPES.items()}
    inputs = tuple(
        TrainInput(name=name, shape=shape, parts=(Part(tensor=name, start=whole(shape)[0], stop=whole(shape)[1]),))
        for name, shape in _SHAPES.items()
    )
    draft = Manifest(
        population="keyboard", version=1, kind="refresh", sha256="0" * 64, size_bytes=SIZE_BYTES,
        template_sha256="0" * 64, layout_fingerprint=fingerprint(ENTRIES), tensors=ENTRIES, train_inputs=inputs,
        signatures={name: SignatureSpec(batch=BATCH, length=1) for name in ("train", "evaluate")},
        vocabulary_sha256="", vocabulary_words=0, family="arrays", examples=SPECS, loss=loss,
        golden=Golden(tokens=(), template_loss=1.0, loss_tolerance=1.0, logit_tolerance=0.5),
        created_at=1_700_000_000, expires_at=2_000_000_000,
    )  # fmt: skip
    file = patch(_BLANK, draft, tensors)
    digest = hashlib.sha256(file).hexdigest()
    return msgspec.structs.replace(draft, sha256=digest, template_sha256=template_hash(file, draft)), file


def packed_of(manifest, file):
    return Layout.of(manifest).pack(read_tensors(file, manifest))


def draw(count, seed=1):
    """Return arrays whose class can be seen: the largest of three columns' sums, shifted at site 1."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(count, 2, 3)).astype(np.float32)
    site = rng.integers(0, 2, count).astype(np.int32)
    target = ((pixels.sum(axis=1).argmax(axis=1) + site) % CLASSES).astype(np.int32)
    return {"pixels": pixels, "site": site, "target": target}


def forward(arrays, weights):
    """Return (loss of each example, probabilities, what the gradient needs), all float64."""
    w = {name: np.asarray(weights[name], np.float64) for name in WEIGHTS}
    flat = np.concatenate([arrays["pixels"].reshape(len(arrays["site"]), -1), arrays["site"][:, None]], axis=1)
    flat = flat.astype(np.float64)
    hidden = np.tanh(flat @ w["hidden_kernel"] + w["hidden_bias"])
    logits = hidden @ w["head_kernel"] + w["head_bias"]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances = shifted / shifted.sum(axis=1, keepdims=True)
    losses = -np.log(chances[np.arange(len(flat)), arrays["target"]])
    return losses, chances, logits, flat, hidden, w


def gradient(arrays, weights, counted):
    """Return the gradient of sum(counted x loss) / max(sum(counted), 1)."""
    _, chances, _, flat, hidden, w = forward(arrays, weights)
    at_logits = chances.copy()
    at_logits[np.arange(len(flat)), arrays["target"]] -= 1.0
    at_logits *= (np.asarray(counted, np.float64) / max(1.0, float(np.sum(counted))))[:, None]
    at_hidden = (at_logits @ w["head_kernel"].T) * (1.0 - hidden**2)
    return {
        "head_kernel": hidden.T @ at_logits, "head_bias": at_logits.sum(axis=0),
        "hidden_kernel": flat.T @ at_hidden, "hidden_bias": at_hidden.sum(axis=0),
    }  # fmt: skip


class ArrayRunner:
    """The two signatures, with the interpreter's refusals of wrong names, shapes and dtypes."""

    def __init__(self, manifest):
        self._manifest = manifest
        self.calls = []

    def run(self, name, inputs):
        shapes = {s.name: ((BATCH, *s.shape), s.dtype) for s in self._manifest.examples}
        shapes |= {t.name: (t.shape, "float32") for t in self._manifest.train_inputs}
        shapes["example_weights"] = ((BATCH,), "float32")
        if name == "train":
            shapes["learning_rate"] = ((), "float32")
        got = {key: (np.shape(value), str(np.asarray(value).dtype)) for key, value in inputs.items()}
        if got != shapes:
            raise RuntimeFailed(f"signature {name!r} takes {shapes}, got {got}")
        self.calls.append({key: np.array(value) for key, value in inputs.items()})
        counted = inputs["example_weights"].astype(np.float64)
        losses, chances, logits, *_ = forward(inputs, inputs)
        if name == "evaluate":
            hits = counted @ (chances.argmax(axis=1) == inputs["target"])
            said = {"loss": counted @ losses, "hits": hits, "count": counted.sum(), "outputs": logits}
            return {key: np.asarray(value, np.float32) for key, value in said.items()}
        slopes = gradient(inputs, inputs, counted)
        rate = np.float64(inputs["learning_rate"])
        said = {f"trained_{key}": inputs[key] - rate * slopes[key] for key in WEIGHTS}
        said["loss"] = counted @ losses / max(1.0, counted.sum())
        return {key: np.asarray(value, np.float32) for key, value in said.items()}


class ArrayRuntime:
    """Implements ModelRuntime for the model of this module."""

    name = "numpy arrays"

    def template(self, manifest, read):
        return ArrayRunner(manifest)

    def version(self, manifest, read, name=""):
        return ArrayRunner(manifest)

    def checked(self, sha256):
        return True

    def mark_checked(self, sha256):
        pass
