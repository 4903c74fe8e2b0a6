"""The harness of learning claims: repeatable, paired, and the product's own arithmetic."""

import msgspec
import numpy as np
import pytest

from cloud_aggregator.bases import principal_axes
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.server_optimizer import OptimizerSettings, OptimizerState
from edge_runtime import local_training
from edge_runtime.adapters.interpreter import InterpreterRuntime
from fleet_simulator.learning import Fleet, LearningSettings, Start, public_index_set, run, with_index_set
from tests.system.test_fleet import BUNDLE
from wire_contract.basis import decode_basis
from wire_contract.envelope import read_envelope
from wire_contract.layout import Layout
from wire_contract.manifest import decode_manifest
from wire_contract.messages import CodecPlan, Plan
from wire_contract.patch import read_tensors

MANIFEST = decode_manifest(read_envelope((BUNDLE / "manifest.bin").read_bytes()).body)
FILE = (BUNDLE / "model.tflite").read_bytes()
LAYOUT = Layout.of(MANIFEST)
DEVICES, GOAL, STEPS = 5, 3, 4
WHOLE = CodecPlan(mode="topk", bits=8, kept=1.0)


def settings(codec=WHOLE, **changes):
    plan = Plan(rows=8, example_cap=8, minimum_examples=1, codec=codec, **changes)
    optimizer = OptimizerSettings(name="fedavg", learning_rate=1.0, warmup_steps=0)
    return PopulationSettings(goal_count=GOAL, plan=plan, optimizer=optimizer, hysteresis=0.0)


def fleet(population, *, seed=1, steps=STEPS, **others):
    rng = np.random.default_rng(5)
    streams = [rng.integers(4, MANIFEST.vocabulary_words, 60 + 40 * i).astype(np.int32) for i in range(DEVICES)]
    start = Start(MANIFEST, FILE, OptimizerState.start(LAYOUT.flatten(read_tensors(FILE, MANIFEST))))
    runner = InterpreterRuntime("auto").template(MANIFEST, lambda: FILE)
    sent_by = {name: others.pop(name) for name in ("index_set", "basis") if name in others}
    return Fleet(streams, start, LearningSettings(population, steps, seed=seed, **others), runner, **sent_by)


def masters(made):
    return [each.optimizer.master for each in made.rounds()]


def test_one_seed_gives_one_learning_and_another_seed_another():
    first, again, other = (masters(fleet(settings(), seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[-1], other[-1])


def test_a_codec_that_keeps_everything_learns_what_float32_learns():
    exact = masters(fleet(settings(), float32=True, steps=1))[0]
    coded = masters(fleet(settings(), steps=1))[0]
    start = LAYOUT.flatten(read_tensors(FILE, MANIFEST))
    assert np.linalg.norm(coded - exact) < 0.05 * np.linalg.norm(exact - start)
    assert not np.array_equal(coded, exact)


def test_the_first_float32_step_is_the_weighted_mean_of_trainings_done_by_hand():
    population = settings(dropout=0.0)
    made = fleet(population, float32=True, steps=1)
    (first,) = made.rounds()
    rng = np.random.Generator(np.random.PCG64(1))
    order, total = None, np.zeros(LAYOUT.size)
    base = read_tensors(FILE, MANIFEST)
    for turn in range(GOAL):
        order = list(rng.permutation(DEVICES)) if order is None else order
        rng.choice(1, p=(1.0,))
        seed = int(rng.integers(1 << 62))
        stream = made.streams[order[turn]].tolist()
        checkpoint = local_training.begin(stream, LAYOUT.pack(base), population.plan, MANIFEST, seed)
        for each in local_training.steps(made.runner, checkpoint, population.plan, MANIFEST, seed):
            checkpoint = each
        delta = LAYOUT.flatten(LAYOUT.unpack(checkpoint.packed)) - LAYOUT.flatten(base)
        total += delta * min(len(checkpoint.rows), 8) / 8
    expected = LAYOUT.flatten(base) + total / GOAL
    assert np.allclose(first.optimizer.master, expected, atol=1e-6)


def test_stale_updates_weigh_less_and_come_from_older_versions():
    fresh = masters(fleet(settings()))
    stale = masters(fleet(settings(), staleness=(0.0, 0.0, 0.0, 1.0)))
    # Before there is an older version, nobody can be behind; after it all are.
    assert np.array_equal(fresh[0], stale[0])
    start = LAYOUT.flatten(read_tensors(FILE, MANIFEST))
    assert np.linalg.norm(stale[-1] - start) < np.linalg.norm(fresh[-1] - start)


def test_an_update_in_principal_axes_that_keeps_everything_learns_the_same():
    file = principal_axes(read_tensors(FILE, MANIFEST), LAYOUT, words=MANIFEST.vocabulary_words)
    basis = decode_basis(file)
    turned = settings(msgspec.structs.replace(WHOLE, basis=basis.sha256))
    plain, axes = masters(fleet(settings(), steps=1))[0], masters(fleet(turned, basis=basis, steps=1))[0]
    start = LAYOUT.flatten(read_tensors(FILE, MANIFEST))
    assert np.linalg.norm(axes - plain) < 0.05 * np.linalg.norm(plain - start)


def test_a_threshold_makes_updates_shorter_and_the_shared_mode_makes_them_all_one_length():
    everything = run(fleet(settings()), lambda made: None)
    few = run(fleet(settings(msgspec.structs.replace(WHOLE, threshold=1e-3))), lambda made: None)
    assert max(few.update_bytes) < min(everything.update_bytes)
    vectors = [np.zeros(LAYOUT.size, np.float32), np.ones(LAYOUT.size, np.float32)]
    chosen = public_index_set(vectors, share=0.1, explore_share=0.5, seed=1)
    shared = with_index_set(settings(CodecPlan(mode="shared", bits=4, kept=0.1)), chosen)
    last = run(fleet(shared, index_set=chosen), lambda made: None)
    assert not last.refused
    assert max(last.update_bytes) - min(last.update_bytes) < 64


def test_updates_of_which_nothing_reaches_the_threshold_are_accepted_and_move_nothing():
    (only,) = fleet(settings(msgspec.structs.replace(WHOLE, threshold=64.0)), steps=1).rounds()
    assert only.refused == ()
    assert np.array_equal(only.optimizer.master, LAYOUT.flatten(read_tensors(FILE, MANIFEST)))


def test_a_run_without_a_round_is_refused():
    with pytest.raises(ValueError, match="at least one round"):
        run(fleet(settings(), steps=0), lambda made: None)
