import json

from keyboard_demo.outcome import Outcome, Place, bar, screen

OUTCOME = Outcome(
    seed=7, devices=120, nights=30, updates_applied=960, updates_waiting=6,
    updates_by_staleness={"0": 401, "1": 489, "2": 45, "3": 31}, refused={"stale": 57, "expired": 1},
    stayed_away={"busy": 33, "on battery": 29, "warm": 20}, interrupted=33, resumed=28, killed=31, versions=60,
    refreshes=5, persons=57, words=10494, top3_before=26.2345, top3_after=28.26, top3_personal=30.56, top1_before=16.3,
    top1_after=17.17, top1_personal=18.46, bytes_up_per_update=9152, bytes_float32=2_946_368, parameters=736_592,
    broker="mosquitto", runtime="litert 2.3.0", seconds=97.6543, model_hash="ab" * 32,
)  # fmt: skip
PLACES = (
    Place("", "what", ("i", "yeah", "but"), ("i", "yeah", "what")),
    Place("what do you want to do with computers all day", "today", ("extraordinarily", "b", "c"), ("today", "e", "f")),
)


def test_the_json_has_every_number_that_a_script_needs_and_is_json():
    data = OUTCOME.as_json()
    assert json.loads(json.dumps(data)) == data
    assert data["times_fewer_bytes"] == 321.9
    assert data["top3_before"] == 26.23
    assert data["seconds"] == 97.65
    promised = {"devices", "updates_applied", "updates_by_staleness", "refused", "top3_before", "top3_after",
                "top3_personal", "words", "bytes_up_per_update", "bytes_float32", "seconds", "model_hash"}  # fmt: skip
    assert promised <= data.keys()


def test_the_screen_fits_80_columns_and_says_each_number():
    text = screen(OUTCOME, PLACES, (("make demo", "again"),))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("26.23 %", "28.26 %", "30.56 %", "322 times fewer", "stale 57", "expired 1", "33 busy", "what*",
                 "today*", "ab" * 32, "make demo"):  # fmt: skip
        assert part in text


def test_a_fleet_where_nothing_happened_has_a_screen_too():
    import dataclasses

    empty = dataclasses.replace(OUTCOME, updates_by_staleness={}, refused={}, stayed_away={}, bytes_up_per_update=0)
    text = screen(empty, (), ())
    assert "no update was accepted" in text
    assert "nobody stayed away" in text


def test_a_bar_shows_something_for_every_count_but_zero():
    assert bar(0) == ""
    assert bar(0.0001) == "█"
    assert bar(1) == "█" * 24
