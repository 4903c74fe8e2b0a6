"""The operator's commands of the signed repository: their answers, exit codes, and what is on disk afterwards."""

import json
import stat
import subprocess
import sys
import time

import pytest

from cli_contract.main import run_command
from cloud_aggregator import trust
from cloud_aggregator.cli import build_parser
from tests.cloud_aggregator.fleet import NOW, POPULATION, Aggregator, phones, run_step, write_bundle
from tests.cloud_aggregator.holders import Holders, protect, shelf


def run(capfd, *words):
    code = run_command(build_parser, [str(word) for word in words])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def data(tmp_path, capfd):
    folder = tmp_path / "data"
    assert run(capfd, "init", "--data", folder)[0] == 0
    return folder


@pytest.fixture
def online(tmp_path, data, capfd):
    path = tmp_path / "online.json"
    code, out, _ = run(capfd, "trust", "keys", "--output", path, "--data", data, "--json")
    assert code == 0 and json.loads(path.read_text())["keys"] == json.loads(out)["keys"]
    return {role: bytes.fromhex(key) for role, key in json.loads(out)["keys"].items()}


def test_the_online_keys_are_made_once_and_a_fresh_one_stands_beside_the_old(tmp_path, data, online, capfd):
    path = tmp_path / "online.json"
    before = path.read_bytes()
    assert run(capfd, "trust", "keys", "--output", path, "--data", data)[0] == 0
    assert path.read_bytes() == before
    assert run(capfd, "trust", "keys", "--output", path, "--data", data, "--fresh", "refreshes")[0] == 0
    keys = json.loads(path.read_text())["keys"]
    assert [role for role in keys if bytes.fromhex(keys[role]) != online[role]] == ["refreshes"]
    names = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (data / "trust").iterdir()}
    assert names == dict.fromkeys(("snapshot-1.key", "timestamp-1.key", "refreshes-1.key", "refreshes-2.key"), 0o600)


def test_online_keys_can_be_made_before_the_services_own(tmp_path, capfd):
    data = tmp_path / "later"
    assert run(capfd, "trust", "keys", "--output", tmp_path / "o.json", "--data", data)[0] == 0
    assert [path.name for path in data.iterdir()] == ["trust"]
    assert run(capfd, "init", "--data", data)[0] == 0


def test_the_whole_way_by_command(tmp_path, data, online, capfd):
    code, out, _ = run(capfd, "trust", "show", "--data", data, "--json")
    assert code == 0 and json.loads(out)["repository"] is False
    holders = Holders(tmp_path / "ceremony", online, int(time.time()))
    code, out, _ = run(capfd, "trust", "import", holders.folder, "--data", data, "--json")
    assert code == 0 and json.loads(out)["versions"] == {"root": 1, "targets": 1, "offline": 1}
    write_bundle(tmp_path / "bundle")
    code, _, err = run(capfd, "population", "import", tmp_path / "bundle", "--data", data)
    assert code == 4 and "not_a_target" in err and "model-export keys add-template" in err
    holders.add_template()
    assert run(capfd, "trust", "import", holders.folder, "--data", data)[0] == 0
    assert run(capfd, "population", "import", tmp_path / "bundle", "--data", data)[0] == 0
    code, out, _ = run(capfd, "trust", "show", "--data", data)
    assert code == 0 and f"{POPULATION}: protected" in out
    code, out, _ = run(capfd, "release", "history", "--data", data, "--json")
    assert code == 0 and json.loads(out)["items"][0]["version"] == 1
    assert run(capfd, "release", "history", "--data", data, "--limit", "-1")[0] == 2
    export = tmp_path / "release"
    assert run(capfd, "release", "export", export, "--data", data)[0] == 0
    assert sorted(p.name for p in export.iterdir()) == [
        "manifest.bin",
        "model.tflite",
        "template.bin",
        "vocabulary.txt",
    ]
    before = {p.name: p.read_bytes() for p in export.iterdir()}
    code, _, err = run(capfd, "release", "export", export, "--data", data)
    assert code == 4 and {p.name: p.read_bytes() for p in export.iterdir()} == before
    assert run(capfd, "release", "export", tmp_path / "x", "--data", data, "--population", "nobody")[0] == 3
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_no_ceremony_is_named(tmp_path, data, online, capfd):
    for made in ((), ("metadata",)):
        for name in made:
            (tmp_path / "empty" / name).mkdir(parents=True)
        code, _, err = run(capfd, "trust", "import", tmp_path / "empty", "--data", data)
        assert code == 3 and len(err.splitlines()) == 1
    (tmp_path / "empty" / "metadata" / "1.root.json").write_bytes(b"x" * 70_000)
    (tmp_path / "empty" / "metadata" / "1.targets.json").write_bytes(b"{}")
    (tmp_path / "empty" / "metadata" / "1.offline.json").write_bytes(b"{}")
    code, _, err = run(capfd, "trust", "import", tmp_path / "empty", "--data", data)
    assert code == 4 and "at most 65536 bytes" in err


def test_an_online_key_that_others_may_read_is_refused(tmp_path, data, online, capfd):
    (data / "trust" / "refreshes-1.key").chmod(0o640)
    code, _, err = run(capfd, "trust", "keys", "--output", tmp_path / "o.json", "--data", data)
    assert code == 4 and "may be read by its owner only" in err


def test_a_service_without_a_repository_loads_no_tuf_library():
    modules = ("service", "commands", "trust_commands", "lineage_view", "web.app", "adapters.key_files", "trust")
    names = ", ".join(f"cloud_aggregator.{name}" for name in modules)
    asked = f"import sys, {names}; sys.exit('tuf' in sys.modules or 'securesystemslib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def test_the_repository_lives_in_any_database(tmp_path, database_url):
    aggregator = Aggregator(tmp_path / "data", database_url=database_url).found()
    protect(aggregator, tmp_path / "ceremony")
    before = shelf(aggregator)
    run_step(aggregator, phones(aggregator, 4))
    aggregator.turn()
    aggregator.service.release(POPULATION, NOW + 5)
    aggregator.restart()
    after = shelf(aggregator)
    assert (after.root, after.targets, after.offline) == (before.root, before.targets, before.offline)
    assert after.refreshes != before.refreshes
    with aggregator.database.transaction() as records:
        trust.renew(records, aggregator.keys, NOW + 11 * 86_400)
    assert shelf(aggregator).snapshot != after.snapshot
