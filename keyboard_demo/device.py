"""The person's own device behind the keyboard: suggestions mixed on it, messages learned on it, a night on request.

Implements `terminal.Hands` over an edge-runtime home. It works offline: suggestions need only what is on the disk. A
night (`train_now`) plays the sensors as idle, charging, unmetered and cool, through the files that the real readers
read, and says so; check-in, training, update and receipt are real.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_runtime import identity, personal_task
from edge_runtime.adapters import personal_copy, personal_records
from edge_runtime.adapters.clock import SystemClock
from edge_runtime.adapters.downloads import HttpDownloads
from edge_runtime.adapters.in_process_trainer import InProcessTrainer
from edge_runtime.adapters.lazy_runtime import LazyRuntime
from edge_runtime.adapters.mqtt import MqttTransport
from edge_runtime.adapters.personal_records import MadeRecord, MixtureRecord
from edge_runtime.adapters.sensors.files import FileSensors, write_fixture
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.agent import Agent, Ports
from edge_runtime.config import Settings
from edge_runtime.jobs import Personalized
from edge_runtime.mixture import COMPONENTS, Mixture
from edge_runtime.model_slots import VersionRefused
from edge_runtime.policy_settings import PolicySettings
from edge_runtime.ports import Forgotten, SignatureRunner
from edge_runtime.privacy_filter import id_stream
from edge_runtime.suggestions import Suggestions
from wire_contract.manifest import TEXT_FAMILY
from wire_contract.vocabulary import Vocabulary

# The person asked for it now: night is always. Everything else must hold.
POLICY = PolicySettings(
    profile="battery", night_start="00:00", night_end="00:00", settle_s=0, cool_down_s=0, starts=1000
)
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
        self._runtime = LazyRuntime(settings.runtime)
        enrolled = identity.load_enrolled(home)
        self._clock = clock = SystemClock()
        ports = Ports(
            clock=clock,
            sensors=FileSensors(sensors_root),
            transport=MqttTransport(enrolled.broker_url, enrolled.device),
            downloads=HttpDownloads(),
            trainer=InProcessTrainer(home, self._runtime, identity.system_entropy, clock, settings.held_out_share),
            entropy=identity.system_entropy,
        )
        self.agent = Agent(home, settings, ports)
        self._store = StateStore(home / "state.db")
        # The version on trial that this start is counted for, until it has answered.
        self._on_trial = ""
        try:
            self._begin_boot()
            self._reload()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the broker and close the files."""
        self._store.close()
        self.agent.close()

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the version on this device."""
        return self._vocabulary

    def _begin_boot(self) -> None:
        """Count this start for a refresh on trial, before it is opened: one that ends the keyboard goes back alone."""
        try:
            held = self.agent.slots.begin_boot()
        except VersionRefused:
            # Another process ended the trial meanwhile: what stands now needs no count.
            return
        self._on_trial = held.manifest.sha256 if held is not None else ""

    def _reload(self) -> None:
        # Counted before anything is read: who is told to forget in between is noticed at the next key.
        self._times_forgotten = self._store.times_forgotten()
        held, self.instead = personal_task.for_keyboard(self._home, self.agent.slots)
        if held is None:
            raise NoModel(f"{self._home} holds no model yet: run edge-runtime run --home {self._home} once, online")
        if held.manifest.family != TEXT_FAMILY:
            raise NoModel(f"version {held.manifest.version} is a model of arrays: a keyboard needs one of text")
        vocabulary = self.agent.slots.vocabulary(held.manifest.vocabulary_sha256)
        if vocabulary is None:
            raise NoModel(f"{self._home} holds no vocabulary for its model")
        self._vocabulary = vocabulary
        shared = self._runtime.version(held.manifest, lambda: held.data)
        data = personal_copy.read(self._home, held.manifest.sha256)
        copy: SignatureRunner | None = None
        if data is not None:
            copy = self._runtime.version(held.manifest, lambda: data, f"personal {hash(data)}")
        stream = id_stream(self.agent.examples.all_sentences(), vocabulary)
        self._suggestions = Suggestions(shared, copy, stream, self._read_mixture())

    def _read_mixture(self) -> Mixture:
        record = personal_records.read(self._home, MixtureRecord)
        if record is None or record.components != COMPONENTS:
            return Mixture()
        try:
            return Mixture(record.rows)
        except ValueError:
            return Mixture()

    def _heed_forgetting(self) -> None:
        """Begin anew if the home was told to forget, by whichever process: what is in memory may hold the word."""
        if self._store.times_forgotten() != self._times_forgotten:
            self._reload()

    def predict(self, context: tuple[int, ...]) -> Sequence[float]:
        """Return the mixed probabilities [V] after 20 ids: shared model, personal copy, own words."""
        self._heed_forgetting()
        mixed: list[float] = self._suggestions.distribution(context).tolist()
        if self._on_trial:
            self.agent.slots.came_up(sha256=self._on_trial)
            self._on_trial = ""
        return mixed

    def learn(self, text: str) -> str:
        """Store a message behind the privacy filter; its words count at once, in the caches and for the mixture."""
        self._heed_forgetting()
        kept = self.agent.examples.add(text, self._clock.now(), trusted=self._clock.trusted())
        if kept:
            self._suggestions.learn(self._vocabulary.encode_text(text))
            self._keep_mixture()
        words = self.agent.examples.count_words()
        return f"{kept} sentence{'s' * (kept != 1)} kept on this device ({words} words, none sent)"

    def _keep_mixture(self) -> None:
        record = MixtureRecord(components=COMPONENTS, rows=self._suggestions.mixture.rows)
        try:
            personal_records.write(self._home, self._store, self._times_forgotten, record)
        except Forgotten:
            self._reload()

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
        if not personal_task.due(self._home, self.agent.slots, self.agent.examples):
            record = personal_records.read(self._home, MadeRecord)
            yield f"personal {record.reason}" if record else "too little text for a personal copy yet"
            return
        made = personal_task.run(
            self._home, self.agent.slots, self._runtime, self.agent.examples, self._store,
            times_forgotten=self._times_forgotten, seed=0, may_go_on=lambda: True,
        )  # fmt: skip
        if isinstance(made, Personalized):
            yield f"personal {made.reason}"
        else:
            yield f"no personal copy: {getattr(made, 'reason', 'stopped')}"


def open_personal(home: Path) -> PersonalDevice:
    """Open the device at `home` with the keyboard's policy and its own played sensors."""
    enrolled = identity.load_enrolled(home)
    settings = Settings(population=enrolled.population, policy=POLICY)
    return PersonalDevice(home, settings, home / "sensors")
