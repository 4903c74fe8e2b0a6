"""What `diff` says of two versions, and of what it is not shown."""

import hashlib
import json
import shutil

import msgspec
import numpy as np
import pytest

from cli_contract.main import run_command
from model_export.bundle import write_bundle
from model_export.cli import build_parser
from tests.model_export.test_file_structure import half_version
from wire_contract.patch import patch, read_tensors, stored_codes

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def next_folder(tmp_path, bundle_parts, vocabulary, signing_key):
    """Version 2: one row of the embedding turned round, the projection grown by a tenth, all else as it was."""
    model, manifest = bundle_parts
    tensors = read_tensors(model, manifest)
    tensors["embedding"][7] *= -1
    tensors["projection"] *= np.float32(1.1)
    file = patch(model, manifest, tensors)
    after = msgspec.structs.replace(
        manifest, version=2, sha256=hashlib.sha256(file).hexdigest(), needs=("codec:topk4",), minimum_runtime="0.3"
    )
    write_bundle(tmp_path / "next", file, vocabulary, after, signing_key)
    return tmp_path / "next"


def test_a_version_beside_itself_is_identical(bundle_folder, capfd):
    code, out, _ = run(capfd, "diff", bundle_folder, bundle_folder, "--json")
    said = json.loads(out)
    assert code == 0
    assert said["identical"] and said["same_template"] and said["same_layout"]
    assert said["bytes_that_differ"] == 0
    assert all(t["equal"] and t["change"] == 0 and t["cosine"] == pytest.approx(1) for t in said["tensors"])
    assert said["manifest"] == said["operators"] == {}


def test_the_next_version_differs_by_what_was_changed_and_nothing_else(bundle_folder, next_folder, bundle_parts, capfd):
    model, manifest = bundle_parts
    code, out, _ = run(capfd, "diff", bundle_folder, next_folder, "--json")
    said = json.loads(out)
    assert code == 0
    assert not said["identical"] and said["same_template"] and said["same_layout"]
    by_name = {t["name"]: t for t in said["tensors"]}
    assert {name for name, t in by_name.items() if not t["equal"]} == {"embedding", "projection"}
    embedding = read_tensors(model, manifest)["embedding"].astype(np.float64)
    codes = stored_codes(model, manifest.tensors[0])
    row, whole = np.linalg.norm(embedding[7]), np.linalg.norm(embedding)
    assert by_name["embedding"]["change"] == pytest.approx(2 * row / whole)
    assert by_name["embedding"]["cosine"] == pytest.approx(1 - 2 * row**2 / whole**2)
    assert by_name["embedding"]["codes"] == np.count_nonzero(codes[7])
    assert by_name["embedding"]["same_scale"]
    assert by_name["projection"]["change"] == pytest.approx(0.1, abs=1e-4)
    assert by_name["projection"]["codes"] == 0 and not by_name["projection"]["same_scale"]
    assert by_name["kernel_bias"]["codes"] is None
    assert said["manifest"]["version"] == [1, 2]
    assert said["manifest"]["needs"] == [[], ["codec:topk4"]]
    assert set(said["manifest"]) == {"version", "sha256", "needs", "minimum_runtime"}
    code, out, _ = run(capfd, "diff", bundle_folder, next_folder)
    assert code == 0 and "signatures were not checked" in out


def test_another_format_with_variants_differs_in_kinds_signatures_and_operators(
    tmp_path, bundle_folder, half_template, tensors, vocabulary, signing_key, capfd
):
    file, manifest = half_version(half_template, tensors, vocabulary)
    write_bundle(tmp_path / "half", file, vocabulary, manifest, signing_key)
    said = json.loads(run(capfd, "diff", bundle_folder, tmp_path / "half", "--json")[1])
    assert not said["same_template"] and said["same_layout"]
    kinds = {t["name"]: (t["kind_a"], t["kind_b"]) for t in said["tensors"]}
    assert kinds["kernel"] == ("int8", "float16") and kinds["kernel_bias"] == ("float32", "float32")
    assert all(t["change"] < 0.02 for t in said["tensors"]), "the same weights, rounded otherwise"
    assert said["signatures"]["removed"] == ["evaluate"]
    assert said["signatures"]["added"] == ["train_b3_l8", "train_private_b3_l8", "train_sampled_b3_l8"]
    assert list(said["signatures"]["changed"]) == ["train_sampled"]
    assert said["operators"]["suggest"]["DEQUANTIZE"] > 0


def test_a_zero_tensor_that_became_something_has_no_relative_change(
    tmp_path, bundle_parts, bundle_folder, vocabulary, signing_key, capfd
):
    model, manifest = bundle_parts
    tensors = read_tensors(model, manifest)
    tensors["kernel_bias"][:] = 0
    file = patch(model, manifest, tensors)
    zero = msgspec.structs.replace(manifest, sha256=hashlib.sha256(file).hexdigest())
    write_bundle(tmp_path / "zero", file, vocabulary, zero, signing_key)
    for a, b, change in ((tmp_path / "zero", bundle_folder, None), (bundle_folder, tmp_path / "zero", 1.0)):
        code, out, _ = run(capfd, "diff", a, b, "--json")
        assert code == 0
        assert next(t for t in json.loads(out)["tensors"] if t["name"] == "kernel_bias")["change"] == change
    assert "from 0" in run(capfd, "diff", tmp_path / "zero", bundle_folder)[1]


def test_lone_files_with_their_manifests_beside_them_are_compared(tmp_path, bundle_folder, next_folder, capfd):
    for name, folder in (("one", bundle_folder), ("two", next_folder)):
        shutil.copy(folder / "model.tflite", tmp_path / f"{name}.tflite")
        shutil.copy(folder / "manifest.bin", tmp_path / f"{name}.manifest.bin")
    said = json.loads(run(capfd, "diff", tmp_path / "one.tflite", tmp_path / "two.tflite", "--json")[1])
    assert said["manifest"]["version"] == [1, 2]


def test_a_file_that_is_not_its_manifests_is_refused_before_it_is_read(tmp_path, bundle_folder, capfd):
    shutil.copytree(bundle_folder, tmp_path / "broken")
    data = bytearray((tmp_path / "broken" / "model.tflite").read_bytes())
    data[5000] ^= 1
    (tmp_path / "broken" / "model.tflite").write_bytes(data)
    code, out, err = run(capfd, "diff", bundle_folder, tmp_path / "broken")
    assert code == 4 and out == "" and "hashes to what the manifest says" in err
    assert run(capfd, "diff", bundle_folder, tmp_path / "none")[0] == 3
