"""The person's own device behind the keyboard: suggestions mixed on it, messages learned on it, a night on request.

Implements `terminal.Hands` over an edge-runtime home. It works offline: suggestions need only what is on the disk. A
night (`train_now`) plays the sensors as idle, charging, unmetered and cool, through the files that the real readers
read, and says so; check-in, training, update and receipt are real.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edge_runtime import identity
from edge_runtime.adapters import personal_copy
from edge_runtime.adapters.clock import SystemClock
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.interpreter import InterpreterRuntime
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.adapters.power import FileSensors, write_fixture
from edge_runtime.agent import Agent, Ports
from edge_runtime.config import PolicySettings, Settings
from edge_runtime.model_slots import Held
from edge_runtime.ngram_cache import NgramCache
from edge_runtime.personalization import Mixture, make_copy, probabilities_of
from edge_runtime.ports import SignatureRunner
from edge_runtime.privacy_filter import id_stream
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import Vocabulary

# The person asked for it now: night is always. Everything else must hold.
POLICY = PolicySettings(profile="battery", night_start="00:00", night_end="00:00")
ANSWER_TIMEOUT_S = 10.0


class NoModel(Exception):  # noqa: N818
    """The home holds no version yet, so there is nothing to suggest from."""


class PersonalDevice:
    """Open it over an enrolled home (`edge-runtime enrol`), close it at the end.

    Raises `NoModel` without a version, and what `Agent` raises.
    """

    def __init__(self, home: Path, settings: Settings, sensors_root: Path) -> None:
        self._home = home
        self._sensors_root = sensors_root
        self._runtime = InterpreterRuntime(settings.runtime)
        enrolled = identity.load_enrolled(home)
        ports = Ports(
            clock=SystemClock(),
            sensors=FileSensors(sensors_root),
            transport=MqttTransport(enrolled.broker_url, enrolled.device),
            downloads=HttpDownloads(),
            runtime=self._runtime,
            entropy=identity.system_entropy,
        )
        self.agent = Agent(home, settings, ports)
        self._mixture = Mixture()
        self._reload()

    def close(self) -> None:
        """Leave the broker and close the files."""
        self.agent.close()

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the version on this device."""
        return self._vocabulary

    def _held(self) -> Held:
        held = self.agent.current()
        if held is None:
            raise NoModel(f"{self._home} holds no model yet: run edge-runtime run --home {self._home} once, online")
        return held

    def _reload(self) -> None:
        held = self._held()
        vocabulary = self.agent.slots.vocabulary(held.manifest.vocabulary_sha256)
        if vocabulary is None:
            raise NoModel(f"{self._home} holds no vocabulary for its model")
        self._vocabulary = vocabulary
        self._shared = self._runtime.version(held.manifest.sha256, lambda: held.data)
        copy = personal_copy.read(self._home, held.manifest.sha256)
        self._copy: SignatureRunner | None = None
        if copy is not None:
            self._copy = self._runtime.version(f"personal {hash(copy)}", lambda: copy)
        self._cache = NgramCache(id_stream(self.agent.examples.sentences(), vocabulary))

    def predict(self, context: tuple[int, ...]) -> Sequence[float]:
        """Return the mixed probabilities [V] after 20 ids: shared model, personal copy, own words."""
        tokens = np.asarray(context, dtype=np.int32)
        shared = probabilities_of(self._shared.run("suggest_context", {"tokens": tokens})["log_probs"])
        copy = None
        if self._copy is not None:
            copy = probabilities_of(self._copy.run("suggest_context", {"tokens": tokens})["log_probs"])
        mixed: list[float] = self._mixture.mix(shared, copy, self._cache.predict([i for i in context if i])).tolist()
        return mixed

    def learn(self, text: str) -> str:
        """Store a message behind the privacy filter; its words count in the cache at once."""
        kept = self.agent.examples.add(text, SystemClock().now())
        if kept:
            self._cache.add(self._vocabulary.encode_text(text))
        words = self.agent.examples.count_words()
        return f"{kept} sentence{'s' * (kept != 1)} kept on this device ({words} words, none sent)"

    def train_now(self) -> Iterator[str]:
        """Play tonight: check in, train, send the update, then tune the personal copy; yield what happens."""
        yield "sensors played as idle, charging, unmetered, cool; all that follows is real"
        write_fixture(self._sensors_root, charging=True, battery=90.0, idle_seconds=3600.0, metered=False, celsius=40.0)
        try:
            yield from self._contribute()
        finally:
            write_fixture(
                self._sensors_root, charging=False, battery=90.0, idle_seconds=0.0, metered=False, celsius=40.0
            )
        yield from self._personalize()
        self._reload()

    def _contribute(self) -> Iterator[str]:
        end = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < end:
            report = self.agent.turn(ANSWER_TIMEOUT_S / 4)
            if report.checked_in:
                yield "checked in"
            if report.turned_away:
                yield f"turned away: {report.turned_away}"
            if report.training_steps:
                yield f"trained {report.training_steps} steps on this device"
                end = time.monotonic() + ANSWER_TIMEOUT_S
            if report.update_sent:
                yield f"update sent, sealed: {report.bytes_up:,} bytes, no text in it"
            for verdict in report.receipts:
                yield f"receipt: {verdict}"
            if report.receipts or report.turned_away:
                return
            if not report.connected:
                yield f"no contribution tonight: {', '.join(report.refused) or report.reason}"
                return
        yield "no contribution tonight: no answer came; what was trained waits here for another night"

    def _personalize(self) -> Iterator[str]:
        held = self._held()
        stream = id_stream(self.agent.examples.sentences(), self._vocabulary)
        spec = held.manifest.signatures["train"]
        if len(stream) < 2 * spec.length:
            yield f"too little text for a personal copy yet: {len(stream)} tokens, it takes {2 * spec.length}"
            return
        runner = self._runtime.template(held.manifest.template_sha256, lambda: held.data)
        copy = make_copy(runner, held.manifest, read_tensors(held.data, held.manifest), stream, seed=0)
        told = f"{copy.loss_received:.2f} to {copy.loss_copy:.2f} nats a word on your own last sentences"
        if copy.accepted:
            personal_copy.write(self._home, held, copy.tensors)
            yield f"personal copy accepted: {told}"
        else:
            yield f"personal copy not better, so not used: {told}"


def open_personal(home: Path) -> PersonalDevice:
    """Open the device at `home` with the keyboard's policy and its own played sensors."""
    enrolled = identity.load_enrolled(home)
    settings = Settings(population=enrolled.population, policy=POLICY)
    return PersonalDevice(home, settings, home / "sensors")
