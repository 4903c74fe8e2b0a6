"""Whatever happens to a device, in whatever order: a lease has one update, judged once, and nothing is left over."""

import dataclasses
import random

import pytest

from edge_runtime.adapters import checkpoints
from edge_runtime.eligibility import Reading
from tests.edge_runtime.fakes import GOOD, Killed, World


class Chaos:
    """Plays one seeded script of faults against a world."""

    def __init__(self, world, seed):
        self.world, self.rng = world, random.Random(seed)
        self.accepted = []

    def turn(self):
        try:
            self.accepted += [v for v in self.world.agent.turn().receipts if v in ("accepted", "stale")]
        except Killed:
            self.world.kill()

    def strike(self):
        world, rng = self.world, self.rng
        match rng.randrange(9):
            case 0:
                world.kill()
            case 1:
                world.broker.up = not world.broker.up
            case 2:
                world.downloads.up = not world.downloads.up
            case 3:
                metered, charging = rng.random() < 0.5, rng.random() < 0.7
                world.sensors.readings = dataclasses.replace(GOOD, metered=Reading(metered), charging=Reading(charging))
            case 4:
                world.fuse.left = rng.randrange(60)
            case 5:
                world.aggregator.lose_chunks = True
            case 6:
                world.aggregator.mute_receipts = not world.aggregator.mute_receipts
            case 7:
                world.aggregator.verdict = rng.choice(["accepted", "stale"])
            case 8:
                world.aggregator.move_on(("training", "refresh"), "refresh")

    def calm(self):
        world = self.world
        world.broker.up = world.downloads.up = True
        world.sensors.readings, world.fuse.left = GOOD, None
        world.aggregator.mute_receipts, world.aggregator.lose_chunks = False, False


@pytest.mark.parametrize("seed", range(12))
def test_no_order_of_faults_loses_or_doubles_an_update(seed, tmp_path):
    world = World(tmp_path / "home")
    world.type_text(30)
    chaos = Chaos(world, seed)
    plains = {}
    for _ in range(60):
        if chaos.rng.random() < 0.4:
            chaos.strike()
        chaos.turn()
        if world.broker.up:
            world.aggregator.work()
        world.clock.time += chaos.rng.choice([1, 10, 60, 700])
        for update_id, update in world.aggregator.updates.items():
            if update.plain is not None:
                assert plains.setdefault(update_id, update.plain) == update.plain, "two updates under one lease"
    chaos.calm()
    for _ in range(12):
        world.clock.time += 400
        chaos.turn()
        world.aggregator.work()
    world.aggregator.turn_away = "enough"
    for _ in range(12):
        world.clock.time += 700
        chaos.turn()
        world.aggregator.work()
    assert world.agent.state.phase.value in ("resting", "checking_in")
    assert world.agent.updates_waiting() == ()
    assert not (world.home / checkpoints.CHECKPOINT_FILE).exists()
    whole = [update for update in world.aggregator.updates.values() if update.plain is not None]
    # A turn that was killed after its receipt has no report, so fewer may be seen here than were judged.
    assert len(whole) == len(world.aggregator.updates) and 0 < len(chaos.accepted) <= len(whole)
    assert world.agent.current().manifest.version == world.aggregator.manifest.version
    assert len(list((world.home / "vectors").iterdir())) == 1
    world.agent.abandon()
