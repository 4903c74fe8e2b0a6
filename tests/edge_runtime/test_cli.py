"""The command as a person or a script meets it."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli_contract.main import run_command
from edge_runtime import identity
from edge_runtime.adapters.sensors.files import write_fixture
from edge_runtime.cli import build_parser
from edge_runtime.evaluation import score
from tests.edge_runtime.fakes import TINY, World
from tests.edge_runtime.test_interpreter import INSTALLED
from tests.edge_runtime.test_local_training import MANIFEST, PACKED, RUNNER
from wire_contract.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_bytes((TINY / "vocabulary.txt").read_bytes())
TEXT = "baba babe babi. bobo bubu lala\nzzz bedu 12 nono nene\n" * 30


@pytest.fixture
def home(tmp_path):
    """An enrolled home with a model, as an agent left it."""
    world = World(tmp_path / "home")
    world.type_text(20)
    world.agent.close()
    root = tmp_path / "root"
    write_fixture(root, charging=True, battery=90, idle_seconds=900, metered=False, celsius=40)
    (world.home / "settings.toml").write_text(
        f'sensors_root = "{root}"\n[policy]\nnight_start = "00:00"\nnight_end = "00:00"\nsettle_s = 0\n'
    )
    return world.home


def call(capsys, *words):
    code = run_command(build_parser, [*map(str, words), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_status_says_what_is_held_and_why_it_does_not_train(capsys, home):
    code, data, _ = call(capsys, "status", "--home", home)
    assert code == 0 and data["versions"] == {"training": 0, "refresh": 1}
    assert data["examples_words"] == 240 and data["reason"] == "every condition holds"
    assert data["runtime"].split()[0] in INSTALLED
    code = run_command(build_parser, ["status", "--home", str(home)])
    assert code == 0 and "every condition holds" in capsys.readouterr().out


def test_a_home_that_is_not_enrolled_is_refused_with_what_to_do(capsys, tmp_path):
    for command in (["status"], ["run", "--once"], ["add", "text"], ["forget", "--everything", "--yes"]):
        code, data, err = call(capsys, *command, "--home", tmp_path / "none")
        assert code == 4 and data["error_code"] == "NOT_ENROLLED"
        assert "edge-runtime enrol" in err and err.count("\n") == 1


def test_add_stores_what_the_filter_lets_through(capsys, home):
    code, data, _ = call(capsys, "add", "Baba bobo zaphod 5551234567 me@example.org", "--home", home)
    assert code == 0 and data["sentences_stored"] == 1 and data["examples_words"] > 240
    code, data, _ = call(capsys, "add", "Baba bobo", "--no-learn", "--home", home)
    assert code == 0 and data["sentences_stored"] == 0


def test_forgetting_everything_asks_first_and_a_word_does_not(capsys, home):
    code, data, _ = call(capsys, "forget", "--everything", "--home", home)
    assert code == 4 and data["error_code"] == "NOT_CONFIRMED"
    code, data, _ = call(capsys, "forget", "baba", "--home", home)
    assert code == 0
    code, data, _ = call(capsys, "forget", "--everything", "--yes", "--home", home)
    assert code == 0 and data["words_deleted"] > 0
    _, data, _ = call(capsys, "status", "--home", home)
    assert data["examples_words"] == 0


def test_a_turn_without_a_broker_ends_well_and_says_so(capsys, home):
    code, data, _ = call(capsys, "run", "--once", "--wait", "0", "--home", home)
    assert code == 0 and data["refused"] == ["unreachable"] and not data["connected"]


def test_a_second_agent_in_one_home_is_refused(capsys, home):
    with (home / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, data, _ = call(capsys, "run", "--once", "--home", home)
    assert code == 4 and data["error_code"] == "ALREADY_RUNNING"


def test_a_running_agent_stops_at_a_signal_and_says_what_it_did(home):
    command = [sys.executable, "-m", "edge_runtime.cli", "run", "--wait", "0", "--json", "--home", str(home)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert "resting: every condition holds" in running.stderr.readline()
    running.terminate()
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 0 and json.loads(out)["turns"] >= 1


def test_doctor_names_what_is_wrong_line_by_line(capsys, home):
    code, data, _ = call(capsys, "doctor", "--home", home)
    found = {item["name"]: item for item in data["items"]}
    assert code == 1
    assert found["model"]["ok"] and "golden" in found["model"]["finding"]
    assert found["identity"]["ok"] and found["sensors"]["ok"] and found["interpreter"]["ok"]
    assert not found["broker"]["ok"] and "does not answer" in found["broker"]["finding"]


@pytest.mark.parametrize(
    ("name", "check", "cost"),
    [
        ("state.db", "state", "an update that waits"),
        ("examples.db", "examples", "no text"),
        ("slots/training.json", "state", "an older one"),
    ],
)
def test_doctor_says_which_broken_file_may_be_moved_away_and_what_that_costs(capsys, home, name, check, cost):
    for path in home.glob(f"{name}-*"):
        path.unlink()
    (home / name).write_bytes(b"x" * 8192)
    code, data, _ = call(capsys, "doctor", "--home", home)
    found = {item["name"]: item for item in data["items"]}
    assert code == 1 and not found[check]["ok"]
    assert f"{home / name}" in found[check]["finding"] and cost in found[check]["finding"]
    assert (home / name).read_bytes() == b"x" * 8192, "a doctor touches nothing"


def test_mistakes_in_the_settings_are_all_told_with_file_line_and_key(capsys, home):
    (home / "settings.toml").write_text('popluation = "x"\n[policy]\nnight_start = "25:00"\n')
    code, data, _ = call(capsys, "status", "--home", home)
    assert code == 2
    assert 'settings.toml:1:1: unknown key "popluation"; did you mean "population"?' in data["message"]
    assert 'settings.toml:3:15: "policy.night_start"' in data["message"]
    (home / "settings.toml").write_text('[policy]\ntime_zone = "Europe/Berln"\n')
    code, data, _ = call(capsys, "status", "--home", home)
    assert code == 2 and "policy.time_zone" in data["message"]


def test_enrolling_with_a_server_that_does_not_answer_is_exit_5_and_a_missing_token_exit_3(capsys, tmp_path):
    (tmp_path / "token").write_text("t\n")
    home = tmp_path / "home"
    code, data, _ = call(capsys, "enrol", "http://127.0.0.1:9", "--token-file", tmp_path / "token", "--home", home)
    assert code == 5 and data["error_code"] == "SERVER_UNREACHABLE"
    assert identity.load(home).device, "the key is made once and kept for the next attempt"
    code, _, _ = call(capsys, "enrol", "http://127.0.0.1:9", "--token-file", tmp_path / "none", "--home", home)
    assert code == 3


def test_a_mistyped_command_gets_a_near_miss(capsys):
    assert run_command(build_parser, ["statsu"]) == 2
    assert "did you mean 'status'?" in capsys.readouterr().err


def test_evaluate_scores_plain_text_and_people(capsys, tmp_path):
    plain, people = tmp_path / "text.txt", tmp_path / "people.jsonl"
    plain.write_text(TEXT)
    people.write_text("".join(json.dumps({"user": str(i), "messages": TEXT.split("\n")[:20]}) + "\n" for i in range(3)))
    code, data, _ = call(capsys, "evaluate", TINY / "model.tflite", plain)
    expected = score(RUNNER, MANIFEST.signatures["evaluate"], PACKED, [VOCABULARY.encode_text(TEXT)])
    assert code == 0 and (data["words"], data["hits3"]) == (expected.count, expected.hits3)
    assert data["loss"] == pytest.approx(expected.mean_loss, abs=1e-5)
    code, data, _ = call(
        capsys, "evaluate", TINY / "model.tflite", people,
        "--manifest", TINY / "manifest.bin", "--vocabulary", TINY / "vocabulary.txt",
    )  # fmt: skip
    assert code == 0 and data["streams"] == 3
    code, data, _ = call(capsys, "evaluate", TINY / "none.tflite", plain)
    assert code == 3
    code, data, _ = call(capsys, "evaluate", TINY / "vocabulary.txt", plain)
    assert code == 1 and data["error_code"] == "MALFORMED"


@pytest.mark.parametrize("runtime", INSTALLED)
def test_conformance_answers_recorded_cases_in_their_format(tmp_path, runtime):
    rng = np.random.default_rng(2)
    cases = {
        "case/0/signature": np.array("suggest_context"),
        "case/0/input/tokens": np.array(MANIFEST.golden.tokens, np.int32),
        "case/1/signature": np.array("suggest"),
        "case/1/input/token": np.array([7], np.int32),
        "case/1/input/state_h": rng.normal(size=(1, 16)).astype(np.float32),
        "case/1/input/state_c": rng.normal(size=(1, 72)).astype(np.float32),
    }
    np.savez(tmp_path / "cases.npz", **cases)
    command = [
        sys.executable, "-m", "edge_runtime.cli", "conformance", str(TINY / "model.tflite"),
        str(tmp_path / "cases.npz"), str(tmp_path / "results.npz"), "--runtime", runtime,
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "results.npz") as results:
        assert set(results.files) == {f"case/0/output/{n}" for n in ("ids", "scores", "log_probs")} | {
            f"case/1/output/{n}" for n in ("ids", "scores", "next_state_h", "next_state_c")
        }
        assert np.isfinite(results["case/0/output/log_probs"]).all()


def test_help_is_light():
    code = "import sys\nfrom edge_runtime.cli import build_parser\nbuild_parser().format_help()\n"
    code += "print(sorted({'numpy', 'paho', 'msgspec', 'cryptography', 'sqlite3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"


def test_a_broken_example_store_is_one_line_and_what_was_made_of_it_is_forgotten(capsys, home):
    for path in home.glob("examples.db*"):
        path.unlink()
    (home / "examples.db").write_bytes(b"x" * 8192)
    (home / "checkpoint.npz").write_bytes(b"rows of a person")
    for command in (["status"], ["add", "Baba bobo"], ["forget", "--everything", "--yes"]):
        code, data, err = call(capsys, *command, "--home", home)
        assert code == 1 and data["error_code"] == "HOME_BROKEN"
        assert err.count("\n") == 1 and "examples.db" in err
    assert not (home / "checkpoint.npz").exists()
