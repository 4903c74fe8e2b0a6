"""The command `import` as it runs: another framework's weights become a checkpoint, a vocabulary, their provenance."""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, table
from model_export.checkpoint import save_checkpoint
from model_export.failures import command_errors
from model_export.importing.array_files import Arrays, read_arrays
from model_export.importing.imported import Imported, check, import_weights
from model_export.importing.logit_check import Answers, answers_of
from model_export.importing.name_map import MAX_MAP_BYTES, NameMap, default_map, parse_name_map
from model_export.importing.refusal import BadImport
from model_export.importing.saved_model import is_saved_model, read_saved_model, saved_model_answers
from model_export.starter import file_sha256, preset_of
from wire_contract.vocabulary import MAX_FILE_BYTES

CHECKPOINT_FILE, VOCABULARY_FILE, PROVENANCE_FILE = "imported.npz", "vocabulary.txt", "provenance.json"


def run(arguments: argparse.Namespace) -> Result:
    """Import a source, or with `--list` name its arrays."""
    source = Path(arguments.source)
    with command_errors():
        try:
            arrays = read_saved_model(source) if is_saved_model(source) else read_arrays(source)
            return _listed(arrays) if arguments.list_arrays else _imported(arguments, source, arrays)
        except BadImport as e:
            raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="BAD_IMPORT") from e


def _listed(arrays: Arrays) -> Result:
    rows = [(name, str(value.dtype), "x".join(map(str, value.shape))) for name, value in sorted(arrays.items())]
    items = [{"name": name, "dtype": dtype, "shape": list(arrays[name].shape)} for name, dtype, _ in rows]
    return Result({"items": items}, text=table(rows, ("array", "type", "shape")))


def _imported(arguments: argparse.Namespace, source: Path, arrays: Arrays) -> Result:
    for option in ("vocabulary", "output"):
        if not getattr(arguments, option):
            raise CommandError(f"--{option} is needed to import", exit_code=ExitCode.USAGE, code="USAGE")
    output = Path(arguments.output)
    if output.exists():
        raise FileExistsError(17, "is there already", str(output))
    names = _names(arguments, arrays)
    wanted = {name: value for name in ("words", "width", "cells") if (value := getattr(arguments, name)) is not None}
    imported = import_weights(arrays, names, _read(Path(arguments.vocabulary), MAX_FILE_BYTES), wanted)
    checks = {asked: check(imported, answers).worst for asked, answers in _answers(arguments, source, imported).items()}
    provenance = _provenance(arguments, source, imported, checks)
    _write(output, imported, provenance)
    checkpoint, vocabulary = output / CHECKPOINT_FILE, output / VOCABULARY_FILE
    return Result(
        {
            "output": str(output),
            "size": preset_of(imported.size),
            "words": imported.size.words,
            "width": imported.size.width,
            "cells": imported.size.cells,
            "parameters": imported.size.parameters,
            "added_specials": _added(imported),
            "checked_against": list(checks),
            "worst_logit_difference": max(checks.values(), default=None),
            "unused_arrays": imported.unused,
            "checkpoint_sha256": file_sha256(checkpoint),
        },
        next_command=f"model-export export --checkpoint {checkpoint} --vocabulary {vocabulary} --population NAME "
        "--signing-key FILE --output bundle",
    )


def _names(arguments: argparse.Namespace, arrays: Arrays) -> NameMap:
    if arguments.map:
        return parse_name_map(_read(Path(arguments.map), MAX_MAP_BYTES))
    return default_map(arrays)


def _answers(arguments: argparse.Namespace, source: Path, imported: Imported) -> dict[str, Answers]:
    words = imported.rows.source_words
    asked = {}
    if is_saved_model(source):
        asked[arguments.signature] = saved_model_answers(source, arguments.signature, words)
    if arguments.check:
        asked[Path(arguments.check).name] = answers_of(read_arrays(Path(arguments.check)), words)
    return asked


def _added(imported: Imported) -> list[str]:
    return [w for w, row in zip(imported.rows.vocabulary.words[:4], imported.rows.source_rows, strict=False) if row < 0]


def _provenance(
    arguments: argparse.Namespace, source: Path, imported: Imported, checks: dict[str, float]
) -> dict[str, object]:
    files = {"vocabulary": Path(arguments.vocabulary)}
    files |= {"map": Path(arguments.map)} if arguments.map else {}
    files |= {"check": Path(arguments.check)} if arguments.check else {}
    if source.is_dir():
        inner = sorted(path for path in source.rglob("*") if path.is_file())
        files |= {f"source/{path.relative_to(source).as_posix()}": path for path in inner[:64]}
    else:
        files["source"] = source
    return {
        "imported_from": source.name,
        "inputs": {role: {"file": path.name, "sha256": file_sha256(path)} for role, path in files.items()},
        "size": {"words": imported.size.words, "width": imported.size.width, "cells": imported.size.cells},
        "added_specials": _added(imported),
        "worst_logit_difference": checks,
        "vocabulary": {"sha256": imported.rows.vocabulary.sha256(), "words": len(imported.rows.vocabulary)},
    }


def _write(output: Path, imported: Imported, provenance: dict[str, object]) -> None:
    """Write the folder beside its name and rename it, so that a half-written one never stands there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        save_checkpoint(fresh / CHECKPOINT_FILE, imported.tensors, "float32")
        (fresh / VOCABULARY_FILE).write_bytes(imported.rows.vocabulary.to_bytes())
        provenance |= {"checkpoint_sha256": file_sha256(fresh / CHECKPOINT_FILE)}
        (fresh / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")
        for path in (*fresh.iterdir(), fresh):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fresh.chmod(0o755)
        fresh.rename(output)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)
