import math

import numpy as np
import pytest

from edge_runtime import model_health_task
from edge_runtime.model_health import LEAST_WORDS, MOST_LATENCY, MOST_PERPLEXITY, Health, Measured, judge
from edge_runtime.model_slots import Held
from edge_runtime.ports import RuntimeFailed
from tests.edge_runtime.fakes import RUNTIME, TINY, FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from wire_contract.patch import patch, read_tensors

TOY = ToyAggregator(FakeBroker(), FakeDownloads(), FakeClock())
A = Held(TOY.manifest, TOY.model)


def measured(seconds=1.0, words=1000, nats=4.0, finite=True):
    return Measured([seconds] * 9, words, words * nats, finite)


def test_a_version_that_is_as_good_is_healthy_and_says_what_was_measured():
    health = judge(measured(), measured())
    assert health.reason == "" and "1.00 times the latency" in health.said and "1.000 times the perp" in health.said


@pytest.mark.parametrize("ratio", [MOST_LATENCY * 0.99, MOST_LATENCY * 1.01])
def test_latency_is_judged_by_the_median_of_pairs(ratio):
    busy = Measured([1.0, 1.0, 1.0, 50.0, 50.0], 1000, 4000.0)
    new = Measured([ratio, ratio, ratio, 50.0, 900.0], 1000, 4000.0)
    assert judge(new, busy).reason == ("too_slow" if ratio > MOST_LATENCY else "")


@pytest.mark.parametrize("times", [MOST_PERPLEXITY * 0.999, MOST_PERPLEXITY * 1.001])
def test_perplexity_on_the_persons_text_may_rise_by_a_twentieth(times):
    new = measured(nats=4.0 + math.log(times))
    assert judge(new, measured()).reason == ("worse_on_your_text" if times > MOST_PERPLEXITY else "")


def test_too_little_text_is_skipped_and_said():
    health = judge(measured(words=LEAST_WORDS - 1, nats=9.0), measured(words=LEAST_WORDS - 1))
    assert health.reason == "" and "perplexity not compared" in health.said


def test_what_is_not_finite_is_never_healthy():
    assert judge(measured(finite=False), measured()).reason == "not_finite"
    assert judge(measured(finite=False), None).reason == "not_finite"
    assert judge(Measured([1.0], 1000, math.nan), measured()).reason == "not_finite"


def test_an_old_version_whose_loss_is_broken_is_no_measure():
    assert judge(measured(), Measured([1.0] * 9, 1000, math.inf)).reason == ""


def test_a_clock_that_does_not_move_measures_no_latency():
    assert "latency not measured" in judge(measured(seconds=0.0), measured(seconds=0.0)).said


class HeldOut:
    def __init__(self, words=4000):
        rng = np.random.default_rng(7)
        self.stream = [1, *(rng.zipf(1.3, words).clip(1, 590) + 3).tolist()] if words else []

    def streams(self, manifest):
        return [self.stream] if self.stream else []

    def arrays(self, manifest):
        raise AssertionError("a model of text is not asked for arrays")


def version(change):
    tensors = {name: change(name, value) for name, value in read_tensors(TOY.model, TOY.manifest).items()}
    return Held(TOY.manifest, patch(TOY.model, TOY.manifest, tensors))


class Runtime:
    """The shared runtime, but versions are told apart by their bytes: these have one manifest."""

    def template(self, manifest, read):
        return RUNTIME.template(manifest, read)

    def version(self, manifest, read, name=""):
        return RUNTIME.version(manifest, read, f"health {hash(read())}")


def ticking(step):
    state = [0.0]

    def elapsed():
        state[0] += step
        return state[0]

    return elapsed


def run(held, before, held_out=None, elapsed=None):
    return model_health_task.run(held, before, Runtime(), elapsed or ticking(0.001), held_out or HeldOut())


def test_the_same_version_is_healthy_against_itself():
    health = run(A, A)
    assert health.reason == "" and "1.000 times the perplexity on" in health.said


def test_weights_that_predict_this_persons_text_worse_are_found():
    noise = np.random.default_rng(3)
    worse = version(lambda name, value: value + (noise.normal(0, 3, value.shape) if name == "output_bias" else 0))
    assert run(worse, A).reason == "worse_on_your_text"
    assert "perplexity not compared" in run(worse, A, HeldOut(words=0)).said


def test_weights_that_are_not_numbers_are_found():
    broken = version(lambda name, value: value)
    entry = next(entry for entry in TOY.manifest.tensors if entry.name == "output_bias")
    data = bytearray(broken.data)
    data[entry.offsets[0] : entry.offsets[0] + 400] = np.full(100, np.nan, "<f4").tobytes()
    assert run(Held(TOY.manifest, bytes(data)), A).reason == "not_finite"
    assert run(Held(TOY.manifest, bytes(data)), None).reason == "not_finite"


def test_without_a_version_before_it_only_has_to_answer():
    assert run(A, None) == Health(said="it came up")


def test_a_file_that_does_not_open_is_unhealthy_and_an_old_one_that_does_not_is_not_its_fault():
    garbage = Held(TOY.manifest, (TINY / "vocabulary.txt").read_bytes())
    assert run(garbage, A).reason == "does_not_run"

    class Old(Runtime):
        def version(self, manifest, read, name=""):
            if read() == A.data:
                raise RuntimeFailed("gone")
            return super().version(manifest, read, name)

    same = version(lambda name, value: value * np.float32(1.001))
    assert model_health_task.run(same, A, Old(), ticking(0.001), HeldOut()).reason == ""


class Uncounted:
    """Too little text, and a runtime whose `evaluate` must not be asked for it."""

    def template(self, manifest, read):
        raise AssertionError("of too little text nothing is computed")

    version = Runtime.version


def test_of_too_little_text_nothing_is_computed():
    health = model_health_task.run(A, A, Uncounted(), ticking(0.001), HeldOut(words=LEAST_WORDS - 2))
    assert health.reason == "" and "are held out" in health.said
