"""Imported networks and other number formats, through the commands that a person runs, to the devices' interpreters."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cli_contract.main import run_command
from model_export.bundle import read_bundle
from model_export.checkpoint import load_checkpoint, save_checkpoint
from model_export.cli import build_parser
from model_export.network import NetworkSize
from tests.model_export.conftest import lively_tensors
from tests.model_export.test_import import FIXTURE, MAP, WORDS
from wire_contract.patch import patch, quantize, read_tensors

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]
SIZE = NetworkSize(words=90, width=20, cells=56)
DEVICE = Path(__file__).parents[2] / ".venv-device" / "bin" / "python"


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


def said(capfd, *arguments):
    code, out, err = run(capfd, *arguments, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def devices():
    pythons = [sys.executable, *([str(DEVICE)] if DEVICE.exists() else [])]
    return [word for python in pythons for word in ("--device-python", python)]


@pytest.fixture
def key(tmp_path, capfd):
    assert run(capfd, "keygen", tmp_path / "key.pem")[0] == 0
    return tmp_path / "key.pem"


def export(capfd, tmp_path, key, name, *options):
    words = ("--population", "p", "--signing-key", key, "--output", tmp_path / name)
    return said(capfd, "export", *words, *options)


def test_a_pytorch_network_is_imported_exported_and_trains_on_every_interpreter(tmp_path, key, capfd):
    (tmp_path / "map.toml").write_text(MAP)
    (tmp_path / "words.txt").write_text("\n".join(WORDS[:70]) + "\n")
    imported = said(
        capfd, "import", FIXTURE / "cifg.pt", "--map", tmp_path / "map.toml", "--vocabulary", tmp_path / "words.txt",
        "--check", FIXTURE / "cifg-logits.npz", "--output", tmp_path / "imported",
    )  # fmt: skip
    checkpoint, vocabulary = tmp_path / "imported" / "imported.npz", tmp_path / "imported" / "vocabulary.txt"
    exported = export(capfd, tmp_path, key, "bundle", "--checkpoint", checkpoint, "--vocabulary", vocabulary)
    assert exported["parameters"] == imported["parameters"]
    bundle = read_bundle(tmp_path / "bundle")
    floats = load_checkpoint(checkpoint, NetworkSize(words=74, width=16, cells=64))
    codes, scale = quantize(floats["kernel"])
    assert np.array_equal(read_tensors(bundle.model, bundle.manifest)["kernel"], codes.astype(np.float32) * scale)
    verified = said(capfd, "verify", tmp_path / "bundle", "--no-tape", *devices())
    assert verified["failed"] == 0 and verified["worst_gradient_error"] <= 5e-6
    assert "litert" in verified["runtimes"]


def test_a_network_of_its_own_size_with_variants_in_float16_runs_on_every_interpreter(tmp_path, key, capfd):
    tensors = lively_tensors(SIZE, seed=2)
    save_checkpoint(tmp_path / "c.npz", tensors, "float32")
    exported = export(
        capfd, tmp_path, key, "bundle", "--checkpoint", tmp_path / "c.npz", "--weights", "float16", "--variant", "2x5",
        "--minimum-runtime", "0.1",
    )  # fmt: skip
    assert exported["preset"] == "90 words x 20, 56 cells" and exported["variants"] == ["2x5"]
    bundle = read_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert manifest.needs == ("weights:float16",) and manifest.minimum_runtime == "0.1"
    assert {"train", "train_b2_l5", "train_sampled_b2_l5", "train_private_b2_l5"} <= set(manifest.signatures)
    assert manifest.signatures["train_sampled"].candidates == 90, "no more candidates than words"
    stored = read_tensors(bundle.model, manifest)
    for name in ("embedding", "kernel", "projection"):
        assert np.array_equal(stored[name], tensors[name].astype(np.float16).astype(np.float32))
    assert manifest.lineage is not None and len(manifest.lineage.sources) == 2
    assert len(manifest.golden_vectors) == exported["golden_vectors"] > 0
    verified = said(capfd, "verify", tmp_path / "bundle", "--no-tape", *devices())
    assert verified["failed"] == 0 and verified["worst_gradient_error"] <= 5e-6
    moved = {name: value * np.float32(1.25) for name, value in tensors.items()}
    later = patch(patch(bundle.model, manifest, moved, keep=0.5), manifest, tensors)
    assert later == bundle.model, "a float16 version is patched in place and back"


def test_other_formats_are_converted_measured_and_asked_of_each_runtime(tmp_path, key, capfd):
    save_checkpoint(tmp_path / "c.npz", lively_tensors(SIZE, seed=2), "float32")
    export(capfd, tmp_path, key, "bundle", "--checkpoint", tmp_path / "c.npz")
    words = (tmp_path / "bundle" / "vocabulary.txt").read_text().split()[4:]
    (tmp_path / "text.jsonl").write_text(json.dumps({"user": "a", "messages": [" ".join(words * 3)]}))
    report = said(
        capfd, "report", tmp_path / "bundle", "--text", tmp_path / "text.jsonl", "--checkpoint", tmp_path / "c.npz",
        "--questions", 60, "--formats", *devices(),
    )  # fmt: skip
    sizes, scores = report["format_bytes"], report["scores"]
    assert sizes["int8-tensor"] < sizes["int8-channel"]
    assert sizes["int4-embedding"] < sizes["int8-tensor"] < sizes["float16"] < sizes["float32"]
    assert scores["float32"]["worst"] < 1e-3
    assert scores["float32"]["worst"] <= scores["float16"]["worst"] < scores["int8-tensor"]["worst"]
    assert scores["int8-tensor"]["worst"] < scores["int4-embedding"]["worst"] < 5
    told = {(t["format"], t["runtime"]): t["accepted"] for t in report["accepted"]}
    assert all(told[name, "litert"] for name in sizes)
    if ("float32", "tflite") in told:
        assert told["int8-tensor", "tflite"] and told["float16", "tflite"]
        assert not told["int8-channel", "tflite"], "tflite-runtime 2.14 lacks FULLY_CONNECTED version 12"
        assert not told["int4-embedding", "tflite"], "tflite-runtime 2.14 gathers no 4-bit values"
