"""The demo's story: export a model, let a fleet learn for thirty nights, release, and see whether it suggests better.

The one module of the keyboard that imports the simulator. The exporter is met as a process, as it is everywhere.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cloud_aggregator.config import PaceSettings, PopulationSettings, ReleaseSettings
from cloud_aggregator.server_optimizer import OptimizerSettings
from fleet_simulator.aggregator_host import ArrivalTimeout
from fleet_simulator.control import HeldOutPerson, WorkerDied
from fleet_simulator.fleet import CountedWrong, Fleet, FleetTotals
from fleet_simulator.nights import DAY_S, TICK_HOURS, play_nights
from keyboard_demo.display import PLAYED, Display
from keyboard_demo.outcome import Outcome, Place, screen
from keyboard_demo.typists import Person, count_words, read_persons
from wire_contract.envelope import read_envelope
from wire_contract.manifest import decode_manifest
from wire_contract.messages import CodecPlan, Plan

POPULATION = "en-chat"
# A phone in daily use: fewer words than this are less than one night's rows.
FLEET_MINIMUM_WORDS = 1000
HELD_OUT_WORDS = 10_000
WORDS_A_PERSON = 500
VISITS_A_GOAL = 1.25


@dataclass(frozen=True, slots=True)
class StorySettings:
    """What the command line says. `device_python` runs the devices; None means this very Python."""

    seed: int = 7
    devices: int = 120
    nights: int = 30
    goal_count: int = 16
    device_python: Path | None = None
    processes: int = 2
    broker_url: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """The end of a story: its numbers and the sentence that gained most."""

    outcome: Outcome
    sentence: tuple[Place, ...]

    def screen(self, kept: Path | None) -> str:
        """Return the last screen, with three commands that go on from here."""
        return screen(self.outcome, self.sentence, next_commands(kept))


def next_commands(kept: Path | None) -> tuple[tuple[str, str], ...]:
    """Return three commands and what each does: on what was kept, or how to keep it."""
    if kept is None:
        return (
            ("make demo ARGS='--keep fleet'", "the same, kept: look into the cloud and any device afterwards"),
            ("make demo ARGS='--no-input --json'", "the same as one JSON object"),
            ("make demo ARGS='--devices 60 --seed 8'", "half as many devices, another seed"),
        )
    return (
        (f".venv/bin/cloud-aggregator release list --data {kept}/cloud", "what was released, and when"),
        (f".venv/bin/edge-runtime status --home {kept}/devices/000", "what one device holds, and why it rests"),
        (f".venv/bin/cloud-aggregator serve --data {kept}/cloud", "run this fleet's aggregator on"),
    )


def population_settings(settings: StorySettings) -> PopulationSettings:
    """Return how the demo's population learns; chosen on dev persons only (docs/demo-recipe.md says what was tried)."""
    ticks = settings.nights * len(TICK_HOURS)
    return PopulationSettings(
        goal_count=settings.goal_count,
        minimum_updates=1,
        # Late updates keep their lease until they are refused by staleness, not by the clock.
        lease_seconds=5 * DAY_S,
        pace=PaceSettings(minimum_seconds=600, maximum_seconds=3600),
        plan=Plan(signature="train_sampled", rows=64, epochs=2, learning_rate=1.0, dropout=0.2, clip_norm=10.0,
                  weight_rule="examples", example_cap=64, codec=CodecPlan(kept=0.01, entropy="zstd")),
        optimizer=OptimizerSettings(name="fedadam", learning_rate=3e-2, beta1=0.5, beta2=0.99, epsilon=3e-4,
                                    warmup_steps=5, decay_steps=ticks, final_share=0.1),
        release=ReleaseSettings(cron="0 6 * * 0", time_zone="UTC"),
    )  # fmt: skip


def choose_fleet(persons: Sequence[Person], devices: int, seed: int) -> list[Person]:
    """Return `devices` train persons who typed enough, drawn by the seed. Raises `CommandError` if there are fewer."""
    enough = [person for person in persons if person.words >= FLEET_MINIMUM_WORDS]
    if devices > len(enough):
        raise CommandError(
            f"{devices} devices were asked for, {len(enough)} train persons typed {FLEET_MINIMUM_WORDS} words or more",
            exit_code=ExitCode.USAGE, code="TOO_MANY_DEVICES", hint=f"--devices {len(enough)} is the most",
        )  # fmt: skip
    return sorted(enough, key=lambda person: _draw(f"fleet-v1:{seed}", person))[:devices]


def choose_held_out(persons: Sequence[Person], words: int) -> list[HeldOutPerson]:
    """Return test persons until their scored tails hold `words` words and a few more; the same ones for every seed."""
    chosen: list[HeldOutPerson] = []
    count = 0
    for person in sorted(persons, key=lambda person: _draw("held-out-v1", person)):
        if count >= words * 1.05:
            break
        head, tail = person.head_and_tail()
        count += min(WORDS_A_PERSON, sum(count_words(text) for text in tail))
        chosen.append(HeldOutPerson(person.user, tuple(head), tuple(tail)))
    return chosen


def _draw(purpose: str, person: Person) -> bytes:
    return hashlib.sha256(f"{purpose}:{person.user}".encode()).digest()


def run_exporter(*arguments: str) -> dict[str, object]:
    """Run `model-export` and return its JSON. Raises `CommandError` with its own message."""
    return run_command("model_export.cli", *arguments)


def run_command(module: str, *arguments: str) -> dict[str, object]:
    """Run a command of the project by its module and return its JSON. Raises `CommandError` with its own message."""
    name = module.partition(".")[0].replace("_", "-")
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--json"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    try:
        answer: dict[str, object] = json.loads(lines[-1])
    except (IndexError, ValueError) as e:
        last = done.stderr.strip().splitlines()
        raise CommandError(f"{name} {arguments[0]} gave no answer: {last[-1] if last else 'silence'}") from e
    if done.returncode:
        raise CommandError(f"{name} {arguments[0]}: {answer.get('message')}", code="EXPORT_FAILED")
    return answer


class Story:
    """One telling over `home`, an empty or absent folder. Use as a context manager: the fleet lives until its end."""

    def __init__(self, home: Path, settings: StorySettings, display: Display) -> None:
        self.home = home
        self.settings = settings
        self._display = display
        self._began = time.monotonic()
        # The last night of the script is last night, so that a keyboard on the wall clock can join afterwards.
        today = int(time.time()) // DAY_S * DAY_S
        self._first_midnight = today - (settings.nights + 1) * DAY_S
        self.fleet: Fleet

    def __enter__(self) -> "Story":
        for line in PLAYED:
            self._display.say(line)
        with ThreadPoolExecutor(max_workers=1) as beside:
            exported = beside.submit(self._export)
            self._persons = choose_fleet(read_persons("train"), self.settings.devices, self.settings.seed)
            self._held_out = choose_held_out(read_persons("test"), HELD_OUT_WORDS)
            exported.result()
        self.fleet = Fleet(
            self.home,
            self.home / "bundle",
            population_settings(self.settings),
            seed=self.settings.seed,
            now=self._first_midnight - 3600,
            device_python=self.settings.device_python,
            processes=self.settings.processes,
            say=self._display.say,
            broker_url=self.settings.broker_url,
            ceremony=self._hold_ceremony,
        )
        self.fleet.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self.fleet.__exit__(*failure)

    def _export(self) -> None:
        key, bundle = self.home / "export-key.pem", self.home / "bundle"
        run_exporter("keygen", str(key))
        run_exporter(
            "export", "--preset", "small", "--population", POPULATION, "--signing-key", str(key),
            "--output", str(bundle), "--created-at", str(self._first_midnight - DAY_S),
        )  # fmt: skip
        size = (bundle / "model.tflite").stat().st_size
        self._display.say(f"exported one file of {size:,} bytes: it infers in int8 and trains in float32")

    def _hold_ceremony(self, data: Path) -> Path:
        """Let three holders sign, two of whom are needed, that keyboards get patches of this template only."""
        online, folder = self.home / "online.json", self.home / "holders"
        run_command("cloud_aggregator.cli", "trust", "keys", "--data", str(data), "--output", str(online))
        run_exporter("keys", "init", str(folder), "--online", str(online))
        run_exporter("keys", "add-template", str(folder), "--bundle", str(self.home / "bundle"))
        self._display.say("three holders signed, two needed: no release goes out but patches of this file")
        return folder

    def tell(self) -> Told:
        """Let the nights go by, release, score; return what was found. Raises `CommandError`."""
        try:
            return self._tell()
        except (WorkerDied, CountedWrong) as e:
            raise CommandError(f"the fleet failed: {e}", code="FLEET_FAILED") from e
        except ArrivalTimeout as e:
            raise CommandError(str(e), exit_code=ExitCode.TIMEOUT, code="NOT_ARRIVED") from e

    def _tell(self) -> Told:
        settings, display = self.settings, self._display
        moved = self.fleet.move_in([tuple(message.text for message in person.messages) for person in self._persons])
        words = sum(some.words_stored for some in moved)
        display.say(
            f"broker {self.fleet.host.broker.name}; {settings.devices} devices enrolled ({self.fleet.runtime}), "
            f"{words:,} words on them"
        )
        self._play()
        self.fleet.check_counts()
        version = self.fleet.release()
        display.say(f"version {version} released to keyboards; now people whom nobody trained on type")
        scored = self.fleet.score(self._held_out, WORDS_A_PERSON)
        self.fleet.leave()
        totals = self.fleet.totals()
        manifest = decode_manifest(read_envelope((self.home / "last" / "manifest.bin").read_bytes()).body)
        outcome = Outcome(
            seed=settings.seed,
            devices=settings.devices,
            nights=settings.nights,
            updates_applied=totals.applied,
            updates_waiting=totals.accepted - totals.applied,
            updates_by_staleness=totals.staleness,
            refused=totals.refused,
            stayed_away=totals.stayed_away,
            interrupted=totals.interrupted,
            resumed=totals.resumed,
            killed=totals.killed,
            versions=totals.versions,
            refreshes=self.fleet.refreshes,
            persons=len(self._held_out),
            words=scored.after.words,
            top3_before=scored.before.percent3(),
            top3_after=scored.after.percent3(),
            top3_personal=scored.personal.percent3(),
            top1_before=scored.before.percent1(),
            top1_after=scored.after.percent1(),
            top1_personal=scored.personal.percent1(),
            bytes_up_per_update=totals.bytes_up,
            bytes_float32=4 * manifest.parameters,
            parameters=manifest.parameters,
            broker=self.fleet.host.broker.name,
            runtime=self.fleet.runtime,
            seconds=time.monotonic() - self._began,
            model_hash=manifest.sha256,
        )
        places = tuple(Place(place.typed, place.came, place.first, place.last) for place in scored.sentence)
        return Told(outcome, places)

    def _play(self) -> FleetTotals:
        settings = self.settings
        script = play_nights(
            settings.seed,
            devices=settings.devices,
            nights=settings.nights,
            visits_a_tick=min(settings.devices, round(settings.goal_count * VISITS_A_GOAL)),
            first_midnight=self._first_midnight,
        )
        self._display.begin_nights(len(script))
        for number, tick in enumerate(script, start=1):
            outcome = self.fleet.play(tick)
            totals = self.fleet.totals()
            self._display.night(
                number,
                len(script),
                night=outcome.night + 1,
                version=outcome.version,
                accepted=totals.accepted,
                refused=sum(totals.refused.values()),
            )
        self._display.end_nights()
        return self.fleet.totals()

    def keyboard(self) -> None:
        """Enrol one more device for the person at the terminal and let them type; the aggregator goes on meanwhile."""
        home, token = self.home / "keyboard", self.home / "keyboard-token"
        home.mkdir(mode=0o700)
        host = self.fleet.host
        token.write_text(host.service.mint_token(host.population, "your keyboard", time.time()))
        token.chmod(0o600)
        python = str(self.settings.device_python or sys.executable)
        with self.fleet.on_wall_clock():
            enrolled = subprocess.run(
                [python, "-m", "edge_runtime.cli", "enrol", host.http.url, "--token-file", str(token),
                 "--population", host.population, "--label", "your keyboard", "--home", str(home)],
                capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            if enrolled.returncode:
                raise CommandError(f"your keyboard could not enrol: {enrolled.stderr.strip()}", code="NOT_ENROLLED")
            self._display.say("your turn: this keyboard is one more device of the fleet")
            subprocess.run([python, "-m", "keyboard_demo.cli", "type", "--home", str(home)], check=False)
