"""A fleet: real device agents in worker processes, one real aggregator, a script of nights, tick by tick.

A tick is four moves, each of them whole before the next begins:
1. devices meet their fates, and those that may check in; the aggregator waits until all have arrived, then answers;
2. devices train and send; updates of earlier ticks whose link is free again go, too;
3. once every update of the tick is durable, the aggregator makes its pass, in the order (finished at, device);
4. devices hear their receipts.
"""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from cloud_aggregator.config import PopulationSettings
from fleet_simulator.aggregator_host import AggregatorHost
from fleet_simulator.clock import VirtualClock
from fleet_simulator.control import (
    Asked,
    AskForWork,
    Command,
    Failed,
    Heard,
    HearReceipts,
    HeldOutPerson,
    Hits,
    Leave,
    Left,
    MovedIn,
    MoveIn,
    Reply,
    Resident,
    Score,
    Scored,
    Work,
    Worked,
    WorkerDied,
    read_reply,
    write_frame,
)
from fleet_simulator.entropy import seeded_entropy
from fleet_simulator.nights import Tick

Answer = TypeVar("Answer", bound=Reply)
WALL_CLOCK_TURN_S = 0.1


class CountedWrong(Exception):  # noqa: N818
    """The rows of the aggregator do not hold what was counted on the way."""


@dataclass(frozen=True, slots=True)
class TickOutcome:
    """What one tick brought."""

    night: int
    check_ins: int
    accepted: int
    refused: dict[str, int]
    steps: int
    version: int


@dataclass(frozen=True, slots=True)
class FleetTotals:
    """What the nights brought until now.

    `applied` are the accepted updates that a step has used (the rest waits in the buffer), `versions` the versions that
    steps made, `bytes_up` the median of what an update's messages weigh.
    """

    accepted: int
    applied: int
    staleness: dict[str, int]
    refused: dict[str, int]
    stayed_away: dict[str, int]
    turned_away: int
    training_steps: int
    interrupted: int
    resumed: int
    killed: int
    versions: int
    bytes_up: int


class DeviceProcess:
    """One worker process and its pipe."""

    def __init__(self, python: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._child = subprocess.Popen(
                [str(python), "-m", "fleet_simulator.device_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )

    def say(self, command: Command) -> None:
        """Send a command; `hear` waits for its answer."""
        assert self._child.stdin is not None
        try:
            write_frame(self._child.stdin, command)
        except OSError as e:
            raise WorkerDied(self._last_words()) from e

    def hear(self, kind: type[Answer]) -> Answer:
        """Return the answer. Raises `WorkerDied` with what the process last said."""
        assert self._child.stdout is not None
        try:
            reply = read_reply(self._child.stdout)
        except WorkerDied as e:
            raise WorkerDied(self._last_words()) from e
        if isinstance(reply, Failed):
            raise WorkerDied(f"{reply.error}; see {self._log}")
        if not isinstance(reply, kind):
            raise WorkerDied(f"{kind.__name__} was expected, got {type(reply).__name__}")
        return reply

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"a device process ended: {lines[-1] if lines else 'it said nothing'}; see {self._log}"

    def end(self) -> None:
        """Close the pipe, which ends the process; kill it if it stays."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Fleet:
    """Start it as a context manager over an exported bundle; `move_in`, then `play` tick by tick, then `score`.

    `home` takes everything: `cloud/` is the aggregator's data directory, `devices/NNN/` are device homes.
    """

    def __init__(
        self,
        home: Path,
        bundle: Path,
        settings: PopulationSettings,
        *,
        seed: int,
        now: float,
        device_python: Path | None = None,
        processes: int = 2,
        say: Callable[[str], None] = lambda text: None,
        broker_url: str = "",
        ceremony: Callable[[Path], Path] | None = None,
    ) -> None:
        self._home = home
        self._bundle = bundle
        self._seed = seed
        self._python = device_python or Path(sys.executable)
        self._processes = processes
        self._clock = VirtualClock(now)
        entropy = seeded_entropy(f"aggregator-v1:{seed}".encode())
        self.host = AggregatorHost(
            home / "cloud", bundle, settings, self._clock, entropy=entropy, say=say, broker_url=broker_url,
            ceremony=ceremony,
        )  # fmt: skip
        self._stack = ExitStack()
        self._workers: list[DeviceProcess] = []
        self._staleness: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._worked: Counter[str] = Counter()
        self._bytes_up: list[int] = []
        self._version = 1
        self._steps = 0
        self._applied = 0
        self._released: list[int] = []
        self.runtime = ""

    def __enter__(self) -> "Fleet":
        try:
            self._stack.enter_context(self.host)
            for number in range(self._processes):
                worker = DeviceProcess(self._python, self._home / f"devices-{number}.log")
                self._stack.callback(worker.end)
                self._workers.append(worker)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def device_home(self, number: int) -> Path:
        """Return the home of device `number`."""
        return self._home / "devices" / f"{number:03d}"

    def _ask_all(self, commands: Sequence[Command], kind: type[Answer]) -> list[Answer]:
        for worker, command in zip(self._workers, commands, strict=True):
            worker.say(command)
        return [worker.hear(kind) for worker in self._workers]

    def move_in(self, texts: Sequence[tuple[str, ...]]) -> list[MovedIn]:
        """Enrol one device for each entry with a one-use token, and give it its person's text."""
        return self._move_in([self._resident(number, texts=text) for number, text in enumerate(texts)])

    def move_in_arrays(self, files: Sequence[Path]) -> list[MovedIn]:
        """Enrol one device for each `.npz`, and give it the examples in it, for a model of arrays."""
        return self._move_in([self._resident(number, arrays=str(file)) for number, file in enumerate(files)])

    def _resident(self, number: int, texts: tuple[str, ...] = (), arrays: str = "") -> Resident:
        label = f"device {number:03d}"
        token = self.host.service.mint_token(self.host.population, label, self._clock.now())
        key_seed = f"device-v1:{self._seed}:{number}".encode()
        return Resident(number, str(self.device_home(number)), label, key_seed, token, texts, arrays)

    def _move_in(self, everyone: Sequence[Resident]) -> list[MovedIn]:
        now = self._clock.now()
        residents: list[list[Resident]] = [[] for _ in self._workers]
        for resident in everyone:
            residents[resident.number % len(self._workers)].append(resident)
        url, population = self.host.http.url, self.host.population
        moved = self._ask_all([MoveIn(url, population, now, tuple(some)) for some in residents], MovedIn)
        self.runtime = moved[0].runtime
        return moved

    def play(self, tick: Tick) -> TickOutcome:
        """Let one tick happen."""
        self._clock.move_to(tick.at)
        asked = self._ask_all([AskForWork(tick.at, tick.visits, tick.freed)] * len(self._workers), Asked)
        check_ins = sum(some.check_ins for some in asked)
        self.host.wait_for(check_ins=check_ins)
        self._note_turn()
        worked = self._ask_all([Work()] * len(self._workers), Worked)
        self.host.wait_for(
            check_ins=sum(some.late_check_ins for some in worked), updates=sum(some.updates_sent for some in worked)
        )
        before = self._totals_of_turn()
        steps = self._note_turn()
        heard = self._ask_all([HearReceipts()] * len(self._workers), Heard)
        for away in asked:
            self._reasons.update(away.reasons)
        for some in worked:
            self._bytes_up += some.update_bytes
            for name in ("training_steps", "trained", "interrupted", "resumed", "killed", "turned_away"):
                self._worked[name] += getattr(some, name)
        verdicts = Counter[str]()
        for some_heard in heard:
            verdicts.update(some_heard.verdicts)
        accepted, refused = before
        if (verdicts["accepted"], sum(verdicts.values())) != (
            sum(self._staleness.values()) - accepted,
            sum(self._staleness.values()) - accepted + sum(self._refused.values()) - refused,
        ):
            raise WorkerDied(f"devices heard {dict(verdicts)}, the aggregator gave other verdicts")
        gone = {name: count for name, count in verdicts.items() if name != "accepted"}
        return TickOutcome(tick.night, check_ins, verdicts["accepted"], gone, steps, self._version)

    def _totals_of_turn(self) -> tuple[int, int]:
        return sum(self._staleness.values()), sum(self._refused.values())

    def _note_turn(self) -> int:
        report = self.host.turn()
        self._staleness.update({str(s): count for s, count in report.staleness.items()})
        self._refused.update({name: count for name, count in report.verdicts.items() if name != "accepted"})
        for _, version in report.steps:
            self._version = version
        self._steps += len(report.steps)
        self._applied += report.applied
        self._released += [version for _, version in report.released]
        return len(report.steps)

    def release(self) -> int:
        """Release the newest training version now, unless the schedule has just done so; return its number."""
        if self._version not in self._released:
            release = self.host.service.release(self.host.population, self._clock.now())
            self._released.append(release.version)
        return self._released[-1]

    @property
    def refreshes(self) -> int:
        """How many versions were released to keyboards."""
        return len(self._released)

    def totals(self) -> FleetTotals:
        """Return what the nights brought until now."""
        return FleetTotals(
            accepted=sum(self._staleness.values()),
            applied=self._applied,
            staleness=dict(sorted(self._staleness.items())),
            refused=dict(self._refused),
            stayed_away=dict(self._reasons),
            turned_away=self._worked["turned_away"],
            training_steps=self._worked["training_steps"],
            interrupted=self._worked["interrupted"],
            resumed=self._worked["resumed"],
            killed=self._worked["killed"],
            versions=self._steps,
            bytes_up=round(median(self._bytes_up)) if self._bytes_up else 0,
        )

    def check_counts(self) -> None:
        """Hold what was counted against the committed rows: each lease accepted once at most, and none besides.

        Raises `CountedWrong`.
        """
        rows, leases = self.host.count_accepted()
        accepted = sum(self._staleness.values())
        if not rows == leases == accepted:
            raise CountedWrong(f"{accepted} updates were accepted, the rows hold {rows} of {leases} leases")

    def score(self, persons: Sequence[HeldOutPerson], words_a_person: int) -> Scored:
        """Score held-out people with the first version, the released one, and their own copies of it."""
        last = self._home / "last"
        self.host.write_refresh(last)
        shares = [tuple(persons[i :: len(self._workers)]) for i in range(len(self._workers))]
        commands = [Score(str(self._bundle), str(last), words_a_person, share) for share in shares]
        answers = self._ask_all(commands, Scored)
        before = after = personal = Hits()
        for some in answers:
            before, after = before.plus(some.before), after.plus(some.after)
            personal = personal.plus(some.personal)
        best = max(answers, key=lambda some: some.gain)
        accepted = sum(some.accepted for some in answers)
        return Scored(before, after, personal, accepted, best.sentence, best.gain)

    @contextmanager
    def on_wall_clock(self) -> Iterator[None]:
        """From now on the aggregator takes its turns by itself, on the wall clock, until the block ends."""
        stop = threading.Event()

        def take_turns() -> None:
            while not stop.wait(WALL_CLOCK_TURN_S):
                self._clock.move_to(max(self._clock.now(), time.time()))
                self._note_turn()

        thread = threading.Thread(target=take_turns, name="turns", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def leave(self) -> list[Left]:
        """End the device processes politely."""
        return self._ask_all([Leave()] * len(self._workers), Left)
