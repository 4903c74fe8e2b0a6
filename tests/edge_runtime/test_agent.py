"""The agent against a broker and an aggregator in memory: whole nights, and what is left on the disk after a fault."""

import dataclasses
import resource
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime.adapters import checkpoints, personal_copy
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.adapters.vectors import Vectors, unpack_kept
from edge_runtime.eligibility import Reading
from edge_runtime.identity import NotEnrolled, load
from edge_runtime.ports import Outgoing
from edge_runtime.version_delta import rebuild
from edge_runtime.version_keeper import VersionKeeper
from tests.edge_runtime.fakes import MIDNIGHT, Killed, World
from wire_contract import envelope
from wire_contract.manifest import encode_manifest
from wire_contract.messages import DeviceReport, ModelAnnouncement, Plan, UpdateHeader, decode_message, encode_message
from wire_contract.topics import DeviceTopic, build_topic


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home")
    yield made
    made.agent.abandon()


@contextmanager
def no_file_larger_than(size_bytes):
    """A disk without room, as the operating system tells it: writes beyond the limit fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def receipts(reports):
    return [verdict for report in reports for verdict in report.receipts]


def residual(world):
    store = StateStore(world.home / "state.db")
    manifest = world.aggregator.manifest
    found = Vectors(world.home / "vectors", store).residual(manifest.layout_fingerprint, manifest.parameters)
    store.close()
    return None if found is None else found.vector


def assert_residual(world, expected):
    """A residual lies on the disk as float16 under one exponent: each value within 2^-11 of itself, or of a speck."""
    np.testing.assert_allclose(residual(world), expected, rtol=2.0**-10, atol=np.abs(expected).max() * 2.0**-28)


def test_a_night_ends_with_an_update_that_the_aggregator_can_open(world):
    world.type_text()
    reports = world.night()
    (update_id,) = world.aggregator.updates
    sent = world.aggregator.vector(update_id)
    assert 0 < len(sent.indices) <= round(0.01 * sent.size)
    assert 0 < sent.norm() <= world.aggregator.plan.clip_norm
    assert receipts(reports) == ["accepted"]
    assert sum(report.training_steps for report in reports) == 3
    assert world.agent.state.phase.value == "resting"
    assert world.agent.updates_waiting() == ()


def test_two_devices_with_one_seed_and_one_text_make_the_same_update(tmp_path):
    plains = []
    for name in ("a", "b"):
        world = World(tmp_path / name, seed=ord(name))
        world.type_text()
        world.night()
        (update,) = world.aggregator.updates.values()
        plains.append(update.plain)
        world.agent.abandon()
    assert plains[0] == plains[1]


def test_a_device_without_text_asks_for_no_work_and_says_why(world):
    world.agent.fetch_refresh()
    assert "nothing to learn from" in world.agent.turn().reason
    world.aggregator.work()
    assert world.aggregator.check_ins == []


def test_a_device_in_use_or_unplugged_does_not_even_connect_once_it_has_its_news(world):
    world.type_text()
    world.sensors.readings = dataclasses.replace(world.sensors.readings, charging=Reading(False))
    world.night()
    report = world.agent.turn()
    assert not report.connected and "cable" in report.reason
    assert world.aggregator.check_ins == []


def test_being_turned_away_is_no_error_and_the_device_comes_back_inside_the_window(world):
    world.type_text()
    world.aggregator.turn_away = "enough devices train now"
    reports = world.night()
    assert [report.turned_away for report in reports if report.turned_away] == ["enough devices train now"]
    assert len(world.aggregator.check_ins) == 1
    world.clock.time += 1200
    world.aggregator.turn_away = ""
    assert receipts(world.night()) == ["accepted"]


def test_a_cable_pulled_between_two_steps_costs_a_night_and_changes_no_byte_of_the_update(world, tmp_path):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 3
    report = world.agent.turn()
    assert report.interrupted and 0 < report.training_steps < 3
    assert (world.home / checkpoints.CHECKPOINT_FILE).exists()
    world.kill()
    world.sensors.good_reads = None
    reports = world.night()
    assert sum(r.training_steps for r in reports) == 3 - report.training_steps
    assert receipts(reports) == ["accepted"]
    assert not (world.home / checkpoints.CHECKPOINT_FILE).exists()
    undisturbed = World(tmp_path / "other")
    undisturbed.type_text()
    undisturbed.night()
    (interrupted,), (whole,) = world.aggregator.updates.values(), undisturbed.aggregator.updates.values()
    assert interrupted.plain == whole.plain
    undisturbed.agent.abandon()


def test_a_lease_that_ends_before_conditions_return_is_dropped_with_its_checkpoint(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 3
    assert world.agent.turn().interrupted
    world.clock.time += world.aggregator.lease_s
    world.agent.turn()
    assert world.agent.state.phase.value == "resting"
    assert not (world.home / checkpoints.CHECKPOINT_FILE).exists()
    world.sensors.good_reads = None
    world.clock.time += 1200
    assert receipts(world.night()) == ["accepted"]


def test_a_device_killed_at_any_call_of_any_port_ends_the_night_with_one_update(tmp_path):
    calm = World(tmp_path / "calm")
    calm.agent.fetch_refresh()
    calm.type_text(20)
    calm.aggregator.move_on(("training", "refresh"), "refresh")
    before = calm.fuse.calls
    calm.night()
    (expected,) = calm.aggregator.updates.values()
    calls = calm.fuse.calls - before
    calm.agent.abandon()
    assert calls > 30
    for n in range(calls):
        world = World(tmp_path / str(n))
        world.agent.fetch_refresh()
        world.type_text(20)
        world.aggregator.move_on(("training", "refresh"), "refresh")
        world.fuse.left = n
        try:
            reports = world.night()
        except Killed:
            reports = []
        assert world.fuse.left is None, "the fuse has burnt"
        world.kill()
        for _ in range(4):
            world.clock.time += 120
            reports += world.night()
        whole = [update for update in world.aggregator.updates.values() if update.plain is not None]
        assert len(world.aggregator.updates) == len(whole) >= 1, f"killed at call {n}"
        assert whole[0].plain == expected.plain, f"killed at call {n}"
        assert world.agent.updates_waiting() == () and world.agent.state.phase.value == "resting"
        assert world.agent.current().manifest.version == 2
        world.agent.abandon()


def test_an_update_that_waits_is_sent_on_a_later_night_by_another_process(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    # The link becomes metered after the offer came: training needs none.
    world.sensors.good_reads = 1
    world.sensors.afterwards = dataclasses.replace(world.sensors.readings, metered=Reading(True))
    report = world.agent.turn()
    assert report.update_queued and not report.update_sent
    world.night()
    assert world.aggregator.updates == {}
    world.kill()
    assert world.agent.updates_waiting() == (report.update_queued,)
    world.sensors.good_reads = None
    world.clock.time += 60
    assert receipts(world.night()) == ["accepted"]
    assert world.aggregator.updates[report.update_queued].plain is not None


def test_lost_chunks_are_found_by_a_status_query_and_only_they_are_sent_again(world):
    world.type_text()
    world.aggregator.lose_chunks = True
    world.night()
    assert receipts(world.night()) == []
    published = len(world.broker.log)
    world.clock.time += 10
    reports = world.night()
    assert receipts(reports) == ["incomplete", "accepted"]
    assert len(world.aggregator.queries) == 1
    resent = [m.topic for m in world.broker.log[published:] if m.topic.startswith("fl/v1/up/")]
    assert len(resent) == 1 and resent[0].endswith("/0")


def test_a_lost_receipt_is_asked_for_and_the_update_is_not_sent_twice(world):
    world.type_text()
    world.aggregator.mute_receipts = True
    world.night()
    world.aggregator.mute_receipts = False
    published = len(world.broker.log)
    world.clock.time += 10
    assert receipts(world.night()) == ["accepted"]
    assert not [m for m in world.broker.log[published:] if m.topic.startswith("fl/v1/up/")]


def test_accepted_drops_the_kept_vector_and_stale_returns_it_to_the_residual(world):
    world.type_text()
    world.aggregator.verdict = "stale"
    world.agent.turn()
    world.aggregator.work()
    world.agent.turn()
    left = residual(world)
    world.aggregator.work()
    world.agent.turn()
    (update_id,) = world.aggregator.updates
    kept = world.aggregator.vector(update_id)
    expected = left + kept.dense()
    assert_residual(world, expected)
    assert world.agent.updates_waiting() == ()
    assert len(list((world.home / "vectors").iterdir())) == 1


@pytest.mark.parametrize("verdict", ["accepted", "duplicate", "norm_exceeded", "conflict", "bad_seal", "something_new"])
def test_any_other_verdict_leaves_the_residual_alone(world, verdict):
    world.type_text()
    world.aggregator.verdict = verdict
    world.agent.turn()
    world.aggregator.work()
    world.agent.turn()
    left = residual(world)
    world.aggregator.work()
    assert world.agent.turn().receipts == (verdict,)
    assert np.array_equal(residual(world), left)
    assert world.agent.updates_waiting() == ()


def test_a_full_disk_in_the_outbox_keeps_the_training_and_the_agent_goes_on(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    connection = world.agent._ports.trainer._runner.store.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    report = world.agent.turn()
    assert "storage_full" in report.refused and report.update_queued == ""
    assert world.agent.state.phase.value == "training"
    assert world.agent.updates_waiting() == () and residual(world) is None
    assert (world.home / checkpoints.CHECKPOINT_FILE).exists()
    connection.execute("PRAGMA max_page_count = 1000000")
    world.clock.time += 600
    reports = world.night()
    assert receipts(reports) == ["accepted"]
    assert sum(r.training_steps for r in reports) == 0, "the kept training is queued, not repeated"


def test_a_disk_without_room_for_anything_repeats_the_training_from_its_seed(world, tmp_path):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    with no_file_larger_than(1000):
        report = world.agent.turn()
    assert {"storage_full", "storage_failed"} & set(report.refused)
    assert not (world.home / checkpoints.CHECKPOINT_FILE).exists()
    assert list(world.home.rglob("*.tmp")) == [] and world.agent.updates_waiting() == ()
    world.kill()
    world.clock.time += 600
    assert receipts(world.night() + world.night()) == ["accepted"]
    undisturbed = World(tmp_path / "other")
    undisturbed.type_text()
    undisturbed.night()
    (late,), (whole,) = world.aggregator.updates.values(), undisturbed.aggregator.updates.values()
    assert late.plain == whole.plain
    undisturbed.agent.abandon()


def test_a_disk_that_is_full_when_the_receipt_comes_settles_the_update_another_time(world):
    world.type_text()
    world.aggregator.verdict = "stale"
    world.agent.turn()
    world.aggregator.work()
    world.agent.turn()
    left = residual(world)
    world.aggregator.work()
    with no_file_larger_than(30_000):
        refused = world.agent.turn().refused
    assert {"storage_full", "storage_failed"} & set(refused)
    assert world.agent.state.phase.value == "sending" and len(world.agent.updates_waiting()) == 1
    world.kill()
    world.clock.time += 60
    world.night()
    (update_id,) = world.aggregator.updates
    assert_residual(world, left + world.aggregator.vector(update_id).dense())
    assert world.agent.updates_waiting() == ()


def test_forgetting_a_word_takes_the_checkpoint_and_the_copy_that_may_hold_it(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 3
    assert world.agent.turn().interrupted
    personal_copy.write(world.home, world.agent.current(), world_tensors(world))
    assert world.agent.forget_word("baba") > 0
    assert not (world.home / checkpoints.CHECKPOINT_FILE).exists()
    assert personal_copy.read(world.home, world.agent.current().manifest.sha256) is None
    world.sensors.good_reads = None
    assert receipts(world.night()) == ["accepted"]


def test_text_that_grew_too_old_is_not_trained_on(world):
    world.type_text()
    world.clock.time += 31 * 86_400
    reports = world.night()
    assert "plan_refused" in [name for report in reports for name in report.refused]
    assert world.aggregator.updates == {} and world.agent.examples.count_words() == 0


def test_a_broker_that_is_gone_loses_nothing_and_is_tried_again_later(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.broker.up = False
    assert "unreachable" in world.agent.turn().refused
    connects = world.agent._link._memory.not_before
    assert world.clock.time <= connects <= world.clock.time + 5
    world.broker.up = True
    world.clock.time += 60
    assert receipts(world.night() + world.night()) == ["accepted"]


def test_a_packet_over_the_brokers_limit_ends_the_update_by_name_and_not_the_agent(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.broker.max_packet_bytes = 300
    report = world.agent.turn()
    assert "packet_too_large" in report.refused
    assert world.agent.state.phase.value == "resting" and world.agent.updates_waiting() == ()


def test_an_offer_for_another_check_in_or_from_a_stranger_is_not_taken(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    (message,) = [m for m in world.broker.log if m.topic.endswith("down/task")]
    session = world.broker.sessions["device"]
    session.queue.clear()
    forged = envelope.sign(world.agent.identity.key, "task", envelope.read_envelope(message.payload).body)
    world.broker.publish(Outgoing(message.topic, forged))
    world.broker.publish(Outgoing(message.topic, message.payload[:-1]))
    refused = world.agent.turn().refused
    assert set(refused) == {"untrusted", "malformed"}
    assert world.agent.state.phase.value == "checking_in"
    world.clock.time += 300
    for _ in range(2):
        world.clock.time += 10
        world.agent.turn()
    world.broker.publish(message)
    world.agent.turn()
    assert world.agent.state.offer is None, "an old offer, played again under a new nonce"


def test_a_base_that_moved_on_is_looked_up_by_http_and_else_the_lease_is_dropped(world):
    world.type_text()
    world.aggregator.move_on()
    world.agent.turn()
    world.aggregator.work()
    world.aggregator.move_on()
    # Another process comes to the offer of version 2 when version 3 is all that is announced.
    world.kill()
    report = world.agent.turn()
    assert "base_gone" in report.refused
    world.clock.time += 60
    reports = world.night()
    assert receipts(reports) == ["accepted"]
    header = next(u.header for u in world.aggregator.updates.values() if u.plain is not None)
    assert isinstance(header, UpdateHeader) and header.base_version == 3


def test_a_forged_announcement_on_the_broker_does_not_stop_training(world):
    world.type_text()
    world.aggregator.move_on()
    forged = envelope.sign(world.agent.identity.key, "manifest", b"nothing")
    payload = encode_message(ModelAnnouncement(signed_manifest=forged))
    world.broker.publish(Outgoing("fl/v1/pop/keyboard/training", payload, retain=True))
    world.broker.publish(Outgoing("fl/v1/pop/keyboard/refresh", b"\xc1 not a message", retain=True))
    reports = world.night()
    refused = {name for report in reports for name in report.refused}
    assert {"malformed", "bad_signature"} == refused
    assert receipts(reports) == ["accepted"]


def test_a_refresh_is_installed_when_the_link_allows_and_a_broken_one_leaves_the_old(world):
    world.type_text()
    world.night()
    world.aggregator.move_on(("refresh",), "refresh")
    path = f"/v1/models/{world.aggregator.manifest.sha256}"
    good = world.downloads.files[path]
    world.downloads.files[path] = good[:-1] + bytes([good[-1] ^ 1])
    world.clock.time += 1200
    reports = world.night()
    assert "wrong_hash" in [name for report in reports for name in report.refused]
    assert world.agent.current().manifest.version == 1
    world.downloads.files[path] = good
    world.clock.time += 7 * 3600
    versions = [version for report in world.night() for version in report.versions]
    assert ("refresh", 2) in versions
    assert world.kill().current().manifest.version == 2


def test_a_plan_that_the_device_cannot_do_ends_the_lease_with_a_reason(world):
    world.type_text()
    world.aggregator.plan = Plan(signature="train_private")
    reports = world.night()
    assert "plan_refused" in [name for report in reports for name in report.refused]
    assert world.agent.state.phase.value == "resting" and world.aggregator.updates == {}


def test_the_nightly_budget_of_bytes_is_counted_and_ends_the_night(world):
    world.settings = msgspec.structs.replace(
        world.settings, policy=msgspec.structs.replace(world.settings.policy, sent_bytes=1200)
    )
    world.kill()
    world.type_text()
    world.night()
    assert "bytes are used up" in world.agent.turn().reason
    world.clock.time += 86_400
    assert "used up" not in world.agent.turn().reason


def test_the_broker_is_told_when_the_device_comes_and_goes(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.agent.close()
    world.aggregator.work()
    states = [decode_message(body, DeviceReport) for body in world.aggregator.reports]
    assert [state.online for state in states] == [True, False]
    assert states[0].nonce == states[1].nonce and states[0].refresh_version == 1
    assert build_topic(DeviceTopic(world.agent.identity.device, "state")) in world.broker.retained
    world.open()


def test_forgetting_everything_leaves_nothing_that_came_from_the_person(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.agent.turn()
    held = world.agent.current()
    personal_copy.write(world.home, held, world_tensors(world))
    assert world.agent.updates_waiting() and residual(world) is not None
    world.agent.forget_everything()
    assert world.agent.updates_waiting() == () and residual(world) is None
    assert list((world.home / "vectors").iterdir()) == []
    assert personal_copy.read(world.home, held.manifest.sha256) is None
    assert world.agent.examples.sentences() == []
    assert world.kill().state.phase.value == "resting"


def world_tensors(world):
    from wire_contract.patch import read_tensors

    held = world.agent.current()
    return read_tensors(held.data, held.manifest)


def test_a_home_that_is_not_enrolled_or_whose_key_others_can_read_is_refused(tmp_path, world):
    with pytest.raises(NotEnrolled, match="enrol"):
        load(tmp_path / "empty")
    key = world.home / "device_key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    with pytest.raises(Exception, match="0600"):
        load(world.home)


def test_the_update_hides_its_words_from_the_broker(world):
    world.type_text()
    world.night()
    (update,) = world.aggregator.updates.values()
    wire = b"".join(message.payload for message in world.broker.log)
    assert update.plain is not None and update.plain[:40] not in wire and update.plain[-40:] not in wire
    assert encode_message(update.header) in wire


def test_an_idle_agent_has_imported_neither_numpy_nor_an_interpreter():
    import subprocess
    import sys

    code = (
        "import sys, edge_runtime.agent, edge_runtime.wiring, edge_runtime.device_commands\n"
        "print(sorted({'numpy', 'ai_edge_litert', 'tflite_runtime', 'tensorflow'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_a_version_with_the_bytes_of_the_one_held_is_trained_on_as_any_other(world):
    world.type_text()
    assert receipts(world.night()) == ["accepted"]
    aggregator = world.aggregator
    aggregator.manifest = msgspec.structs.replace(aggregator.manifest, version=2, kind="training")
    aggregator.signed = envelope.sign(aggregator.key, "manifest", encode_manifest(aggregator.manifest))
    aggregator.announce(aggregator.signed, aggregator.manifest, aggregator.model, ("training",))
    world.clock.time += 1200
    assert receipts(world.night()) == ["accepted"]
    assert world.agent.slots.slot("training").version == 2


def test_an_undo_on_the_refresh_track_does_not_take_the_base_of_the_same_bytes_away(world):
    world.type_text()
    aggregator = world.aggregator
    aggregator.move_on()
    assert receipts(world.night()) == ["accepted"]
    assert world.agent.slots.slot("training").version == 2
    undone = msgspec.structs.replace(aggregator.manifest, version=4, kind="refresh", undo_of=3)
    signed = envelope.sign(aggregator.key, "manifest", encode_manifest(undone))
    aggregator.announce(signed, undone, aggregator.model, ("refresh",))
    for _ in range(2):
        world.clock.time += 1200
        assert receipts(world.night()) == ["accepted"]
    assert world.agent.slots.slot("refresh").version == 4


def test_a_vocabulary_that_rotted_is_fetched_again_before_the_training(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    (path,) = (world.home / "vocabularies").glob("*.txt")
    path.write_bytes(b"rotten\n")
    assert receipts(world.night()) == ["accepted"]
    assert path.read_bytes() == world.aggregator.vocabulary


def test_an_offer_with_a_sealing_key_that_is_none_ends_the_lease_by_name(world):
    world.type_text()
    good = world.aggregator.sealing_key

    class NoKey:
        def public_key(self):
            return self

        def public_bytes_raw(self):
            return bytes(32)

    world.aggregator.sealing_key = NoKey()
    reports = world.night()
    assert "plan_refused" in [name for report in reports for name in report.refused]
    assert world.agent.state.phase.value == "resting" and world.agent.updates_waiting() == ()
    assert residual(world) is None
    world.aggregator.sealing_key = good
    world.clock.time += 1200
    assert receipts(world.night()) == ["accepted"]


@pytest.mark.parametrize("missing", [(-1,), (65_535,), (0, 7, 1 << 40)])
def test_a_receipt_that_asks_for_chunks_that_never_were_does_not_end_the_agent(world, missing):
    world.type_text()
    world.aggregator.mute_receipts = True
    world.night()
    world.aggregator.send_receipt(world.agent.identity.device, world.agent.state.update_id, "incomplete", missing)
    world.agent.turn()
    assert len(world.agent.updates_waiting()) == 1
    world.aggregator.mute_receipts = False
    world.clock.time += 60
    assert "accepted" in receipts(world.night())


@pytest.mark.parametrize("verdict", ["malformed", "bad_signature", "conflict", "accepted", "incomplete"])
def test_a_receipt_for_an_update_that_was_never_sent_is_ignored(world, verdict):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 1
    world.sensors.afterwards = dataclasses.replace(world.sensors.readings, metered=Reading(True))
    update_id = world.agent.turn().update_queued
    world.sensors.good_reads = None
    world.aggregator.send_receipt(world.agent.identity.device, update_id, verdict)
    report = world.agent.turn()
    assert "receipt_before_sending" in report.refused and report.update_sent
    world.aggregator.work()
    assert world.aggregator.updates[update_id].plain is not None
    assert "accepted" in world.agent.turn().receipts


def test_an_update_that_no_link_took_for_seven_days_returns_to_the_residual(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.sensors.good_reads = 1
    world.sensors.afterwards = dataclasses.replace(world.sensors.readings, metered=Reading(True))
    update_id = world.agent.turn().update_queued
    left = residual(world)
    kept = unpack_kept(world.agent._outbox.get(update_id).kept, left.size).dense()
    world.clock.time += 8 * 86_400
    world.agent.turn()
    assert world.agent.updates_waiting() == () and world.aggregator.updates == {}
    assert_residual(world, left + kept)


class SlowSteps:
    """A clock on which a minute passes whenever the sensors are asked."""

    def __init__(self, world):
        self.world, self.inner = world, world.sensors

    def read(self, now):
        self.world.clock.time += 60
        return self.inner.read(now)


def test_the_nightly_training_budget_ends_a_training_between_two_steps(world):
    world.aggregator.plan = Plan(
        signature="train_sampled", rows=48, learning_rate=0.5, clip_norm=10.0, dropout=0.0, epochs=8
    )
    policy = msgspec.structs.replace(world.settings.policy, training_s=300.0)
    world.settings = msgspec.structs.replace(world.settings, policy=policy)
    world.kill()
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.plugged = SlowSteps(world)
    report = world.agent.turn()
    assert report.interrupted and 0 < report.training_steps <= 6
    used = world.agent.usage(world.clock.time).training_s
    assert 300 <= used <= 420
    world.kill()
    assert world.agent.usage(world.clock.time).training_s == used, "a killed agent has not forgotten it"
    assert "used up" in world.agent.turn().reason
    assert world.agent.turn().training_steps == 0


def test_a_training_that_was_queued_is_counted_once(world):
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.plugged = SlowSteps(world)
    assert world.agent.turn().update_queued
    # A question after each of three steps but the last.
    assert world.agent.usage(world.clock.time).training_s == 120.0
    world.kill()
    assert world.agent.usage(world.clock.time).training_s == 120.0


def test_an_agent_killed_in_a_training_has_counted_all_of_it_but_the_last_minute(world):
    steps = 220
    world.aggregator.plan = Plan(
        signature="train_sampled", rows=48, learning_rate=0.01, clip_norm=10.0, dropout=0.0, epochs=100
    )
    world.type_text()
    world.agent.turn()
    world.aggregator.work()

    class Slow(SlowSteps):
        reads = 0

        def read(self, now):
            self.reads += 1
            if self.reads > steps:
                raise Killed
            self.world.clock.time += 1
            return self.inner.read(now)

    world.plugged = Slow(world)
    with pytest.raises(Killed):
        world.agent.turn()
    before = world.clock.time
    world.kill()
    used = world.agent.usage(before).training_s
    assert steps - 65 <= used < steps


def test_that_news_were_seen_is_written_once_an_hour_and_not_for_each_announcement(world):
    world.type_text()
    written = []
    keeper = VersionKeeper(
        world.home, world.agent.enrolled, world.downloads, world.clock, lambda data, manifest: None, rebuild,
        remember=written.append,
    )  # fmt: skip
    for passed in (0.0, 60.0, 3000.0, 3700.0, 3800.0):
        world.clock.time = MIDNIGHT + passed
        keeper.announce("refresh", b"whatever")
    assert [when - MIDNIGHT for when in written] == [0.0, 3700.0]
