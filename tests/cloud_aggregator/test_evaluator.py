"""The evaluator asks a command; whatever the command does, the gate gets a number or a named failure."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from cloud_aggregator.adapters.evaluator import CommandEvaluator
from cloud_aggregator.errors import EvaluationFailed
from cloud_aggregator.ports import Score, VersionFile
from wire_contract.manifest import GoldenVector

# Stands for `edge-runtime`: checks that it was asked as documented, counts its calls, and answers.
SCRIPT = """
import json, sys
from pathlib import Path
command, model, text, *rest = sys.argv[1:]
assert command == "evaluate" and rest[0:6:2] == ["--manifest", "--vocabulary", "--golden"], rest
assert rest[5:] == ["16", "--json"], rest
assert Path(rest[1]).read_bytes() == b"signed" and Path(rest[3]).read_text() == "words"
calls = Path(text).with_suffix(".calls")
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
{answer}
"""


def ask(tmp_path, answer, timeout=20.0):
    script = tmp_path / "evaluate.py"
    script.write_text(SCRIPT.replace("{answer}", answer))
    (tmp_path / "model").write_bytes(b"model")
    (tmp_path / "vocabulary").write_text("words")
    evaluator = CommandEvaluator([sys.executable, str(script)], tmp_path / "held-out.txt", timeout)
    return evaluator, VersionFile(3, tmp_path / "model", tmp_path / "vocabulary", b"signed")


def test_the_score_is_the_last_lines_top3_and_is_asked_for_once(tmp_path):
    evaluator, version = ask(tmp_path, "print('warming up'); print(json.dumps({'top3': 27.5}))")
    assert evaluator.score(version) == evaluator.score(version) == Score("top3", 27.5, "words")
    assert (tmp_path / "held-out.calls").read_text() == "x"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("print('{}')", "answered no top3"),
        ("print('top3 27')", "answered no top3"),
        ("pass", "answered no top3"),
        ("print(json.dumps({'top3': 250.0}))", "a percentage, got 250.0"),
        ("print(json.dumps({'top3': float('nan')}))", "a percentage, got nan"),
        ("print('no text', file=sys.stderr); sys.exit(3)", "ended with 3: no text"),
        ("import time; time.sleep(30)", "timed out"),
    ],
)
def test_no_number_is_a_named_failure_and_is_not_remembered(tmp_path, answer, told):
    evaluator, version = ask(tmp_path, answer, timeout=0.7 if "sleep" in answer else 20.0)
    for _ in range(2):
        with pytest.raises(EvaluationFailed, match=told):
            evaluator.score(version)


def test_a_command_that_is_not_installed_is_named():
    evaluator = CommandEvaluator(["no-such-command"], Path("x"), 5.0)
    with pytest.raises(EvaluationFailed, match="no-such-command"):
        evaluator.score(VersionFile(1, Path("model"), Path("vocabulary"), b""))


def test_an_evaluation_can_be_ended_from_outside_and_leaves_no_process(tmp_path):
    started = tmp_path / "started"
    evaluator, version = ask(tmp_path, f"Path({str(started)!r}).touch(); import time; time.sleep(600)", timeout=600.0)
    failures = []

    def evaluate():
        try:
            evaluator.score(version)
        except EvaluationFailed as e:
            failures.append(str(e))

    thread = threading.Thread(target=evaluate)
    thread.start()
    while not started.exists():
        assert thread.is_alive()
        time.sleep(0.01)
    child = evaluator._running.pid
    evaluator.stop()
    thread.join(20)
    assert len(failures) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    with pytest.raises(EvaluationFailed, match="stopped"):
        evaluator.score(version)


def test_a_model_of_arrays_is_scored_by_its_accuracy_and_without_a_vocabulary(tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text(
        "import json, sys\n"
        "assert [sys.argv[4], *sys.argv[6:]] == ['--manifest', '--golden', '16', '--json'], sys.argv\n"
        "print(json.dumps({'top3': 99.0, 'accuracy': 61.5}))"
    )
    (tmp_path / "model").write_bytes(b"model")
    evaluator = CommandEvaluator([sys.executable, str(script)], tmp_path / "held-out.npz", 20.0)
    found = evaluator.score(VersionFile(3, tmp_path / "model", None, b"signed"))
    assert found == Score("accuracy", 61.5, "examples")


def test_a_model_that_predicts_numbers_has_no_accuracy_to_be_judged_by(tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text("import json; print(json.dumps({'loss': 0.25}))")
    (tmp_path / "model").write_bytes(b"model")
    evaluator = CommandEvaluator([sys.executable, str(script)], tmp_path / "held-out.npz", 20.0)
    with pytest.raises(EvaluationFailed, match="answered no accuracy"):
        evaluator.score(VersionFile(3, tmp_path / "model", None, b"signed"))


def test_what_a_version_must_answer_comes_with_its_score_and_a_wrong_answer_is_none(tmp_path):
    asked = "{'top3': 27.5, 'words': 812, 'golden_vectors': [{'context': [2, 7], 'example': 0, 'ids': [5, 6, 9]}]}"
    evaluator, version = ask(tmp_path, f"print(json.dumps({asked}))")
    golden = (GoldenVector(context=(2, 7), ids=(5, 6, 9)),)
    assert evaluator.score(version) == Score("top3", 27.5, "words", 812, golden)
    for wrong in ("[{'context': [2]}]", "'none'", "[{'ids': [-1]}]"):
        evaluator, version = ask(tmp_path, f"print(json.dumps({{'top3': 27.5, 'golden_vectors': {wrong}}}))")
        with pytest.raises(EvaluationFailed, match="answered no top3"):
            evaluator.score(version)
