"""The argument parser that all four commands use: argparse (8 ms to import) with the contract's habits.

- an unknown command or option says what was probably meant;
- every command that prints results takes `-o table|json` (and `--json`);
- `--help` lists the exit codes and imports nothing heavy: a command's function imports what it needs when it runs.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cli_contract.exit_codes import MEANINGS, ExitCode
from cli_contract.result import Result

Run = Callable[[argparse.Namespace], "Result | None"]


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose errors are one line with a near miss, and exit code 2."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.prog, message + self._near_miss(message))

    def _near_miss(self, message: str) -> str:
        wrong = re.search(r"invalid choice: '([^']*)'|unrecognized arguments: (\S+)", message)
        if wrong is None:
            return ""
        word = wrong.group(1) or wrong.group(2).split("=")[0]
        near = difflib.get_close_matches(word, self._known_words(), n=1, cutoff=0.6)
        return f"; did you mean {near[0]!r}?" if near else ""

    def _known_words(self) -> list[str]:
        words: list[str] = []
        for action in self._actions:
            words += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    words.append(name)
                    words += child._known_words() if isinstance(child, Parser) else []
            elif action.choices is not None:
                words += [str(choice) for choice in action.choices]
        return words


class UsageError(Exception):
    """What `Parser.error` raises; `main.run_command` prints it and exits with 2."""

    def __init__(self, prog: str, message: str) -> None:
        super().__init__(message)
        self.prog = prog
        self.message = " ".join(message.split())


def exit_code_help() -> str:
    """Return the exit codes as the lines that end every `--help`."""
    return "exit codes:\n" + "\n".join(f"  {int(code):<4}{meaning}" for code, meaning in MEANINGS.items())


def root_parser(prog: str, description: str, examples: Sequence[str]) -> Parser:
    """Return a command's top parser: two examples first, then the options, then the exit codes."""
    shown = "\n".join(f"  {line}" for line in examples)
    return Parser(prog=prog, description=f"{description}\n\nexamples:\n{shown}", epilog=exit_code_help())


def add_command(
    group: "argparse._SubParsersAction[Parser]", name: str, summary: str, run: Run, *, prints_result: bool = True
) -> Parser:
    """Add a command to a group of subparsers; `run` takes the namespace and returns a `Result` or None."""
    parser = group.add_parser(name, help=summary, description=summary, epilog=exit_code_help())
    parser.set_defaults(run=run, command_path=parser.prog)
    if prints_result:
        parser.add_argument("-o", "--output-format", choices=("table", "json"), default="table", dest="output_format",
                            metavar="table|json", help="how results are printed (default: table)")  # fmt: skip
        parser.add_argument("--json", action="store_const", const="json", dest="output_format", help="same as -o json")
    parser.add_argument("-v", "--verbose", action="store_true", help="on an unexpected failure print the traceback")
    return parser


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the caller asked for JSON, found before parsing so that even a usage error can be told as JSON."""
    words = list(arguments)
    return "--json" in words or any(
        word in ("-ojson", "-o=json", "--output-format=json")
        or (word in ("-o", "--output-format") and words[i + 1 : i + 2] == ["json"])
        for i, word in enumerate(words)
    )


def colour_wanted(stream: object = None) -> bool:
    """Whether colour and animation may be written: only on a terminal, never with NO_COLOR or TERM=dumb."""
    import os

    target = stream or sys.stderr
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(getattr(target, "isatty", lambda: False)())


__all__ = [
    "ExitCode",
    "Parser",
    "UsageError",
    "add_command",
    "colour_wanted",
    "exit_code_help",
    "root_parser",
    "wants_json",
]
