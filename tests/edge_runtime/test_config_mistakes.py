"""Mistakes planted in a settings file, played through the real command: each is named by file, line, column and key."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from cli_contract.errors import CommandError
from edge_runtime import config_commands
from edge_runtime.config import Settings, read_settings, reading_of

GOOD = """\
# The kitchen's Pi.
population = "keyboard"
server = "http://192.168.1.5:8080"
label = "kitchen"
chunk_bytes = 16_384

[policy]
profile = "mains"
time_zone = "Europe/Berlin"
night_start = "22:30"
night_end = "05:30"
start_battery = 70
stop_battery = 50.0
sent_bytes = 1_000_000

[ledger]
minimum_days = 1.5
most_a_week = 3
"""


@dataclass(frozen=True)
class Planted:
    """`old` in the good file becomes `new`; the command must say `told`, at line, column and key."""

    name: str
    old: str
    new: str
    line: int
    key: str
    told: str
    column: int = 0


PLANTED = [
    Planted("a misspelt key", "population =", "popluation =", 2, "popluation", 'did you mean "population"?', 1),
    Planted("a misspelt key in a table", "night_end", "nigth_end", 11, "policy.nigth_end",
            'did you mean "policy.night_end"?', 1),
    Planted("a misspelt table", "[policy]", "[polcy]", 7, "polcy", 'did you mean "policy"?', 1),
    Planted("a key in no table that belongs in one", "label =", 'time_zone = "UTC"\nlabel =', 4, "time_zone",
            'did you mean "policy.time_zone"?', 1),
    Planted("a key in the wrong table", "minimum_days = 1.5", 'broker_ca = ""', 17, "ledger.broker_ca",
            'did you mean "broker_ca"?'),
    Planted("text where a number belongs", "70", '"70"', 12, "policy.start_battery",
            "a number from 0 to 100, got \"70\"; leave the quotes out: 70", 17),
    Planted("a number where text belongs", '"kitchen"', "3", 4, "label",
            "text of 80 characters at most, got 3; put it into quotes", 9),
    Planted("true where text belongs", '"http://192.168.1.5:8080"', "true", 3, "server",
            "an address like http://HOST:PORT, got true"),
    Planted("true where a number belongs", "70", "true", 12, "policy.start_battery",
            "a number from 0 to 100, got true"),
    Planted("a fraction where a whole number belongs", "16_384", "16384.0", 5, "chunk_bytes",
            "a whole number from 1024 to 49152, got 16384.0; leave the fraction out: 16384"),
    Planted("a number above its range", "70", "170", 12, "policy.start_battery", "a number from 0 to 100, got 170"),
    Planted("a number below its range", "16_384", "16", 5, "chunk_bytes", "from 1024 to 49152, got 16"),
    Planted("a negative budget", "1_000_000", "-1", 14, "policy.sent_bytes", "a whole number from 0 to", 14),
    Planted("a number of 100 bits", "1_000_000", "1" * 31, 14, "policy.sent_bytes", "a whole number from 0 to"),
    Planted("no number", "= 1.5", "= nan", 17, "ledger.minimum_days", "got nan"),
    Planted("infinity", "= 1.5", "= +inf", 17, "ledger.minimum_days", "got inf"),
    Planted("an unknown zone", "Europe/Berlin", "Europe/Berln", 9, "policy.time_zone",
            'did you mean "Europe/Berlin"?', 13),
    Planted("a zone that is a path", "Europe/Berlin", "../../etc/passwd", 9, "policy.time_zone",
            "a name like Europe/Berlin"),
    Planted("a time that there is not", "22:30", "25:00", 10, "policy.night_start",
            'a time from 00:00 to 23:59 in quotes, got "25:00"'),
    Planted("a time without a zero", "05:30", "5:30", 11, "policy.night_end", 'got "5:30"'),
    Planted("a time without quotes", '"05:30"', "05:30", 11, "policy.night_end",
            'a time stands in quotes, like "22:30", got 05:30'),
    Planted("a local time of TOML", '"05:30"', "05:30:00", 11, "policy.night_end",
            "got the time 05:30:00; put it into quotes"),
    Planted("a start floor below the stop floor", "70", "30", 12, "policy.start_battery",
            '"policy.start_battery" is at least "policy.stop_battery", got 30 and 50', 17),
    Planted("a night shorter than a start needs", '"05:30"', '"22:40"', 10, "policy.night_start",
            '"policy.minimum_window_s" is at most the night'),
    Planted("a word that is none of those allowed", '"mains"', '"main"', 8, "policy.profile",
            'one of "battery", "mains", got "main"; did you mean "mains"?', 11),
    Planted("a word in capitals", '"mains"', '"MAINS"', 8, "policy.profile", 'did you mean "mains"?'),
    Planted("an empty name", '"keyboard"', '""', 2, "population",
            'a name of 1 to 40 small letters, digits and hyphens, got ""'),
    Planted("a name with a blank", '"keyboard"', '"my keys"', 2, "population", 'got "my keys"'),
    Planted("a key twice", 'label = "kitchen"', 'label = "kitchen"\nlabel = "hall"', 5, "label",
            "it stands in line 4 already", 1),
    Planted("a table twice", "[ledger]", "[policy]", 16, "policy", "it stands in line 7 already"),
    Planted("a key dotted and as a table", "# The kitchen's Pi.", "policy.idle = \"ignore\"", 7, "policy",
            "its table was written elsewhere already"),
    Planted("a missing quote", '"kitchen"', '"kitchen', 4, "label", "a quote is missing"),
    Planted("quotes of a word processor", '"kitchen"', "“kitchen”", 4, "label", "quotes are straight", 9),
    Planted("no quotes", '"mains"', "mains", 8, "policy.profile", 'text stands in quotes: "mains"', 11),
    Planted("no value", '"mains"', "", 8, "policy.profile", "a value is missing behind ="),
    Planted("a tab inside a key", "night_start", "night\tstart", 10, "policy.night",
            "a key, which holds no blank, and its value stand as key = value"),
    Planted("a colon for an equals sign", "label =", "label:", 4, "label", "stand as key = value"),
    Planted("a control character in text", '"kitchen', '"kit\x1b[2Jchen', 4, "label", "illegal character"),
    Planted("a control character in a comment", "kitchen's", "kitchen\0s", 1, "",
            "a control character stands in a comment", 14),
    Planted("a backslash", '"kitchen', '"C:\\Users', 4, "label", "a backslash in double quotes is written twice"),
    Planted("three quotes that do not end", '"kitchen"', '"""kitchen', 4, "label",
            "text that begins with a quote ends with one"),
    Planted("a unit", "1_000_000", "1MB", 14, "policy.sent_bytes", "a number has no unit; its key says it, got 1MB"),
    Planted("a leading zero", "70", "070", 12, "policy.start_battery", "a number has no leading zero, got 070"),
    Planted("a capital boolean", "70", "True", 12, "policy.start_battery", "true and false are written small: true"),
    Planted("two pairs in a line", '"kitchen"', '"kitchen" runtime = "auto"', 4, "label",
            "behind = stands one value and nothing else"),
    Planted("a table where a value belongs", "[ledger]", "[policy.settle_s]\na = 1\n[ledger]", 16,
            "policy.settle_s", "a number from 0 to 604800, got a table"),
    Planted("a value where a table belongs", "[ledger]\nminimum_days = 1.5\nmost_a_week = 3\n", "", 4, "ledger",
            '"ledger" is a table, got 3', 10),
    Planted("an array of tables", "[ledger]", "[[ledger]]", 16, "ledger", "a table, got a list of 1"),
    Planted("an unknown table in a table", "[ledger]", "[policy.night]\nx = 1\n[ledger]", 16, "policy.night",
            'unknown key "policy.night"'),
    Planted("an array where text belongs", '"kitchen"', '[\n  "kitchen", # the Pi\n  "hall",\n]', 4, "label",
            "text of 80 characters at most, got a list of 2", 9),
    Planted("an array that does not end", '"kitchen"', '["kitchen"', 4, "label", "a closing ] is missing"),
    Planted("a mistake in an inline table", "[ledger]\nminimum_days = 1.5\nmost_a_week = 3\n", "", 4,
            "ledger.most_a_wek", 'did you mean "ledger.most_a_week"?', 31),
    Planted("a mistake in a quoted key", "label =", '"lable" =', 4, "lable", 'did you mean "label"?', 1),
    Planted("a mistake in a dotted key", "[ledger]\nminimum_days = 1.5\nmost_a_week = 3\n", "", 1,
            "ledger.kept-days", 'did you mean "ledger.kept_days"?', 1),
    Planted("an escape in a key", "label =", '"\\u001b[2Jlabel" =', 4, "\x1b[2Jlabel", "unknown key"),
    Planted("a header without an end", "[ledger]", "[ledger", 16, "ledger", "a table's name ends with ]"),
    Planted("a byte that is no UTF-8", '"kitchen', '"K\udcfcche', 4, "label",
            "byte 0xfc is no UTF-8; save the file as UTF-8", 11),
    Planted("a byte order mark", "# The kitchen's Pi.\n", "\ufeff", 1, "population",
            "the file begins with a byte order mark; save it as UTF-8 without one", 1),
    Planted("a thousand brackets", '"kitchen"', "[" * 5000, 4, "label", "its brackets are nested too deep"),
    Planted("five thousand digits", "16_384", "9" * 5000, 5, "chunk_bytes", "a number has too many digits"),
]  # fmt: skip
EXTRA = {
    "a value where a table belongs": ("label =", "ledger = 3\nlabel ="),
    "a mistake in a dotted key": ("# The kitchen's Pi.", "ledger . kept-days = 40"),
    "a mistake in an inline table": ("label =", "ledger = {minimum_days = 1.5, most_a_wek = 3}\nlabel ="),
}


def text_of(planted):
    assert GOOD.count(planted.old) >= 1
    text = GOOD.replace(planted.old, planted.new, 1)
    if planted.name in EXTRA:
        text = text.replace(*EXTRA[planted.name], 1)
    return text


def write(home, text):
    home.mkdir(exist_ok=True)
    path = home / "settings.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "edge_runtime.cli", *arguments], capture_output=True, timeout=60,
        stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip


def test_the_good_file_is_good(tmp_path):
    write(tmp_path, GOOD)
    settings = read_settings(tmp_path)
    assert (settings.label, settings.policy.night_start, settings.ledger.most_a_week) == ("kitchen", "22:30", 3)
    assert config_commands.check(tmp_path).exit_code == 0


def test_there_are_more_than_thirty_kinds_of_mistake():
    assert len({planted.name for planted in PLANTED}) == len(PLANTED) >= 30


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_the_command_names_file_line_and_key_in_one_line_and_no_traceback(tmp_path, planted):
    path = write(tmp_path, text_of(planted))
    done = run("status", "--home", str(tmp_path), "--json")
    stderr = done.stderr.decode()
    assert done.returncode == 2
    assert stderr.count("\n") == 1 and "Traceback" not in stderr
    error = json.loads(done.stdout)
    assert (error["error_code"], error["exit_code"]) == ("BAD_CONFIG", 2)
    assert error["message"] in stderr and "\x1b" not in stderr
    assert error["message"].startswith(f"{path}:{planted.line}:{planted.column or ''}")
    assert error["message"].count(str(path)) == 1, "one mistake is one mistake"
    assert planted.told in error["message"]
    if planted.key:
        assert f'"{planted.key}"'.encode("unicode_escape").decode() in error["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"], "it made something"


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_config_check_lists_the_mistake_as_data(tmp_path, planted):
    write(tmp_path, text_of(planted))
    result = config_commands.check(tmp_path)
    assert result.exit_code == 2
    (mistake,) = result.data["mistakes"]
    assert (mistake["line"], mistake["key"]) == (planted.line, planted.key)
    assert mistake["column"] == (planted.column or mistake["column"]) >= 1
    assert planted.told in mistake["message"]


def test_every_mistake_is_named_at_once_in_the_order_of_the_file(tmp_path):
    text = GOOD
    for planted in (p for p in PLANTED if p.name in {
        "a misspelt key", "a number where text belongs", "an unknown zone", "a start floor below the stop floor",
        "a negative budget", "no number",
    }):  # fmt: skip
        text = text.replace(planted.old, planted.new, 1)
    path = write(tmp_path, text)
    done = run("status", "--home", str(tmp_path))
    assert done.returncode == 2 and done.stdout == b""
    told = done.stderr.decode()
    assert told.count("\n") == 1
    lines = [int(part.split(":")[1]) for part in told.split(str(path))[1:]]
    assert lines == [2, 4, 9, 12, 14, 17]


def test_a_rule_between_two_keys_is_not_judged_by_a_default_where_one_of_them_is_wrong(tmp_path):
    write(tmp_path, GOOD.replace("stop_battery = 50.0", "stop_battery = 99").replace("= 70", '= "70"'))
    assert [m["key"] for m in config_commands.check(tmp_path).data["mistakes"]] == ["policy.start_battery"]


def test_windows_line_ends_change_nothing(tmp_path):
    write(tmp_path, GOOD.replace("\n", "\r\n").replace("22:30", "32:30"))
    assert [m["line"] for m in config_commands.check(tmp_path).data["mistakes"]] == [10]


def refusal_of(home):
    with pytest.raises(CommandError) as caught:
        read_settings(home)
    assert (caught.value.exit_code, caught.value.code) in {(2, "BAD_CONFIG"), (3, "NO_CONFIG")}
    assert str(home / "settings.toml") in caught.value.message
    return caught.value.message


def test_a_folder_a_pipe_and_a_huge_file_are_refused_by_name(tmp_path):
    (tmp_path / "settings.toml").mkdir()
    assert "cannot be read" in refusal_of(tmp_path)
    (tmp_path / "settings.toml").rmdir()
    os.mkfifo(tmp_path / "settings.toml")
    assert "it is no file" in refusal_of(tmp_path)
    (tmp_path / "settings.toml").unlink()
    write(tmp_path, GOOD + "# x\n" * 20_000)
    assert "longer than 65536 bytes" in refusal_of(tmp_path)


def test_a_link_to_nowhere_or_to_itself_is_refused_and_not_taken_for_no_file(tmp_path):
    (tmp_path / "settings.toml").symlink_to(tmp_path / "none")
    refusal_of(tmp_path)
    (tmp_path / "settings.toml").unlink()
    (tmp_path / "settings.toml").symlink_to("settings.toml")
    assert "cannot be read" in refusal_of(tmp_path)


def test_a_file_that_may_not_be_read_is_refused_and_not_taken_for_no_file(tmp_path):
    write(tmp_path, GOOD).chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    try:
        assert "cannot be read" in refusal_of(tmp_path)
    finally:
        os.seteuid(was)


def test_where_there_is_no_file_every_default_is_in_force(tmp_path):
    assert read_settings(tmp_path) == Settings()
    assert reading_of(tmp_path).lines == {}
    assert "every default" in config_commands.check(tmp_path).text


def test_config_show_says_where_each_setting_comes_from(tmp_path):
    write(tmp_path, GOOD)
    items = {item["key"]: item for item in config_commands.show(tmp_path).data["items"]}
    assert items["policy.start_battery"] == {"key": "policy.start_battery", "value": 70.0, "origin": "line 12"}
    assert items["policy.starts"]["origin"] == "default"
    assert items["population"]["value"] == "keyboard"


def test_what_config_show_shows_is_itself_a_settings_file(tmp_path):
    write(tmp_path, GOOD)
    shown = config_commands.show(tmp_path).text.splitlines()[1:]
    (tmp_path / "again").mkdir()
    write(tmp_path / "again", "\n".join("{} = {}".format(*line.split()[:2]) for line in shown))
    assert read_settings(tmp_path / "again") == read_settings(tmp_path)
