"""`model-export diff A B`: what differs between two versions, from their bytes to their manifests.

The rules:
- hashes are compared with the manifests first; signatures are not asked for, and the answer says so;
- tensors are matched by name, compared as float32 after dequantizing, in float64 arithmetic;
- codes are compared only where both are int8 of one shape; under a new scale every code may change its meaning.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.plain_text import plain
from cli_contract.result import Result, table
from model_export.bundle import Bundle
from model_export.failures import command_errors
from model_export.file_structure import check_structure
from model_export.flatbuffer import UnexpectedFile, operators
from model_export.version_files import read_version
from wire_contract.manifest import Manifest
from wire_contract.patch import read_tensors, stored_codes, stored_scale

# What the tables of their own show, or what follows from other fields.
_SHOWN_APART = frozenset({"tensors", "train_inputs", "signatures", "golden_vectors", "format"})
_MAX_VALUE_CHARACTERS = 48


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that both have. change: norm of (b - a) over norm of a, None where a is zero and b is not; codes: how
    many changed, None where they were not compared."""

    name: str
    kind_a: str
    kind_b: str
    change: float | None
    cosine: float
    largest: float
    codes: int | None
    same_scale: bool | None
    equal: bool


def diff(arguments: argparse.Namespace) -> Result:
    """Compare and print."""
    with command_errors():
        a, b = (read_version(Path(path)) for path in (arguments.a, arguments.b))
        try:
            for bundle in (a, b):
                check_structure(bundle.model, bundle.manifest)
        except UnexpectedFile as e:
            raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="RULES") from e
        data = compare(a, b)
    return Result(data, text=_text(data))


def compare(a: Bundle, b: Bundle) -> dict[str, Any]:
    """Return everything that differs, as the command's JSON states it."""
    one, other = ({t.name: t for t in bundle.manifest.tensors} for bundle in (a, b))
    return {
        "identical": a.manifest.sha256 == b.manifest.sha256,
        "signatures_checked": False,
        "size_bytes": [len(a.model), len(b.model)],
        "bytes_that_differ": _bytes_that_differ(a.model, b.model),
        "same_template": a.manifest.template_sha256 == b.manifest.template_sha256,
        "same_layout": a.manifest.layout_fingerprint == b.manifest.layout_fingerprint,
        "tensors": [asdict(change) for change in _tensor_changes(a, b)],
        "tensors_added": sorted(set(other) - set(one)),
        "tensors_removed": sorted(set(one) - set(other)),
        "tensors_reshaped": [n for n in one if n in other and one[n].shape != other[n].shape],
        "signatures": _signature_changes(a.manifest, b.manifest),
        "operators": _operator_changes(operators(a.model), operators(b.model)),
        "manifest": _field_changes(a.manifest, b.manifest),
    }


def _bytes_that_differ(a: bytes, b: bytes) -> int:
    shared = min(len(a), len(b))
    differ = np.count_nonzero(np.frombuffer(a, np.uint8, shared) != np.frombuffer(b, np.uint8, shared))
    return int(differ) + abs(len(a) - len(b))


def _tensor_changes(a: Bundle, b: Bundle) -> list[TensorChange]:
    before, after = (read_tensors(bundle.model, bundle.manifest) for bundle in (a, b))
    others = {entry.name: entry for entry in b.manifest.tensors}
    changes = []
    for entry in a.manifest.tensors:
        other = others.get(entry.name)
        if other is None or other.shape != entry.shape:
            continue
        codes = same_scale = None
        if entry.kind == other.kind == "int8":
            codes = int(np.count_nonzero(stored_codes(a.model, entry) != stored_codes(b.model, other)))
            same_scale = bool(stored_scale(a.model, entry) == stored_scale(b.model, other))
        changes.append(_change(entry.name, (entry.kind, other.kind), before, after, codes, same_scale))
    return changes


def _change(
    name: str,
    kinds: tuple[str, str],
    before: Mapping[str, NDArray[np.float32]],
    after: Mapping[str, NDArray[np.float32]],
    codes: int | None,
    same_scale: bool | None,
) -> TensorChange:
    old, new = before[name].astype(np.float64).ravel(), after[name].astype(np.float64).ravel()
    norm_old, norm_new = float(np.linalg.norm(old)), float(np.linalg.norm(new))
    moved = float(np.linalg.norm(new - old))
    both = norm_old * norm_new
    return TensorChange(
        name=name,
        kind_a=kinds[0],
        kind_b=kinds[1],
        change=moved / norm_old if norm_old else (0.0 if not moved else None),
        # Two zero vectors point the same way; one zero vector points nowhere.
        cosine=float(old @ new) / both if both else float(norm_old == norm_new),
        largest=float(np.max(np.abs(new - old), initial=0.0)),
        codes=codes,
        same_scale=same_scale,
        equal=bool(np.array_equal(old, new)),
    )


def _signature_changes(a: Manifest, b: Manifest) -> dict[str, Any]:
    changed = {
        name: [msgspec.to_builtins(a.signatures[name]), msgspec.to_builtins(b.signatures[name])]
        for name in a.signatures
        if name in b.signatures and a.signatures[name] != b.signatures[name]
    }
    return {
        "added": sorted(set(b.signatures) - set(a.signatures)),
        "removed": sorted(set(a.signatures) - set(b.signatures)),
        "changed": changed,
    }


def _operator_changes(a: dict[str, dict[str, int]], b: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return, for each signature that both have, by how many each op's count differs; equal ones are left out."""
    changes = {}
    for name in sorted(set(a) & set(b)):
        ops = {op: b[name].get(op, 0) - a[name].get(op, 0) for op in sorted({*a[name], *b[name]})}
        if any(ops.values()):
            changes[name] = {op: count for op, count in ops.items() if count}
    return changes


def _field_changes(a: Manifest, b: Manifest) -> dict[str, list[Any]]:
    changes: dict[str, list[Any]] = {}
    for field in msgspec.structs.fields(Manifest):
        old, new = getattr(a, field.name), getattr(b, field.name)
        if field.name in _SHOWN_APART or old == new:
            continue
        if isinstance(old, msgspec.Struct) and isinstance(new, msgspec.Struct):
            parts = [(f"{field.name}.{name}", getattr(old, name), getattr(new, name)) for name in old.__struct_fields__]
        else:
            parts = [(field.name, old, new)]
        changes |= {name: [msgspec.to_builtins(x), msgspec.to_builtins(y)] for name, x, y in parts if x != y}
    if a.golden_vectors != b.golden_vectors:
        same = len(set(a.golden_vectors) & set(b.golden_vectors))
        changes["golden_vectors"] = [f"{len(m.golden_vectors)}, {same} of them in both" for m in (a, b)]
    return changes


def _text(data: Mapping[str, Any]) -> str:
    sizes = data["size_bytes"]
    said = "the files are identical" if data["identical"] else f"{data['bytes_that_differ']:,} bytes differ"
    blocks = [
        f"{said} ({sizes[0]:,} and {sizes[1]:,} bytes); template {_same(data['same_template'])}, "
        f"layout {_same(data['same_layout'])}; signatures were not checked",
    ]
    rows = [_tensor_row(t) for t in data["tensors"]]
    if rows:
        blocks += ["", table(rows, ("tensor", "kind", "change", "cosine", "largest", "codes changed", "scale"))]
    named = {f"tensors {kind}": data[f"tensors_{kind}"] for kind in ("added", "removed", "reshaped")}
    named |= {f"signatures {kind}": list(names) for kind, names in data["signatures"].items()}
    blocks += [f"{kind}: {plain(', '.join(names))}" for kind, names in named.items() if names]
    ops = [(name, ", ".join(f"{op} {count:+d}" for op, count in counts.items()))
           for name, counts in data["operators"].items()]  # fmt: skip
    if ops:
        blocks += ["", table(ops, ("signature", "operators"))]
    fields = [(name, _short(old), _short(new)) for name, (old, new) in data["manifest"].items()]
    if fields:
        blocks += ["", table(fields, ("manifest", "a", "b"))]
    return "\n".join(blocks)


def _tensor_row(t: Mapping[str, Any]) -> tuple[str, ...]:
    change = "equal" if t["equal"] else "from 0" if t["change"] is None else f"{t['change']:.6f}"
    return (
        t["name"],
        t["kind_a"] if t["kind_a"] == t["kind_b"] else f"{t['kind_a']} -> {t['kind_b']}",
        change,
        f"{t['cosine']:.6f}",
        f"{t['largest']:.6g}",
        "" if t["codes"] is None else f"{t['codes']:,}",
        "" if t["same_scale"] is None else _same(t["same_scale"]),
    )


def _same(same: bool) -> str:
    return "the same" if same else "another"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:_MAX_VALUE_CHARACTERS]}..."
