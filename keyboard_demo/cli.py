"""`keyboard-demo`: tell the fleet's story, type on a device, or take persons out of the corpus.

Parsing only; each command imports what it needs when it runs.
"""

import argparse
import sys
from pathlib import Path

from cli_contract.main import run_command
from cli_contract.parser import Parser, add_command, root_parser
from cli_contract.result import Result


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = root_parser(
        "keyboard-demo",
        "A keyboard that learns on the device, and the story of the fleet behind it.",
        ("keyboard-demo story --device-python .venv-device/bin/python", "keyboard-demo type --home my-device"),
    )
    group = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    story = add_command(
        group, "story", "export, thirty nights of a fleet, releases, held-out people, a keyboard", _story
    )
    story.add_argument("--devices", type=int, default=120, metavar="N", help="real device agents (default: 120)")
    story.add_argument("--nights", type=int, default=30, metavar="N", help="nights that go by (default: 30)")
    story.add_argument("--seed", type=int, default=7, metavar="N", help="who takes part, and fates (default: 7)")
    story.add_argument("--keep", type=Path, metavar="DIR", help="keep everything in this new folder")
    story.add_argument("--no-input", action="store_true", help="do not end in the terminal keyboard")
    story.add_argument("--device-python", type=Path, metavar="PATH",
                       help="the Python that runs the devices (default: this one)")  # fmt: skip
    story.add_argument("--processes", type=int, default=2, metavar="N", help="processes they live in (default: 2)")
    story.add_argument("--broker", default="", metavar="URL", help="an MQTT 5 broker (default: one is started)")

    typing = add_command(group, "type", "a keyboard in the terminal, on an enrolled device", _type)
    typing.add_argument("--home", type=Path, required=True, metavar="DIR", help="home of an enrolled device")

    people = add_command(group, "people", "write a split of the chitchat corpus as JSON-lines text", _people)
    people.add_argument("--split", choices=("donors", "dev", "test", "train"), required=True,
                        help="which persons (donors may make starting weights; test is only ever scored)")  # fmt: skip
    people.add_argument("--part", choices=("all", "head", "tail"), default="all",
                        help="the first 80 %% of each person's words, the rest, or all (default: all)")  # fmt: skip
    people.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    return parser


def _story(arguments: argparse.Namespace) -> Result | None:
    from keyboard_demo.commands import story

    return story(arguments)


def _type(arguments: argparse.Namespace) -> None:
    from keyboard_demo.commands import type_here

    type_here(arguments.home)


def _people(arguments: argparse.Namespace) -> Result:
    from keyboard_demo.commands import people

    return people(arguments.split, arguments.part, arguments.output)


def main() -> None:
    """Run the console script."""
    sys.exit(run_command(build_parser))


if __name__ == "__main__":
    main()
