"""`edge-runtime`: the device's command. Parsing only; each command imports what it needs when it runs."""

import argparse
import os
import sys
from pathlib import Path

from cli_contract.main import run_command
from cli_contract.parser import Parser, add_command, root_parser
from cli_contract.result import Result

HOME_VARIABLE = "EDGE_RUNTIME_HOME"


def default_home() -> Path:
    """Return $EDGE_RUNTIME_HOME, or ~/.local/share/edge-runtime."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".local/share/edge-runtime")


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = root_parser(
        "edge-runtime",
        "The agent on a phone or Pi: learns at night from what was typed, and sends no text anywhere.",
        ("edge-runtime enrol http://192.168.1.5:8080 --token-file token", "edge-runtime status"),
    )
    group = parser.add_subparsers(metavar="COMMAND")

    enrol = add_command(group, "enrol", "get an identity from an aggregator, and the first model", _enrol)
    enrol.add_argument("server", metavar="SERVER", help="the aggregator's address, http://HOST:PORT")
    enrol.add_argument("--token-file", metavar="FILE", required=True, help="one-use token; - reads standard input")
    enrol.add_argument("--population", metavar="NAME", help="population to join (default: the settings', or keyboard)")
    enrol.add_argument("--label", metavar="TEXT", default="", help="a name for the operator's lists")

    run = add_command(group, "run", "live: train when idle, charging, unmetered and cool at night", _run)
    run.add_argument("--once", action="store_true", help="one turn, then print what happened")
    run.add_argument("--wait", metavar="SECONDS", type=float, default=5.0, help="longest wait for a reply (default: 5)")

    run.add_argument("--record", metavar="FILE", type=Path, help="append what the sensors say, for explain --trace")

    status = add_command(group, "status", "versions, examples, the session, and why it does not train now", _status)
    doctor = add_command(group, "doctor", "check everything that a night needs, one line each", _doctor)

    explain = add_command(group, "explain", "what stops training now, what would change it, the next window", _explain)
    explain.add_argument("--trace", metavar="FILE", type=Path, help="what the policy decides on a recorded trace")
    history = add_command(group, "history", "what it took part in and sent, and what each night used", _history)
    history.add_argument("--since", metavar="WHEN", default="30d", help="12h, 7d, 4w or 2026-11-01 (default: 30d)")
    history.add_argument("--limit", metavar="N", type=int, default=20, help="rows of each (default: 20; 0: all)")

    config = group.add_parser("config", help="check the settings, or show what holds").add_subparsers(
        metavar="COMMAND", required=True
    )
    config_check = add_command(config, "check", "read settings.toml and name every mistake", _config_check)
    config_show = add_command(config, "show", "every setting, and where it comes from", _config_show)

    forget = add_command(group, "forget", "delete a word, or everything that was learned from this person", _forget)
    what = forget.add_mutually_exclusive_group(required=True)
    what.add_argument("word", metavar="WORD", nargs="?", help="the word, or several that stand in a row")
    what.add_argument("--everything", action="store_true", help="every example, and all that was made of them")
    forget.add_argument("--yes", action="store_true", help="do not ask")

    add = add_command(group, "add", "put text into the example store, through the privacy filter", _add)
    add.add_argument("text", metavar="TEXT", help="the text; - reads standard input, one message a line")
    add.add_argument("--no-learn", action="store_true", help="as an incognito or password field: store nothing")

    add_arrays = add_command(group, "add-arrays", "put examples of arrays into the example store", _add_arrays)
    add_arrays.add_argument("file", metavar="FILE.npz", type=Path, help="one array a name, first axis the examples")

    evaluate = add_command(group, "evaluate", "score a model file on held-out text or arrays", _evaluate)
    evaluate.add_argument("model", metavar="MODEL", type=Path, help="a version's .tflite")
    evaluate.add_argument(
        "text", metavar="DATA", type=Path, help='text, or .jsonl of {"user", "messages"}; .npz for a model of arrays'
    )
    evaluate.add_argument("--manifest", metavar="FILE", type=Path, help="default: manifest.bin beside the model")
    evaluate.add_argument("--vocabulary", metavar="FILE", type=Path, help="default: vocabulary.txt beside the model")
    evaluate.add_argument("--golden", metavar="N", type=int, default=0, help="print up to N golden vectors beside")
    _add_runtime(evaluate)

    conformance = add_command(group, "conformance", "run recorded cases through an interpreter", _conformance)
    conformance.add_argument("model", metavar="MODEL", type=Path, help="a version's .tflite")
    conformance.add_argument("cases", metavar="CASES.npz", type=Path, help="case/I/signature and case/I/input/NAME")
    conformance.add_argument("results", metavar="RESULTS.npz", type=Path, help="gets case/I/output/NAME")
    conformance.add_argument("--manifest", metavar="FILE", type=Path, help="default: manifest.bin beside it, if there")
    _add_runtime(conformance)

    for command in (enrol, run, status, doctor, explain, history, config_check, config_show, forget, add, add_arrays):
        command.add_argument(
            "--home", metavar="DIR", type=Path, default=default_home(),
            help=f"the device's home (default: ${HOME_VARIABLE} or ~/.local/share/edge-runtime)",
        )  # fmt: skip
    from edge_runtime import slot_commands

    slot_commands.add_parsers(group, default_home(), f"default: ${HOME_VARIABLE} or ~/.local/share/edge-runtime")
    return parser


def _add_runtime(parser: Parser) -> None:
    parser.add_argument("--runtime", choices=("auto", "litert", "tflite", "numpy"), default="auto", help="what runs it")


def _enrol(arguments: argparse.Namespace) -> Result:
    from edge_runtime import device_commands

    return device_commands.enrol(
        arguments.home, arguments.server, arguments.token_file, arguments.population, arguments.label
    )


def _run(arguments: argparse.Namespace) -> Result:
    from edge_runtime import running

    return running.run(arguments.home, once=arguments.once, wait_s=arguments.wait, record=arguments.record)


def _status(arguments: argparse.Namespace) -> Result:
    from edge_runtime import device_commands

    return device_commands.status(arguments.home)


def _doctor(arguments: argparse.Namespace) -> Result:
    from edge_runtime import doctor

    return doctor.examine(arguments.home)


def _explain(arguments: argparse.Namespace) -> Result:
    from edge_runtime import explain_commands

    if arguments.trace is not None:
        return explain_commands.explain_trace(arguments.home, arguments.trace)
    return explain_commands.explain_now(arguments.home)


def _history(arguments: argparse.Namespace) -> Result:
    from edge_runtime import history

    return history.history(arguments.home, arguments.since, arguments.limit)


def _config_check(arguments: argparse.Namespace) -> Result:
    from edge_runtime import config_commands

    return config_commands.check(arguments.home)


def _config_show(arguments: argparse.Namespace) -> Result:
    from edge_runtime import config_commands

    return config_commands.show(arguments.home)


def _forget(arguments: argparse.Namespace) -> Result:
    from edge_runtime import device_commands

    return device_commands.forget(arguments.home, arguments.word, yes=arguments.yes)


def _add(arguments: argparse.Namespace) -> Result:
    from edge_runtime import device_commands

    return device_commands.add(arguments.home, arguments.text, learn=not arguments.no_learn)


def _add_arrays(arguments: argparse.Namespace) -> Result:
    from edge_runtime import array_commands

    return array_commands.add_arrays(arguments.home, arguments.file)


def _evaluate(arguments: argparse.Namespace) -> Result:
    from edge_runtime import model_commands

    return model_commands.evaluate(
        arguments.model, arguments.text, arguments.manifest, arguments.vocabulary, arguments.runtime, arguments.golden
    )


def _conformance(arguments: argparse.Namespace) -> Result:
    from edge_runtime import model_commands

    return model_commands.conformance(
        arguments.model, arguments.cases, arguments.results, arguments.runtime, arguments.manifest
    )


def main() -> None:
    """Run the command line."""
    sys.exit(run_command(build_parser))


if __name__ == "__main__":
    main()
