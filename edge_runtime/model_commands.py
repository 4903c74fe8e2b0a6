"""`edge-runtime evaluate` and `conformance`: what other programs ask this device's interpreter, by process."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result
from edge_runtime.adapters.interpreter import InterpreterRuntime, Model, RuntimeName, open_model
from edge_runtime.evaluation import score
from edge_runtime.ports import RuntimeFailed
from wire_contract.envelope import read_envelope
from wire_contract.errors import ContractError
from wire_contract.layout import Layout
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import Vocabulary

MAX_TEXT_BYTES = 1 << 30


def evaluate(model: Path, text: Path, manifest: Path | None, vocabulary: Path | None, runtime: RuntimeName) -> Result:
    """Score a version's weights on text: words, top-1 and top-3 in percent, nats a word."""
    data = _read(model)
    try:
        stated = _manifest(_read(manifest or model.with_name("manifest.bin")))
        words = Vocabulary.from_bytes(_read(vocabulary or model.with_name("vocabulary.txt")))
        if words.sha256() != stated.vocabulary_sha256:
            raise CommandError("the vocabulary is not the one that the manifest names", code="WRONG_VOCABULARY")
        packed = Layout.of(stated).pack(read_tensors(data, stated))
    except ContractError as e:
        raise CommandError(f"{model} and its manifest do not fit: {e}", code="MALFORMED") from e
    streams = [words.encode_text(person) for person in _people(text)]
    try:
        runner = InterpreterRuntime(runtime).template(stated, lambda: data)
        found = score(runner, stated.signatures["evaluate"], packed, streams)
    except RuntimeFailed as e:
        raise CommandError(str(e), code="RUNTIME") from e
    return Result(
        {
            "version": stated.version,
            "streams": len(streams),
            "words": found.count,
            "hits1": found.hits1,
            "hits3": found.hits3,
            "top1": round(found.top1, 3),
            "top3": round(found.top3, 3),
            "loss": round(found.mean_loss, 6),
        }
    )


def _manifest(data: bytes) -> Manifest:
    # Scoring proves nothing about who made the file; whoever acts on the score has checked that.
    return decode_manifest(read_envelope(data).body)


def _people(path: Path) -> Iterator[str]:
    text = _read(path).decode("utf-8", "replace")
    if path.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield "\n".join(json.loads(line)["messages"])
            except (ValueError, KeyError, TypeError) as e:
                raise CommandError(
                    f'{path}:{number}: a line is an object of "user" and "messages": {e}', code="BAD_TEXT"
                ) from e


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_BYTES)
    except FileNotFoundError as e:
        raise CommandError(f"{path}: no such file", exit_code=ExitCode.NOT_FOUND, code="NO_FILE") from e
    except OSError as e:
        raise CommandError(f"{path}: cannot be read: {e}", code="CANNOT_READ") from e


def conformance(model: Path, cases: Path, results: Path, runtime: RuntimeName) -> Result:
    """Run each case `case/I/signature` with `case/I/input/NAME`; write `case/I/output/NAME`."""
    try:
        opened = open_model(_read(model), runtime)
        with np.load(cases, allow_pickle=False) as arrays:
            outputs: dict[str, Any] = {}
            names = sorted(
                {name.split("/")[1] for name in arrays.files if name.startswith("case/")}, key=lambda n: (len(n), n)
            )
            for case in names:
                outputs |= _run_case(opened, arrays, case)
        np.savez(results, **outputs)
    except RuntimeFailed as e:
        raise CommandError(str(e), code="RUNTIME") from e
    except FileNotFoundError as e:
        raise CommandError(f"{e.filename}: no such file", exit_code=ExitCode.NOT_FOUND, code="NO_FILE") from e
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise CommandError(f"{cases} holds case/I/signature and case/I/input/NAME: {e}", code="BAD_CASES") from e
    return Result({"cases": len(names), "results": str(results)})


def _run_case(model: Model, arrays: Any, case: str) -> dict[str, Any]:
    prefix = f"case/{case}/input/"
    inputs = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
    outputs = model.run(str(arrays[f"case/{case}/signature"]), inputs)
    return {f"case/{case}/output/{name}": value for name, value in outputs.items()}
