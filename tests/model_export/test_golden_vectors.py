"""Golden vectors are what the final file answers, and only what it answers with room to spare."""

import msgspec
import numpy as np
import pytest

from model_export.golden_vectors import golden_trials, golden_vectors
from wire_contract.golden_choice import MARGIN, padded
from wire_contract.manifest import decode_manifest, encode_manifest

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]


@pytest.fixture(scope="module")
def run(bundle_parts):
    from model_export.interpreter import Interpreter

    return Interpreter(bundle_parts[0]).run


@pytest.fixture(scope="module")
def vectors(bundle_parts, run):
    return golden_vectors(run, bundle_parts[1].vocabulary_words, 20)


def test_each_is_the_files_own_answer_with_room_between_its_words(run, vectors):
    assert len(vectors) >= 4
    for vector in vectors:
        outputs = run("suggest_context", {"tokens": np.array(padded(vector.context, 20), np.int32)})
        assert tuple(outputs["ids"]) == vector.ids
        best = np.sort(outputs["log_probs"])[::-1][:4].astype(float)
        assert np.all(best[:3] - best[1:] >= MARGIN)


def test_the_same_file_gives_the_same_vectors_and_the_manifest_carries_them(bundle_parts, run, vectors):
    manifest = msgspec.structs.replace(bundle_parts[1], golden_vectors=vectors)
    assert golden_vectors(run, manifest.vocabulary_words, 20) == vectors
    assert decode_manifest(encode_manifest(manifest)).golden_vectors == vectors


def test_a_network_that_is_sure_of_nothing_has_none():
    flat = {"log_probs": np.full(600, -6.0, np.float32)}
    assert golden_vectors(lambda _, __: flat, 600, 20) == ()


@pytest.mark.parametrize(("ids", "wrong"), [((9, 8, 7), 0), ((9, 7, 8), 2), ((9, 8), 1), ((9, 8, 7, 6), 1)])
def test_another_answer_is_a_finding_that_does_not_hold(bundle_parts, vectors, ids, wrong):
    vector = msgspec.structs.replace(vectors[0], ids=(9, 8, 7))
    (trial,) = golden_trials(msgspec.structs.replace(bundle_parts[1], golden_vectors=(vector,)))
    (finding,) = trial.judge({"ids": np.array(ids, np.int32)})
    assert finding.error == wrong and finding.holds is (wrong == 0)
    assert trial.case.inputs["tokens"].shape == (20,)


def test_weights_of_another_version_answer_otherwise(bundle_parts, tensors, vectors):
    from model_export.interpreter import Interpreter
    from wire_contract.patch import patch

    model, manifest = bundle_parts
    other = patch(model, manifest, {**tensors, "output_bias": tensors["output_bias"][::-1].copy()})
    stated = msgspec.structs.replace(manifest, golden_vectors=vectors)
    run = Interpreter(other).run
    findings = [f for trial in golden_trials(stated) for f in trial.judge(run("suggest_context", trial.case.inputs))]
    assert not any(finding.holds for finding in findings)
