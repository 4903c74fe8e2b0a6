"""Reading a TOML configuration file: every mistake at once, each with file, line and key.

A settings class is a frozen `msgspec.Struct`; nested structs are tables. Unknown keys are refused with the nearest
known one, wrong types with what was expected.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import TypeVar, get_type_hints

import msgspec

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode

Settings = TypeVar("Settings", bound=msgspec.Struct)
MAX_SETTINGS_BYTES = 1 << 20


def load_settings(path: Path, kind: type[Settings]) -> Settings:
    """Return the settings in the file at `path`. Raises `CommandError` (exit 2) naming every mistake."""
    try:
        text = path.read_bytes()[: MAX_SETTINGS_BYTES + 1].decode("utf-8")
    except FileNotFoundError as e:
        raise CommandError(f"{path}: no such configuration file", exit_code=ExitCode.NOT_FOUND, code="NO_CONFIG") from e
    except (OSError, UnicodeDecodeError) as e:
        raise CommandError(f"{path}: cannot be read: {e}", exit_code=ExitCode.USAGE, code="BAD_CONFIG") from e
    return parse_settings(text, kind, str(path))


def parse_settings(text: str, kind: type[Settings], name: str) -> Settings:
    """Return the settings in `text`; `name` stands before the line number in errors."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        where = re.search(r"line (\d+), column (\d+)", str(e))
        place = f"{name}:{where.group(1)}:{where.group(2)}" if where else name
        raise CommandError(f"{place}: {e}", exit_code=ExitCode.USAGE, code="BAD_CONFIG") from e
    mistakes = _mistakes(tree, kind, text, name, ())
    if mistakes:
        raise CommandError("; ".join(mistakes), exit_code=ExitCode.USAGE, code="BAD_CONFIG")
    return msgspec.convert(tree, type=kind)


def _mistakes(tree: dict[str, object], kind: type, text: str, name: str, path: tuple[str, ...]) -> list[str]:
    fields = get_type_hints(kind, include_extras=True)
    found = []
    for key, value in tree.items():
        place = f"{name}:{_line_of(text, path, key)}"
        dotted = ".".join((*path, key))
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.6)
            found.append(f'{place}: unknown key "{dotted}"' + (f'; did you mean "{near[0]}"?' if near else ""))
            continue
        wanted = fields[key]
        if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct) and isinstance(value, dict):
            found += _mistakes(value, wanted, text, name, (*path, key))
            continue
        try:
            msgspec.convert(value, type=wanted)
        except msgspec.ValidationError as e:
            found.append(f'{place}: "{dotted}": {e}')
    for struct_field in msgspec.structs.fields(kind):
        if struct_field.required and struct_field.name not in tree:
            found.append(f'{name}:1: key "{".".join((*path, struct_field.name))}" is missing')
    return found


def _line_of(text: str, path: tuple[str, ...], key: str) -> int:
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            section = tuple(part.strip().strip('"') for part in header.group(1).split("."))
            if section == (*path, key):
                return number
            continue
        assigned = re.match(r'\s*"?([\w.-]+)"?\s*=', line)
        if assigned and (*section, *assigned.group(1).split("."))[: len(path) + 1] == (*path, key):
            return number
    return 1
