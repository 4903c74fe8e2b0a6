"""A real agent process, killed with SIGKILL at random instants and started again over the same home.

The broker and an aggregator that judges on its own live in this process and outlive every kill; the agent's process
reaches them over a socket, call by call, so that what it had published before the kill stays published. The clock is
shared memory: it goes on through the kills. Round after round the aggregator offers one lease, gives one verdict and
moves on to a next version; a round is over when the device asks for work again. In the end the same rounds are played
without a kill, and every update and what the device holds must be the same, bit for bit.
"""

import mmap
import multiprocessing.connection
import os
import random
import signal
import struct
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.agent import Agent, Ports
from edge_runtime.eligibility import Reading
from edge_runtime.ports import Download, NotThere, Received, TooLarge, Unreachable
from tests.edge_runtime.crash_story import (
    ROWS,
    SENTENCES,
    Outcome,
    Story,
    Verdict,
    compare,
    first_enrol,
    first_version,
    type_text,
)
from tests.edge_runtime.fakes import GOOD, FakeClock, FakeSensors, FakeTransport, Fuse
from wire_contract.patch import patch, read_tensors

VERDICTS = ("accepted", "stale", "accepted", "accepted", "malformed")
TURN_S = 400.0
EARLY, LONGEST_S = 0.15, 0.3
_ERRORS = {"Unreachable": Unreachable, "TooLarge": TooLarge, "NotThere": NotThere}


class SharedClock(FakeClock):
    """A clock whose time is eight bytes that both processes see."""

    def __init__(self, now: float) -> None:
        self._bytes = mmap.mmap(-1, 8)
        super().__init__(now)

    @property
    def time(self) -> float:
        return float(struct.unpack_from("<d", self._bytes, 0)[0])

    @time.setter
    def time(self, now: float) -> None:
        struct.pack_into("<d", self._bytes, 0, now)


class RemoteTransport:
    """The agent's end: every method is a call to the other process."""

    def __init__(self, link: Connection) -> None:
        self._link = link

    def _call(self, name: str, *arguments: object) -> Any:
        self._link.send((name, arguments))
        kind, value = self._link.recv()
        if kind == "raised":
            raise _ERRORS[value](f"{name} in the other process")
        return value

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._call(name, *arguments)

    @property
    def connected(self) -> bool:
        return bool(self._call("connected"))

    @property
    def limit_bytes(self) -> int:
        return int(self._call("limit_bytes"))

    def ack(self, received: Received) -> None:
        self._call("ack", replace(received, payload=b""))

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        """Implements the Downloads port."""
        begin, data = self._call("fetch", url, start, limit_bytes)
        return Download(begin, iter(data))


def live(story: Story, link: Connection, clock: SharedClock, seed: int) -> None:
    """The agent's life until it is killed: turn after turn, the cable pulled now and then."""
    rng = random.Random(seed)
    world = story.world
    remote = RemoteTransport(link)
    sensors = FakeSensors(Fuse())
    world.clock, world.entropy = clock, os.urandom  # type: ignore[assignment]
    ports = Ports(clock, sensors, remote, remote, world.trainer(), os.urandom)  # type: ignore[arg-type]
    agent = Agent(story.home, world.settings, ports)
    whole = all(
        not slot.current or agent.slots.held(slot.current) is not None
        for slot in (agent.slots.slot("training"), agent.slots.slot("refresh"))
    )
    remote._call("opened", whole and agent.current() is not None, len(agent.examples.sentences()))
    while True:
        sensors.good_reads = rng.randrange(1, 16) if rng.random() < 0.5 else None
        sensors.afterwards = replace(GOOD, charging=Reading(False))
        agent.turn()
        clock.time += TURN_S


class Rounds:
    """The aggregator's side of the rounds."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.number = -1
        self.before = 0
        self.asked_before = 0
        self.first = story.world.aggregator.model
        self.tensors = read_tensors(self.first, story.world.aggregator.manifest)
        # The lease outlives the kills: that one that is over is dropped is the session's own test.
        story.world.aggregator.lease_s = 30 * 86_400
        story.world.aggregator.plan = msgspec.structs.replace(story.world.aggregator.plan, rows=ROWS)
        self.begin()

    def begin(self) -> None:
        """Offer one lease of a new version."""
        aggregator = self.story.world.aggregator
        self.number += 1
        self.before = self.story.judged()
        aggregator.verdict = VERDICTS[self.number % len(VERDICTS)]
        aggregator.turn_away = ""
        # Each round's version is made of the first one, so that a hundred rounds do not blow its weights up.
        share = np.float32(1.0 + 0.0005 * self.number)
        aggregator.model = patch(
            self.first, aggregator.manifest, {name: value * share for name, value in self.tensors.items()}
        )
        aggregator.move_on(("training", "refresh"), "refresh")
        self.story.hashes.add(aggregator.manifest.sha256)

    def look(self) -> bool:
        """Deal with what was published; return whether the round is over: one update, and the device asks again."""
        aggregator = self.story.world.aggregator
        aggregator.work()
        if self.story.judged() == self.before:
            return False
        if not aggregator.turn_away:
            aggregator.turn_away = "enough"
            self.asked_before = len(aggregator.check_ins)
        return len(aggregator.check_ins) > self.asked_before

    def close(self) -> Outcome:
        """Return what the round came to, as another process reads it; which version is installed is not the round's."""
        self.story.judged_before = self.before
        self.story.world.agent = self.story.world.another_process()
        try:
            return replace(self.story.outcome(), version=0)
        finally:
            self.story.world.agent.abandon()


class KilledDevice:
    """Kills `count` lives of a device in `folder`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._seed = seed
        self.verdict = Verdict()
        self.kills = self.lives_whole = self.rounds = 0
        self.by_call: dict[str, int] = {}

    def _new(self, name: str) -> Story:
        (self._folder / name).mkdir()
        story = Story(self._folder / name / "home")
        for step in (first_enrol, first_version, type_text):
            step(story)
        # Each process opens the home for itself.
        story.world.agent.abandon()
        return story

    def run(self, count: int) -> None:
        """Kill, restart, and compare with the rounds without a kill."""
        story = self._new("killed")
        clock = SharedClock(story.world.clock.time)
        rounds = Rounds(story)
        found: list[Outcome] = []
        while self.kills < count:
            found += self._life(story, rounds, clock, last=False)
            self.kills += 1
        # The round that is under way ends in a last life, that nobody cuts short.
        found += self._life(story, rounds, clock, last=True)
        self.rounds = len(found)
        calm = self._calm(len(found))
        for number, (mine, expected) in enumerate(zip(found, calm, strict=True)):
            compare(self.verdict, f"round {number} ({VERDICTS[number % len(VERDICTS)]})", mine, expected)

    def _life(self, story: Story, rounds: Rounds, clock: SharedClock, *, last: bool) -> list[Outcome]:
        ours, theirs = multiprocessing.connection.Pipe()
        child = os.fork()
        if child == 0:
            ours.close()
            try:
                live(story, theirs, clock, self._seed + 1000 * (self.kills + 1))
            except BaseException:  # noqa: BLE001 - the parent stops when it finds this process ended
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()
        transport = FakeTransport(story.world.broker, "device", Fuse())
        # Some die while they open the home; the others some time after, so that all phases of a round are met.
        early = not last and self._rng.random() < EARLY
        until = time.monotonic() + (self._rng.uniform(0.0, 0.04) if early else 60.0)
        longest = 60.0 if last else self._rng.uniform(0.0, LONGEST_S)
        ended: list[Outcome] = []
        call = "before its first call"
        try:
            while (left := until - time.monotonic()) > 0:
                if not ours.poll(left):
                    break
                call, arguments = ours.recv()
                story.world.clock.time = clock.time
                ours.send(self._answer(story, transport, call, arguments))
                if call == "opened" and not early:
                    until = time.monotonic() + longest
                if rounds.look():
                    ended.append(rounds.close())
                    if last:
                        break
                    rounds.begin()
        except EOFError as e:
            raise SystemExit("the agent's process ended by itself") from e
        finally:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            ours.close()
        if not os.WIFSIGNALED(status):
            raise SystemExit("a process that was to be killed had ended by itself")
        if last and not ended:
            self.verdict.note("lost", f"round {rounds.number} did not end")
            raise SystemExit(f"round {rounds.number} did not end in a minute")
        self.by_call[call] = self.by_call.get(call, 0) + 1
        return ended

    def _answer(self, story: Story, transport: FakeTransport, name: str, arguments: Sequence[Any]) -> tuple[str, Any]:
        if name == "opened":
            whole, sentences = arguments
            if not whole:
                self.verdict.note("half_activated", f"life {self.kills}")
            if sentences != SENTENCES:
                self.verdict.note("lost", f"life {self.kills}: {sentences} sentences")
            self.lives_whole += bool(whole)
            return "is", None
        try:
            if name == "fetch":
                opened = story.world.downloads.fetch(*arguments)
                return "is", (opened.start, list(opened.chunks))
            found = getattr(transport, name)
            return "is", found(*arguments) if callable(found) else found
        except (Unreachable, TooLarge, NotThere) as e:
            return "raised", type(e).__name__

    def _calm(self, count: int) -> list[Outcome]:
        """Play as many rounds with nobody killed."""
        story = self._new("calm")
        agent = story.world.open()
        rounds = Rounds(story)
        found: list[Outcome] = []
        while len(found) < count:
            agent.turn()
            story.world.clock.time += TURN_S
            if rounds.look():
                found.append(rounds.close())
                rounds.begin()
        agent.abandon()
        return found
