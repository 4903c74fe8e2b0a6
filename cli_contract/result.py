"""What a command prints: data on stdout, as a table for people or as one JSON object for scripts.

The JSON form is one line: the envelope's keys `schema_version`, `command`, `status`, `exit_code`, then the command's
own keys beside them (a list stands under `items`). An error has `error_code`, `message` and `hint` instead.
Messages, progress and hints go to stderr, so stdout can always be piped.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.plain_text import plain

SCHEMA_VERSION = "1"
ENVELOPE_KEYS = frozenset({"schema_version", "command", "status", "exit_code", "error_code", "message", "hint"})


@dataclass(frozen=True, slots=True)
class Result:
    """A command's answer.

    `data` is a JSON object; `text` is the human form (made from `data` as a two-column table where it is empty);
    `next_command` is printed last on stderr, so that a person knows how to go on; `exit_code` is not 0 where the
    answer itself is a "no" (a check that failed).
    """

    data: Mapping[str, object]
    text: str = ""
    next_command: str = ""
    exit_code: ExitCode = field(default=ExitCode.OK)


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return left-aligned columns with a header in capitals, no boxes, never cut (numbers align right)."""
    text = [[plain(cell) for cell in row] for row in rows]
    columns = [[name.upper() for name in header], *text]
    widths = [max(len(row[i]) for row in columns) for i in range(len(header))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = []
    for row in columns:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def describe(data: Mapping[str, object]) -> str:
    """Return `data` as two columns, name and value; nested objects and lists are counted, not spilled."""
    width = max((len(key) for key in data), default=0)
    lines = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
        elif isinstance(value, list | tuple):
            value = f"{len(value)} entries" if value and isinstance(value[0], Mapping) else ", ".join(map(str, value))
        lines.append(f"{key.replace('_', ' ').ljust(width)}  {plain(value)}".rstrip())
    return "\n".join(lines)


def envelope(command: str, result: Result) -> str:
    """Return the one-line JSON form of a result."""
    clash = ENVELOPE_KEYS & result.data.keys()
    if clash:
        raise ValueError(f"a command's own keys differ from the envelope's, got {sorted(clash)}")
    status = "ok" if result.exit_code == ExitCode.OK else "error"
    head = {"schema_version": SCHEMA_VERSION, "command": command, "status": status, "exit_code": int(result.exit_code)}
    return json.dumps({**head, **result.data}, ensure_ascii=False, separators=(", ", ": "))


def error_envelope(command: str, error: CommandError) -> str:
    """Return the one-line JSON form of an error."""
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "command": command,
            "status": "error",
            "exit_code": int(error.exit_code),
            "error_code": error.code,
            "message": error.message,
            "hint": error.hint,
        },
        ensure_ascii=False,
        separators=(", ", ": "),
    )


def print_result(command: str, result: Result, *, as_json: bool, stdout: TextIO | None = None) -> None:
    """Write a result to stdout (and the next command to stderr, for people only)."""
    out = stdout or sys.stdout
    if as_json:
        out.write(envelope(command, result) + "\n")
    else:
        out.write((result.text or describe(result.data)) + "\n")
    out.flush()
    if result.next_command and not as_json:
        sys.stderr.write(f"Next: {result.next_command}\n")
