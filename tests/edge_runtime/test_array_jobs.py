"""A trainer's jobs on a device whose model learns from arrays."""

import msgspec
import numpy as np
import pytest

from edge_runtime import array_training
from edge_runtime.adapters.checkpoints import CHECKPOINT_FILES
from edge_runtime.adapters.outbox import Outbox
from edge_runtime.adapters.personal_records import MadeRecord, read
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.array_examples import encode_records, of_records
from edge_runtime.jobs import Evaluate, Evaluated, Personalize, Queued, Refused, Stopped, Train, WasForgotten
from edge_runtime.local_training import result_of
from tests.edge_runtime import array_model
from tests.edge_runtime.array_model import SPECS, ArrayRunner, forward, packed_of
from tests.edge_runtime.array_world import PLAN, ArrayWorld
from wire_contract import codec, envelope
from wire_contract.envelope import read_envelope
from wire_contract.layout import Layout
from wire_contract.messages import Chunk, RetryWindow, UpdateHeader, UpdateInit, decode_message
from wire_contract.patch import read_tensors


def train_job(offer):
    return Train(offer=offer, times_forgotten=0, chunk_bytes=32 * 1024)


def run(world, job, may_go_on=lambda: True):
    trainer = world.trainer()
    try:
        trainer.begin(job, may_go_on)
        return trainer.poll()
    finally:
        trainer.close()


def opened(world, offer):
    """Return (header, decoded vector) of the one update that waits, as its aggregator opens it."""
    store = StateStore(world.home / "state.db")
    (name,) = Outbox(store).waiting()
    update = Outbox(store).get(name)
    store.close()
    init = decode_message(read_envelope(update.init).body, UpdateInit)
    header = decode_message(init.header, UpdateHeader)
    sealed = b"".join(decode_message(chunk, Chunk).data for chunk in update.chunks)
    plain = envelope.unseal(
        sealed, header=init.header, ephemeral_key=header.ephemeral_key, recipient=world.aggregator.sealing_key
    )
    return header, codec.decode(plain, size=world.manifest.parameters).dense()


def times(count):
    """Return a `may_go_on` that says yes so often."""
    left = iter([True] * count)
    return lambda: next(left, False)


def test_the_update_is_what_the_training_rules_make_of_the_stores_examples(tmp_path):
    world = ArrayWorld(tmp_path)
    world.add(22)
    offer = world.lease()
    result = run(world, train_job(offer))
    assert isinstance(result, Queued) and result.steps == 2 * 6
    header, vector = opened(world, offer)
    assert (header.examples, header.steps) == (22, 12)
    held = of_records(world.agent.examples.arrays(), SPECS)
    begun = array_training.begin(held, packed_of(world.manifest, world.file), PLAN, world.manifest, offer.seed)
    *_, last = array_training.steps(ArrayRunner(world.manifest), held, begun, PLAN, world.manifest, offer.seed)
    layout = Layout.of(world.manifest)
    delta = layout.flatten(layout.unpack(result_of(last).packed)) - layout.flatten(
        read_tensors(world.file, world.manifest)
    )
    sent = vector != 0
    assert 0.3 < sent.mean() <= 0.5
    assert np.corrcoef(vector[sent], delta[sent])[0, 1] > 0.98


def test_a_training_that_an_evening_interrupts_makes_the_same_update(tmp_path):
    vectors = []
    for name, stops in (("whole", ()), ("stopped", (2, 3))):
        world = ArrayWorld(tmp_path / name)
        world.add(22)
        offer = world.lease()
        for stop in stops:
            assert run(world, train_job(offer), times(stop)) == Stopped(steps=stop + 1)
            assert any((world.home / name).exists() for name in CHECKPOINT_FILES)
        assert isinstance(run(world, train_job(offer)), Queued)
        vectors.append(opened(world, offer))
    assert vectors[0][1].tobytes() == vectors[1][1].tobytes()
    assert vectors[0][0].loss_before == vectors[1][0].loss_before


def test_a_checkpoint_whose_examples_have_ended_is_begun_anew_from_those_that_are_left(tmp_path):
    world = ArrayWorld(tmp_path)
    world.add(8)
    world.clock.time += 29 * 86_400
    world.add(12, seed=2)
    offer = msgspec.structs.replace(world.lease(), deadline=int(world.clock.time) + 40 * 86_400)
    assert isinstance(run(world, train_job(offer), times(1)), Stopped)
    world.agent.examples.expire(world.clock.time + 3 * 86_400)
    result = run(world, train_job(offer))
    assert isinstance(result, Queued) and result.steps == 2 * 3
    assert opened(world, offer)[0].examples == 12


def test_nothing_is_queued_when_the_person_has_everything_forgotten_meanwhile(tmp_path):
    world = ArrayWorld(tmp_path)
    world.add(22)
    offer = world.lease()

    def forget_then_go_on():
        world.agent.forget_everything()
        return True

    assert isinstance(run(world, train_job(offer), forget_then_go_on), WasForgotten)
    store = StateStore(world.home / "state.db")
    assert Outbox(store).waiting() == ()
    store.close()
    assert not any((world.home / name).exists() for name in CHECKPOINT_FILES)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"dropout": 0.1}, "dropout left out"), ({"signature": "train_sampled"}, "trains by 'train'"),
     ({"minimum_examples": 23}, "23 examples or more, the device has 22")],
)  # fmt: skip
def test_a_plan_that_a_model_of_arrays_cannot_follow_is_refused_and_leaves_nothing(tmp_path, change, told):
    world = ArrayWorld(tmp_path, msgspec.structs.replace(PLAN, **change))
    world.add(22)
    result = run(world, train_job(world.lease()))
    assert isinstance(result, Refused) and told in result.reason
    assert not any((world.home / name).exists() for name in CHECKPOINT_FILES)


def evaluate_job(world, **changes):
    offer = world.aggregator.ask_evaluation(world.request(), RetryWindow(earliest=1, latest=2))
    return Evaluate(offer=msgspec.structs.replace(offer, **changes), times_forgotten=0)


class HoldingOut(ArrayWorld):
    """Half of what comes in is for evaluation alone."""

    def open(self):
        self.settings = msgspec.structs.replace(self.settings, held_out_share=0.5)
        return super().open()


def test_an_evaluation_scores_what_is_held_out_and_tells_counts_in_tens(tmp_path):
    world = HoldingOut(tmp_path)
    world.add(150)
    held = of_records(world.agent.examples.held_out_arrays(), SPECS)
    _, chances, *_ = forward(held.arrays, packed_of(world.manifest, world.file))
    hits = int((chances.argmax(axis=1) == held.arrays["target"]).sum())
    found = run(world, evaluate_job(world, minimum_words=20))
    assert found == Evaluated(words=len(held) // 10 * 10, hits1=hits // 10 * 10, hits3=hits // 10 * 10)
    assert 50 < len(held) < 100


def test_the_newest_held_out_examples_are_scored_and_too_few_say_nothing(tmp_path):
    world = HoldingOut(tmp_path)
    # The oldest examples are of another world, and the model is right about none of them.
    weights = packed_of(world.manifest, world.file)
    for seed, shift in ((1, 1), (2, 0)):
        arrays = array_model.draw(150, seed)
        arrays["target"] = ((forward(arrays, weights)[1].argmax(axis=1) + shift) % 3).astype(np.int32)
        world.agent.examples.add_arrays(encode_records(arrays, SPECS), world.clock.now())
    assert run(world, evaluate_job(world, minimum_words=20, most_words=40)) == Evaluated(words=40, hits1=40, hits3=40)
    assert run(world, evaluate_job(world, minimum_words=1000)) == Evaluated(words=0, hits1=0, hits3=0)
    assert run(world, evaluate_job(world, minimum_words=20), times(2)) == Stopped()


def test_a_model_that_predicts_numbers_refuses_to_count_hits(tmp_path):
    world = HoldingOut(tmp_path, loss="mean_squared_error")
    world.add(60)
    result = run(world, evaluate_job(world, minimum_words=10))
    assert isinstance(result, Refused) and "no hits to count" in result.reason


def test_a_personal_copy_of_a_model_of_arrays_is_refused_once_for_a_release(tmp_path):
    world = ArrayWorld(tmp_path)
    world.add(200)
    result = run(world, Personalize(times_forgotten=0, seed=1))
    assert isinstance(result, Refused) and "personal copies are of models of text" in result.reason
    made = read(world.home, MadeRecord)
    assert made.release == world.manifest.sha256 and not made.accepted


def test_a_night_of_the_agent_asks_trains_sends_and_hears_that_it_is_accepted(tmp_path):
    world = ArrayWorld(tmp_path)
    world.add(22)
    reports = world.night()
    assert [name for report in reports for name in report.receipts] == ["accepted"]
    assert sum(report.training_steps for report in reports) == 12
    (update,) = world.aggregator.updates.values()
    assert (update.header.examples, update.header.layout_fingerprint) == (22, world.manifest.layout_fingerprint)


def test_a_device_without_examples_does_not_ask_for_work(tmp_path):
    world = ArrayWorld(tmp_path)
    reports = world.night()
    assert not any(report.checked_in for report in reports) and world.aggregator.check_ins == []


def test_forgetting_everything_between_two_nights_deletes_arrays_checkpoint_and_lease(tmp_path):
    world = ArrayWorld(tmp_path)
    world.add(22)
    offer = world.lease()
    assert isinstance(run(world, train_job(offer), times(2)), Stopped)
    assert world.agent.forget_everything() == 22
    assert not any((world.home / name).exists() for name in CHECKPOINT_FILES)
    assert list(world.agent.examples.arrays()) == [] and world.agent.count_words() == 0


def test_an_agent_that_is_asked_to_evaluate_reports_counts_of_its_held_out_arrays(tmp_path):
    world = HoldingOut(tmp_path)
    world.add(150)
    world.aggregator.asks_evaluation = True
    world.night()
    (report,) = world.aggregator.evaluations
    assert report.words % 10 == 0 and 50 <= report.words < 100 and report.hits1 == report.hits3 <= report.words
