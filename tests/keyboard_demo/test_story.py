import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cli_contract.errors import CommandError
from fleet_simulator.nights import TICK_HOURS
from keyboard_demo import typists
from keyboard_demo.story import (
    FLEET_MINIMUM_WORDS,
    WORDS_A_PERSON,
    StorySettings,
    choose_fleet,
    choose_held_out,
    next_commands,
    population_settings,
)
from keyboard_demo.typists import Message, Person, count_words

ROOT = Path(__file__).parents[2]


def person(user: str, words: int) -> Person:
    return Person(user, tuple(Message(f"{i:06d}", "one two three four five") for i in range(words // 5)), words)


def test_the_fleet_is_drawn_by_the_seed_from_people_who_typed_enough():
    persons = [person(f"u{i}", 500 + 100 * i) for i in range(30)]
    chosen = choose_fleet(persons, 10, 7)
    assert choose_fleet(persons[::-1], 10, 7) == chosen
    assert choose_fleet(persons, 10, 8) != chosen
    assert all(some.words >= FLEET_MINIMUM_WORDS for some in chosen)
    assert len({some.user for some in chosen}) == 10


def test_more_devices_than_people_are_refused_with_the_most_that_there_are():
    with pytest.raises(CommandError) as caught:
        choose_fleet([person(f"u{i}", 2000) for i in range(3)], 4, 7)
    assert caught.value.exit_code == 2
    assert "--devices 3" in caught.value.hint


def test_held_out_people_hold_enough_words_and_no_word_is_both_learned_and_scored():
    persons = [person(f"u{i}", 1000) for i in range(30)]
    chosen = choose_held_out(persons, 2000)
    assert choose_held_out(persons[::-1], 2000) == chosen
    scored = sum(min(WORDS_A_PERSON, sum(map(count_words, some.tail))) for some in chosen)
    assert 2000 * 1.05 <= scored < 2000 * 1.05 + WORDS_A_PERSON
    for some in chosen:
        assert len(some.head) + len(some.tail) == 200
        assert sum(map(count_words, some.head)) >= 0.8 * 1000


def test_the_story_reads_train_and_test_people_only():
    source = (ROOT / "keyboard_demo/story.py").read_text()
    read = set(__import__("re").findall(r'read_persons\("(\w+)"\)', source))
    assert read == {"train", "test"}
    assert not {typists.SPLIT_OF_RESIDUE[r] for r in (4, 5, 6, 7, 8)} & {typists.SPLIT_OF_RESIDUE[r] for r in (0, 1)}


def test_the_server_rate_falls_until_the_last_tick():
    settings = population_settings(StorySettings(nights=10))
    assert settings.optimizer.decay_steps == 10 * len(TICK_HOURS)
    assert settings.plan.example_cap == settings.plan.rows


def test_the_last_screen_names_three_commands(tmp_path):
    assert len(next_commands(None)) == len(next_commands(tmp_path)) == 3
    assert all(str(tmp_path) in command for command, _ in next_commands(tmp_path))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keyboard_demo.cli", *arguments],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("story", "--devices", "0"), 2, "devices"),
        (("story", "--nights", "-1"), 2, "nights"),
        (("story", "--device-python", "/no/such/python"), 3, "no such file"),
        (("type", "--home", "/no/such/home"), 4, "not enrolled"),
        (("people", "--split", "reserved", "--output", "x"), 2, "invalid choice"),
    ],
)
def test_what_cannot_be_told_is_one_line_with_its_exit_code(arguments, code, word):
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_a_folder_that_holds_something_is_not_used_to_keep(tmp_path):
    (tmp_path / "mine").write_text("x")
    done = run("story", "--keep", str(tmp_path), "--devices", "1", "--nights", "1")
    assert done.returncode == 4
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_people_that_cannot_be_written_leave_nothing(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    done = run("people", "--split", "dev", "--output", str(target))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert stat.S_ISDIR(target.stat().st_mode)


def test_people_writes_one_json_object_a_person(tmp_path):
    done = run("people", "--split", "dev", "--part", "tail", "--output", str(tmp_path / "dev.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    rows = [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text().splitlines()]
    assert answer["persons"] == len(rows) == 69
    assert {typists.residue(row["user"]) for row in rows} == {2}
