"""`model-export examine` and `export-model`: a person's own Keras model, looked at and exported."""

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.parser import Parser, add_command
from cli_contract.result import Result, table
from model_export.export_arguments import POPULATION_RULE, is_population

if TYPE_CHECKING:
    from model_export.keras_graph.examine import Examined
    from model_export.keras_graph.refusal import Refused

LOSS_NAMES = ("sparse_categorical_crossentropy", "binary_crossentropy", "mean_squared_error")
BATCH = 16
LARGEST_BATCH = 1024
DAY_S = 86_400
SEED = 1


def add_model_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Register the two commands."""
    examine = add_command(commands, "examine", "say how each layer of a Keras model is exported, or why not", _examine)
    _add_model_arguments(examine)
    export = add_command(commands, "export-model", "make a signed bundle of your own Keras model", _export_model)
    _add_model_arguments(export)
    export.add_argument("--population", required=True, metavar="NAME", help="whose first version this is")
    export.add_argument("--signing-key", required=True, metavar="FILE", help="Ed25519 PEM, see `model-export keygen`")
    export.add_argument("--output", required=True, metavar="DIR", help="the bundle's folder; an older one is replaced")
    export.add_argument("--batch", type=int, default=BATCH, metavar="N",
                        help=f"examples a training step takes (default: {BATCH})")  # fmt: skip
    export.add_argument("--valid-days", type=int, default=365, metavar="DAYS",
                        help="devices refuse the version after this (default: 365)")  # fmt: skip
    export.add_argument("--created-at", type=int, metavar="UNIX",
                        help="the manifest's date (default: now); with it the bundle's bytes repeat")  # fmt: skip
    export.add_argument("--minimum-runtime", default="", metavar="RELEASE", help="oldest edge runtime that may use it")


def _add_model_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL.keras", help="a Keras 3 model, saved by model.save")
    parser.add_argument("--loss", required=True, metavar="NAME", help=f"what it learns: {', '.join(LOSS_NAMES)}")
    parser.add_argument("--freeze", action="append", default=[], metavar="LAYER",
                        help="a layer or nested model that stays as it is; may be given again")  # fmt: skip
    parser.add_argument("--train-head", type=int, metavar="N", help="only the last N layers that have weights learn")


def _examine(arguments: argparse.Namespace) -> Result:
    from model_export.keras_graph.refusal import Refused

    found = _examined(arguments)[1]
    return _refusal(found) if isinstance(found, Refused) else _shown(found)


def _examined(arguments: argparse.Namespace) -> "tuple[Any, Examined | Refused]":
    """Return the Keras model and what `examine` says of it."""
    from model_export.failures import command_errors
    from model_export.quiet import quiet

    with quiet():
        from model_export.keras_graph.examine import examine
        from model_export.keras_graph.loading import load_keras
        from model_export.keras_graph.refusal import Refused

        with command_errors():
            model = load_keras(Path(arguments.model))
        if isinstance(model, Refused):
            return None, model
        return model, examine(model, arguments.loss, arguments.freeze, arguments.train_head)


def _refusal(refused: "Refused") -> Result:
    rows = [{"layer": r.layer, "kind": r.kind, "reason": r.reason, "change": r.change} for r in refused.refusals]
    return Result(
        {"exportable": False, "refusals": rows, "items": []},
        text=f"This model cannot be exported:\n{refused.lines()}",
        exit_code=ExitCode.REFUSED,
    )


def _shown(found: "Examined") -> Result:
    items = [
        {"layer": row.name, "kind": row.kind, "trainable": row.trainable, "parameters": row.parameters, "how": row.how}
        for row in found.rows
    ]
    learns = sum(_count(weight.shape) for weight in found.trainable)
    arrays = [f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in found.examples]
    text = table(
        [[i["layer"], i["kind"], "learns" if i["trainable"] else "", i["parameters"], i["how"]] for i in items],
        ("layer", "kind", "", "values", "how it is exported"),
    )
    notes = "".join(f"\nNote: {note}" for note in found.notes)
    return Result(
        {
            "exportable": True,
            "loss": found.loss.name,
            "examples": arrays,
            "trained_parameters": learns,
            "parameters": sum(row.parameters for row in found.rows),
            "notes": list(found.notes),
            "refusals": [],
            "items": items,
        },
        text=f"{text}\n\nAn example is {'; '.join(arrays)}. {learns} values learn.{notes}",
    )


def _count(shape: "tuple[int, ...]") -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _check(arguments: argparse.Namespace) -> None:
    rules = (
        (1 <= arguments.batch <= LARGEST_BATCH, f"--batch is from 1 to {LARGEST_BATCH}, got {arguments.batch}"),
        (is_population(arguments.population), f"{POPULATION_RULE}, got {arguments.population[:80]!r}"),
        (arguments.valid_days >= 1, f"--valid-days is positive, got {arguments.valid_days}"),
        (
            re.fullmatch(r"(\d{1,4}(\.\d{1,4}){0,2})?", arguments.minimum_runtime),
            f"--minimum-runtime is a release like 0.2, got {arguments.minimum_runtime!r}",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise CommandError(message, exit_code=ExitCode.USAGE, code="USAGE")


def _export_model(arguments: argparse.Namespace) -> Result:
    from model_export.bundle import check_place, write_bundle
    from model_export.commands import progress_bar
    from model_export.failures import command_errors
    from model_export.keras_graph.refusal import Refused
    from model_export.quiet import quiet
    from model_export.signing_key import load_key
    from wire_contract.envelope import key_id, public_bytes

    _check(arguments)
    started, now = time.monotonic(), int(time.time()) if arguments.created_at is None else arguments.created_at
    with progress_bar(4, "examining") as bar, command_errors():
        key = load_key(Path(arguments.signing_key))
        check_place(Path(arguments.output))
        model, found = _examined(arguments)
        if isinstance(found, Refused):
            return _refusal(found)
        with quiet():
            from model_export.keras_graph.array_export import export_arrays
        bar.update(1)

        def step(name: str) -> None:
            bar.set_description(name)
            bar.update(1)

        source = Path(arguments.model).read_bytes()
        with quiet():
            exported = export_arrays(
                model, found, source, batch=arguments.batch, population=arguments.population, now=now,
                valid_s=arguments.valid_days * DAY_S, minimum_runtime=arguments.minimum_runtime, progress=step,
            )  # fmt: skip
        if isinstance(exported, Refused):
            return _refusal(exported)
        write_bundle(Path(arguments.output), exported.model, None, exported.manifest, key)
        bar.update(1)
    manifest = exported.manifest
    return Result(
        {
            "output": arguments.output,
            "population": manifest.population,
            "version": manifest.version,
            "loss": manifest.loss,
            "examples": [f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in manifest.examples],
            "parameters": manifest.parameters,
            "frozen_parameters": exported.frozen_parameters,
            "batch": arguments.batch,
            "size_bytes": manifest.size_bytes,
            "sha256": manifest.sha256,
            "template_sha256": manifest.template_sha256,
            "layout_fingerprint": manifest.layout_fingerprint,
            "gradient_error": exported.gradient_error,
            "int8_error": exported.int8_error,
            "golden_vectors": len(manifest.golden_vectors),
            "notes": len(found.notes),
            "key_id": key_id(public_bytes(key)),
            "seconds": round(time.monotonic() - started, 1),
        },
        next_command=f"cloud-aggregator population import {arguments.output}",
    )
