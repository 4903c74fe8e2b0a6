"""The signed description of one model version.

A version is a *template* `.tflite`, made once by the exporter, whose int8 weights, scales and float biases stand at
the offsets named here. So the cloud makes version 13 and a phone makes its personal copy by writing bytes in place,
with no TensorFlow. The rules:
- every range that a version may change is listed; all other bytes hash to `template_sha256` once those are zeroed;
- ranges lie inside the file, do not overlap, and hold exactly their tensor;
- `version` rises; a device never goes back to a lower one (undo is a new number with old weights);
- the layout fingerprint names tensors, shapes and order: an update made for another layout is refused;
- a model of the family `next-word` comes with a vocabulary and learns from text; one of the family `arrays` has no
  vocabulary, and `examples` says what one example is made of;
- `needs` and `minimum_runtime` say what a device must know to use the version; `lineage` says what it was made of.

This module imports no numpy, so that the idle supervisor stays small.
"""

import hashlib
import math
import re
from typing import Literal

import msgspec

from wire_contract.errors import Malformed, Unsupported
from wire_contract.lineage import Lineage, check_lineage

FORMAT = 1
MAX_MANIFEST_BYTES = 65_536
MAX_MODEL_BYTES = 64 * 1024 * 1024
MAX_PARAMETERS = 1 << 27
MAX_URL_CHARACTERS = 500

TEXT_FAMILY, ARRAY_FAMILY = "next-word", "arrays"
MAX_EXAMPLE_VALUES = 1 << 22
VALUE_BYTES = {"int8": 1, "float16": 2, "float32": 4}
TRAIN_FAMILIES = ("train", "train_sampled", "train_private")

_SIGNATURE = re.compile(r"([a-z]+(?:_[a-z]+)*)(?:_b([1-9]\d{0,3})_l([1-9]\d{0,3}))?")
_NEED = re.compile(r"[a-z]+:[a-z0-9_-]{1,40}")
_RELEASE = re.compile(r"\d{1,4}(?:\.\d{1,4}){0,2}")
_URL = re.compile(r"(?:https?://(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?)?(?:/[!-~]*)?")


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet tensor and where its bytes stand in the file.

    `kind` int8: symmetric, one scale, value = int8 * scale; every position in `scale_offsets` holds that scale as a
    little-endian float32. `kind` float32: the values themselves; float16: the values rounded. `transposed`: the file
    holds the transpose of `shape` (two dimensions). All of `offsets` hold the same bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["int8", "float16", "float32"]
    offsets: tuple[int, ...]
    scale_offsets: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes at each of its offsets."""
        return self.size * VALUE_BYTES[self.kind]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Columns `start` to `stop` of a train input hold this fleet tensor (a vector takes one column)."""

    tensor: str
    start: int
    stop: int


class TrainInput(msgspec.Struct, frozen=True, kw_only=True):
    """A weight input of the train signatures: fleet tensors side by side, `fill` in the columns that no part takes.

    A one-dimensional input has one part with start 0 and stop 1.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    fill: float = 0.0


class SignatureSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Static shapes of one signature: rows a call, tokens a row, candidate rows (0 where it has none)."""

    batch: int
    length: int
    candidates: int = 0


class ArraySpec(msgspec.Struct, frozen=True, kw_only=True):
    """One array of an example of the family `arrays`: its name in the signatures, the shape of one example, its dtype.

    A signature takes a batch of them: [batch, *shape]. `role` says whether the model reads it or is to predict it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int32"]
    role: Literal["input", "target"] = "input"


class GoldenVector(msgspec.Struct, frozen=True, kw_only=True):
    """What one version must answer to one question, exactly: its answer is clear of the next best by a margin.

    Family next-word: the `ids` of the three likeliest words after `context`, best first, by `suggest_context`. Family
    arrays: the positions of the largest outputs of `predict` on synthetic example number `example`, largest first.
    """

    context: tuple[int, ...] = ()
    example: int = 0
    ids: tuple[int, ...] = ()


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """What a device checks before it uses a version.

    `tokens`: one context for `suggest_context`. `template_loss`: what `evaluate` must give on synthetic weights (see
    `edge_runtime.model_check`), so that a wrong interpreter is found. `logit_tolerance`: how far the int8 suggestion
    may lie from the float graph fed with the same, dequantized weights, so that a wrong patch is found.
    """

    tokens: tuple[int, ...]
    template_loss: float
    loss_tolerance: float
    logit_tolerance: float


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a device must know of a version before it downloads it. Decode with `decode_manifest`."""

    format: int = FORMAT
    population: str
    version: int
    kind: Literal["training", "refresh"]
    sha256: str
    size_bytes: int
    template_sha256: str
    layout_fingerprint: str
    tensors: tuple[TensorEntry, ...]
    train_inputs: tuple[TrainInput, ...]
    signatures: dict[str, SignatureSpec]
    vocabulary_sha256: str
    vocabulary_words: int
    golden: Golden
    created_at: int
    expires_at: int
    url: str = ""
    vocabulary_url: str = ""
    undo_of: int = 0
    family: str = TEXT_FAMILY
    examples: tuple[ArraySpec, ...] = ()
    loss: str = ""
    golden_vectors: tuple[GoldenVector, ...] = ()
    needs: tuple[str, ...] = ()
    minimum_runtime: str = ""
    lineage: Lineage | None = None

    @property
    def parameters(self) -> int:
        """Number of values in all fleet tensors."""
        return sum(tensor.size for tensor in self.tensors)


def signature_family(name: str) -> str:
    """Return what a signature does: `train_sampled` of `train_sampled_b4_l20`, a variant of other static shapes."""
    found = _SIGNATURE.fullmatch(name)
    return found.group(1) if found else name


def signature_name(family: str, batch: int, length: int) -> str:
    """Return the name of a family's variant; inverse of `signature_family` up to the shapes."""
    return f"{family}_b{batch}_l{length}"


def fingerprint(tensors: tuple[TensorEntry, ...]) -> str:
    """Return the layout fingerprint: SHA-256 over names, shapes and order; kinds and offsets do not matter."""
    text = "\n".join(f"{t.name}:{'x'.join(map(str, t.shape))}" for t in tensors)
    return hashlib.sha256(b"edge-federation layout v1\n" + text.encode()).hexdigest()


def patched_ranges(manifest: Manifest) -> list[tuple[int, int]]:
    """Return the (start, stop) byte ranges that a version may change, in order."""
    ranges = []
    for tensor in manifest.tensors:
        ranges += [(offset, offset + tensor.size_bytes) for offset in tensor.offsets]
        ranges += [(offset, offset + 4) for offset in tensor.scale_offsets]
    return sorted(ranges)


def template_hash(data: bytes, manifest: Manifest) -> str:
    """Return the SHA-256 of `data` with every patched range zeroed; equal for all versions of one template."""
    digest = hashlib.sha256()
    position = 0
    view = memoryview(data)
    for start, stop in patched_ranges(manifest):
        digest.update(view[position:start])
        digest.update(bytes(stop - start))
        position = stop
    digest.update(view[position:])
    return digest.hexdigest()


def promises_hash(manifest: Manifest) -> str:
    """Return a SHA-256 over all that a device checks of a version's file: what two manifests of one file must share for
    the second to be believed on the first one's check. The version's story (number, kind, dates, addresses, lineage)
    and what a device must know of itself are left out."""
    plain = msgspec.structs.replace(
        manifest, version=1, kind="training", created_at=0, expires_at=1, url="", vocabulary_url="", undo_of=0,
        needs=(), minimum_runtime="", lineage=None,
    )  # fmt: skip
    return hashlib.sha256(b"edge-federation promises v1\n" + msgspec.msgpack.encode(plain)).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes that get signed; inverse of `decode_manifest`. Raises `Malformed` if a rule is broken."""
    check_manifest(manifest)
    return msgspec.msgpack.encode(manifest)


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest's signed body. Raises `Malformed` or `Unsupported`; unknown fields are ignored by rule."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise Malformed(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}")
    try:
        manifest = msgspec.msgpack.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, ValueError) as e:
        raise Malformed(f"a manifest is a MessagePack map of the contract's fields: {e}") from e
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Raise `Malformed` or `Unsupported` unless every rule of the module docstring holds."""
    if manifest.format != FORMAT:
        raise Unsupported(f"this side reads manifest format {FORMAT}, got {manifest.format}")
    for name, digest in (
        ("sha256", manifest.sha256),
        ("template_sha256", manifest.template_sha256),
        ("layout_fingerprint", manifest.layout_fingerprint),
        ("vocabulary_sha256", manifest.vocabulary_sha256),
    ):
        if name == "vocabulary_sha256" and manifest.family == ARRAY_FAMILY:
            continue
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise Malformed(f"{name} is 64 lower-case hex digits, got {digest[:80]!r}")
    if manifest.version < 1:
        raise Malformed(f"a version is a positive number, got {manifest.version}")
    if not 0 < manifest.size_bytes <= MAX_MODEL_BYTES:
        raise Malformed(f"a model has 1 to {MAX_MODEL_BYTES} bytes, got {manifest.size_bytes}")
    if manifest.expires_at <= manifest.created_at:
        raise Malformed(f"a manifest expires after its creation, got {manifest.expires_at} <= {manifest.created_at}")
    if not manifest.tensors:
        raise Malformed("a manifest names at least one tensor")
    names = [tensor.name for tensor in manifest.tensors]
    if len(set(names)) != len(names):
        raise Malformed(f"a tensor is named once, got {names}")
    for tensor in manifest.tensors:
        _check_tensor(tensor)
    if manifest.parameters > MAX_PARAMETERS:
        raise Malformed(f"a model has at most {MAX_PARAMETERS} parameters, got {manifest.parameters}")
    if fingerprint(manifest.tensors) != manifest.layout_fingerprint:
        raise Malformed("layout_fingerprint is the hash of the tensors' names, shapes and order, and is not here")
    position = 0
    for start, stop in patched_ranges(manifest):
        if start < position or stop > manifest.size_bytes:
            raise Malformed(f"patched ranges lie apart inside the file, got {start}..{stop} after {position}")
        position = stop
    for train_input in manifest.train_inputs:
        _check_train_input(train_input, {tensor.name: tensor.shape for tensor in manifest.tensors})
    _check_url("url", manifest.url)
    _check_url("vocabulary_url", manifest.vocabulary_url)
    _check_family(manifest)
    _check_golden(manifest.golden)
    check_golden_vectors(manifest.golden_vectors, manifest.vocabulary_words)
    if len(manifest.needs) > 64 or any(not _NEED.fullmatch(need) for need in manifest.needs):
        raise Malformed(f"needs are at most 64 capabilities like `signature:train`, got {manifest.needs[:8]}")
    if manifest.minimum_runtime and not _RELEASE.fullmatch(manifest.minimum_runtime):
        raise Malformed(f"minimum_runtime is a release like 0.4.1, got {manifest.minimum_runtime[:40]!r}")
    if manifest.lineage is not None:
        check_lineage(manifest.lineage, manifest.version)
    for name, spec in manifest.signatures.items():
        if not (1 <= spec.batch <= 4096 and 1 <= spec.length <= 4096 and 0 <= spec.candidates <= 65_536):
            raise Malformed(f"a signature has 1 to 4096 rows and tokens, got {name}: {spec.batch} x {spec.length}")


def _check_family(manifest: Manifest) -> None:
    if manifest.family not in (TEXT_FAMILY, ARRAY_FAMILY):
        raise Unsupported(
            f"this side knows the families {TEXT_FAMILY} and {ARRAY_FAMILY}, got {manifest.family[:40]!r}"
        )
    if manifest.family == TEXT_FAMILY:
        if manifest.examples:
            raise Malformed(f"a model of text has no example arrays, got {len(manifest.examples)}")
        return
    if manifest.vocabulary_sha256 or manifest.vocabulary_words:
        raise Malformed(f"a model of arrays has no vocabulary, got {manifest.vocabulary_words} words")
    roles = [spec.role for spec in manifest.examples]
    if not 2 <= len(roles) <= 32 or "input" not in roles or roles.count("target") != 1:
        raise Malformed(f"an example has 1 to 31 inputs and one target, got {roles[:40]}")
    names = [spec.name for spec in manifest.examples]
    if len({name.lower() for name in names}) != len(names):
        raise Malformed(f"an example's arrays have different names, got {names}")
    for spec in manifest.examples:
        if len(spec.shape) > 6 or any(n < 1 for n in spec.shape) or math.prod(spec.shape) > MAX_EXAMPLE_VALUES:
            raise Malformed(f"an example array has 1 to {MAX_EXAMPLE_VALUES} values, got {spec.name}: {spec.shape}")
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", spec.name):
            raise Malformed(f"an example array is named in lower case, got {spec.name[:80]!r}")


def _check_golden(golden: Golden) -> None:
    """Limits that let everything pass are none, and token ids are what a signature takes: int32."""
    tolerances = (golden.loss_tolerance, golden.logit_tolerance)
    if not all(0 <= tolerance < math.inf for tolerance in tolerances) or not math.isfinite(golden.template_loss):
        raise Malformed(f"a golden loss and its tolerances are finite, got {golden.template_loss}, {tolerances}")
    if len(golden.tokens) > 4096 or any(not 0 <= token < 1 << 31 for token in golden.tokens):
        raise Malformed(f"a golden context has at most 4096 ids from 0 to 2^31 - 1, got {golden.tokens[:16]}")


def check_golden_vectors(vectors: tuple[GoldenVector, ...], words: int) -> None:
    """Raise `Malformed` unless there are at most 64 and each names a few ids of the vocabulary (0 words: of none)."""
    if len(vectors) > 64:
        raise Malformed(f"a version has at most 64 golden vectors, got {len(vectors)}")
    for vector in vectors:
        ids = (*vector.ids, *vector.context)
        if not 1 <= len(vector.ids) <= 16 or len(vector.context) > 4096 or not 0 <= vector.example < 1 << 31:
            raise Malformed(f"a golden vector has 1 to 16 ids, got {len(vector.ids)} for {len(vector.context)} tokens")
        if any(not 0 <= i < min(words or 1 << 31, 1 << 31) for i in ids):
            raise Malformed(f"a golden vector's ids are of the vocabulary of {words} words, got {ids[:16]}")


def _check_tensor(tensor: TensorEntry) -> None:
    # A line break in a name would let two layouts have one fingerprint.
    if not 1 <= len(tensor.name) <= 256 or not tensor.name.isprintable():
        raise Malformed(f"a tensor's name has 1 to 256 printable characters, got {tensor.name[:80]!r}")
    if not 1 <= len(tensor.shape) <= 4 or any(not 1 <= n <= MAX_PARAMETERS for n in tensor.shape):
        raise Malformed(f"a tensor has one to four positive dimensions, got {tensor.name}: {tensor.shape}")
    if not tensor.offsets or any(offset < 0 for offset in (*tensor.offsets, *tensor.scale_offsets)):
        raise Malformed(f"a tensor stands at one or more offsets >= 0, got {tensor.name}: {tensor.offsets}")
    if (tensor.kind == "int8") != bool(tensor.scale_offsets):
        raise Malformed(f"an int8 tensor has scale offsets and another none, got {tensor.name}")
    if tensor.transposed and len(tensor.shape) != 2:
        raise Malformed(f"only a matrix is stored transposed, got {tensor.name}: {tensor.shape}")


def _check_train_input(train_input: TrainInput, shapes: dict[str, tuple[int, ...]]) -> None:
    rank = len(train_input.shape)
    if not 1 <= rank <= 4 or any(n < 1 for n in train_input.shape) or math.prod(train_input.shape) > MAX_PARAMETERS:
        raise Malformed(f"a train input has at most {MAX_PARAMETERS} values, got {train_input.shape}")
    if not math.isfinite(train_input.fill):
        raise Malformed(f"columns that no part takes hold a finite number, got {train_input.fill}")
    if not train_input.parts:
        raise Malformed(f"a train input has parts, got none for {train_input.name}")
    column = 0
    for part in train_input.parts:
        shape = shapes.get(part.tensor)
        if shape is None:
            raise Malformed(f"a train input is made of the manifest's tensors, got {part.tensor!r}")
        if len(train_input.parts) == 1 and shape == train_input.shape:
            whole = (0, shape[1] if rank == 2 else 1)
            if (part.start, part.stop) != whole:
                raise Malformed(f"a part lies inside its columns, got {part.tensor} at {part.start}..{part.stop}")
            return
        width = shape[1] if len(shape) == 2 else 1
        fits = rank == 2 and len(shape) <= 2 and shape[0] == train_input.shape[0]
        if not fits or part.start < column or part.stop - part.start != width:
            raise Malformed(f"parts lie side by side and fit, got {part.tensor} at {part.start}..{part.stop}")
        column = part.stop
    if column > train_input.shape[1]:
        raise Malformed(f"a part lies inside its columns, got {train_input.name}")


def _check_url(name: str, url: str) -> None:
    """Only plain ASCII without spaces, at most 500 characters, a path or http(s): it goes into a request as it is."""
    if len(url) > MAX_URL_CHARACTERS or not _URL.fullmatch(url):
        raise Malformed(f"{name} is a path or an http(s) address in plain ASCII, got {url[:80]!r}")
