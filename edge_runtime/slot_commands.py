"""`edge-runtime model`: what the slots hold, and a person's word about it; a version from a file.

    status             per track: the version in use, the one before, trial, floor, what was rolled back; the roots
    confirm            the refresh on trial is good: end its trial
    roll-back          back to the version before; the one in use is never installed again
    install FILE       an offline bundle, over USB: checked from the pinned root on, then on trial like any other

They work beside an agent that runs in the home.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.parser import Parser, add_command
from cli_contract.result import Result, table
from wire_contract.topics import Track

if TYPE_CHECKING:
    from edge_runtime.model_slots import ModelSlots

ROLES = ("timestamp", "snapshot", "targets", "refreshes", "offline")


def add_parsers(group: "argparse._SubParsersAction[Parser]", home: Path, home_help: str) -> None:
    """Add `model` and its commands; `home` is the default home."""
    model = group.add_parser("model", help="the versions that are here: see, confirm, roll back, install from a file")
    commands = model.add_subparsers(metavar="COMMAND", required=True)
    status = add_command(commands, "status", "what each track holds, trials, and what is pinned", _status)
    confirm = add_command(commands, "confirm", "end the refresh's trial: it is good", _confirm)
    roll_back = add_command(commands, "roll-back", "go back to the version before, for good", _roll_back)
    install = add_command(commands, "install", "install an offline bundle, as over USB", _install)
    install.add_argument("file", metavar="FILE", type=Path, help="what `model-export offline make` wrote")
    for command in (status, confirm, roll_back, install):
        command.add_argument("--home", metavar="DIR", type=Path, default=home, help=home_help)


def _status(arguments: argparse.Namespace) -> Result:
    from edge_runtime.home_opening import opened

    with opened(arguments.home) as agent:
        items = [_track(agent.slots, track) for track in get_args(Track)]
        columns = ("track", "version", "stage", "boots", "floor", "previous_version", "rolled_back", "said")
        rows = [[item[name] for name in columns] for item in items]
        trust = _trust(arguments.home)
        text = table(rows, [name.replace("_", " ") for name in columns])
        return Result({"items": items, **trust}, text=f"{text}\n\n{_told(trust)}")


def _track(slots: "ModelSlots", track: Track) -> dict[str, object]:
    slot = slots.slot(track)
    held = {name: slots.held(name) for name in (slot.current, slot.previous) if name}
    current, previous = held.get(slot.current), held.get(slot.previous)
    return {
        "track": track,
        "version": slot.version,
        "in_use": 0 if current is None else current.manifest.version,
        "sha256": slot.current,
        "stage": slot.stage.value,
        "boots": f"{slot.came_up} of {slot.boots_wanted}" if slot.on_trial else "",
        "floor": slot.floor,
        "previous_version": 0 if previous is None else previous.manifest.version,
        "rolled_back": len(slot.bad),
        "bad": list(slot.bad),
        "said": slot.said,
    }


def _trust(home: Path) -> dict[str, object]:
    import json

    from edge_runtime.repository_trust import FOLDER, PINNED_FILE

    def number(path: Path) -> int:
        try:
            return int(json.loads(path.read_bytes())["signed"]["version"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CommandError(f"{path} cannot be read: {e}", code="HOME_BROKEN", hint="edge-runtime doctor") from e

    folder = home / FOLDER
    roots = [number(path) for path in folder.glob("*.root.json")]
    pinned = number(folder / PINNED_FILE)
    return {
        "pinned_root": pinned,
        "newest_root": max([pinned, *roots]),
        "metadata": {role: number(folder / f"{role}.json") for role in ROLES},
    }


def _told(trust: dict[str, object]) -> str:
    if not trust["pinned_root"]:
        return "no root is pinned: refreshes are trusted by the keys of the enrolment alone"
    return f"root {trust['pinned_root']} is pinned, {trust['newest_root']} is the newest that was seen"


def _confirm(arguments: argparse.Namespace) -> Result:
    from edge_runtime.activation import Healthy
    from edge_runtime.home_opening import opened
    from edge_runtime.model_slots import VersionRefused

    with opened(arguments.home) as agent:
        if not agent.slots.slot("refresh").on_trial:
            raise CommandError("no refresh is on trial", exit_code=ExitCode.REFUSED, code="NO_TRIAL")
        try:
            slot = agent.slots.change("refresh", Healthy("confirmed by hand"))
        except VersionRefused as e:
            raise CommandError(str(e), exit_code=ExitCode.REFUSED, code=e.reason.upper()) from e
        return Result({"version": slot.version, "floor": slot.floor, "stage": slot.stage.value})


def _roll_back(arguments: argparse.Namespace) -> Result:
    from edge_runtime.home_opening import opened
    from edge_runtime.model_slots import VersionRefused

    with opened(arguments.home) as agent:
        try:
            agent.slots.roll_back("refresh")
        except VersionRefused as e:
            raise CommandError(str(e), exit_code=ExitCode.REFUSED, code=e.reason.upper()) from e
        return Result(_track(agent.slots, "refresh"))


def _install(arguments: argparse.Namespace) -> Result:
    from edge_runtime import offline_install
    from edge_runtime.config import read_settings
    from edge_runtime.home_opening import opened
    from edge_runtime.model_slots import Held, VersionRefused
    from edge_runtime.ports import NotThere, RuntimeFailed
    from edge_runtime.trust import ManifestRefused
    from edge_runtime.wiring import real_ports

    data = _read(arguments.file)
    with opened(arguments.home) as agent:
        clock = real_ports(arguments.home, read_settings(arguments.home), only_looks=True).clock
        try:
            manifest = offline_install.install(
                data, arguments.home, agent.enrolled,
                lambda model, manifest: agent.check_version(Held(manifest, model)), clock.now(),
            )  # fmt: skip
        except (ManifestRefused, VersionRefused) as e:
            raise CommandError(f"{arguments.file}: {e}", exit_code=ExitCode.REFUSED, code=e.reason.upper()) from e
        except NotThere as e:
            raise CommandError(f"{arguments.file}: {e}", exit_code=ExitCode.REFUSED, code="INCOMPLETE") from e
        except RuntimeFailed as e:
            raise CommandError(str(e), code="RUNTIME") from e
        return Result(
            {"installed": manifest.version, **_track(agent.slots, "refresh")},
            next_command=f"edge-runtime run --once --home {arguments.home}",
        )


def _read(path: Path) -> bytes:
    from wire_contract.offline_bundle import MAX_BUNDLE_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_BUNDLE_BYTES + 1)
    except FileNotFoundError as e:
        raise CommandError(f"{path}: no such file", exit_code=ExitCode.NOT_FOUND, code="NO_FILE") from e
    except OSError as e:
        raise CommandError(f"{path}: cannot be read: {e}", code="CANNOT_READ") from e
