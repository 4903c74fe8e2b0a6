"""The person's keyboard on a real device: it learns offline, and a night on request contributes and personalizes."""

import json
import time

import pytest

from edge_runtime import identity
from edge_runtime.adapters import enrolment
from edge_runtime.agent import Agent
from edge_runtime.config import Settings
from edge_runtime.mixture import Mixture
from edge_runtime.wiring import real_ports
from fleet_simulator.fleet import Fleet
from fleet_simulator.nights import DAY_S
from keyboard_demo.device import NoModel, open_personal
from keyboard_demo.keyboard import Typing, suggest
from tests.system.test_fleet import BUNDLE, SETTINGS, WORDS, people


@pytest.fixture
def fleet_and_home(tmp_path):
    now = int(time.time()) - DAY_S
    with Fleet(tmp_path / "fleet", BUNDLE, SETTINGS, seed=1, now=now, processes=1) as fleet:
        home = tmp_path / "keyboard"
        home.mkdir(mode=0o700)
        me = identity.load_or_make(home, identity.system_entropy)
        token = fleet.host.service.mint_token(fleet.host.population, "keyboard", time.time())
        _, signed = enrolment.enrol(
            fleet.host.http.url, me, token=token, population=fleet.host.population, label="keyboard"
        )
        identity.save_enrolled(home, signed)
        yield fleet, home


def test_a_keyboard_without_a_model_says_what_to_do(fleet_and_home):
    _, home = fleet_and_home
    with pytest.raises(NoModel, match="edge-runtime run"):
        open_personal(home)


def test_a_night_on_request_contributes_once_and_makes_a_personal_copy(fleet_and_home):
    fleet, home = fleet_and_home
    with fleet.on_wall_clock():
        fetch_model(home)
        device = open_personal(home)
        try:
            before = suggest(Typing(text=f"{WORDS.words[10]} "), device.vocabulary, device.predict).strip
            assert len(set(before)) == 3
            for text in people()[0][:60]:
                device.learn(text)
            said = "\n".join(device.train_now())
        finally:
            device.close()
    assert "sensors played" in said
    assert "checked in" in said
    assert "update sent, sealed" in said
    assert "receipt: accepted" in said
    assert "nats a word" in said
    assert fleet.host.count_accepted() == (1, 1)


def test_a_start_counts_for_a_version_on_trial_before_it_is_opened_and_again_when_it_has_answered(fleet_and_home):
    fleet, home = fleet_and_home
    with fleet.on_wall_clock():
        fetch_model(home)
    pointer = home / "slots" / "refresh.json"
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "on_trial": True, "begun": 0, "came_up": 0}))
    counts = []
    for answers in (False, True):
        device = open_personal(home)
        begun = json.loads(pointer.read_text())["begun"]
        try:
            if answers:
                device.predict(tuple([1] * 20))
        finally:
            device.close()
        counts.append((begun, json.loads(pointer.read_text())["on_trial"]))
    # A first version has none before it to be compared with: it is kept as soon as it has answered.
    assert counts == [(1, True), (2, False)]


def test_suggestions_and_learning_need_no_network(fleet_and_home):
    fleet, home = fleet_and_home
    with fleet.on_wall_clock():
        fetch_model(home)
    fleet.__exit__(None, None, None)
    device = open_personal(home)
    try:
        word = WORDS.words[40]
        for _ in range(6):
            assert "kept on this device" in device.learn(f"{WORDS.words[30]} {word}")
        strip = suggest(Typing(text=f"{WORDS.words[30]} "), device.vocabulary, device.predict).strip
        assert word in strip
        said = "\n".join(device.train_now())
        assert "no contribution tonight" in said
    finally:
        device.close()


def fetch_model(home):
    """Let an agent fetch the first refresh, as `edge-runtime enrol` does."""
    settings = Settings(population=identity.load_enrolled(home).population)
    agent = Agent(home, settings, real_ports(home, settings))
    agent.fetch_refresh()
    agent.close()


def test_a_fleet_that_does_not_answer_is_told_and_what_was_typed_stays(fleet_and_home):
    fleet, home = fleet_and_home
    with fleet.on_wall_clock():
        fetch_model(home)
    device = open_personal(home)
    try:
        for text in people()[1][:20]:
            device.learn(text)
        words = device.agent.examples.count_words()
        assert "no answer came" in "\n".join(device.train_now())
        assert device.agent.examples.count_words() == words > 0
    finally:
        device.close()


def test_a_word_that_another_process_forgets_is_not_suggested_by_an_open_keyboard(fleet_and_home):
    fleet, home = fleet_and_home
    with fleet.on_wall_clock():
        fetch_model(home)
    device = open_personal(home)
    try:
        before, word = WORDS.words[30], WORDS.words[40]
        for _ in range(8):
            device.learn(f"{before} {word}")
        typed = Typing(text=f"{before} ")
        assert word in suggest(typed, device.vocabulary, device.predict).strip
        assert (home / "personal" / "mixture").exists()
        other = Agent(home, Settings(population=identity.load_enrolled(home).population), real_ports(home, Settings()))
        assert other.forget_word(word) == 8
        other.abandon()
        assert word not in suggest(typed, device.vocabulary, device.predict).strip
        assert list((home / "personal").iterdir()) == []
        device.learn(f"{before} {WORDS.words[50]}")
        assert device.agent.examples.count_words() == 2
    finally:
        device.close()


def test_the_weights_that_were_learned_are_there_when_the_keyboard_is_opened_again(fleet_and_home):
    fleet, home = fleet_and_home
    with fleet.on_wall_clock():
        fetch_model(home)
    device = open_personal(home)
    for _ in range(5):
        device.learn(f"{WORDS.words[30]} {WORDS.words[40]} {WORDS.words[41]}")
    learned = device._suggestions.mixture
    device.close()
    again = open_personal(home)
    try:
        assert again._suggestions.mixture == learned != Mixture()
    finally:
        again.close()
    (home / "personal" / "mixture").write_bytes(b"{")
    broken = open_personal(home)
    try:
        assert broken._suggestions.mixture == Mixture()
    finally:
        broken.close()
