"""`edge-runtime model`, as a person meets it."""

import json

import pytest

from cli_contract.main import run_command
from edge_runtime import identity
from edge_runtime.activation import BOOTS
from edge_runtime.cli import build_parser
from tests.edge_runtime.fakes import World
from tests.edge_runtime.signed_repository import SignedRepository
from wire_contract import envelope
from wire_contract.messages import Enrolled, decode_message, encode_message
from wire_contract.offline_bundle import OfflineBundle, encode_offline_bundle


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home")
    made.agent.fetch_refresh()
    slots = made.agent.slots
    if slots.slot("refresh").on_trial:
        slots.begin_boot()
        slots.came_up()
    return made


def call(capsys, home, *words):
    code = run_command(build_parser, ["model", *map(str, words), "--home", str(home), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def release(world):
    world.aggregator.move_on(("refresh",), "refresh")
    world.agent.fetch_refresh()


def refresh_of(data):
    return next(item for item in data["items"] if item["track"] == "refresh")


def test_status_shows_each_track_and_that_no_root_is_pinned(capsys, world):
    code, data, _ = call(capsys, world.home, "status")
    assert code == 0 and data["pinned_root"] == 0
    refresh = refresh_of(data)
    assert (refresh["version"], refresh["stage"], refresh["floor"], refresh["in_use"]) == (1, "settled", 1, 1)
    code = run_command(build_parser, ["model", "status", "--home", str(world.home)])
    assert code == 0 and "no root is pinned" in capsys.readouterr().out


def test_a_refresh_on_trial_is_shown_and_confirmed_by_hand(capsys, world):
    release(world)
    _, data, _ = call(capsys, world.home, "status")
    assert refresh_of(data)["stage"] == "trial" and refresh_of(data)["boots"].endswith(f"of {BOOTS}")
    code, data, _ = call(capsys, world.home, "confirm")
    assert (code, data["floor"], data["stage"]) == (0, 2, "settled")
    code, data, err = call(capsys, world.home, "confirm")
    assert (code, data["error_code"]) == (4, "NO_TRIAL") and err.count("\n") == 1


def test_rolling_back_by_hand_is_for_good(capsys, world):
    code, data, _ = call(capsys, world.home, "roll-back")
    assert (code, data["error_code"]) == (4, "NO_PREVIOUS")
    release(world)
    code, data, _ = call(capsys, world.home, "roll-back")
    assert (code, data["in_use"], data["rolled_back"]) == (0, 1, 1)
    assert world.agent.slots.slot("refresh").floor == 1, "the agent beside it sees it"


def test_a_bundle_for_a_device_without_a_root_or_that_is_none_is_refused(capsys, world, tmp_path):
    code, data, _ = call(capsys, world.home, "install", tmp_path / "none")
    assert (code, data["error_code"]) == (3, "NO_FILE")
    (tmp_path / "junk").write_bytes(b"junk")
    code, data, _ = call(capsys, world.home, "install", tmp_path / "junk")
    assert (code, data["error_code"]) == (4, "NO_PINNED_ROOT")


def test_a_bundle_is_installed_from_a_file_and_its_model_is_checked_by_the_interpreter(capsys, world, tmp_path):
    toy, repository = world.aggregator, SignedRepository(world.clock.time)
    repository.list_template(toy.manifest.population, toy.manifest.template_sha256, toy.signed)
    template = toy.signed
    signed, manifest, model = toy.next_version("refresh", created_at=1_700_000_000, expires_at=4_000_000_000)
    repository.list_offline("keyboard", signed)
    repository.days |= dict.fromkeys(repository.days, 36_500)
    repository.new_root()
    repository.publish()
    before = decode_message(envelope.read_envelope((world.home / "enrolled.bin").read_bytes()).body, Enrolled)
    root = repository.files["1.root.json"]
    again = Enrolled(**{name: getattr(before, name) for name in before.__struct_fields__} | {"root": root})
    identity.save_enrolled(world.home, envelope.sign(toy.key, "enrolled", encode_message(again)))
    bundle = OfflineBundle(
        roots=(root, repository.files["2.root.json"]),
        targets=repository.files[f"{repository.targets.version}.targets.json"],
        offline=repository.files[f"{repository.offline.version}.offline.json"], signed_manifest=signed,
        signed_template=template, vocabulary=toy.vocabulary, model=model,
    )  # fmt: skip
    file = tmp_path / "version.offline"
    file.write_bytes(encode_offline_bundle(bundle))
    (world.home / "settings.toml").write_text('trainer = "in-process"\n[policy]\nclock = "rtc"\n')
    code, data, err = call(capsys, world.home, "install", file)
    assert code == 0, (data, err)
    assert (data["installed"], data["stage"], data["in_use"]) == (manifest.version, "trial", manifest.version)
    _, data, _ = call(capsys, world.home, "status")
    assert (data["pinned_root"], data["newest_root"]) == (1, 2) and data["metadata"]["offline"] >= 1
    call(capsys, world.home, "roll-back")
    code, data, _ = call(capsys, world.home, "install", file)
    assert (code, data["error_code"]) == (4, "ROLLED_BACK")
