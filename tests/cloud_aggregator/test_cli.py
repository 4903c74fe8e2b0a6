"""The operator's command as a process: data on stdout, words on stderr, exit codes, and nothing left running."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cloud_aggregator.adapters.broker import answers_mqtt5, start_broker
from cloud_aggregator.adapters.mqtt import parse_broker_url
from tests.cloud_aggregator.fleet import MANIFEST_KEY, Aggregator, phones, write_bundle
from wire_contract import envelope


def run(*words, stdin=subprocess.DEVNULL):
    return subprocess.run(
        [sys.executable, "-m", "cloud_aggregator.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=stdin,
    )


def answer(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data directory with the toy population and one refused, one closed round; no service runs."""
    folder = tmp_path_factory.mktemp("cli") / "data"
    aggregator = Aggregator(folder).found()
    for phone in phones(aggregator, 4):
        aggregator.take(*phone.update(phone.lease()))
    aggregator.turn()
    aggregator.database.close()
    return folder


class Serving:
    """A real `serve` process."""

    def __init__(self, data, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cloud_aggregator.cli", "serve", "--data", str(data), "--port", "0", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.lines = []
        while True:
            line = self.process.stderr.readline()
            self.lines.append(line)
            found = re.search(r"serving on (\S+), broker (\S+) on (\S+);", line)
            if found:
                self.url, self.broker, self.broker_url = found.groups()
                return
            assert line, self.lines

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        self.process.communicate(timeout=20)
        return self.process.returncode

    def broker_answers(self):
        address = parse_broker_url(self.broker_url)
        return answers_mqtt5(address.host, address.port)


@pytest.fixture(scope="module")
def serving(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "data"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    serving = Serving(folder)
    serving.data = folder
    yield serving
    if serving.process.poll() is None:
        serving.stop()


def test_a_fresh_directory_goes_from_init_to_a_population_in_two_commands(tmp_path):
    folder, bundle = tmp_path / "d", tmp_path / "bundle"
    write_bundle(bundle)
    made = answer(run("init", "--data", folder, "--json"))
    assert (folder / "aggregator.key").read_bytes() != b""
    key = envelope.public_bytes(MANIFEST_KEY).hex()
    assert len(made["aggregator_key"]) == 64
    imported = answer(run("population", "import", bundle, "--data", folder, "--manifest-key", key, "--json"))
    assert (imported["population"], imported["version"]) == ("toy", 1)
    again = run("population", "import", bundle, "--data", folder)
    assert again.returncode == 4
    assert "exists already" in again.stderr
    assert run("init", "--data", folder).returncode == 4


def test_a_settings_file_with_mistakes_is_told_with_file_line_and_key_all_at_once(tmp_path):
    folder, bundle, settings = tmp_path / "d", tmp_path / "bundle", tmp_path / "toy.toml"
    write_bundle(bundle)
    run("init", "--data", folder)
    settings.write_text('goal_cuont = 5\n\n[plan]\nclip_norm = "long"\n')
    done = run("population", "import", bundle, "--data", folder, "--settings", settings)
    assert done.returncode == 2
    assert 'toy.toml:1:1: unknown key "goal_cuont"; did you mean "goal_count"?' in done.stderr
    assert 'toy.toml:4:13: "plan.clip_norm"' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_settings_decide_how_a_population_learns(tmp_path):
    folder, bundle, settings = tmp_path / "d", tmp_path / "bundle", tmp_path / "toy.toml"
    write_bundle(bundle)
    run("init", "--data", folder)
    settings.write_text(
        "goal_count = 7\n[plan]\nclip_norm = 2.0\n[optimizer]\nname = 'fedavgm'\n[release]\ncron = '0 5 * * 1'\n"
    )
    assert run("population", "import", bundle, "--data", folder, "--settings", settings).returncode == 0
    status = answer(run("status", "--data", folder, "--json"))
    assert status["populations"][0]["goal_count"] == 7
    assert answer(run("schedule", "show", "--data", folder, "--json"))["cron"] == "0 5 * * 1"


def test_reading_commands_read_the_database_when_no_service_runs_and_say_so(data):
    for words in (["status"], ["device", "list"], ["round", "list"], ["release", "list"], ["schedule", "show"]):
        done = run(*words, "--data", data, "--json")
        assert answer(done)["schema_version"] == "1"
        assert "no service is running" in done.stderr
    rounds = answer(run("round", "list", "--data", data, "--json"))
    assert [item["round"] for item in rounds["items"]] == ["r-0002", "r-0001"]


@pytest.mark.parametrize(
    "words",
    [
        ["token", "mint"],
        ["device", "revoke", "00", "--yes"],
        ["device", "label", "00", "x"],
        ["release", "now", "--yes"],
        ["release", "undo", "--yes"],
        ["schedule", "set", "0 6 * * 0"],
    ],
)
def test_changing_commands_need_a_service_and_end_with_five(data, words):
    done = run(*words, "--data", data)
    assert (done.returncode, done.stdout) == (5, "")
    assert "no service answers" in done.stderr
    assert "cloud-aggregator serve" in done.stderr


def test_a_directory_that_is_none_is_not_found_with_a_hint(tmp_path):
    done = run("status", "--data", tmp_path / "none")
    assert done.returncode == 3
    assert "cloud-aggregator init" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_misspelt_command_is_answered_with_the_near_one():
    done = run("relaese", "now")
    assert done.returncode == 2
    assert "did you mean 'release'?" in done.stderr


@pytest.mark.parametrize("words", [["device", "show", "zz"], ["round", "show", "r-9"], ["release", "show", "v-9"]])
def test_what_is_not_there_ends_with_three_with_and_without_a_service(data, serving, words):
    assert run(*words, "--data", data).returncode == 3
    assert run(*words, "--data", serving.data).returncode == 3


def test_lists_are_newest_first_limited_and_say_how_to_see_more(serving):
    done = run("device", "list", "--limit", "2", "--data", serving.data)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("DEVICE")
    assert lines[-1] == "2 of 4; more: --limit 0"
    assert done.stderr.startswith("Next: cloud-aggregator device show")
    assert len(answer(run("device", "list", "--limit", "0", "--data", serving.data, "--json"))["items"]) == 4


def test_a_token_is_minted_and_shown_once(serving):
    minted = answer(run("token", "mint", "--label", "pi", "--data", serving.data, "--json"))
    assert len(minted["token"]) == 32
    assert minted["server"] == serving.url
    database = (serving.data / "aggregator.db").read_bytes() + (serving.data / "aggregator.db-wal").read_bytes()
    assert minted["token"].encode() not in database


def test_a_revocation_needs_a_yes_where_nobody_can_answer(serving):
    device = answer(run("device", "list", "--data", serving.data, "--json"))["items"][0]["device"]
    done = run("device", "revoke", device[:10], "--data", serving.data)
    assert done.returncode == 4
    assert "--yes" in done.stderr
    planned = run("device", "revoke", device[:10], "--dry-run", "--data", serving.data)
    assert planned.stdout.startswith(f"would revoke {device}")
    assert answer(run("device", "show", device, "--data", serving.data, "--json"))["state"] == "offline"
    assert answer(run("device", "revoke", device[:10], "--yes", "--data", serving.data, "--json"))["state"] == "revoked"


def test_a_release_is_planned_made_and_undone(serving):
    plan = answer(run("release", "now", "--dry-run", "--data", serving.data, "--json"))
    assert (plan["outcome"], plan["version"], plan["previous"]) == ("planned", 2, 1)
    assert run("release", "now", "--data", serving.data).returncode == 4
    made = answer(run("release", "now", "--yes", "--data", serving.data, "--json"))
    assert (made["outcome"], made["release"]) == ("released", "v-0002")
    refused = run("release", "now", "--yes", "--data", serving.data)
    assert refused.returncode == 4
    assert "not newer" in refused.stderr
    assert answer(run("release", "undo", "--dry-run", "--data", serving.data, "--json"))["outcome"] == "planned"
    undone = answer(run("release", "undo", "--yes", "--data", serving.data, "--json"))
    assert (undone["version"], undone["previous"]) == (3, 2)


def test_a_wrong_schedule_ends_with_two_and_changes_nothing(serving):
    done = run("schedule", "set", "now and then", "--data", serving.data)
    assert done.returncode == 2
    assert "five cron fields" in done.stderr
    assert answer(run("schedule", "show", "--data", serving.data, "--json"))["cron"] == "0 6 * * 0"


def test_an_error_as_json_stands_alone_on_stdout(serving):
    done = run("device", "show", "zz", "--data", serving.data, "-o", "json")
    told = json.loads(done.stdout)
    assert (told["exit_code"], told["error_code"]) == (3, "NOT_FOUND")


def test_a_population_imported_beside_a_running_service_is_served_at_once(serving, tmp_path):
    from tests.cloud_aggregator.fleet import make_bundle

    bundle = make_bundle("second")
    for name, body in (
        ("model.tflite", bundle.model),
        ("vocabulary.txt", bundle.vocabulary),
        ("manifest.bin", bundle.signed_manifest),
        ("manifest_key.pub", bundle.manifest_key.hex().encode()),
    ):
        (tmp_path / name).write_bytes(body)
    assert run("population", "import", tmp_path, "--data", serving.data).returncode == 0
    minted = run("token", "mint", "--population", "second", "--data", serving.data, "--json")
    assert answer(minted)["population"] == "second"
    assert run("token", "mint", "--data", serving.data).returncode == 3


def test_a_population_imported_beside_a_running_service_is_announced_to_its_devices(data, tmp_path):
    folder, bundle = tmp_path / "d", tmp_path / "bundle"
    write_bundle(bundle)
    run("init", "--data", folder)
    serving = Serving(folder)
    try:
        address, heard = parse_broker_url(serving.broker_url), threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="keyboard", protocol=paho.MQTTv5)
        client.on_message = lambda _client, _data, _message: heard.set()
        client.connect(address.host, address.port)
        client.subscribe("fl/v1/pop/toy/refresh", qos=1)
        client.loop_start()
        assert run("population", "import", bundle, "--data", folder).returncode == 0
        assert heard.wait(20)
        client.disconnect()
        client.loop_stop()
    finally:
        assert serving.stop() == 0


def test_a_data_directory_has_one_service_and_the_second_leaves_the_first_alone(serving):
    before = (serving.data / "service.json").read_text()
    done = run("serve", "--data", serving.data, "--port", "0")
    assert done.returncode == 4
    assert "is served by another process" in done.stderr
    assert (serving.data / "service.json").read_text() == before
    assert run("device", "list", "--data", serving.data).returncode == 0


def test_an_address_file_of_another_process_is_not_removed(data, tmp_path):
    folder = tmp_path / "d"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    serving = Serving(folder)
    other = json.dumps({**json.loads((folder / "service.json").read_text()), "pid": 1})
    (folder / "service.json").write_text(other)
    assert serving.stop() == 0
    assert (folder / "service.json").read_text() == other


@pytest.mark.parametrize("limit", ["-1", "x", ""])
def test_a_limit_below_nothing_is_a_usage_error(data, limit):
    done = run("round", "list", "--limit", limit, "--data", data, "--json")
    assert done.returncode == 2
    assert "a limit is 0 or more" in done.stderr + done.stdout


def test_what_is_not_there_is_one_line_without_a_service(data):
    done = run("device", "show", "zzz", "--data", data)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_rule_between_settings_is_told_with_file_and_keys(tmp_path):
    folder, bundle, settings = tmp_path / "d", tmp_path / "bundle", tmp_path / "toy.toml"
    write_bundle(bundle)
    run("init", "--data", folder)
    settings.write_text("goal_count = 3\n[plan]\nclip_norm = 100.0\n[pace]\nminimum_seconds = 9999999\n")
    done = run("population", "import", bundle, "--data", folder, "--settings", settings)
    assert done.returncode == 2
    for told in ("toy.toml: ", "minimum_updates is at most goal_count", "plan.clip_norm is at most 63.0, got 100.0",
                 "pace.minimum_seconds is at most pace.maximum_seconds"):  # fmt: skip
        assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@127.0.0.1:1/y",
        "nonsense://u:hunter2@x/y",
        "u:hunter2@x",
        "sqlite://u:hunter2@x/y",
    ],
)
def test_a_databases_password_is_never_printed(data, tmp_path, url):
    folder = tmp_path / "d"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    (folder / "aggregator.toml").write_text(f'database = "{url}"\n')
    done = run("status", "--data", folder)
    assert done.returncode in (1, 4)
    assert "database" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) <= 2


@pytest.mark.parametrize("url", ["mqtt://u:hunter2@127.0.0.1:9", "mqtt://u:hunter2@h:99999", "u:hunter2@h"])
def test_a_brokers_password_is_never_printed(data, tmp_path, url):
    folder = tmp_path / "d"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    done = run("serve", "--data", folder, "--port", "0", "--broker", url)
    assert done.returncode in (2, 5)
    assert "hunter2" not in done.stderr + done.stdout


def test_a_password_for_the_broker_is_used_and_neither_printed_nor_told(data, tmp_path):
    handle = start_broker("", tmp_path / "broker", say=lambda text: None, prefer="iotcore")
    folder = tmp_path / "d"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    try:
        serving = Serving(folder, "--broker", handle.url.replace("mqtt://", "mqtt://u:hunter2@"))
        assert serving.broker_url == handle.url
        assert "hunter2" not in (folder / "service.json").read_text() + "".join(serving.lines)
        assert serving.stop() == 0
    finally:
        handle.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_serve_its_broker_and_its_address_file(data, tmp_path, number):
    folder = tmp_path / "d"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    serving = Serving(folder)
    assert serving.broker_answers()
    assert (folder / "service.json").stat().st_mode & 0o777 == 0o600
    assert serving.stop(number) == 0
    assert not serving.broker_answers()
    assert not (folder / "service.json").exists()


def test_serve_killed_with_minus_nine_leaves_no_broker_and_starts_again(data, tmp_path):
    folder = tmp_path / "d"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    serving = Serving(folder)
    assert serving.stop(signal.SIGKILL) == -9
    end = time.monotonic() + 10
    while serving.broker_answers():
        assert time.monotonic() < end
        time.sleep(0.05)
    stale = run("token", "mint", "--data", folder)
    assert stale.returncode == 5
    again = Serving(folder)
    assert run("token", "mint", "--data", folder).returncode == 0
    assert again.stop() == 0


def test_serve_with_a_broker_that_is_not_there_ends_with_five(data, tmp_path):
    folder = tmp_path / "d"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    done = run("serve", "--data", folder, "--port", "0", "--broker", "mqtt://127.0.0.1:9")
    assert done.returncode == 5
    assert done.stderr.strip().splitlines()[-1].startswith("cloud-aggregator serve: 127.0.0.1:9")
    assert not (folder / "service.json").exists()


def test_broker_start_prints_its_url_and_ends_with_ctrl_c(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "cloud_aggregator.cli", "broker", "start", "--data", str(tmp_path),
         "--prefer", "iotcore"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    address = parse_broker_url(process.stdout.readline().strip())
    assert answers_mqtt5(address.host, address.port)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    assert process.returncode == 0
    assert not answers_mqtt5(address.host, address.port)


def test_a_broker_of_ours_that_dies_is_started_again_on_its_port(data, tmp_path):
    folder = tmp_path / "d"
    subprocess.run(["cp", "-a", str(data), str(folder)], check=True)
    serving = Serving(folder)
    os.kill(json.loads((folder / "service.json").read_text())["broker_pid"], signal.SIGKILL)
    assert "died; starting it again" in "".join(serving.process.stderr.readline() for _ in range(3))
    end = time.monotonic() + 15
    while not serving.broker_answers():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert serving.stop() == 0
    assert not serving.broker_answers()
