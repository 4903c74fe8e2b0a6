"""A Keras model becomes one file: its gradients, its guard against variables, its places, its commands."""

import hashlib
import json
import zipfile

import numpy as np
import pytest

from model_export.conformance import judge_all, run_on_device
from tests.model_export.test_conformance import DEVICE_PROCESS
from wire_contract.manifest import ARRAY_FAMILY, check_manifest, patched_ranges, template_hash
from wire_contract.patch import patch, read_tensors

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]

FAST = ("multilayer_perceptron", "two_towers", "frozen_base_with_head")


@pytest.fixture(scope="session")
def exports():
    """Three of the named models, exported once; `make test-system` exports them all."""
    from tests.model_export.keras_models.exported import export_named

    return {name: export_named(name) for name in FAST}


@pytest.mark.parametrize("name", FAST)
def test_every_device_interpreter_agrees_with_kerass_own_tape(exports, name, device_pythons, tmp_path):
    from tests.model_export.keras_models.exported import trials_of

    export = exports[name]
    path = tmp_path / "model.tflite"
    path.write_bytes(export.file.model)
    trials = trials_of(export, seed=2)
    for python, runtime in device_pythons:
        outputs = run_on_device([str(python), str(DEVICE_PROCESS)], path, [t.case for t in trials], runtime)
        findings = judge_all(trials, outputs)
        assert len(findings) > 6
        assert [finding for finding in findings if not finding.holds] == [], (python, runtime)


def test_other_weights_written_into_the_file_are_what_it_predicts_with(exports):
    from model_export.interpreter import Interpreter
    from tests.model_export.keras_models.exported import Export, trials_of

    export = exports["multilayer_perceptron"]
    rng = np.random.Generator(np.random.PCG64(6))
    new = {t.name: rng.normal(0, 0.3, t.shape).astype(np.float32) for t in export.file.manifest.tensors}
    patched = patch(export.file.model, export.file.manifest, new)
    differs = np.frombuffer(patched, np.uint8) != np.frombuffer(export.file.model, np.uint8)
    allowed = np.zeros(len(patched), bool)
    for start, stop in patched_ranges(export.file.manifest):
        allowed[start:stop] = True
    assert differs.any()
    assert not (differs & ~allowed).any()
    assert template_hash(patched, export.file.manifest) == export.file.manifest.template_sha256
    import dataclasses

    other = Export(export.model, export.examined, dataclasses.replace(export.file, model=patched))
    trials = trials_of(other, seed=2)
    findings = judge_all(trials, [Interpreter(patched).run(t.case.signature, t.case.inputs) for t in trials])
    assert [finding for finding in findings if not finding.holds] == []
    stale = judge_all(trials, [Interpreter(export.file.model).run(t.case.signature, t.case.inputs) for t in trials])
    assert [finding.name for finding in stale if not finding.holds] == ["predict outputs"]


def test_a_frozen_base_costs_a_byte_a_value_and_its_three_signatures_share_it(exports):
    export = exports["frozen_base_with_head"]
    from model_export.flatbuffer import operators

    graph = sum(sum(counts.values()) for counts in operators(export.file.model).values())
    assert export.file.frozen_parameters > 10_000
    # An operator with its tensors takes about 200 bytes; a second copy of the base would show.
    assert len(export.file.model) < export.file.frozen_parameters + 1.3 * export.file.manifest.parameters + 250 * graph
    assert not {tensor.name for tensor in export.file.manifest.tensors} & {w.name for w in export.examined.frozen}


def test_the_manifest_says_what_an_example_is_and_what_the_version_was_made_of(exports):
    manifest = exports["two_towers"].file.manifest
    check_manifest(manifest)
    assert manifest.family == ARRAY_FAMILY
    assert [(spec.name, spec.shape, spec.dtype, spec.role) for spec in manifest.examples] == [
        ("numbers", (6,), "float32", "input"), ("kinds", (3,), "int32", "input"), ("target", (), "int32", "target"),
    ]  # fmt: skip
    assert manifest.loss == "binary_crossentropy"
    assert manifest.lineage.sources == (hashlib.sha256(b"two_towers").hexdigest(),)
    assert [train_input.name for train_input in manifest.train_inputs] == [tensor.name for tensor in manifest.tensors]


def test_the_template_depends_on_the_models_shape_and_not_on_its_weights(exports):
    from model_export.keras_graph.agreement import judge
    from model_export.keras_graph.array_template import convert_arrays, fleet_tensors
    from model_export.keras_graph.examine import examine
    from tests.model_export.keras_models.named import NAMED, built

    export = exports["multilayer_perceptron"]
    again = built("multilayer_perceptron")
    for weight in again.weights:
        weight.assign(weight * 0.5)
    # Keras numbers unnamed layers through a process; the model's own names are kept.
    for ours, theirs in zip(again.layers, export.model.layers, strict=True):
        ours.name = theirs.name
    found = examine(again, NAMED["multilayer_perceptron"].loss)
    template = convert_arrays(found, judge(again, found, np.random.Generator(np.random.PCG64(1))), 4)
    model = patch(template.data, export.file.manifest, fleet_tensors(found))
    assert template_hash(model, export.file.manifest) == export.file.manifest.template_sha256


def test_evaluate_on_synthetic_examples_gives_the_template_loss_of_keras_itself(exports):
    """The manifest's number comes from the rewritten model; here Keras's own layers and losses make it."""
    from model_export.interpreter import Interpreter
    from model_export.keras_graph.agreement import keras_gradient
    from model_export.keras_graph.graph import flatten
    from model_export.keras_graph.synthetic import synthetic_examples, synthetic_weights
    from tests.model_export.keras_models.exported import BATCH, keras_twin

    for export in exports.values():
        graph = flatten(keras_twin(export))
        weights = {w.name: synthetic_weights(w.shape) for w in export.examined.trainable}
        for w in export.examined.trainable:
            variable = graph.steps[w.key[0]].operation.weights[w.key[1]]
            variable.assign(weights[w.name].reshape(variable.shape))
        arrays = synthetic_examples(export.examined.examples, 0, BATCH)
        loss, _ = keras_gradient(export.examined, graph, arrays, np.ones(BATCH, np.float32))
        golden = export.file.manifest.golden
        assert golden.template_loss == pytest.approx(loss, rel=1e-6)
        shares = np.ones(BATCH, np.float32)
        got = Interpreter(export.file.model).run("evaluate", {**arrays, "example_weights": shares, **weights})
        assert float(got["loss"]) / float(got["count"]) == pytest.approx(loss, abs=golden.loss_tolerance)


def test_golden_vectors_are_what_predict_answers(exports):
    from model_export.interpreter import Interpreter
    from model_export.keras_graph.synthetic import synthetic_examples

    asked = 0
    for export in exports.values():
        run = Interpreter(export.file.model).run
        for vector in export.file.manifest.golden_vectors:
            outputs = run("predict", synthetic_examples(export.examined.inputs, vector.example, 1))["outputs"].ravel()
            assert tuple(np.argsort(-outputs, kind="stable")[: len(vector.ids)]) == vector.ids
            asked += 1
    assert asked


def test_a_variable_in_a_signature_is_refused_before_conversion():
    import tensorflow as tf

    from model_export.keras_graph.array_signatures import VariableInGraph, concrete

    planted = tf.Variable([1.0, 2.0], name="never_assigned")
    arguments = {"x": ((2,), tf.float32)}
    with pytest.raises(VariableInGraph, match="never_assigned"):
        concrete(lambda given: {"y": given["x"] * planted}, arguments)
    assert concrete(lambda given: {"y": given["x"] * 2.0}, arguments)


def test_a_variable_that_reached_the_file_is_refused_too(tmp_path):
    """A second net: the operators of the finished file."""
    import tensorflow as tf

    from model_export.flatbuffer import UnexpectedFile
    from model_export.keras_graph.array_template import check_operators

    class Holder(tf.Module):
        def __init__(self):
            self.held = tf.Variable([1.0, 2.0])

        @tf.function(input_signature=[tf.TensorSpec([2], tf.float32)])
        def add(self, x):
            return {"y": self.held.assign_add(x)}

    holder = Holder()
    tf.saved_model.save(holder, str(tmp_path), signatures={"train": holder.add})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path), signature_keys=["train"])
    converter.experimental_enable_resource_variables = True
    with pytest.raises(UnexpectedFile, match="no variable, got train"):
        check_operators(converter.convert())


def test_a_layer_whose_exported_form_computes_something_else_is_named():
    """The exported form of one model beside another, whose layer `wrong` bends differently."""
    import keras

    from model_export.keras_graph.agreement import judge
    from model_export.keras_graph.examine import examine
    from model_export.keras_graph.refusal import Refused

    def model(alpha):
        keras.utils.set_random_seed(2)
        layers = [keras.layers.Dense(4, activation="tanh", name="right"), keras.layers.ELU(alpha, name="wrong")]
        return keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1, name="last")])

    found = judge(model(0.7), examine(model(0.5), "mean_squared_error"), np.random.Generator(np.random.PCG64(1)))
    assert isinstance(found, Refused)
    assert [(refusal.layer, refusal.kind) for refusal in found.refusals] == [("wrong", "ELU")]
    assert "differs from Keras" in found.refusals[0].reason


def test_a_hostile_input_cannot_move_the_zero_that_weights_are_read_with():
    import tensorflow as tf

    from model_export.keras_graph.stored_weights import zero_of

    for value in (np.nan, np.inf, -np.inf, -1e38, 0.0):
        assert int(zero_of(tf.constant([value], tf.float32))) == 0
    for number in (-(2**31), 2**31 - 1, -1):
        assert int(zero_of(tf.constant([[number]], tf.int32))) == 0


def test_stored_weights_read_back_within_half_a_code():
    from model_export.keras_graph.stored_weights import StoredWeights

    rng = np.random.Generator(np.random.PCG64(8))
    tensors = {
        "matrix": rng.normal(size=(70, 33)), "bias": rng.normal(size=(33,)), "vector": rng.normal(size=(1500,)),
        "kernel": rng.normal(size=(3, 3, 16, 20)), "one": rng.normal(size=(1,)),
    }  # fmt: skip
    given = {name: value.astype(np.float32) for name, value in tensors.items()}
    for by_channel in (False, True):
        stored = StoredWeights(given, by_channel=by_channel)
        for name, value in given.items():
            error = np.abs(stored.values(name) - value)
            if value.size < 1024:
                assert not error.any()
                continue
            whole = by_channel and value.ndim > 1
            scale = np.abs(value).max(axis=tuple(range(value.ndim - 1)) if whole else None) / 127
            assert (error <= scale * 0.5001).all()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    import keras

    folder = tmp_path_factory.mktemp("keras")
    from tests.model_export.keras_models.named import built

    built("binary_classifier").save(folder / "good.keras")

    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    keras.Sequential(
        [keras.Input((4,)), Mine(name="mine"), keras.layers.Lambda(lambda x: x, name="code"), keras.layers.Dense(1)]
    ).save(folder / "odd.keras")
    keras.Sequential(
        [keras.Input((4, 4, 4, 1)), keras.layers.Conv3D(1, 2, name="cube"), keras.layers.Flatten(name="flat")]
    ).save(folder / "cube.keras")
    return folder


def run(capsys, *arguments):
    from cli_contract.main import run_command
    from model_export.cli import build_parser

    code = run_command(build_parser, [*map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_examine_lists_every_layer_and_what_an_example_is(saved, capsys):
    code, out, _ = run(capsys, "examine", saved / "good.keras", "--loss", "binary_crossentropy", "--json")
    answer = json.loads(out)
    assert code == 0
    assert [item["kind"] for item in answer["items"]] == ["Dense", "Dense", "Dense"]
    assert answer["examples"] == ["features float32 [15]", "target int32 [4]"]
    assert answer["trained_parameters"] == sum(item["parameters"] for item in answer["items"])


@pytest.mark.parametrize(("file", "layers"), [("odd.keras", ["mine", "code"]), ("cube.keras", ["cube", "keras_model"])])
def test_a_model_that_does_not_fit_ends_with_code_4_and_a_line_for_each_layer(saved, capsys, file, layers, tmp_path):
    key = tmp_path / "absent.pem"
    for command in (
        ["examine"],
        ["export-model", "--population", "p", "--signing-key", key, "--output", tmp_path / "b"],
    ):
        if command[0] == "export-model":
            run(capsys, "keygen", key)
        arguments = [command[0], saved / file, "--loss", "mean_squared_error", *command[1:]]
        code, out, _ = run(capsys, *arguments, "--json")
        answer = json.loads(out)
        refusals = answer["refusals"]
        assert (code, answer["status"], answer["exit_code"]) == (4, "error", 4)
        assert refusals[0]["layer"] == layers[0]
        assert all(refusal["reason"] and refusal["change"] for refusal in refusals)
        code, out, _ = run(capsys, *arguments)
        assert code == 4
        assert sum(refusal["layer"] in out for refusal in refusals) == len(refusals)
    assert not (tmp_path / "b").exists()


def _zip(path, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "."), data)


def test_a_file_that_is_no_keras_model_is_refused_in_plain_words(saved, capsys, tmp_path):
    (tmp_path / "junk.keras").write_bytes(b"\x00" * 500)
    (tmp_path / "empty.keras").write_bytes(b"")
    _zip(tmp_path / "other.keras", a__txt="x")
    _zip(tmp_path / "list.keras", config__json="[]", **{"model.weights.h5": "x"})
    _zip(tmp_path / "broken.keras", config__json="{", **{"model.weights.h5": "x"})
    _zip(tmp_path / "deep.keras", config__json="[" * 100_000, **{"model.weights.h5": "x"})
    cut = (saved / "good.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(cut[: len(cut) // 2])
    for path in sorted(tmp_path.glob("*.keras")):
        code, out, err = run(capsys, "examine", path, "--loss", "mean_squared_error", "--json")
        assert code == 4, (path.name, out, err)
        assert len(json.loads(out)["refusals"]) == 1
    code, out, _ = run(capsys, "examine", tmp_path / "absent", "--loss", "mean_squared_error", "--json")
    assert (code, json.loads(out)["error_code"]) == (3, "NOT_FOUND")


def test_export_model_writes_a_bundle_that_reads_back(saved, capsys, tmp_path):
    from model_export.bundle import read_bundle

    key = tmp_path / "key.pem"
    run(capsys, "keygen", key)
    code, out, err = run(
        capsys, "export-model", saved / "good.keras", "--loss", "binary_crossentropy", "--train-head", 2, "--batch", 8,
        "--population", "clicks", "--signing-key", key, "--output", tmp_path / "bundle", "--json",
    )  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    bundle = read_bundle(tmp_path / "bundle")
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == [
        "manifest.bin", "manifest_key.pub", "model.tflite",
    ]  # fmt: skip
    assert bundle.vocabulary is None
    assert bundle.manifest.population == "clicks"
    assert bundle.manifest.signatures["train"].batch == 8
    assert answer["frozen_parameters"] == 15 * 80 + 80
    assert answer["parameters"] == bundle.manifest.parameters == 80 * 16 + 16 + 16 * 4 + 4
    assert set(read_tensors(bundle.model, bundle.manifest)) == {t.name for t in bundle.manifest.tensors}


@pytest.mark.parametrize("name", ["manifest.bin", "model.tflite", "manifest_key.pub"])
@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None])
def test_a_damaged_bundle_of_arrays_raises_only_the_contracts_errors(exports, signing_key, tmp_path, name, damage):
    from model_export.bundle import read_bundle, write_bundle
    from wire_contract.errors import ContractError

    file = exports["two_towers"].file
    write_bundle(tmp_path / "b", file.model, None, file.manifest, signing_key)
    assert read_bundle(tmp_path / "b").manifest == file.manifest
    path = tmp_path / "b" / name
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    with pytest.raises(ContractError):
        read_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--batch", 0),
        ("--batch", 5000),
        ("--valid-days", 0),
        ("--minimum-runtime", "next"),
        ("--population", "My Phones"),
    ],
)
def test_a_wrong_option_is_a_usage_error(saved, capsys, tmp_path, option, value):
    code, _, err = run(
        capsys, "export-model", saved / "good.keras", "--loss", "mean_squared_error", "--population", "p",
        "--signing-key", tmp_path / "k", "--output", tmp_path / "b", option, value,
    )  # fmt: skip
    assert code == 2
    assert option in err


def test_an_export_never_takes_the_place_of_the_model_that_it_reads(saved, capsys, tmp_path):
    key, model = tmp_path / "key.pem", tmp_path / "mine.keras"
    model.write_bytes((saved / "good.keras").read_bytes())
    before = model.read_bytes()
    run(capsys, "keygen", key)
    for place in (model, tmp_path):
        code, _, err = run(
            capsys, "export-model", model, "--loss", "mean_squared_error", "--population", "p",
            "--signing-key", key, "--output", place,
        )  # fmt: skip
        assert code == 4
        assert "is not overwritten" in err
    assert model.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.pem", "mine.keras"]
