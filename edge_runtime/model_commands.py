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
from edge_runtime import array_evaluation, golden_asking
from edge_runtime.adapters.runtime_choice import open_model, open_runtime
from edge_runtime.adapters.runtime_name import RuntimeName
from edge_runtime.array_examples import ExamplesRefused, read_npz
from edge_runtime.evaluation import score
from edge_runtime.ports import RuntimeFailed, SignatureRunner
from wire_contract.envelope import read_envelope
from wire_contract.errors import ContractError
from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import ARRAY_FAMILY, Manifest, decode_manifest
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import Vocabulary

MAX_TEXT_BYTES = 1 << 30


def evaluate(
    model: Path, held_out: Path, manifest: Path | None, vocabulary: Path | None, runtime: RuntimeName, golden: int = 0
) -> Result:
    """Score a version's weights on text, or on examples of arrays: whatever its manifest says that it learns from.

    With `golden`, the answer has up to so many golden vectors of the version beside.
    """
    data = _read(model)
    try:
        stated = _manifest(_read(manifest or model.with_name("manifest.bin")))
        packed = Layout.of(stated).pack(read_tensors(data, stated))
    except ContractError as e:
        raise CommandError(f"{model} and its manifest do not fit: {e}", code="MALFORMED") from e
    try:
        opened = open_runtime(runtime)
        runner = opened.template(stated, lambda: data)
        if stated.family == ARRAY_FAMILY:
            result = _evaluate_arrays(runner, stated, packed, held_out)
        else:
            result = _evaluate_text(runner, stated, packed, held_out, vocabulary or model.with_name("vocabulary.txt"))
        if golden < 1:
            return result
        vectors = golden_asking.ask(opened.version(stated, lambda: data), stated, golden)
        return Result({**result.data, "golden_vectors": golden_asking.as_items(vectors)})
    except RuntimeFailed as e:
        raise CommandError(str(e), code="RUNTIME") from e


def _evaluate_text(
    runner: SignatureRunner, manifest: Manifest, packed: Tensors, text: Path, vocabulary: Path
) -> Result:
    try:
        words = Vocabulary.from_bytes(_read(vocabulary))
    except ContractError as e:
        raise CommandError(f"{vocabulary}: {e}", code="MALFORMED") from e
    if words.sha256() != manifest.vocabulary_sha256:
        raise CommandError("the vocabulary is not the one that the manifest names", code="WRONG_VOCABULARY")
    streams = [words.encode_text(person) for person in _people(text)]
    found = score(runner, manifest.signatures["evaluate"], packed, streams)
    return Result(
        {
            "version": manifest.version,
            "streams": len(streams),
            "words": found.count,
            "hits1": found.hits1,
            "hits3": found.hits3,
            "top1": round(found.top1, 3),
            "top3": round(found.top3, 3),
            "loss": round(found.mean_loss, 6),
        }
    )


def _evaluate_arrays(runner: SignatureRunner, manifest: Manifest, packed: Tensors, examples: Path) -> Result:
    try:
        arrays = read_npz(_read(examples), manifest)
        found = array_evaluation.score(runner, manifest, packed, arrays)
        array_evaluation.check_classes(manifest, arrays, found)
    except ExamplesRefused as e:
        raise CommandError(f"{examples}: {e}", code="BAD_EXAMPLES") from e
    answer: dict[str, Any] = {"version": manifest.version, "examples": found.count, "loss": round(found.mean_loss, 6)}
    if manifest.loss != array_evaluation.SQUARED:
        answer |= {"hits": found.hits, "accuracy": round(found.accuracy, 3)}
    return Result(answer)


def _manifest(data: bytes) -> Manifest:
    # Scoring proves nothing about who made the file; whoever acts on the score has checked that.
    return decode_manifest(read_envelope(data).body)


def _people(path: Path) -> Iterator[str]:
    if path.suffix == ".npz":
        raise CommandError(f"{path}: this model learns from text, got arrays", code="WRONG_FAMILY")
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


def conformance(model: Path, cases: Path, results: Path, runtime: RuntimeName, manifest: Path | None = None) -> Result:
    """Run each case `case/I/signature` with `case/I/input/NAME`; write `case/I/output/NAME`.

    A manifest is needed where the runtime is no interpreter of the file: the one beside the model, if none is named.
    """
    beside = model.with_name("manifest.bin")
    stated = manifest if manifest is not None else beside if beside.is_file() else None
    try:
        described = None if stated is None else _manifest(_read(stated))
    except ContractError as e:
        raise CommandError(f"{stated}: {e}", code="MALFORMED") from e
    try:
        opened = open_model(_read(model), runtime, described)
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


def _run_case(model: SignatureRunner, arrays: Any, case: str) -> dict[str, Any]:
    prefix = f"case/{case}/input/"
    inputs = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
    outputs = model.run(str(arrays[f"case/{case}/signature"]), inputs)
    return {f"case/{case}/output/{name}": value for name, value in outputs.items()}
