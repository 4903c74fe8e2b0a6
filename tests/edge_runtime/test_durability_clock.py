"""A wall clock that jumps by years and is put right again: text, updates and residual are what they would have been."""

import numpy as np
import pytest

from edge_runtime.session import Phase
from tests.edge_runtime.fakes import FakeClock, World
from tests.edge_runtime.test_disk_faults import on_disk

YEAR_S = 365 * 86_400.0


class JumpingClock(FakeClock):
    """`ahead` seconds are between the wall clock and the time that passes; while it is wrong, it is not believed."""

    def __init__(self, now, fuse):
        super().__init__(now, fuse)
        self.ahead = 0.0

    def now(self):
        return super().now() + self.ahead

    def trusted(self):
        return not self.ahead


def world_in(phase, folder):
    """Return a world whose device was just brought into a phase."""
    world = World(folder)
    world.type_text()
    clock = JumpingClock(world.clock.time, world.fuse)
    world.clock = clock
    world.aggregator.clock = clock.twin()
    world.kill()
    world.aggregator.mute_receipts = True
    if phase is Phase.RESTING:
        return world
    world.agent.turn()
    if phase is Phase.CHECKING_IN:
        return world
    if phase is Phase.FETCHING:
        world.aggregator.move_on(("training",))
        world.downloads.up = False
    if phase is Phase.TRAINING:
        world.sensors.good_reads = 3
    world.aggregator.work()
    world.agent.turn()
    world.downloads.up, world.sensors.good_reads = True, None
    assert world.agent.state.phase is phase
    return world


@pytest.mark.parametrize("years", [-30, -1, 1, 30])
@pytest.mark.parametrize("phase", [Phase.RESTING, Phase.CHECKING_IN, Phase.FETCHING, Phase.TRAINING, Phase.SENDING])
def test_a_wall_clock_that_jumps_and_comes_back_loses_nothing(phase, years, tmp_path):
    world = world_in(phase, tmp_path / "home")
    sentences = world.agent.examples.sentences()
    _, before, waiting = on_disk(world)
    world.clock.ahead = years * YEAR_S
    for _ in range(3):
        world.agent.turn()
        world.clock.time += 400
    assert world.agent.examples.sentences() == sentences, "no text ages by a clock that is wrong"
    _, after, still = on_disk(world)
    assert set(waiting) <= set(still), "an update that waits is not given up for a clock that is wrong"
    if waiting:
        np.testing.assert_array_equal(after, before)
    world.clock.ahead = 0.0
    world.aggregator.mute_receipts = False
    for _ in range(30):
        world.aggregator.work()
        if world.agent.turn().receipts:
            break
        world.clock.time += 400
    else:
        pytest.fail(f"after the clock was right again the device stayed {world.agent.state.phase}")
    assert [update.plain is not None for update in world.aggregator.updates.values()] == [True]
    world.agent.abandon()
