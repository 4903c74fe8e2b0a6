"""`verify` and `diff` of a model of arrays: the devices' interpreters hold it against its manifest."""

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cli_contract.main import run_command
from model_export.bundle import read_bundle, write_bundle
from model_export.cli import build_parser
from model_export.signing_key import load_key
from wire_contract.manifest import GoldenVector
from wire_contract.patch import patch, read_tensors

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]
DEVICE = Path(__file__).parents[2] / ".venv-device" / "bin" / "python"


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


def devices():
    pythons = [sys.executable, *([str(DEVICE)] if DEVICE.exists() else [])]
    return [word for python in pythons for word in ("--device-python", python)]


@pytest.fixture
def exported(tmp_path, capfd):
    import keras

    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [keras.Input((24,)), keras.layers.Dense(48, activation="relu"), keras.layers.Dense(5, activation="softmax")]
    )
    model.save(tmp_path / "model.keras")
    assert run(capfd, "keygen", tmp_path / "key.pem")[0] == 0
    code, _, err = run(
        capfd, "export-model", tmp_path / "model.keras", "--loss", "sparse_categorical_crossentropy",
        "--population", "p", "--signing-key", tmp_path / "key.pem", "--output", tmp_path / "bundle",
    )  # fmt: skip
    assert code == 0, err
    return tmp_path / "bundle", load_key(tmp_path / "key.pem")


def test_a_model_of_arrays_is_verified_and_what_does_not_fit_it_is_found(tmp_path, exported, capfd):
    folder, key = exported
    code, out, err = run(capfd, "verify", folder, *devices(), "--json")
    assert code == 0, err + out
    said = json.loads(out.splitlines()[-1])
    names = {finding["name"] for finding in said["findings"]}
    assert {"evaluate template loss", "predict example 0", "golden vector 0"} <= names
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    golden = manifest.golden_vectors[0]
    lies = {
        "loss": (
            "evaluate template loss",
            msgspec.structs.replace(
                manifest,
                golden=msgspec.structs.replace(manifest.golden, template_loss=manifest.golden.template_loss + 1),
            ),
        ),
        "vector": (
            "golden vector 0",
            msgspec.structs.replace(
                manifest, golden_vectors=(GoldenVector(example=golden.example, ids=((golden.ids[0] + 1) % 5,)),)
            ),
        ),
    }
    for name, (finding, lie) in lies.items():
        write_bundle(tmp_path / name, bundle.model, None, lie, key)
        code, out, _ = run(capfd, "verify", tmp_path / name, "--device-python", sys.executable, "--json")
        assert code == 1
        wrong = [f["name"] for f in json.loads(out.splitlines()[-1])["findings"] if f["error"] > f["allowed"]]
        assert wrong == [finding]


def test_two_versions_of_a_model_of_arrays_are_compared(tmp_path, exported, capfd):
    import hashlib

    folder, key = exported
    bundle = read_bundle(folder)
    tensors = read_tensors(bundle.model, bundle.manifest)
    first = bundle.manifest.tensors[0].name
    model = patch(bundle.model, bundle.manifest, {**tensors, first: tensors[first] * np.float32(2)})
    later = msgspec.structs.replace(bundle.manifest, version=2, sha256=hashlib.sha256(model).hexdigest())
    write_bundle(tmp_path / "later", model, None, later, key)
    code, out, err = run(capfd, "diff", folder, tmp_path / "later", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["same_template"]
    changed = {t["name"]: t["change"] for t in said["tensors"] if not t["equal"]}
    assert changed == {first: pytest.approx(1.0, abs=0.02)}
