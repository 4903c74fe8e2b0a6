"""`edge-runtime add-arrays`: what is refused leaves the store as it was. The way through: docs/export-your-model.md."""

import json

import numpy as np
import pytest

from cli_contract.main import run_command
from edge_runtime import model_commands
from edge_runtime.cli import build_parser
from tests.edge_runtime import array_model
from tests.edge_runtime.array_world import ArrayWorld
from tests.edge_runtime.fakes import TINY, World


def call(capsys, *words):
    """Return (exit code, standard output, standard error) of the command."""
    code = run_command(build_parser, list(map(str, words)))
    told = capsys.readouterr()
    return code, told.out, told.err


def write(path, **changes):
    np.savez(path, **{**array_model.draw(6), **changes})
    return path


def test_examples_that_are_not_the_models_leave_the_store_empty(tmp_path, capsys):
    world = ArrayWorld(tmp_path / "home")
    bad = write(tmp_path / "bad.npz", pixels=np.zeros((6, 3, 2), np.float32))
    code, out, err = call(capsys, "add-arrays", bad, "--home", world.home)
    assert (code, out) == (1, "") and err.count("\n") <= 2
    assert "bad.npz: pixels has shape [N, 2, 3], got [6, 3, 2]" in err
    assert world.agent.examples.count_arrays() == 0


@pytest.mark.parametrize(("name", "code"), [("none.npz", 3), ("folder", 1)])
def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys, name, code):
    world = ArrayWorld(tmp_path / "home")
    (tmp_path / "folder").mkdir()
    found, _, err = call(capsys, "add-arrays", tmp_path / name, "--home", world.home)
    assert found == code and name in err


def test_a_file_that_the_interpreter_cannot_open_stores_nothing(tmp_path, capsys):
    world = ArrayWorld(tmp_path / "home")
    code, _, err = call(capsys, "add-arrays", write(tmp_path / "good.npz"), "--home", world.home)
    assert code == 1 and "cannot open a model" in err
    assert world.agent.examples.count_arrays() == 0


def test_a_model_of_text_says_which_command_is_its_own(tmp_path, capsys):
    world = World(tmp_path / "home")
    world.agent.fetch_refresh()
    code, _, err = call(capsys, "add-arrays", write(tmp_path / "good.npz"), "--home", world.home)
    assert code == 4 and "learns from text" in err and "edge-runtime add TEXT" in err


def test_without_a_model_nothing_says_what_an_example_is(tmp_path, capsys):
    world = World(tmp_path / "home")
    code, out, _ = call(capsys, "add-arrays", write(tmp_path / "good.npz"), "--home", world.home, "--json")
    assert code == 4 and json.loads(out)["error_code"] == "NO_MODEL"


def test_a_model_of_text_is_not_scored_on_arrays(tmp_path, capsys):
    held_out = write(tmp_path / "held-out.npz")
    code, out, _ = call(capsys, "evaluate", TINY / "model.tflite", held_out, "--json")
    assert code == 1 and json.loads(out)["error_code"] == "WRONG_FAMILY"


def test_conformance_needs_the_manifest_only_where_no_interpreter_reads_the_file(tmp_path):
    manifest = TINY / "manifest.bin"
    context = np.arange(4, 24, dtype=np.int32)
    cases = tmp_path / "cases.npz"
    np.savez(cases, **{"case/0/signature": "suggest_context", "case/0/input/tokens": context})
    answers = {}
    for runtime in ("auto", "numpy"):
        done = model_commands.conformance(TINY / "model.tflite", cases, tmp_path / f"{runtime}.npz", runtime, manifest)
        assert done.data["cases"] == 1
        with np.load(tmp_path / f"{runtime}.npz") as found:
            answers[runtime] = found["case/0/output/ids"]
    assert answers["auto"][0] == answers["numpy"][0]
