"""Weights out of Keras archives and SavedModels: nothing of an archive runs, and a program's own answers judge it."""

import json
import zipfile

import numpy as np
import pytest

from cli_contract.main import run_command
from model_export.cli import build_parser
from model_export.importing.array_files import KERAS_WEIGHTS, read_arrays
from model_export.importing.refusal import BadImport
from model_export.network import NetworkSize, initial_tensors

pytestmark = pytest.mark.needs_tensorflow
SIZE = NetworkSize(words=70, width=16, cells=64)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [f"{a}{b}" for a in LETTERS for b in LETTERS][:66]
MAP = """
embedding = "words/0"
output_bias = "bias/0"
kernel = "coupled/0"
kernel_bias = "coupled/1"
projection = "coupled/2"
"""


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.Generator(np.random.PCG64(5))
    made = initial_tensors(SIZE, rng)
    made["embedding"] *= 8
    made["output_bias"] = rng.normal(0, 1, SIZE.words).astype(np.float32)
    made["kernel_bias"] = rng.normal(0, 0.5, 3 * SIZE.cells).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def model(tensors):
    from model_export.keras_network import NextWordModel

    network = NextWordModel(SIZE)
    network.load(tensors)
    return network


@pytest.fixture(scope="module")
def functional(tensors):
    """The same network as somebody else would write it: layers of their own names, tied by `ops.matmul`."""
    import keras

    from model_export.keras_network import CifgCell

    class SavableCell(CifgCell):
        def get_config(self):
            return {**super(CifgCell, self).get_config(), "width": self.width, "cells": self.cells}

    class TiedOutput(keras.layers.Layer):
        def __init__(self, embedding, **kwargs):
            super().__init__(**kwargs)
            self.embedding = embedding

        def build(self, shape):
            self.bias = self.add_weight(shape=(SIZE.words,), name="bias")

        def call(self, states):
            return keras.ops.matmul(states, keras.ops.transpose(self.embedding.embeddings)) + self.bias

        def get_config(self):
            return {**super(keras.layers.Layer, self).get_config(), "embedding": self.embedding.name}

    tokens = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(SIZE.words, SIZE.width, name="words")
    cell = SavableCell(SIZE.width, SIZE.cells, name="coupled")
    states = keras.layers.RNN(cell, return_sequences=True, name="recurrence")(embedding(tokens))
    output = TiedOutput(embedding, name="bias")
    network = keras.Model(tokens, output(states))
    embedding.embeddings.assign(tensors["embedding"])
    cell.kernel.assign(tensors["kernel"])
    cell.kernel_bias.assign(tensors["kernel_bias"])
    cell.projection.assign(tensors["projection"])
    output.bias.assign(tensors["output_bias"])
    return network


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(["<pad>", "<s>", "<unk>", "<num>", *WORDS]) + "\n")
    return path


@pytest.fixture
def logits(tmp_path, model):
    tokens = np.array([[1, 7, 69, 4], [2, 2, 30, 0]], np.int32)
    np.savez(tmp_path / "logits.npz", tokens=tokens, logits=np.asarray(model(tokens)))
    return tmp_path / "logits.npz"


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


def assert_imported(folder, tensors):
    from model_export.checkpoint import load_checkpoint

    kept = load_checkpoint(folder / "imported.npz", SIZE)
    assert all(np.array_equal(kept[name], tensors[name]) for name in tensors)


def test_weights_that_keras_saved_of_our_model_need_no_map(tmp_path, model, tensors, vocabulary, logits, capfd):
    model.save_weights(tmp_path / "next.weights.h5")
    code, out, err = run(
        capfd, "import", tmp_path / "next.weights.h5", "--vocabulary", vocabulary, "--check", logits,
        "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["worst_logit_difference"] < 1e-5
    assert json.loads(out)["added_specials"] == []
    assert_imported(tmp_path / "out", tensors)


def test_a_keras_archive_of_another_model_is_mapped_by_its_layers_names(
    tmp_path, functional, tensors, vocabulary, logits, capfd
):
    functional.save(tmp_path / "theirs.keras")
    (tmp_path / "map.toml").write_text(MAP)
    code, out, err = run(
        capfd, "import", tmp_path / "theirs.keras", "--map", tmp_path / "map.toml", "--vocabulary", vocabulary,
        "--check", logits, "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["worst_logit_difference"] < 1e-5
    assert_imported(tmp_path / "out", tensors)


def test_the_configuration_of_a_keras_archive_is_never_looked_at(tmp_path, functional):
    functional.save(tmp_path / "theirs.keras")
    with zipfile.ZipFile(tmp_path / "theirs.keras") as archive:
        weights = archive.read(KERAS_WEIGHTS)
    with zipfile.ZipFile(tmp_path / "hostile.keras", "w") as archive:
        archive.writestr("config.json", '{"module": "os", "class_name": "system", "config": "exit 1"}')
        archive.writestr(KERAS_WEIGHTS, weights)
    assert "words/0" in read_arrays(tmp_path / "hostile.keras")


def test_hdf5_that_leads_outside_its_file_is_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.ones(3)
    (tmp_path / "raw").write_bytes(bytes(64))
    for name, rule in (
        ("link", "got a link at w"),
        ("soft", "got a link at w"),
        ("outside", "got outside values at w"),
    ):
        path = tmp_path / f"{name}.weights.h5"
        with h5py.File(path, "w") as file:
            if name == "link":
                file["w"] = h5py.ExternalLink("other.h5", "secret")
            elif name == "soft":
                file["w"] = h5py.SoftLink("/nowhere")
            else:
                file.create_dataset("w", shape=(8,), dtype="f8", external=[(str(tmp_path / "raw"), 0, 64)])
        with pytest.raises(BadImport, match=rule):
            read_arrays(path)


def test_a_group_that_is_its_own_child_is_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        group = file.create_group("a")
        group["a"] = group
        group["b"] = group
    with pytest.raises(BadImport, match="groups are a tree"):
        read_arrays(tmp_path / "x.weights.h5")


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n" + bytes(40), b"PK\x03\x04"])
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_bytes_that_are_no_keras_file_are_refused(tmp_path, data, ending):
    (tmp_path / f"x{ending}").write_bytes(data)
    with pytest.raises(BadImport):
        read_arrays(tmp_path / f"x{ending}")


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory, functional):
    folder = tmp_path_factory.mktemp("saved") / "model"
    functional.export(folder, verbose=False)
    return folder


def saved_map(folder, tensors):
    """Find each tensor among the SavedModel's variables by its shape: all five differ."""
    from model_export.importing.saved_model import read_saved_model

    arrays = read_saved_model(folder)
    names = {
        ours: next(n for n, v in sorted(arrays.items()) if v.shape == value.shape) for ours, value in tensors.items()
    }
    return "\n".join(f'{ours} = "{name}"' for ours, name in names.items())


def test_a_saved_model_is_run_and_must_agree(tmp_path, saved_model, tensors, vocabulary, capfd):
    (tmp_path / "map.toml").write_text(saved_map(saved_model, tensors))
    options = ("--map", tmp_path / "map.toml", "--vocabulary", vocabulary)
    code, out, err = run(capfd, "import", saved_model, *options, "--output", tmp_path / "out", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["checked_against"] == ["serving_default"]
    assert 0 < said["worst_logit_difference"] < 1e-5
    assert_imported(tmp_path / "out", tensors)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert "source/saved_model.pb" in provenance["inputs"]
    code, _, err = run(capfd, "import", saved_model, *options, "--output", tmp_path / "b", "--signature", "nothing")
    assert code == 4 and "has the signatures" in err and "got 'nothing'" in err


def test_a_saved_model_whose_map_is_wrong_is_refused_by_the_worst_logit(
    tmp_path, saved_model, tensors, vocabulary, capfd
):
    wrong = saved_map(saved_model, tensors).splitlines()
    wrong = [line for line in wrong if not line.startswith("kernel =")]
    kernel = next(line for line in saved_map(saved_model, tensors).splitlines() if line.startswith("kernel ="))
    wrong += ["[kernel]", f"from{kernel.removeprefix('kernel')}", 'order = ["output", "forget", "candidate"]']
    (tmp_path / "map.toml").write_text("\n".join(wrong))
    code, _, err = run(
        capfd, "import", saved_model, "--map", tmp_path / "map.toml", "--vocabulary", vocabulary,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 4
    assert "logits are the source's within 0.0001, got" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage", ["variables/variables.index", "variables/variables.data-00000-of-00001", "saved_model.pb"]
)
def test_a_damaged_saved_model_is_refused(tmp_path, saved_model, tensors, vocabulary, damage, capfd):
    import shutil

    shutil.copytree(saved_model, tmp_path / "model")
    (tmp_path / "model" / damage).write_bytes(b"\x00" * 100)
    (tmp_path / "map.toml").write_text(saved_map(saved_model, tensors))
    code, _, err = run(
        capfd, "import", tmp_path / "model", "--map", tmp_path / "map.toml", "--vocabulary", vocabulary,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 4, err
    assert "cannot be" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
