"""A device at rest: when the agent is wanted, and how little it takes to know."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edge_runtime import news
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Reading
from edge_runtime.news import POLL_S
from edge_runtime.rest import SHORTEST_REST_S, Rest
from tests.edge_runtime.fakes import GOOD, World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home")
    made.type_text()
    made.night()
    made.agent.abandon()
    return made


def rest_of(world, rested_s=SHORTEST_REST_S):
    rest = Rest(world.home, world.settings, world.clock, world.sensors)
    world.clock.time += rested_s
    return rest


def wanted(rest):
    try:
        return rest.wants_agent(rest.look())
    finally:
        rest.close()


def test_after_a_night_nobody_is_wanted_until_the_retry_window_opens(world):
    assert not wanted(rest_of(world))
    assert wanted(rest_of(world, 1300.0))


def test_an_agent_that_just_came_to_rest_is_not_wanted_again_at_once(world):
    world.clock.time += 1300.0
    assert not wanted(rest_of(world, SHORTEST_REST_S - 1))
    assert wanted(rest_of(world, SHORTEST_REST_S))


def test_without_power_or_without_an_unmetered_link_nobody_is_wanted(world):
    for readings in (replace(GOOD, charging=Reading(False)), replace(GOOD, metered=Reading(True))):
        world.sensors.readings = readings
        assert not wanted(rest_of(world, 1300.0))


def test_without_text_nobody_is_wanted_and_the_reason_says_so(world):
    (world.home / "examples.db").unlink()
    rest = rest_of(world, 1300.0)
    assert "nothing to learn from" in rest.look().reason
    assert not wanted(rest)


def test_an_update_that_waits_wants_the_agent_at_once(tmp_path):
    world = World(tmp_path / "home")
    world.type_text()
    world.agent.turn()
    world.aggregator.work()
    world.broker.up = False
    world.agent.turn()
    world.agent.abandon()
    assert wanted(rest_of(world, 0.0))


def test_news_of_versions_want_the_agent_every_six_hours_wherever_the_link_may_be_used(world):
    world.sensors.readings = replace(GOOD, charging=Reading(False))
    assert not wanted(rest_of(world, POLL_S - 600))
    assert wanted(rest_of(world, 700.0))
    world.sensors.readings = replace(world.sensors.readings, metered=Reading(True))
    assert not wanted(rest_of(world, 0.0))


def test_looks_at_rest_count_for_the_agent_that_follows(world):
    policy = msgspec.structs.replace(world.settings.policy, settle_s=1000.0)
    world.settings = msgspec.structs.replace(world.settings, policy=policy)
    world.clock.time += 1300.0
    rest = rest_of(world, 0.0)
    for _ in range(10):
        assert not rest.wants_agent(rest.look())
        world.clock.time += 100.0
    assert rest.look().may_train and rest.standing.good_since is not None
    rest.close()


def test_a_device_at_rest_has_loaded_neither_cryptography_nor_a_network_nor_numpy():
    code = (
        "import sys, edge_runtime.cli, edge_runtime.running\n"
        "heavy = {'numpy', 'cryptography', 'paho', 'http', 'ssl', 'ai_edge_litert', 'tflite_runtime', 'tensorflow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_a_time_of_news_that_rotted_counts_as_never(tmp_path):
    store = StateStore(tmp_path / "state.db")
    seen = []
    for value in (b"", b"nonsense", b"1.5e9"):
        store.put(news.NAME, value, times_forgotten=0)
        seen.append(news.seen_at(store))
    store.close()
    assert seen == [0.0, 0.0, 1.5e9]
