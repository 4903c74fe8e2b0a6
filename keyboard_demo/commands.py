"""What the commands of `keyboard-demo` do."""

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result

if TYPE_CHECKING:
    from keyboard_demo.typists import Split

ROOM_BYTES = 3 << 30


def story(arguments: argparse.Namespace) -> Result | None:
    """Tell the story; end in the keyboard where a person is at the terminal."""
    try:
        from keyboard_demo.display import Display
        from keyboard_demo.story import Story, StorySettings
    except ModuleNotFoundError as e:
        raise CommandError(
            f"the story needs {e.name}", exit_code=ExitCode.REFUSED, code="NOT_INSTALLED",
            hint="pip install 'edge-federation[demo,cloud,export,device]', or make demo",
        ) from e  # fmt: skip
    settings = StorySettings(
        seed=arguments.seed,
        devices=arguments.devices,
        nights=arguments.nights,
        device_python=arguments.device_python,
        processes=arguments.processes,
        broker_url=arguments.broker,
    )
    _check(settings.devices, settings.nights, settings.processes, settings.device_python)
    home = _new_home(arguments.keep)
    try:
        with Display() as display, Story(home, settings, display) as told_story:
            told = told_story.tell()
            text = told.screen(arguments.keep)
            wants_json = arguments.output_format == "json"
            if wants_json or arguments.no_input or not (sys.stdin.isatty() and sys.stdout.isatty()):
                return Result(told.outcome.as_json(), text=text)
            sys.stdout.write(text + "\n\n")
            told_story.keyboard()
            return None
    finally:
        if arguments.keep is None:
            shutil.rmtree(home, ignore_errors=True)


def _check(devices: int, nights: int, processes: int, device_python: Path | None) -> None:
    for name, value, least in (("devices", devices, 1), ("nights", nights, 1), ("processes", processes, 1)):
        if value < least:
            raise CommandError(f"--{name} is {least} or more, got {value}", exit_code=ExitCode.USAGE, code="USAGE")
    if device_python is not None and not device_python.exists():
        raise CommandError(
            f"--device-python {device_python}: no such file", exit_code=ExitCode.NOT_FOUND, code="NO_PYTHON",
            hint="make environments",
        )  # fmt: skip


def _new_home(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="edge-federation-", dir=_roomy_memory()))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise CommandError(
            f"--keep {keep} exists and is not empty", exit_code=ExitCode.REFUSED, code="NOT_EMPTY",
            hint="name a new folder",
        )  # fmt: skip
    keep.mkdir(parents=True, exist_ok=True)
    return keep.resolve()


def _roomy_memory() -> Path | None:
    """Return the machine's memory disk if a whole fleet fits into it twice, else None.

    Homes that are thrown away afterwards need no disk: each device syncs its files several times a night, which is half
    of the demo's time on a slow disk.
    """
    memory = Path("/dev/shm")
    try:
        if shutil.disk_usage(memory).free < ROOM_BYTES:
            return None
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return memory if available and int(available.group(1)) * 1024 > 2 * ROOM_BYTES else None


def type_here(home: Path) -> None:
    """Run the terminal keyboard on an enrolled device."""
    from edge_runtime.identity import NotEnrolled
    from edge_runtime.ports import PortError
    from keyboard_demo.device import NoModel, open_personal
    from keyboard_demo.terminal import run_in_terminal

    try:
        device = open_personal(home)
    except (NotEnrolled, NoModel) as e:
        raise CommandError(str(e), exit_code=ExitCode.REFUSED, code="NOT_READY") from e
    except PortError as e:
        raise CommandError(str(e), code="DEVICE_FAILED") from e
    try:
        run_in_terminal(device, sys.stdin, sys.stdout, shutil.get_terminal_size().columns)
    finally:
        device.close()


def people(split: "Split", part: str, output: Path) -> Result:
    """Write persons of a split as JSON lines {"user", "messages"}."""
    if not output.parent.is_dir():
        raise CommandError(f"{output.parent}: no such folder", exit_code=ExitCode.NOT_FOUND, code="NO_FOLDER")
    from keyboard_demo.typists import read_persons

    try:
        persons = read_persons(split)
    except ModuleNotFoundError as e:
        raise CommandError(
            "the corpus chitchat-dataset is not installed", exit_code=ExitCode.REFUSED, code="NOT_INSTALLED",
            hint="pip install 'edge-federation[demo]'",
        ) from e  # fmt: skip
    lines = []
    for person in persons:
        head, tail = person.head_and_tail()
        texts = {"head": head, "tail": tail, "all": head + tail}[part]
        lines.append(json.dumps({"user": person.user, "messages": texts}) + "\n")
    try:
        output.write_text("".join(lines), encoding="utf-8")
    except OSError as e:
        raise CommandError(f"{output}: cannot be written: {e.strerror}", code="NOT_WRITTEN") from e
    words = sum(person.words for person in persons)
    return Result({"split": split, "part": part, "persons": len(persons), "words": words, "output": str(output)})
