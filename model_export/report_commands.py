"""The parsers of `model-export report` and `model-export diff`; what they run is imported when it runs."""

import argparse

from cli_contract.parser import Parser, add_command
from cli_contract.result import Result


def add_report_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Register both commands."""
    report = add_command(
        commands, "report", "what the file's number format costs: bytes, errors, held-out text", _report
    )
    report.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    report.add_argument("--text", required=True, metavar="FILE", help="held-out text, JSON lines; never learnt from")
    report.add_argument("--checkpoint", default="starter", metavar="FILE",
                        help="the float weights that it was made of, as in `export` (default: starter)")  # fmt: skip
    report.add_argument("--questions", type=int, default=2_000, metavar="N",
                        help="words to predict, taken evenly over the text (default: 2000)")  # fmt: skip
    report.add_argument("--formats", action="store_true", help="also convert float32, float16, int8 with a scale a "
                        "tensor and a row, a 4-bit embedding, and ask who runs them")  # fmt: skip
    report.add_argument("--device-python", action="append", default=[], metavar="PATH",
                        help="for --formats: a Python with edge_runtime and an interpreter; repeatable")  # fmt: skip
    report.add_argument("--plot", metavar="FILE", help="write a picture, .svg or .png (needs matplotlib)")
    diff = add_command(commands, "diff", "what differs between two versions: bytes, weights, graphs, manifests", _diff)
    for name in ("a", "b"):
        diff.add_argument(
            name, metavar=name.upper(), help="a bundle's folder, or a .tflite with its manifest beside it"
        )


def _report(arguments: argparse.Namespace) -> Result:
    from model_export.report import report

    return report(arguments)


def _diff(arguments: argparse.Namespace) -> Result:
    from model_export.version_diff import diff

    return diff(arguments)
