"""The operator's command: `cloud-aggregator`. Only the parser is here; `commands` does the work when it is called."""

import argparse
import sys
from collections.abc import Callable

from cli_contract.main import run_command
from cli_contract.parser import Parser, add_command, root_parser
from cli_contract.result import Result

EXAMPLES = (
    "cloud-aggregator init && cloud-aggregator population import bundle/ && cloud-aggregator serve",
    "cloud-aggregator token mint --label 'kitchen pi'",
)
DEFAULT_DATA = "aggregator-data"


def _call(name: str) -> Callable[[argparse.Namespace], Result | None]:
    def run(arguments: argparse.Namespace) -> Result | None:
        from cloud_aggregator import commands

        chosen: Callable[[argparse.Namespace], Result | None] = getattr(commands, name)
        return commands.told(chosen, arguments)

    return run


def build_parser() -> Parser:
    """Return the parser of all commands."""
    root = root_parser(
        "cloud-aggregator", "Takes client updates from devices, learns from them, and releases refreshes.", EXAMPLES
    )
    from cloud_aggregator.trust_commands import add_release_commands, add_trust_commands

    top = root.add_subparsers(title="commands", metavar="COMMAND")
    _add(top, "init", "make a data directory with fresh keys and a configuration file", "init")
    serve = _add(top, "serve", "run the service until Ctrl-C", "serve")
    serve.add_argument("--host", help="listen here for HTTP (default: [http] host)")
    serve.add_argument("--port", type=int, help="listen on this port for HTTP, 0 for a free one (default: [http] port)")
    serve.add_argument("--broker", metavar="URL", help="use this broker (default: [broker] url, else start one)")
    _add(top, "status", "show health, rounds, versions and refusals at a glance", "status")

    population = _group(top, "population", "model families")
    bring = _add(population, "import", "found a population from an exporter's bundle", "population_import")
    bring.add_argument("bundle", metavar="BUNDLE_DIR", help="a folder with model.tflite, vocabulary.txt, manifest.bin")
    bring.add_argument("--settings", metavar="FILE", help="the population's TOML file (default: built-in settings)")
    bring.add_argument("--manifest-key", metavar="HEX|FILE", help="pin the exporter's public key")

    token = _group(top, "token", "enrolment tokens")
    mint = _add(token, "mint", "make an enrolment token; it is shown once", "token_mint")
    _population(mint)
    mint.add_argument("--label", default="", help="what the device will be called")
    mint.add_argument("--uses", type=int, default=1, metavar="N", help="how many devices may use it (default: 1)")
    mint.add_argument("--valid-hours", type=int, default=168, metavar="N", help="until it expires (default: 168)")

    device = _group(top, "device", "enrolled devices")
    _limit(_add(device, "list", "list devices, newest first", "device_list"))
    _named(_add(device, "show", "show one device", "device_show"), "device")
    revoke = _named(_add(device, "revoke", "refuse everything from a device from now on", "device_revoke"), "device")
    _dangerous(revoke)
    label = _named(_add(device, "label", "give a device another label", "device_label"), "device")
    label.add_argument("label", metavar="LABEL", help="at most 80 characters")

    rounds = _group(top, "round", "collections of updates; each one makes a training version")
    _limit(_add(rounds, "list", "list rounds, newest first", "round_list"))
    _named(_add(rounds, "show", "show one round and the updates in it", "round_show"), "round")

    again = _named(
        _add(rounds, "replay", "make a version again from what is recorded, bit for bit", "round_replay"), "round"
    )
    _population(again)
    again.add_argument(
        "--from-sums", action="store_true", help="take the recorded sums where raw updates were deleted by age"
    )

    release = _group(top, "release", "refreshes for keyboards")
    _limit(_add(release, "list", "list releases, newest first", "release_list"))
    _named(_add(release, "show", "show one release", "release_show"), "release")
    now = _add(release, "now", "judge the training version and release it", "release_now")
    _population(now)
    _dangerous(now)
    undo = _add(release, "undo", "give the weights of an earlier refresh a new, higher number", "release_undo")
    _population(undo)
    undo.add_argument("--to", type=int, metavar="VERSION", help="which version's weights (default: the one before)")
    _dangerous(undo)
    add_release_commands(release, DEFAULT_DATA)

    add_trust_commands(
        _group(top, "trust", "the signed repository that no stolen online key can replace"), DEFAULT_DATA
    )

    evaluation = _group(top, "evaluation", "what devices say of a version, as counts on words that they hold out")
    ask = _add(evaluation, "ask", "ask devices to evaluate an announced version", "evaluation_ask")
    _population(ask)
    ask.add_argument("--version", type=int, metavar="N", help="which version (default: the announced refresh)")
    ask.add_argument("--devices", type=int, default=20, metavar="K", help="how many devices (default: 20)")
    ask.add_argument(
        "--minimum-words", type=int, default=50, metavar="N", help="with fewer a device says 0 (default: 50)"
    )
    ask.add_argument("--most-words", type=int, default=2000, metavar="N", help="the newest so many (default: 2000)")
    ask.add_argument("--valid-hours", type=int, default=168, metavar="N", help="until it ends (default: 168)")
    _limit(_add(evaluation, "list", "list evaluations, newest first", "evaluation_list"))
    _named(_add(evaluation, "show", "show one evaluation's sums", "evaluation_show"), "evaluation")

    schedule = _group(top, "schedule", "when releases go out by themselves")
    _population(_add(schedule, "show", "show the schedule and when it is due", "schedule_show"))
    change = _add(schedule, "set", "set the schedule", "schedule_set")
    change.add_argument("cron", metavar="CRON", help="five fields like '0 6 * * 0'; '' for only by hand")
    change.add_argument("--time-zone", default="UTC", metavar="NAME", help="like Europe/Berlin (default: UTC)")
    _population(change)

    broker = _group(top, "broker", "a broker for tests and small fleets")
    start = _add(broker, "start", "start a broker on loopback and keep it until Ctrl-C", "broker_start")
    start.add_argument("--port", type=int, default=0, help="listen on this port (default: a free one)")
    start.add_argument("--prefer", choices=("mosquitto", "iotcore"), default="", help="use this one or none")
    return root


def _group(top: "argparse._SubParsersAction[Parser]", name: str, summary: str) -> "argparse._SubParsersAction[Parser]":
    parser = top.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _add(group: "argparse._SubParsersAction[Parser]", name: str, summary: str, function: str) -> Parser:
    parser = add_command(group, name, summary, _call(function))
    parser.add_argument(
        "--data", default=DEFAULT_DATA, metavar="DIR", help=f"the data directory (default: ./{DEFAULT_DATA})"
    )
    return parser


def _named(parser: Parser, noun: str) -> Parser:
    parser.add_argument("name", metavar=noun.upper(), help=f"the {noun}'s id, or the first characters of it")
    return parser


def _limit(parser: Parser) -> None:
    parser.add_argument("--limit", type=_limit_of, default=20, metavar="N", help="at most N, 0 for all (default: 20)")


def _limit_of(text: str) -> int:
    limit = int(text) if text.isdecimal() else -1
    if limit < 0:
        raise argparse.ArgumentTypeError(f"a limit is 0 or more, got {text!r}")
    return limit


def _population(parser: Parser) -> None:
    parser.add_argument("--population", metavar="NAME", help="which population (default: the only one)")


def _dangerous(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would happen and do nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def main() -> None:
    """Run the command line."""
    sys.exit(run_command(build_parser))


if __name__ == "__main__":
    main()
