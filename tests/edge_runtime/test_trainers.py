"""The shared suite of the Trainer port: the same jobs, the same results, bit for bit, here and in a child process."""

import hashlib
import time

import msgspec
import pytest

from edge_runtime import session
from edge_runtime.adapters.checkpoints import CHECKPOINT_FILES
from edge_runtime.adapters.child_trainer import ChildTrainer, TrainerTerms
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.interpreter import InterpreterRuntime
from edge_runtime.adapters.outbox import Outbox
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.jobs import (
    Checked,
    CheckVersion,
    NoRoom,
    Queued,
    RebuildVersion,
    Rebuilt,
    Refused,
    Settled,
    SettleUpdate,
    Stopped,
    Train,
    WasForgotten,
)
from edge_runtime.session_row import SessionRow
from tests.edge_runtime.fakes import Killed, World
from wire_contract import delta as deltas
from wire_contract.messages import CheckIn, LocalRule, Plan, RetryWindow

PLAN = Plan(
    signature="train_sampled",
    rows=48,
    learning_rate=0.5,
    clip_norm=10.0,
    rules=(LocalRule(name="momentum", value=0.5),),
)


class TrainingWorld(World):
    """A home whose session trains for a lease, and has not begun."""

    def __init__(self, folder, plan=PLAN, sentences=60):
        super().__init__(folder)
        self.type_text(sentences)
        self.aggregator.plan = plan
        request = CheckIn(
            device=self.agent.identity.device, population="keyboard", nonce="a" * 32, sent_at=0, held_version=1,
            capabilities=(), examples=1,
        )  # fmt: skip
        now = int(self.clock.time)
        self.offer = self.aggregator.offer(request, RetryWindow(earliest=now + 60, latest=now + 60))
        self.put(session.State(phase=session.Phase.TRAINING, offer=self.offer))
        self.agent.abandon()

    def put(self, state):
        store = StateStore(self.home / "state.db")
        row = SessionRow(store)
        row.load()
        row.put(state)
        store.close()

    def job(self, **changes):
        values = {"offer": self.offer, "times_forgotten": 0, "chunk_bytes": 32 * 1024, **changes}
        return Train(**values)

    def child(self, **terms):
        """Return a trainer that gives nobody way, so that a busy machine runs its tests in time."""
        return ChildTrainer(self.home, self.clock.twin(), TrainerTerms(**{"gives_way": False, **terms}))

    def made(self):
        """Return what the home holds of the update, and the residual's bytes: all that training decides."""
        store = StateStore(self.home / "state.db")
        outbox = Outbox(store)
        updates = [outbox.get(name) for name in outbox.waiting()]
        state = SessionRow(store).load()
        store.close()
        files = sorted(p for p in (self.home / "vectors").iterdir() if not p.name.startswith("."))
        return (
            [(each.update_id, each.kept, each.layout) for each in updates], [p.read_bytes() for p in files],
            state.phase, state.update_id,
        )  # fmt: skip

    def checkpoints(self):
        return [name for name in CHECKPOINT_FILES if (self.home / name).exists()]


def wait_for(trainer, seconds=60.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        result = trainer.poll()
        if result is not None:
            return result
        time.sleep(0.005)
    raise AssertionError("the job did not end")


@pytest.fixture(params=["in this process", "a child"])
def variant(request, tmp_path):
    opened = []

    def make(world):
        # A runtime of its own: one that is shared remembers which versions other tests have had checked.
        runtime = InterpreterRuntime("auto")
        here = InProcessTrainer(world.home, runtime, world.entropy, world.clock, world.settings.held_out_share)
        trainer = here if request.param == "in this process" else world.child()
        opened.append(trainer)
        return trainer

    yield make
    for trainer in opened:
        trainer.close()


def test_both_variants_make_the_same_update_bit_for_bit(tmp_path):
    made = []
    for name in ("one", "other"):
        world = TrainingWorld(tmp_path / name)
        trainer = world.trainer() if name == "one" else world.child()
        trainer.begin(world.job(), lambda: True)
        assert trainer.busy
        result = wait_for(trainer)
        assert isinstance(result, Queued) and result.steps == 3 and not trainer.busy
        made.append(world.made())
        trainer.close()
    assert made[0] == made[1]
    updates, residuals, phase, update_id = made[0]
    assert len(updates) == len(residuals) == 1 and phase is session.Phase.SENDING and update_id == updates[0][0]


def test_a_lease_that_is_over_is_refused_and_its_checkpoint_dropped(tmp_path, variant):
    world = TrainingWorld(tmp_path)
    (tmp_path / CHECKPOINT_FILES[0]).write_bytes(b"of another day")
    world.clock.time = world.offer.deadline + 1.0
    trainer = variant(world)
    trainer.begin(world.job(), lambda: True)
    assert wait_for(trainer) == Refused(reason=f"the lease ended at {world.offer.deadline}")
    assert world.checkpoints() == []


def test_a_base_that_is_gone_is_refused_and_the_checkpoint_dropped(tmp_path, variant):
    world = TrainingWorld(tmp_path)
    (tmp_path / CHECKPOINT_FILES[1]).write_bytes(b"of another day")
    for path in (tmp_path / "models").iterdir():
        path.unlink()
    trainer = variant(world)
    trainer.begin(world.job(), lambda: True)
    result = wait_for(trainer)
    assert isinstance(result, Refused) and "not on the disk" in result.reason
    assert world.checkpoints() == []


def test_a_rule_that_is_not_known_is_refused_by_name(tmp_path, variant):
    world = TrainingWorld(tmp_path)
    plan = msgspec.structs.replace(PLAN, rules=(LocalRule(name="adam"),))
    world.offer = msgspec.structs.replace(world.offer, plan=plan)
    world.put(session.State(phase=session.Phase.TRAINING, offer=world.offer))
    trainer = variant(world)
    trainer.begin(world.job(), lambda: True)
    result = wait_for(trainer)
    assert isinstance(result, Refused) and "'adam'" in result.reason and result.steps == 0


def test_another_lease_than_the_sessions_is_refused_and_touches_nothing(tmp_path, variant):
    world = TrainingWorld(tmp_path)
    (tmp_path / CHECKPOINT_FILES[0]).write_bytes(b"the session's own")
    trainer = variant(world)
    other = msgspec.structs.replace(world.offer, lease="9" * 32)
    trainer.begin(world.job(offer=other), lambda: True)
    result = wait_for(trainer)
    assert isinstance(result, Refused) and "9999" in result.reason
    assert world.checkpoints() == [CHECKPOINT_FILES[0]]


def test_what_was_forgotten_meanwhile_is_not_trained(tmp_path, variant):
    world = TrainingWorld(tmp_path)
    store = StateStore(tmp_path / "state.db")
    with store.transaction() as connection:
        store.forget(connection)
    store.close()
    trainer = variant(world)
    trainer.begin(world.job(), lambda: True)
    assert isinstance(wait_for(trainer), WasForgotten)
    assert world.checkpoints() == []


def test_short_jobs_check_rebuild_and_settle(tmp_path, variant):
    world = TrainingWorld(tmp_path)
    trainer, aggregator = variant(world), world.aggregator
    manifest, model = aggregator.manifest, aggregator.model
    assert trainer.do(CheckVersion(data=model, manifest=manifest)) == Checked()
    _, later, data = aggregator.next_version()
    golden = msgspec.structs.replace(later.golden, tokens=later.golden.tokens[1:])
    refused = trainer.do(CheckVersion(data=data, manifest=msgspec.structs.replace(later, golden=golden)))
    assert isinstance(refused, Checked) and refused.refused == "golden" and "tokens" in refused.message
    delta = deltas.encode(model, data, manifest)
    job = RebuildVersion(base=model, base_sha256=manifest.sha256, delta=delta, manifest=later)
    rebuilt = trainer.do(job)
    assert isinstance(rebuilt, Rebuilt) and hashlib.sha256(rebuilt.data).hexdigest() == later.sha256
    broken = trainer.do(msgspec.structs.replace(job, delta=delta[:-9]))
    assert isinstance(broken, Rebuilt) and broken.refused and broken.data == b""
    trainer.begin(world.job(), lambda: True)
    queued = wait_for(trainer)
    assert isinstance(queued, Queued)
    state = session.State(not_before=77.0)
    settled = trainer.do(SettleUpdate(update_id=queued.update_id, verdict="stale", state=state, times_forgotten=0))
    assert settled == Settled()
    updates, residuals, phase, update_id = world.made()
    assert updates == [] and len(residuals) == 1 and phase is session.Phase.RESTING and update_id == ""


def test_a_home_without_room_is_said_and_leaves_no_half_update(tmp_path, variant):
    world = TrainingWorld(tmp_path)
    (tmp_path / "vectors").write_bytes(b"a file where the folder should be")
    trainer = variant(world)
    trainer.begin(world.job(), lambda: True)
    result = wait_for(trainer)
    assert isinstance(result, NoRoom) and "kept as a checkpoint" in result.reason
    assert len(world.checkpoints()) == 1
    (tmp_path / "vectors").unlink()
    trainer.begin(world.job(), lambda: True)
    again = wait_for(trainer)
    assert isinstance(again, Queued)
    straight = TrainingWorld(tmp_path.with_name(tmp_path.name + "-straight"))
    other = straight.trainer()
    other.begin(straight.job(), lambda: True)
    wait_for(other)
    other.close()
    assert world.made() == straight.made() and world.checkpoints() == []


def test_what_a_job_took_is_counted_once(tmp_path, variant):
    world = TrainingWorld(tmp_path)
    trainer = variant(world)
    trainer.begin(world.job(), lambda: True)
    assert isinstance(wait_for(trainer), Queued)
    trainer.close()
    used = trainer.take_used()
    assert used.cpu_s > 0.0
    # In the agent's own process its own count of written bytes holds the trainer's, too.
    assert used.written_bytes > 10_000 or not isinstance(trainer, ChildTrainer)
    again = trainer.take_used()
    assert (again.written_bytes, again.cpu_s) == (0, 0.0)


def test_a_stop_keeps_a_checkpoint_and_another_night_ends_in_the_same_bits(tmp_path, variant):
    plan = msgspec.structs.replace(PLAN, epochs=100)
    whole = TrainingWorld(tmp_path / "whole", plan)
    trainer = whole.trainer()
    trainer.begin(whole.job(), lambda: True)
    assert isinstance(wait_for(trainer), Queued)
    trainer.close()
    world = TrainingWorld(tmp_path / "stopped", plan)
    total, stops = 0, 0
    for limit in (40, 90, 10_000):
        trainer = variant(world)
        asked = iter(range(limit))
        trainer.begin(world.job(), lambda asked=asked: next(asked, None) is not None)
        if limit < 10_000 and isinstance(trainer, ChildTrainer):
            time.sleep(0.4)
            trainer.stop()
        result = wait_for(trainer)
        total += result.steps
        stops += isinstance(result, Stopped)
        trainer.close()
        if isinstance(result, Queued):
            break
    assert isinstance(result, Queued) and stops >= 1 and total == 300
    assert world.made() == whole.made() and world.checkpoints() == []


def test_a_trainer_that_is_killed_loses_what_came_after_the_last_quarter_of_an_hour(tmp_path):
    plan = msgspec.structs.replace(PLAN, epochs=100)
    whole, world = (TrainingWorld(tmp_path / name, plan) for name in ("whole", "killed"))
    trainer = whole.trainer()
    trainer.begin(whole.job(), lambda: True)
    assert isinstance(wait_for(trainer), Queued)
    trainer.close()
    looks = 0

    def may_go_on():
        nonlocal looks
        looks += 1
        world.clock.time += 100.0
        if looks == 50:
            raise Killed
        return True

    trainer = world.trainer()
    with pytest.raises(Killed):
        trainer.begin(world.job(), may_go_on)
    assert len(world.checkpoints()) == 2
    trainer = world.trainer()
    trainer.begin(world.job(), lambda: True)
    result = wait_for(trainer)
    trainer.close()
    # The last one was written after 45 steps of a hundred seconds.
    assert isinstance(result, Queued) and result.steps == 300 - 45
    assert world.made()[:3] == whole.made()[:3]
