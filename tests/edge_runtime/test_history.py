import json
import sqlite3
from datetime import UTC, datetime

import pytest

from cli_contract.errors import CommandError
from cli_contract.result import envelope
from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.eligibility import Usage
from edge_runtime.history import history, night_name, parse_since
from edge_runtime.ledger import OwnTerms
from tests.edge_runtime.test_ledger import DAY, START, evaluation, offer

ZONE = '[policy]\ntime_zone = "Asia/Kathmandu"\nwatts = 1.2\n'


@pytest.fixture
def home(tmp_path):
    """Three trainings and an evaluation on four nights, of which two updates were judged."""
    (tmp_path / "settings.toml").write_text(ZONE)
    store = StateStore(tmp_path / "state.db")
    ledger = LedgerRows(store, OwnTerms())
    for number in range(4):
        at = START + number * DAY
        asked = evaluation(number, issued=at) if number == 3 else offer(number, version=number + 1, issued=at)
        with store.transaction() as connection:
            ledger.begin(connection, asked, at)
            if number < 2:
                ledger.sent(connection, asked.lease, update_id=f"{number:032x}", size_bytes=9000 + number, examples=80,
                            steps=5, at=at + 30.0)  # fmt: skip
            night = datetime.fromtimestamp(at, UTC).date().isoformat()
            store.add_usage(connection, night, Usage(300.4, 9000, 3000.0, 70_000, 1))
    with store.transaction() as connection:
        ledger.settle(connection, f"{0:032x}", "accepted", START + 60.0)
    store.close()
    return tmp_path


def test_it_says_what_was_sent_when_and_how_many_bytes_newest_first(home):
    data = history(home, "", 0).data
    assert [(item["kind"], item["base_version"], item["bytes"], item["verdict"]) for item in data["items"]] == [
        ("evaluate", 4, 0, ""), ("train", 3, 0, ""), ("train", 2, 9001, ""), ("train", 1, 9000, "accepted"),
    ]  # fmt: skip
    assert data["items"][3]["at"] == "2027-01-15T08:00:00Z"
    assert data["items"][3]["sent_at"] == "2027-01-15T08:00:30Z"
    assert data["items"][0]["sent_at"] == ""
    assert data["items"][3]["verdict_at"] == "2027-01-15T08:01:00Z"
    assert data["totals"]["sent_bytes"] == 18_001
    assert (data["totals"]["accepted"], data["totals"]["waiting"]) == (1, 1)


def test_it_says_what_each_night_used_and_estimates_the_energy(home):
    nights = history(home, "", 0).data["nights"]
    assert [night["night"] for night in nights] == ["2027-01-18", "2027-01-17", "2027-01-16", "2027-01-15"]
    assert nights[0] == {"night": "2027-01-18", "training_s": 300.4, "cpu_s": 3000.0, "energy_wh": 1.0,
                         "sent_bytes": 9000, "written_bytes": 70_000, "starts": 1}  # fmt: skip


def test_the_table_has_units_in_its_headers_and_the_owners_time(home):
    text = history(home, "", 0).text
    assert "WHEN (ASIA/KATHMANDU)" in text and "2027-01-15 13:45" in text
    assert "TRAINING S" in text and "SENT BYTES" in text and "ENERGY WH (EST.)" in text
    assert "no receipt yet" in text and "nothing sent" in text


def test_a_limit_shows_the_newest_and_says_how_many_there_are(home):
    result = history(home, "", 1)
    assert [item["kind"] for item in result.data["items"]] == ["evaluate"]
    assert (result.data["participations"], len(result.data["nights"])) == (4, 1)
    assert result.text.count("1 of 4; more: --limit 0") == 2
    assert "more:" not in history(home, "", 4).text


def test_since_leaves_out_what_lies_before(home):
    items = history(home, "2027-01-17", 0).data["items"]
    assert [item["base_version"] for item in items] == [4, 3]


def test_it_is_one_line_of_json_without_any_text_of_the_person(home):
    line = envelope("edge-runtime history", history(home, "", 0))
    assert "\n" not in line and json.loads(line)["status"] == "ok"
    columns = {key for item in history(home, "", 0).data["items"] for key in item}
    assert columns == {"lease", "population", "task", "kind", "base_version", "at", "examples", "steps", "update_id",
                       "bytes", "verdict", "verdict_at", "sent_at"}  # fmt: skip


def test_a_device_that_did_nothing_says_so(tmp_path):
    StateStore(tmp_path / "state.db").close()
    assert history(tmp_path, "", 20).text == "it has taken part in nothing yet\n\nno night has used anything yet"


def test_a_home_without_a_state_is_told_and_none_is_made(tmp_path):
    with pytest.raises(CommandError, match=r"state\.db") as caught:
        history(tmp_path, "", 20)
    assert (caught.value.exit_code, list(tmp_path.iterdir())) == (4, [])


def test_a_state_that_is_no_database_is_told_in_one_line(tmp_path):
    (tmp_path / "state.db").write_bytes(b"x" * 5000)
    with pytest.raises(CommandError) as caught:
        history(tmp_path, "", 20)
    assert caught.value.code == "HOME_BROKEN"
    assert (tmp_path / "state.db").read_bytes() == b"x" * 5000


def test_it_reads_beside_an_agent_that_is_writing(home):
    writer = sqlite3.connect(home / "state.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM participation")
    assert len(history(home, "", 0).data["items"]) == 4
    writer.execute("ROLLBACK")
    writer.close()


@pytest.mark.parametrize(
    ("text", "back_s"), [("12h", 12 * 3600), ("7d", 7 * DAY), ("4w", 28 * DAY), ("0d", 0), ("99999w", START)]
)
def test_since_takes_a_span(text, back_s):
    assert parse_since(text, float(START)) == START - back_s


def test_since_takes_a_date_and_nothing():
    assert parse_since("1970-01-02", 0.0) == DAY
    assert parse_since("", 5.0) == 0.0
    assert night_name(float(START)) == "2027-01-14" and night_name(0.0) == ""


@pytest.mark.parametrize("text", ["7", "d", "-7d", "7d ", "7.5d", "yesterday", "2026-13-01", "999999d", "٧d"])
def test_a_since_that_means_nothing_is_refused_with_an_example(text):
    with pytest.raises(CommandError, match="a span like 12h, 7d or 4w, or a date like 2026-11-01") as caught:
        parse_since(text, 0.0)
    assert caught.value.exit_code == 2


def test_a_negative_limit_is_refused(home):
    with pytest.raises(CommandError, match="--limit is 0 or more, got -1"):
        history(home, "", -1)


def test_what_an_aggregator_dated_beyond_every_calendar_is_shown_all_the_same(home):
    store = StateStore(home / "state.db")
    with store.transaction() as connection:
        connection.execute("UPDATE participation SET at = ?, sent_at = ?", (float(1 << 40), float(1 << 40)))
    store.close()
    told = history(home, "", 0)
    assert told.data["items"][0]["at"].startswith("9998-12-31") and "9999" in told.text
