"""What a version must answer before it is used: golden vectors exactly, and a model of arrays likewise."""

import msgspec
import numpy as np
import pytest

from edge_runtime.golden_asking import as_items, ask
from edge_runtime.model_check import CheckFailed, check
from edge_runtime.model_check_arrays import synthetic_examples
from edge_runtime.ports import RuntimeFailed
from tests.edge_runtime import array_model
from tests.edge_runtime.fakes import RUNTIME, FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from wire_contract.golden_choice import context, padded
from wire_contract.layout import Layout
from wire_contract.manifest import GoldenVector, SignatureSpec
from wire_contract.patch import patch, read_tensors

TOY = ToyAggregator(FakeBroker(), FakeDownloads(), FakeClock())
MANIFEST, MODEL = TOY.manifest, TOY.model


class Forgetful:
    """The shared runtime, which has checked nothing yet."""

    template, version = RUNTIME.template, RUNTIME.version

    def checked(self, sha256):
        return False

    def mark_checked(self, sha256):
        pass


def vectors(count=4):
    length = MANIFEST.signatures["suggest_context"].length
    version, made = RUNTIME.version(MANIFEST, lambda: MODEL), []
    for number in range(count):
        ids = context(MANIFEST.vocabulary_words, length, number)
        answer = version.run("suggest_context", {"tokens": np.array(padded(ids, length), np.int32)})["ids"]
        made.append(GoldenVector(context=ids, ids=tuple(int(i) for i in answer)))
    return tuple(made)


def refusal(manifest, runtime=None, data=MODEL):
    with pytest.raises(CheckFailed) as caught:
        check(data, manifest, runtime or Forgetful())
    return caught.value.reason


def test_golden_vectors_that_come_out_exactly_pass():
    check(MODEL, msgspec.structs.replace(MANIFEST, golden_vectors=vectors()), Forgetful())


@pytest.mark.parametrize("turned", [0, 3])
def test_one_golden_vector_that_comes_out_in_another_order_refuses_the_version(turned):
    wrong = list(vectors())
    wrong[turned] = msgspec.structs.replace(wrong[turned], ids=wrong[turned].ids[::-1])
    assert refusal(msgspec.structs.replace(MANIFEST, golden_vectors=tuple(wrong))) == "golden_vector"


def test_a_golden_vector_that_the_signature_cannot_be_asked_refuses_the_version():
    long = GoldenVector(context=(5,) * 100, ids=(5, 6, 7))
    assert refusal(msgspec.structs.replace(MANIFEST, golden_vectors=(long,))) == "does_not_run"


class Lying:
    """An interpreter whose `evaluate` answers what no sound graph does."""

    def __init__(self, **answer):
        self.answer = answer

    def run(self, signature, inputs):
        return self.answer


class LyingRuntime(Forgetful):
    def __init__(self, **answer):
        self.answer = answer

    def template(self, manifest, read):
        return Lying(**self.answer)


@pytest.mark.parametrize(
    "answer",
    [
        {"loss": np.float32(1), "count": np.float32(0)},
        {"loss": np.ones(3, np.float32), "count": np.float32(1)},
        {},
        {"loss": None, "count": np.float32(1)},
    ],
    ids=["of no words", "many losses", "no loss", "nothing"],
)
def test_a_graph_that_answers_otherwise_than_it_should_is_refused_and_ends_no_process(answer):
    with np.errstate(divide="ignore"):
        assert refusal(MANIFEST, LyingRuntime(**answer)) in ("does_not_run", "template_loss")


@pytest.mark.filterwarnings("ignore:NumPy will stop allowing:DeprecationWarning")
def test_a_golden_vector_of_a_word_that_no_signature_takes_is_refused_and_ends_no_process():
    far = GoldenVector(context=(1 << 40,), ids=(5, 6, 7))
    manifest = msgspec.structs.replace(MANIFEST, vocabulary_words=1 << 41, golden_vectors=(far,))
    # Numpy 1 wraps such a number round, numpy 2 does not make it.
    assert refusal(manifest) in ("does_not_run", "golden_vector")


class Remembering(Forgetful):
    def __init__(self):
        self.names = set()

    def checked(self, sha256):
        return sha256 in self.names

    def mark_checked(self, sha256):
        self.names.add(sha256)


def test_a_file_that_passed_for_training_is_checked_again_for_the_vectors_of_a_refresh():
    runtime = Remembering()
    check(MODEL, MANIFEST, runtime)
    check(b"nobody reads it", MANIFEST, runtime)
    wrong = msgspec.structs.replace(vectors(1)[0], ids=vectors(1)[0].ids[::-1])
    assert refusal(msgspec.structs.replace(MANIFEST, golden_vectors=(wrong,)), runtime) == "golden_vector"


def test_the_vectors_that_a_device_would_ship_are_those_that_it_checks():
    changed = {
        name: value * np.float32(6 if name == "output_bias" else 1)
        for name, value in read_tensors(MODEL, MANIFEST).items()
    }
    sure = patch(MODEL, MANIFEST, changed)
    version = RUNTIME.version(MANIFEST, lambda: sure, "surer")
    made = ask(version, MANIFEST, 5)
    assert len(made) == 5 and as_items(made)[0]["ids"] == list(made[0].ids)
    assert ask(version, MANIFEST, 2) == made[:2]


class ArrayVersion:
    """`predict` of a file by the formulas of `array_model`."""

    def __init__(self, manifest, data):
        self.weights = Layout.of(manifest).pack(read_tensors(data, manifest))

    def run(self, name, inputs):
        if name != "predict" or set(inputs) != {"pixels", "site"}:
            raise RuntimeFailed(f"predict takes pixels and site, got {name}: {sorted(inputs)}")
        arrays = {**inputs, "target": np.zeros(1, np.int32)}
        return {"outputs": array_model.forward(arrays, self.weights)[1].astype(np.float32)}


class ArrayRuntime(Forgetful):
    """`served` is what the interpreter really opens."""

    def __init__(self, served=None):
        self.served = served

    def template(self, manifest, read):
        return array_model.ArrayRunner(manifest)

    def version(self, manifest, read, name=""):
        return ArrayVersion(manifest, self.served or read())


@pytest.fixture(scope="module")
def arrays():
    """(manifest, file) of a model of arrays whose manifest says what is true of it."""
    manifest, file = array_model.make()
    examples = synthetic_examples(manifest.examples, 0, array_model.BATCH)
    weights = {t.name: _synthetic(t.shape) for t in manifest.train_inputs}
    loss = float(np.mean(array_model.forward(examples, weights)[0]))
    golden = msgspec.structs.replace(manifest.golden, template_loss=loss, loss_tolerance=1e-4, logit_tolerance=1e-3)
    signatures = manifest.signatures | {"predict": SignatureSpec(batch=1, length=1)}
    manifest = msgspec.structs.replace(manifest, golden=golden, signatures=signatures)
    made = ask(ArrayVersion(manifest, file), manifest, 3)
    return msgspec.structs.replace(manifest, golden_vectors=made), file


def _synthetic(shape):
    i = np.arange(int(np.prod(shape)))
    return (0.05 * ((7919 * i) % 201 - 100) / 100).astype(np.float32).reshape(shape)


def test_synthetic_examples_are_the_same_whether_made_at_once_or_one_by_one():
    at_once = synthetic_examples(array_model.SPECS, 0, 5)
    for number in range(5):
        one = synthetic_examples(array_model.SPECS, number, 1)
        assert all(np.array_equal(at_once[name][number : number + 1], one[name]) for name in one)
    assert at_once["pixels"].dtype == np.float32 and set(at_once["site"].tolist()) == {0, 1}


def test_a_model_of_arrays_whose_manifest_is_true_passes(arrays):
    manifest, file = arrays
    assert manifest.golden_vectors
    check(file, manifest, ArrayRuntime())


def test_an_interpreter_that_computes_another_loss_is_found(arrays):
    manifest, file = arrays
    golden = msgspec.structs.replace(manifest.golden, template_loss=manifest.golden.template_loss + 0.01)
    assert refusal(msgspec.structs.replace(manifest, golden=golden), ArrayRuntime(), file) == "template_loss"


def test_weights_that_predict_does_not_use_are_found(arrays):
    manifest, file = arrays
    other = patch(file, manifest, {name: v * np.float32(1.5) for name, v in read_tensors(file, manifest).items()})
    assert refusal(manifest, ArrayRuntime(served=other), file) == "logit_tolerance"


def test_a_golden_vector_of_arrays_that_comes_out_otherwise_is_found(arrays):
    manifest, file = arrays
    wrong = (msgspec.structs.replace(manifest.golden_vectors[0], ids=(2, 1, 0)),)
    right = manifest.golden_vectors[0].ids
    assert right != (2, 1, 0)[: len(right)]
    assert refusal(msgspec.structs.replace(manifest, golden_vectors=wrong), ArrayRuntime(), file) == "golden_vector"


def test_a_loss_that_this_release_does_not_know_is_refused_by_name(arrays):
    manifest, file = arrays
    assert refusal(msgspec.structs.replace(manifest, loss="hinge"), ArrayRuntime(), file) == "unknown_loss"
