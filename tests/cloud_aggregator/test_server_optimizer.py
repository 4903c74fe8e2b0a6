"""Server optimizers against plain float64 formulas written apart from them, one value at a time."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.server_optimizer import OptimizerSettings, OptimizerState, learning_rate, step

DELTAS = np.random.default_rng(5).normal(size=(12, 30)).astype(np.float32) * 0.01
MASTER = np.random.default_rng(6).normal(size=30).astype(np.float32)


def run(settings, deltas=DELTAS):
    state = OptimizerState.start(MASTER)
    for delta in deltas:
        state = step(state, delta, settings)
    return state


def test_fedadam_agrees_with_the_papers_formula_with_bias_correction():
    settings = OptimizerSettings(
        name="fedadam", learning_rate=0.03, beta1=0.5, beta2=0.99, epsilon=1e-4, warmup_steps=3
    )
    state = run(settings)
    for i in range(len(MASTER)):
        x, m, v = float(MASTER[i]), 0.0, 0.0
        for t, delta in enumerate(DELTAS[:, i], start=1):
            d = float(delta)
            m = 0.5 * m + 0.5 * d
            v = 0.99 * v + 0.01 * d * d
            rate = 0.03 * min(1.0, t / 3)
            x += rate * (m / (1 - 0.5**t)) / (math.sqrt(v / (1 - 0.99**t)) + 1e-4)
        assert state.master[i] == pytest.approx(x, abs=2e-6)
        assert state.m[i] == pytest.approx(m, rel=1e-5, abs=1e-9)
        assert state.v[i] == pytest.approx(v, rel=1e-5)
    assert state.step == len(DELTAS)


def test_fedavgm_is_a_running_sum_of_deltas():
    state = run(OptimizerSettings(name="fedavgm", learning_rate=0.5, beta1=0.9, warmup_steps=0))
    x, m = MASTER.astype(np.float64), np.zeros(30)
    for delta in DELTAS:
        m = 0.9 * m + delta
        x = x + 0.5 * m
    np.testing.assert_allclose(state.master, x, atol=2e-6)


def test_fedavg_with_rate_one_adds_the_delta():
    state = run(OptimizerSettings(name="fedavg", learning_rate=1.0, warmup_steps=0), DELTAS[:1])
    assert state.master.tobytes() == (MASTER.astype(np.float64) + DELTAS[0]).astype(np.float32).tobytes()
    assert not state.m.any()


def test_the_first_adam_step_is_about_the_learning_rate_long():
    # Without the bias correction it would be ten times too long: sqrt(1 / (1 - 0.99)).
    settings = OptimizerSettings(name="fedadam", learning_rate=0.01, epsilon=1e-9, warmup_steps=0)
    moved = step(OptimizerState.start(MASTER), DELTAS[0], settings).master - MASTER
    np.testing.assert_allclose(np.abs(moved), 0.01, rtol=1e-3)


def test_the_rate_warms_up_then_falls_to_its_final_share_and_stays_there():
    settings = OptimizerSettings(learning_rate=1.0, warmup_steps=4, decay_steps=14, final_share=0.2)
    rates = [learning_rate(t, settings) for t in range(1, 20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[8] == pytest.approx(0.6)
    assert rates[13] == pytest.approx(0.2)
    assert rates[14:] == [pytest.approx(0.2)] * 5


@given(st.integers(1, 2000), st.integers(0, 50), st.integers(0, 500), st.floats(0, 1))
def test_the_rate_is_never_above_its_setting_nor_below_zero(t, warmup, decay, share):
    settings = OptimizerSettings(learning_rate=0.3, warmup_steps=warmup, decay_steps=decay, final_share=share)
    assert 0.0 <= learning_rate(t, settings) <= 0.3


def test_two_runs_give_the_same_bytes():
    settings = OptimizerSettings()
    assert run(settings).master.tobytes() == run(settings).master.tobytes()


def test_weights_that_would_not_be_finite_are_refused_and_the_state_stays():
    state = OptimizerState.start(MASTER)
    huge = np.full(30, 3e38, dtype=np.float32)
    with pytest.raises(ValueError, match="stay finite"):
        step(state, huge, OptimizerSettings(name="fedavg", learning_rate=100.0, warmup_steps=0))
    assert state.master.tobytes() == MASTER.tobytes()


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        step(OptimizerState.start(MASTER), DELTAS[0][:5], OptimizerSettings())


@pytest.mark.parametrize("change", [{"beta1": 1.0}, {"name": "sgd"}, {"learning_rate": -1.0}, {"final_share": 2.0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**msgspec.to_builtins(OptimizerSettings()), **change}, OptimizerSettings)
