"""The exported file on the devices' interpreters, each in a process of its own."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_export import conformance
from model_export.bundle import read_bundle
from model_export.conformance import (
    Case,
    ConformanceError,
    Finding,
    judge_all,
    make_trials,
    private_trial,
    run_on_device,
    sampled_trial,
    train_trial,
)
from model_export.convert import template_tensors
from model_export.network import LENGTH
from model_export.reference import context_logits, suggestion_log_probs
from tests.model_export.conftest import VARIANT, VARIANT_CANDIDATES, lively_tensors
from wire_contract.patch import patch

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]

DEVICE_PROCESS = Path(__file__).parent / "device_process.py"


def ask(python, runtime, model, trials):
    command = [str(python), str(DEVICE_PROCESS)]
    return judge_all(trials, run_on_device(command, model, [trial.case for trial in trials], runtime))


def test_every_device_interpreter_agrees_with_float64_on_the_tiny_bundle(bundle_folder, device_pythons):
    trials = make_trials(read_bundle(bundle_folder), seed=4)
    assert {trial.case.signature for trial in trials} == {
        "train", "train_sampled", "train_private", "evaluate", "suggest", "suggest_context",
    }  # fmt: skip
    for python, runtime in device_pythons:
        findings = ask(python, runtime, bundle_folder / "model.tflite", trials)
        assert len(findings) > 40
        assert [finding for finding in findings if not finding.holds] == [], (python, runtime)


def test_every_device_interpreter_agrees_with_float64_on_the_shipped_starter(small_bundle, device_pythons):
    trials = make_trials(read_bundle(small_bundle), seed=4)
    for python, runtime in device_pythons:
        findings = ask(python, runtime, small_bundle / "model.tflite", trials)
        assert [finding for finding in findings if not finding.holds] == [], (python, runtime)


def test_a_file_with_other_weights_is_found_by_the_int8_checks(bundle_folder, bundle_parts, size, tmp_path):
    model, manifest = bundle_parts
    other = tmp_path / "other.tflite"
    other.write_bytes(patch(model, manifest, lively_tensors(size, seed=99)))
    findings = ask(sys.executable, "litert", other, make_trials(read_bundle(bundle_folder), seed=4))
    wrong = {finding.name.split()[0] for finding in findings if not finding.holds}
    assert wrong == {"suggest", "suggest_context"}


def test_every_signature_conforms_again_after_other_weights_were_patched_in(
    bundle_folder, bundle_parts, size, device_pythons, tmp_path
):
    bundle = read_bundle(bundle_folder)
    later = patch(patch(bundle.model, bundle.manifest, lively_tensors(size, seed=98)), bundle.manifest,
                  lively_tensors(size, seed=99), keep=0.5)  # fmt: skip
    path = tmp_path / "later.tflite"
    path.write_bytes(later)
    trials = make_trials(replace(bundle, model=later), seed=4)
    assert {trial.case.signature for trial in trials} == set(bundle.manifest.signatures)
    for python, runtime in device_pythons:
        findings = ask(python, runtime, path, trials)
        assert [finding for finding in findings if not finding.holds] == [], (python, runtime)


def test_a_variant_of_other_shapes_conforms_on_every_device_interpreter(
    half_template, tensors, layout, size, device_pythons, tmp_path
):
    path = tmp_path / "variant.tflite"
    path.write_bytes(half_template.data)
    rng = np.random.Generator(np.random.PCG64(6))
    trials = [
        train_trial(tensors, layout, size, rng, "train_b3_l8", VARIANT),
        sampled_trial(tensors, layout, size, VARIANT_CANDIDATES, rng, "train_sampled_b3_l8", VARIANT),
        private_trial(tensors, layout, size, rng, "train_private_b3_l8", VARIANT),
    ]
    for python, runtime in device_pythons:
        findings = ask(python, runtime, path, trials)
        assert len(findings) > 20
        assert [finding for finding in findings if not finding.holds] == [], (python, runtime)


def test_float16_suggestions_are_those_of_the_rounded_weights(half_template, size):
    from model_export.interpreter import Interpreter

    rounded = {
        name: value.astype(np.float16).astype(np.float32) if value.ndim == 2 else value
        for name, value in template_tensors(size).items()
    }
    for value in rounded.values():
        # The template's own weights are so large that its states are chaotic; what is judged is the constants' use.
        assert np.abs(value).max() > 0.5
    context = np.zeros(LENGTH, np.int32)
    context[-2:] = 40, 50
    outputs = Interpreter(half_template.data).run("suggest_context", {"tokens": context})
    exact = suggestion_log_probs(context_logits(rounded, context))
    assert np.abs(outputs["log_probs"][4:] - exact).max() < 1e-4


def test_cases_are_the_same_for_one_seed_and_differ_for_another(bundle_folder):
    bundle = read_bundle(bundle_folder)
    first, same, other = make_trials(bundle, 1), make_trials(bundle, 1), make_trials(bundle, 2)
    for a, b in zip(first, same, strict=True):
        for name, value in a.case.inputs.items():
            assert np.array_equal(value, b.case.inputs[name])
    assert not np.array_equal(first[0].case.inputs["tokens"], other[0].case.inputs["tokens"])


def test_an_output_that_is_missing_does_not_hold(bundle_folder):
    trials = make_trials(read_bundle(bundle_folder), seed=4)
    findings = judge_all(trials, [{} for _ in trials])
    assert len(findings) == len(trials)
    assert not any(finding.holds for finding in findings)


def test_an_error_that_is_not_a_number_does_not_hold():
    assert not Finding("x", float("nan"), 1.0).holds
    assert Finding("x", 1.0, 1.0).holds


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; print('no such op', file=sys.stderr); sys.exit(5)", "exited with 5: no such op"),
        ("import sys; sys.exit(0)", "the results are an .npz"),
        ("import sys; open(sys.argv[3], 'wb').write(b'junk')", "the results are an .npz"),
    ],
)
def test_a_device_that_fails_is_named_with_its_last_words(tmp_path, script, said):
    path = tmp_path / "device.py"
    path.write_text(script)
    with pytest.raises(ConformanceError, match=said):
        run_on_device([sys.executable, str(path)], tmp_path / "m", [Case("suggest", {"token": np.zeros(1)})], "litert")


def test_a_python_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConformanceError, match="cannot be started"):
        conformance.runtimes_of(tmp_path / "python")
