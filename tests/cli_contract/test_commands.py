"""One contract for all four commands: the same tests for each."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli_contract.exit_codes import MEANINGS

PYTHON = sys.executable
COMMANDS = {
    "edge-runtime": "edge_runtime.cli",
    "cloud-aggregator": "cloud_aggregator.cli",
    "model-export": "model_export.cli",
    "keyboard-demo": "keyboard_demo.cli",
}
HEAVY = ("tensorflow", "keras", "numpy", "sqlalchemy", "fastapi", "rich", "paho", "ai_edge_litert", "chitchat_dataset")
# A command of each that prints a result or fails in a known way, with nothing prepared.
NOT_THERE = {
    "edge-runtime": ["status", "--home", "{empty}"],
    "cloud-aggregator": ["status", "--data", "{empty}"],
    "model-export": ["show", "{empty}/none"],
    "keyboard-demo": ["people", "--split", "donors", "--output", "{empty}/no/such/folder/x.jsonl"],
}


def run(name: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-m", COMMANDS[name], *arguments],
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, **options,
    )  # fmt: skip


def leaf_commands(name: str) -> list[list[str]]:
    module = __import__(COMMANDS[name], fromlist=["build_parser"])
    found: list[list[str]] = []

    def walk(parser, path):
        groups = [a for a in parser._actions if a.__class__.__name__ == "_SubParsersAction"]
        if not groups:
            found.append(path)
        for group in groups:
            for word, child in group.choices.items():
                walk(child, [*path, word])

    walk(module.build_parser(), [])
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_and_exit_codes_and_imports_nothing_heavy(name):
    probe = (
        "import sys, runpy; sys.argv=['x','--help']\n"
        f"try: runpy.run_module({COMMANDS[name]!r}, run_name='__main__')\n"
        "except SystemExit as e: print('code', e.code)\n"
        f"print('heavy', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True, timeout=60)
    assert "code 0" in done.stdout, done.stderr
    assert "heavy []" in done.stdout
    assert done.stdout.index("examples:") < done.stdout.index("options:")
    for code in MEANINGS:
        assert re.search(rf"^  {int(code)} +\w", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_a_json_form(name):
    commands = leaf_commands(name)
    assert commands
    for path in commands:
        module = __import__(COMMANDS[name], fromlist=["build_parser"])
        parser = module.build_parser()
        for word in path:
            group = next(a for a in parser._actions if a.__class__.__name__ == "_SubParsersAction")
            parser = group.choices[word]
        assert parser.description, path
        options = {option for action in parser._actions for option in action.option_strings}
        assert "--json" in options or path[-1] in {"serve", "run"}, path
        assert all(action.help for action in parser._actions), path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_word_is_one_line_with_a_near_miss_and_exit_code_2(name):
    word = leaf_commands(name)[0][0]
    done = run(name, word[:-1] + "q")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"did you mean '{word}'" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_failure_is_one_line_on_stderr_and_the_same_in_json_on_stdout(name, tmp_path):
    arguments = [word.replace("{empty}", str(tmp_path)) for word in NOT_THERE[name]]
    plain = run(name, *arguments)
    assert plain.returncode in {1, 3, 4, 5}, plain.stderr
    assert plain.stdout == ""
    assert "Traceback" not in plain.stderr
    assert len([line for line in plain.stderr.splitlines() if line.startswith(name)]) == 1
    told = run(name, *arguments, "--json")
    assert told.returncode == plain.returncode
    error = json.loads(told.stdout.splitlines()[-1])
    assert error["schema_version"] == "1"
    assert error["status"] == "error"
    assert error["exit_code"] == plain.returncode
    assert {"error_code", "message", "hint", "command"} <= error.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_output_carries_no_colour_when_it_is_not_a_terminal(name):
    done = run(name, "--help")
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_stops_early_gets_no_traceback(name):
    done = subprocess.run(
        f"{PYTHON} -m {COMMANDS[name]} --help | head -c 10; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_the_documentation_names_every_command():
    text = Path("docs/commands.md").read_text()
    for name in COMMANDS:
        for path in leaf_commands(name):
            assert f"`{' '.join([name, *path])}`" in text, f"{name} {' '.join(path)} is not in docs/commands.md"
