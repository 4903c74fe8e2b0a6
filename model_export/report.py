"""`model-export report`: the int8 file beside the float weights: on held-out text, by tensor, as a picture."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, table
from model_export import held_out
from model_export.bundle import Bundle, read_bundle
from model_export.commands import progress_bar
from model_export.conformance import ConformanceError, runtimes_of
from model_export.corpus import read_authors
from model_export.failures import command_errors
from model_export.file_parts import FileParts, file_parts
from model_export.file_structure import check_structure
from model_export.flatbuffer import UnexpectedFile
from model_export.held_out import Answer, FormScore, Questions
from model_export.interpreter import Interpreter
from model_export.network import EMBEDDING, size_of
from model_export.quantization_report import TensorReport, report_tensors, row_scale_bytes, rows_rounded
from model_export.starter import load_sized_start
from wire_contract.errors import Malformed
from wire_contract.layout import Tensors
from wire_contract.manifest import TEXT_FAMILY
from wire_contract.patch import patch, read_tensors

MAX_QUESTIONS = 200_000
FLOAT, FILE, ROUNDED = "float weights", "this file", "this file's weights, float sums"
FOUR_BITS = "embedding in 4 bits, a scale a row"
ROW_SCALES = "int8, a scale a row (simulated)"


def report(arguments: argparse.Namespace) -> Result:
    """Measure and print; with `--plot` also draw."""
    if not 1 <= arguments.questions <= MAX_QUESTIONS:
        raise CommandError(
            f"--questions is from 1 to {MAX_QUESTIONS}, got {arguments.questions}",
            exit_code=ExitCode.USAGE,
            code="USAGE",
        )
    draw = _drawing(arguments.plot)
    with command_errors():
        bundle = read_bundle(Path(arguments.bundle))
        if bundle.manifest.family != TEXT_FAMILY:
            raise CommandError(
                f"a report scores next words, and the bundle's family is {bundle.manifest.family}",
                exit_code=ExitCode.REFUSED,
                code="FAMILY",
            )
        try:
            # Before this process's own interpreter opens it.
            check_structure(bundle.model, bundle.manifest)
        except UnexpectedFile as e:
            raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="RULES") from e
        floats = _floats(bundle, arguments.checkpoint)
        asked = _questions(bundle, Path(arguments.text), arguments.questions)
    reports = report_tensors(bundle.model, bundle.manifest, floats)
    parts = file_parts(bundle.model, bundle.manifest)
    forms = _forms(bundle, floats)
    formats, sizes, accepted = _formats(arguments, floats) if arguments.formats else ({}, {}, [])
    with progress_bar(len(asked), "held-out text") as bar:
        judged, scores = held_out.compare(
            asked, held_out.float_answer(floats), {**forms, **formats}, lambda done: bar.update(done)
        )
    scores = {FLOAT: judged, **scores}
    if draw is not None:
        draw(reports, {name: score for name, score in scores.items() if name != ROUNDED})
    return _result(arguments, bundle, asked, reports, parts, scores, sizes, accepted)


def _drawing(path: str | None) -> Callable[[list[TensorReport], Mapping[str, FormScore]], None] | None:
    """Return what draws, found before minutes are spent on what could not be drawn."""
    if path is None:
        return None
    if Path(path).suffix not in (".svg", ".png"):
        raise CommandError(f"--plot ends in .svg or .png, got {path}", exit_code=ExitCode.USAGE, code="USAGE")
    try:
        from model_export.quantization_plot import draw
    except ImportError as e:
        raise CommandError(
            f"--plot needs matplotlib: {e}",
            exit_code=ExitCode.REFUSED,
            code="NO_MATPLOTLIB",
            hint="pip install 'edge-federation[export]'",
        ) from e

    def drawing(reports: list[TensorReport], scores: Mapping[str, FormScore]) -> None:
        with command_errors():
            draw(Path(path), reports, scores)

    return drawing


def _floats(bundle: Bundle, checkpoint: str) -> Tensors:
    """Return the float weights; refuses those that the bundle was not made of."""
    stored = read_tensors(bundle.model, bundle.manifest)
    start = load_sized_start(size_of(stored), checkpoint, None)
    if patch(bundle.model, bundle.manifest, start.tensors) != bundle.model:
        raise CommandError(
            f"the bundle's weights are {checkpoint} rounded, and are not: other weights would be measured",
            exit_code=ExitCode.REFUSED,
            code="OTHER_WEIGHTS",
            hint="name the checkpoint that it was exported from with --checkpoint",
        )
    return start.tensors


def _questions(bundle: Bundle, text: Path, limit: int) -> Questions:
    if bundle.vocabulary is None:
        raise Malformed("held-out text is cut into words by the bundle's vocabulary, got none")
    vocabulary = bundle.vocabulary
    streams = [author.stream(vocabulary) for author in read_authors(text)]
    try:
        return held_out.questions(streams, bundle.manifest.signatures["suggest_context"].length, limit)
    except ValueError as e:
        raise Malformed(f"{text.name}: {e}") from e


def _forms(bundle: Bundle, floats: Tensors) -> dict[str, Answer]:
    matrices = {name: value for name, value in floats.items() if value.ndim == 2}
    by_row = {**floats, **{name: rows_rounded(value, 8) for name, value in matrices.items()}}
    four = {**by_row, EMBEDDING: rows_rounded(floats[EMBEDDING], 4)}
    return {
        FILE: held_out.file_answer(Interpreter(bundle.model).run),
        ROUNDED: held_out.float_answer(read_tensors(bundle.model, bundle.manifest)),
        ROW_SCALES: held_out.float_answer(by_row),
        FOUR_BITS: held_out.float_answer(four),
    }


def _formats(
    arguments: argparse.Namespace, floats: Tensors
) -> tuple[dict[str, Answer], dict[str, int], list[dict[str, object]]]:
    from model_export.convert import ConversionError
    from model_export.weight_formats import FORMATS, accepts, convert_format

    answers: dict[str, Answer] = {}
    sizes: dict[str, int] = {}
    accepted: list[dict[str, object]] = []
    context = {"tokens": np.arange(4, 24, dtype=np.int32)}
    with progress_bar(len(FORMATS), "converting") as bar:
        for name in FORMATS:
            try:
                data = convert_format(floats, name)
                pythons = [(Path(p), runtime) for p in arguments.device_python for runtime in runtimes_of(Path(p))]
            except ConversionError as e:
                raise CommandError(str(e), code="CONVERSION") from e
            except ConformanceError as e:
                raise CommandError(str(e), exit_code=ExitCode.UNREACHABLE, code="DEVICE") from e
            sizes[name] = len(data)
            answers[name] = held_out.file_answer(Interpreter(data).run)
            for python, runtime in pythons:
                told = accepts(python, runtime, data, context)
                accepted.append({"format": name, **asdict(told)})
            bar.update(1)
    return answers, sizes, accepted


def _result(
    arguments: argparse.Namespace,
    bundle: Bundle,
    asked: Questions,
    reports: list[TensorReport],
    parts: FileParts,
    scores: Mapping[str, FormScore],
    sizes: Mapping[str, int],
    accepted: list[dict[str, object]],
) -> Result:
    embedding = next(r for r in reports if r.name == EMBEDDING)
    four = row_scale_bytes(embedding.shape, 4)
    data: dict[str, Any] = {
        "sha256": bundle.manifest.sha256,
        "questions": len(asked),
        "scores": {name: asdict(score) for name, score in scores.items()},
        "recall_points_lost": scores[FLOAT].top3 - scores[FILE].top3,
        "size_bytes": parts.size_bytes,
        "weight_bytes": parts.weights,
        "graph_bytes": parts.graphs,
        "other_bytes": parts.rest,
        "tensors": [asdict(r) for r in reports],
        "four_bit_embedding_bytes": four,
        "format_bytes": dict(sizes),
        "accepted": accepted,
    }
    if arguments.plot:
        data["plot"] = arguments.plot
    blocks = [
        f"{len(asked):,} words of held-out text, the same for each form",
        table([_score_row(name, score) for name, score in scores.items()],
              ("form", "top 1 %", "top 3 %", "perplexity", "first agrees %", "worst", "p99", "worst of 8")),
        "",
        table([_tensor_row(r) for r in reports],
              ("tensor", "shape", "kind", "bytes", "share %", "scale", "saturated %", "error", "error, a scale a row")),
        "",
        table([("weights", f"{parts.weights:,}"), *((f"graph of {n}", f"{b:,}") for n, b in parts.graphs.items()),
               ("shared and other", f"{parts.rest:,}"), ("whole file", f"{parts.size_bytes:,}")], ("part", "bytes")),
        "",
        f"the embedding takes {embedding.size_bytes:,} bytes; in 4 bits with a scale a row it would take {four:,}",
    ]  # fmt: skip
    if sizes:
        rows = [(name, f"{size:,}", *_told(name, accepted)) for name, size in sizes.items()]
        blocks += ["", table(rows, ("suggestions as", "bytes", *_runtimes(accepted)))]
    return Result(data, text="\n".join(blocks))


def _score_row(name: str, score: FormScore) -> tuple[str, ...]:
    nats = (f"{value:.3f}" for value in (score.worst, score.p99, score.worst_likely))
    return (name, f"{score.top1:.2f}", f"{score.top3:.2f}", f"{score.perplexity:.2f}", f"{score.agrees1:.1f}", *nats)


def _tensor_row(r: TensorReport) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        r.name, "x".join(map(str, r.shape)), r.kind, f"{r.size_bytes:,}", f"{100 * r.share:.1f}", shown(r.scale, ".5f"),
        shown(None if r.saturated is None else 100 * r.saturated, ".4f"), f"{r.error:.5f}",
        shown(r.row_scales_error, ".5f"),
    )  # fmt: skip


def _runtimes(accepted: list[dict[str, object]]) -> list[str]:
    return list(dict.fromkeys(str(told["runtime"]) for told in accepted))


def _told(name: str, accepted: list[dict[str, object]]) -> list[str]:
    by_runtime = {told["runtime"]: told for told in accepted if told["format"] == name}
    return ["runs" if by_runtime[r]["accepted"] else f"no: {by_runtime[r]['why']}" for r in _runtimes(accepted)]
