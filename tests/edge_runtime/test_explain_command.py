"""`edge-runtime explain`: what a person is told where the conditions are not what the device waits for."""

import pytest

from edge_runtime.adapters.sensors.files import write_fixture
from edge_runtime.explain_commands import explain_now
from edge_runtime.session import Phase
from tests.edge_runtime.fakes import World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "home")
    write_fixture(tmp_path / "root", charging=True, battery=90, idle_seconds=900, metered=False, celsius=40)
    (world.home / "settings.toml").write_text(
        f'sensors_root = "{tmp_path}/root"\n[policy]\nnight_start = "00:00"\nnight_end = "00:00"\nsettle_s = 0\n'
    )
    return world


def told(world):
    world.agent.close()
    return explain_now(world.home).data


def test_a_device_without_text_is_told_how_to_get_some(world):
    world.agent.fetch_refresh()
    data = told(world)
    assert data["may_train"] and "nothing to learn from" in data["stops"] and "edge-runtime add" in data["would_change"]


def test_a_device_at_rest_with_text_may_start(world):
    world.type_text(20)
    assert told(world)["stops"] == "Nothing stops training: it may start now."


def test_a_device_that_asked_for_work_says_that_it_waits_for_an_answer(world):
    world.type_text(20)
    assert world.agent.turn().phase == "checking_in"
    data = told(world)
    assert data["phase"] == "checking_in" and "waits for the answer" in data["stops"]
    assert "whether the broker answers" in data["would_change"]


def test_a_device_whose_update_waits_says_so_and_not_that_a_training_may_start(world):
    world.type_text()
    for _ in range(10):
        if world.agent.state.phase is Phase.SENDING:
            break
        world.agent.turn()
        if world.agent.state.phase is Phase.CHECKING_IN:
            world.aggregator.work()
    data = told(world)
    assert data["phase"] == "sending" and "receipt" in data["stops"] and "may start now" not in data["stops"]
