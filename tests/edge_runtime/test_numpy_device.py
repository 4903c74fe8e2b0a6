"""A whole device whose engine is numpy, from the first version to an update and a private one; no interpreter runs."""

import msgspec
import numpy as np
import pytest

from edge_runtime import identity
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.numpy_runtime import NumpyRuntime
from edge_runtime.example_noise import secret_of
from edge_runtime.jobs import Queued
from tests.edge_runtime.fakes import World
from tests.edge_runtime.test_local_training import MANIFEST
from tests.edge_runtime.test_trainers import TrainingWorld, wait_for
from wire_contract import codec, envelope
from wire_contract.layout import Layout
from wire_contract.messages import LocalRule, Plan, TaskOffer, decode_message


class NumpyWorld(World):
    def trainer(self):
        return InProcessTrainer(self.home, NumpyRuntime(), self.entropy, self.clock, self.settings.held_out_share)

    def delta(self):
        """Return what the one update says, as a vector, and its header."""
        ((_, update),) = self.aggregator.updates.items()
        size = self.aggregator.manifest.parameters
        return codec.decode(update.plain, size=size, plan=self.aggregator.plan.codec).dense(), update.header


@pytest.fixture
def world(tmp_path):
    world = NumpyWorld(tmp_path / "home")
    yield world
    world.agent.abandon()


needs_private = pytest.mark.skipif(
    "train_private" not in MANIFEST.signatures, reason="the fixture's file was exported without train_private"
)


def private_plan(noise=None):
    rules = [LocalRule(name="example-clip", value=0.05)]
    if noise is not None:
        rules.append(LocalRule(name="example-noise", value=noise))
    return Plan(
        signature="train_private", rows=48, learning_rate=0.5, dropout=0.0, clip_norm=10.0, residual_keep=0.0,
        rules=tuple(rules),
    )  # fmt: skip


@pytest.mark.parametrize("signature", ["train", "train_sampled"])
def test_a_device_without_an_interpreter_takes_a_version_trains_and_sends_its_update(world, signature):
    world.aggregator.plan = Plan(signature=signature, rows=48, learning_rate=0.5, clip_norm=10.0)
    world.type_text()
    world.night()
    delta, header = world.delta()
    assert np.count_nonzero(delta) > 50 and header.loss_before > 1.0


def test_a_trainer_in_a_process_of_its_own_takes_numpy_by_the_settings(tmp_path):
    world = TrainingWorld(tmp_path / "home")
    trainer = world.child(runtime="numpy")
    try:
        assert trainer.runtime.startswith("numpy ")
        trainer.begin(world.job(), lambda: True)
        assert isinstance(wait_for(trainer), Queued)
    finally:
        trainer.close()


def offer_of(world):
    """Return the one task offer that the aggregator published."""
    for message in world.broker.log:
        if message.topic.endswith("/down/task"):
            body = envelope.read_envelope(message.payload).body
            return decode_message(body, TaskOffer)
    raise AssertionError([message.topic for message in world.broker.log])


@needs_private
def test_a_private_update_holds_noise_that_only_the_device_could_make(world, tmp_path):
    world.aggregator.plan = private_plan(noise=2.0)
    world.type_text()
    world.night()
    noisy, header = world.delta()
    assert (header.loss_before, header.loss_after) == (0.0, 0.0) and header.steps == 3
    # The same device, text and seed without noise: what the aggregator could compute from a guess of the text.
    other = NumpyWorld(tmp_path / "other")
    try:
        other.aggregator.plan = private_plan()
        other.type_text()
        other.night()
        bare, header = other.delta()
        assert header.loss_before > 1.0
    finally:
        other.agent.abandon()
    # Three steps of deviation rate x z C / batch; what the codec lets through are the largest of them.
    deviation = 0.5 * 2.0 * 0.05 / 16 * np.sqrt(3)
    sent = np.flatnonzero(noisy)
    assert np.median(np.abs(noisy[sent])) > 2 * deviation
    assert len(np.intersect1d(sent, np.flatnonzero(bare))) < 0.9 * len(sent)
    assert Layout.of(world.aggregator.manifest).size == len(noisy)


@needs_private
def test_the_noise_of_a_task_is_bound_to_the_devices_key_and_its_offer(world):
    world.aggregator.plan = private_plan(noise=2.0)
    world.type_text()
    world.night()
    key, offer = identity.load(world.home).key, offer_of(world)
    secret = secret_of(key, offer)
    again = secret_of(key, msgspec.structs.replace(offer, nonce="0" * 32))
    assert secret != again and world.aggregator.check_ins[0].nonce == offer.nonce
