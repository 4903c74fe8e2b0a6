"""What a device at rest writes: nothing. A card that lasts a year is not worn down by looking at the clock."""

from tests.edge_runtime.fakes import World
from tests.edge_runtime.recorded_disk import recording


def test_a_device_with_nothing_to_do_writes_nothing(tmp_path):
    with recording(tmp_path) as disk:
        world = World(tmp_path / "home")
        world.type_text()
        world.night()
        world.aggregator.turn_away = "enough"
        world.clock.time += 1300
        world.night()
        before = len(disk.log)
        for _ in range(20):
            world.agent.turn()
        written = [(operation.site, operation.kind) for operation in disk.log[before:]]
        world.agent.abandon()
    # Bytes that were written before may be counted once more; that this is written must not be counted for ever.
    assert len(written) <= 8, written
