"""A toy file with three patched tensors between bytes that must never change; small enough to flip every byte."""

import hashlib

import msgspec
import numpy as np

from wire_contract.lineage import Lineage, Measure, Parent
from wire_contract.manifest import (
    ARRAY_FAMILY,
    ArraySpec,
    Golden,
    GoldenVector,
    Manifest,
    Part,
    SignatureSpec,
    TensorEntry,
    TrainInput,
    fingerprint,
    template_hash,
)
from wire_contract.patch import patch

_ENTRIES = (
    TensorEntry(name="rows", shape=(6, 4), kind="int8", offsets=(16,), scale_offsets=(8, 60)),
    TensorEntry(name="kernel", shape=(2, 2), kind="int8", offsets=(48,), scale_offsets=(56,), transposed=True),
    TensorEntry(name="bias", shape=(6,), kind="float32", offsets=(72, 100)),
)
TENSORS = {
    "rows": np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4),
    "kernel": np.array([[1, 2], [3, 4]], dtype=np.float32),
    "bias": np.linspace(0, 5, 6, dtype=np.float32),
}
_BLANK = bytes((7 * i) % 256 for i in range(130))
_DRAFT = Manifest(
    population="toy",
    version=1,
    kind="refresh",
    sha256="0" * 64,
    size_bytes=len(_BLANK),
    template_sha256="0" * 64,
    layout_fingerprint=fingerprint(_ENTRIES),
    tensors=_ENTRIES,
    train_inputs=(
        TrainInput(
            name="output_rows",
            shape=(6, 6),
            fill=1.0,
            parts=(Part(tensor="rows", start=0, stop=4), Part(tensor="bias", start=4, stop=5)),
        ),
        TrainInput(name="kernel_rows", shape=(2, 2), parts=(Part(tensor="kernel", start=0, stop=2),)),
    ),
    signatures={"train": SignatureSpec(batch=2, length=3)},
    vocabulary_sha256="1" * 64,
    vocabulary_words=6,
    golden=Golden(tokens=(4, 5), template_loss=1.5, loss_tolerance=1e-4, logit_tolerance=0.5),
    created_at=1_800_000_000,
    expires_at=1_900_000_000,
    url="/v1/models/0",
)
FILE = patch(_BLANK, _DRAFT, TENSORS)
MANIFEST = msgspec.structs.replace(
    _DRAFT, sha256=hashlib.sha256(FILE).hexdigest(), template_sha256=template_hash(FILE, _DRAFT)
)

# What a version of today states: golden vectors, what it needs, where it comes from.
FULL_MANIFEST = msgspec.structs.replace(
    MANIFEST,
    version=9,
    golden_vectors=(GoldenVector(context=(4, 5, 0), ids=(5, 4, 2)), GoldenVector(context=(5,), ids=(4,))),
    needs=("signature:train_private", "weights:float16"),
    minimum_runtime="0.2.1",
    lineage=Lineage(
        made_by="steps",
        parents=(Parent(version=8, sha256="a" * 64), Parent(version=5, sha256="b" * 64)),
        updates=40,
        examples=1_234,
        evaluation=(Measure(name="top3_before", value=26.5), Measure(name="top3", value=27.25)),
        code_sha256="c" * 64,
        sources=("d" * 64,),
    ),
)
ARRAY_MANIFEST = msgspec.structs.replace(
    MANIFEST,
    family=ARRAY_FAMILY,
    vocabulary_sha256="",
    vocabulary_words=0,
    loss="sparse_categorical_crossentropy",
    examples=(
        ArraySpec(name="image", shape=(4, 4, 1), dtype="float32"),
        ArraySpec(name="site", shape=(), dtype="int32"),
        ArraySpec(name="label", shape=(), dtype="int32", role="target"),
    ),
    golden_vectors=(GoldenVector(example=3, ids=(1, 0)),),
    lineage=Lineage(made_by="export", sources=("e" * 64,)),
)
