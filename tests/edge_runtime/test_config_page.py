"""docs/settings.md says what the program does: every key, its default and what it may be."""

import re
import tomllib
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from cli_contract.settings import read_settings
from cli_contract.value_terms import table_of, wanted
from edge_runtime.config import Settings
from edge_runtime.config_commands import effective
from edge_runtime.energy import HARDWARE

PAGE = Path("docs/settings.md").read_text()
ROWS = {row[0]: row[1:] for row in re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)}


def keys(kind, above=""):
    for name, hint in get_type_hints(kind, include_extras=True).items():
        inner = table_of(hint)
        if inner is None:
            yield above + name, wanted(hint)
        else:
            yield from keys(inner, f"{name}.")


def test_the_page_names_every_key_and_no_other():
    assert list(ROWS) == [key for key, _ in keys(Settings)]


@pytest.mark.parametrize(("key", "range_"), list(keys(Settings)))
def test_the_page_states_the_range_of_each_key_and_what_it_does(key, range_):
    assert ROWS[key][1] == range_
    assert len(ROWS[key][2]) > 15


def test_the_pages_defaults_as_a_settings_file_are_the_defaults():
    text = "\n".join(f"{key} = {row[0]}" for key, row in ROWS.items())
    reading = read_settings(text, Settings)
    assert reading.mistakes == ()
    assert msgspec.to_builtins(reading.settings) == msgspec.to_builtins(Settings())
    assert dict(effective(Settings())) == {key: tomllib.loads(f"v = {row[0]}")["v"] for key, row in ROWS.items()}


def test_the_page_states_the_estimated_watts():
    for hardware in HARDWARE:
        assert f"| {hardware.name} | {hardware.watts} |" in PAGE
