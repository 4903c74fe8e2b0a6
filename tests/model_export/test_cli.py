"""The command as a person or a script meets it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from cli_contract.main import run_command
from model_export.cli import PRESET_NAMES, build_parser
from model_export.network import PRESETS


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


def json_line(text):
    return json.loads(text.splitlines()[-1])


@pytest.fixture
def key(tmp_path, capfd):
    path = tmp_path / "key.pem"
    assert run(capfd, "keygen", path)[0] == 0
    return path


def test_the_presets_that_the_parser_names_are_those_that_exist():
    assert set(PRESET_NAMES) == set(PRESETS)


def test_a_key_is_readable_by_its_owner_only_and_never_overwritten(key, capfd):
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    code, out, err = run(capfd, "keygen", key)
    assert code == 4
    assert "is there already" in err
    assert out == ""
    assert key.read_bytes() == before


@pytest.mark.needs_tensorflow
@pytest.mark.needs_litert
def test_export_show_and_verify_work_one_after_the_other(tmp_path, key, capfd):
    bundle = tmp_path / "bundle"
    options = ("--preset", "tiny", "--checkpoint", "untrained", "--population", "test", "--signing-key", key)
    code, out, err = run(capfd, "export", *options, "--output", bundle, "--created-at", 1_800_000_000, "--json")
    assert code == 0, err
    exported = json_line(out)
    assert exported["parameters"] == PRESETS["tiny"].parameters
    assert err == "", "native libraries' chatter stays off the terminal"
    code, out, _ = run(capfd, "show", bundle, "--json")
    shown = json_line(out)
    assert code == 0
    assert shown["sha256"] == exported["sha256"]
    assert shown["signatures"]["train"]["fully_connected"] == 0
    assert shown["public_key"] == (bundle / "manifest_key.pub").read_text().strip()
    code, out, err = run(capfd, "verify", bundle, "--json", "--manifest-key", shown["public_key"])
    verified = json_line(out)
    assert code == 0, err
    assert verified["failed"] == 0
    assert verified["worst_gradient_error"] < 5e-6
    first = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert run(capfd, "export", *options, "--output", bundle, "--created-at", 1_800_000_000)[0] == 0
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == first


@pytest.mark.needs_tensorflow
@pytest.mark.needs_litert
def test_a_bundle_with_one_flipped_bit_is_refused_by_show_and_verify(bundle_folder, capfd):
    model = bundle_folder / "model.tflite"
    data = bytearray(model.read_bytes())
    data[1000] ^= 4
    model.write_bytes(data)
    for command in ("show", "verify"):
        code, out, err = run(capfd, command, bundle_folder)
        assert code == 4
        assert out == ""
        assert "hashes to what the manifest says" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"--signing-key": "none.pem"}, 3, "no such file"),
        ({"--checkpoint": "none.npz"}, 3, "no such file"),
        ({"--vocabulary": "none.txt"}, 3, "no such file"),
        ({"--preset": "reference"}, 3, "there are none for reference"),
        ({"--preset": "smal"}, 2, "did you mean 'small'?"),
        ({"--valid-days": "0"}, 2, "--valid-days is positive, got 0"),
        ({"--valid-days": "many"}, 2, "invalid int value"),
        ({"--population": "My Phones"}, 2, "--population is 1 to 40 of a-z, 0-9 and -, not beginning with -, got 'My"),
        ({"--population": "a/b"}, 2, "got 'a/b'"),
    ],
)
def test_what_is_wrong_with_an_export_is_said_in_one_line_and_nothing_is_written(
    tmp_path, key, capfd, change, code, said
):
    options = {"--population": "p", "--signing-key": key, "--output": tmp_path / "bundle", **change}
    got, out, err = run(capfd, "export", *[word for pair in options.items() for word in pair])
    assert got == code
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_a_key_that_others_may_read_is_refused(tmp_path, key, capfd):
    key.chmod(0o644)
    code, _, err = run(capfd, "export", "--population", "p", "--signing-key", key, "--output", tmp_path / "b")
    assert code == 4
    assert "chmod 600" in err


def test_a_file_that_is_no_key_is_refused(tmp_path, key, capfd):
    key.write_text("-----BEGIN PRIVATE KEY-----\nxx\n-----END PRIVATE KEY-----\n")
    code, _, err = run(capfd, "export", "--population", "p", "--signing-key", key, "--output", tmp_path / "b")
    assert code == 4
    assert "unencrypted PEM" in err


def test_a_missing_bundle_is_exit_code_3_in_words_and_in_json(tmp_path, capfd):
    missing = tmp_path / "none"
    for command in (["show", missing], ["verify", missing], ["diff", missing, tmp_path]):
        code, out, err = run(capfd, *command, "--json")
        assert code == 3
        error = json_line(out)
        assert error["error_code"] == "NOT_FOUND"
        assert error["exit_code"] == 3
        assert f"{missing}" in err


def test_a_public_key_of_the_wrong_length_is_a_usage_error(tmp_path, capfd):
    code, _, err = run(capfd, "show", tmp_path, "--manifest-key", "abc")
    assert code == 2
    assert "64 hex digits" in err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--steps", "0"),
        ("--dropout", "1"),
        ("--donor-share", "1.5"),
        ("--learning-rate", "0"),
        ("--learning-rate", "nan"),
    ],
)
def test_pretrain_refuses_settings_that_make_no_sense(tmp_path, capfd, option, value):
    code, _, err = run(capfd, "pretrain", "--public", "x", "--output", tmp_path / "out", option, value)
    assert code == 2
    assert option in err
    assert not (tmp_path / "out").exists()


def test_pretrain_names_the_bad_line_of_its_text(tmp_path, capfd):
    (tmp_path / "t.jsonl").write_text("oops\n")
    code, _, err = run(capfd, "pretrain", "--public", tmp_path / "t.jsonl", "--output", tmp_path / "out")
    assert code == 1
    assert "t.jsonl:1: a line is one JSON object" in err


def test_pretrain_says_when_there_are_too_few_words(tmp_path, capfd):
    (tmp_path / "t.jsonl").write_text('{"user": "a", "messages": ["one two three"]}\n')
    code, _, err = run(capfd, "pretrain", "--public", tmp_path / "t.jsonl", "--output", tmp_path / "out")
    assert code == 4
    assert "needs 9996 different words, got 3" in err


@pytest.mark.needs_tensorflow
def test_pretrain_writes_a_checkpoint_that_export_takes(tmp_path, capfd):
    from model_export.starter import load_start

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b for a in letters for b in letters][:620]
    text = tmp_path / "t.jsonl"
    text.write_text(json.dumps({"user": "a", "messages": [" ".join(words[i : i + 30]) for i in range(0, 620, 10)]}))
    out_folder = tmp_path / "out"
    code, out, err = run(
        capfd, "pretrain", "--preset", "tiny", "--public", text, "--donors", text, "--dev", text,
        "--steps", 3, "--output", out_folder, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json_line(out)["dev_words"] > 1_000
    start = load_start("tiny", str(out_folder / "tiny.npz"), out_folder / "vocabulary.txt")
    provenance = json.loads((out_folder / "provenance.json").read_text())
    assert provenance["vocabulary"]["sha256"] == start.vocabulary.sha256()
    assert provenance["recipe"]["steps"] == 3


def test_brown_is_turned_into_text(tmp_path, capfd):
    from model_export.corpus import read_authors
    from tests.model_export.test_corpus import SAMPLE, brown_package

    brown_package(tmp_path / "b.tgz", ca01=SAMPLE)
    code, out, _ = run(
        capfd, "corpus", "brown", "--package", tmp_path / "b.tgz", "--output", tmp_path / "b.jsonl", "--json"
    )
    assert code == 0
    assert json_line(out)["authors"] == 1
    assert read_authors(tmp_path / "b.jsonl")[0].user == "brown-ca01"


@pytest.mark.needs_tensorflow
@pytest.mark.needs_litert
def test_verify_says_when_the_devices_python_has_no_edge_runtime_answer(bundle_folder, tmp_path, capfd):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo \'["ai_edge_litert"]\'; else echo broken >&2; exit 9; fi\n')
    fake.chmod(0o755)
    code, out, err = run(capfd, "verify", bundle_folder, "--no-tape", "--device-python", fake)
    assert code == 5
    assert "exited with 9: broken" in err
    assert out == ""


def test_ctrl_c_during_an_export_leaves_nothing(tmp_path, key):
    slow = tmp_path / "vocabulary.fifo"
    os.mkfifo(slow)
    command = [
        sys.executable, "-m", "model_export.cli", "export", "--population", "p", "--signing-key", str(key),
        "--vocabulary", str(slow), "--output", str(tmp_path / "out" / "bundle"),
    ]  # fmt: skip
    # A suite that runs in a shell's background is born with Ctrl-C ignored, and its children with it.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    # Opening returns once the export reads at the other end, where it now waits.
    with slow.open("wb"):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "stopped by Ctrl-C" in err
    assert not (tmp_path / "out").exists()
