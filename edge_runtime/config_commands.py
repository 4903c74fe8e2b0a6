"""`edge-runtime config check | show`: what is wrong with HOME/settings.toml, and what is in force and from where."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, table
from edge_runtime.config import Settings, read_settings, reading_of, settings_path


def check(home: Path) -> Result:
    """Tell every mistake of the settings, one a line; exit 2 if there is one.

    Raises `CommandError` (exit 2) for a file that cannot be read.
    """
    path, reading = settings_path(home), reading_of(home)
    data = {
        "file": str(path),
        "keys_set": len(reading.lines),
        "mistakes": [msgspec.to_builtins(mistake) for mistake in reading.mistakes],
    }
    if reading.mistakes:
        text = "\n".join(mistake.told(str(path)) for mistake in reading.mistakes)
        return Result(data, text, exit_code=ExitCode.USAGE)
    text = f"{path}: no mistake" if path.exists() else f"{path}: there is none; every default is in force"
    return Result(data, text, next_command=f"edge-runtime config show --home {home}")


def show(home: Path) -> Result:
    """List every setting that is in force, and where it comes from. Raises `CommandError` (exit 2) for mistakes."""
    settings, lines = read_settings(home), reading_of(home).lines
    items = [
        {"key": key, "value": value, "origin": f"line {lines[key]}" if key in lines else "default"}
        for key, value in effective(settings)
    ]
    rows = [(item["key"], _shown(item["value"]), item["origin"]) for item in items]
    return Result({"file": str(settings_path(home)), "items": items}, table(rows, ("key", "value", "origin")))


def effective(settings: Settings) -> Iterator[tuple[str, str | int | float]]:
    """Yield each setting's dotted key and value, in the order of docs/settings.md."""
    for name, value in msgspec.to_builtins(settings).items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _shown(value: object) -> str:
    # As it would stand in the file: TOML writes text, numbers, true and false as JSON does.
    return json.dumps(value, ensure_ascii=False)
