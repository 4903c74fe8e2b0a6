"""The agent: one device's life, turn by turn. The shell around `session`; everything it knows lies in its home.

    HOME/device_key, enrolled.bin      who the device is (`identity`)
    HOME/settings.toml                 the owner's terms (`config`)
    HOME/state.db                      session, usage, outbox with kept vectors (`adapters.state_store`)
    HOME/examples.db                   the person's examples (`adapters.example_store`)
    HOME/vectors/                      the residual (`adapters.vectors`)
    HOME/checkpoint.npz                a training between two steps (`adapters.checkpoints`)
    HOME/slots, models, manifests, templates, vocabularies/    the versions (`model_slots`)
    HOME/index_sets/ HOME/bases/       what plans name beside the base (`public_files`)
    HOME/personal/                     the person's own copy (`adapters.personal_copy`)

The rules:
- a turn drains the inbox, reads the sensors, steps the session and performs the effects;
- the state is durable before an effect is performed, and a message is acknowledged after both;
- an agent that was killed anywhere goes on when a new one opens the same home;
- after a failed write, or when another process was told to forget, the disk is right and memory is read from it anew;
- numpy and the interpreter are loaded when a model is checked or trained, not before.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import eligibility, session, session_row
from edge_runtime.adapters import checkpoints
from edge_runtime.adapters.example_store import SqliteExampleStore
from edge_runtime.adapters.outbox import Outbox
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.config import Settings
from edge_runtime.eligibility import Decision, Usage
from edge_runtime.identity import load, load_enrolled
from edge_runtime.inbox import Inbox
from edge_runtime.link import Link
from edge_runtime.model_slots import Held, ModelSlots, VersionRefused
from edge_runtime.night_budget import NightBudget
from edge_runtime.ports import (
    Clock,
    Downloads,
    Entropy,
    Forgotten,
    ModelRuntime,
    Received,
    Sensors,
    StorageFailed,
    StorageFull,
    TooLarge,
    Transport,
    Unreachable,
)
from edge_runtime.privacy_filter import id_stream
from edge_runtime.session import Phase
from edge_runtime.session_row import SessionRow
from edge_runtime.turn_report import Notes, TurnReport
from edge_runtime.version_keeper import VersionKeeper, name_of
from wire_contract.errors import ContractError
from wire_contract.manifest import Manifest
from wire_contract.messages import (
    CheckIn,
    StatusQuery,
    TaskOffer,
    encode_message,
)

if TYPE_CHECKING:
    from edge_runtime.training_task import TrainingTask

CAPABILITIES = (
    "codec:basis", "codec:shared", "codec:threshold", "codec:topk", "codec:topk4", "entropy:deflate", "entropy:none",
    "entropy:zstd", "rule:sgd", "signature:train", "signature:train_sampled",
)  # fmt: skip
ROW_TOKENS = 20


@dataclass(frozen=True)
class Ports:
    """The outside world of one agent."""

    clock: Clock
    sensors: Sensors
    transport: Transport
    downloads: Downloads
    runtime: ModelRuntime
    entropy: Entropy


class Agent:
    """Open it over an enrolled home, call `turn` again and again, `close` it.

    Raises `identity.NotEnrolled`, `SettingsInvalid`, `StorageFailed`.
    """

    def __init__(self, home: Path, settings: Settings, ports: Ports) -> None:
        self.home = home
        self.identity = load(home)
        self.enrolled = load_enrolled(home)
        self._ports = ports
        self._settings = settings
        self._policy = settings.policy.as_policy()
        self._store = StateStore(home / "state.db")
        self._outbox = Outbox(self._store)
        self._keeper = VersionKeeper(home, self.enrolled, ports.downloads, ports.clock, self._check_version)
        self._link = Link(
            ports.transport, self.identity, self.enrolled.population, ports.runtime.name, ports.clock, ports.entropy
        )
        self._inbox = Inbox(self.identity, self.enrolled, self._keeper, self._draw)
        self._budget = NightBudget(self._store, self._policy)
        self._row = SessionRow(self._store)
        self._state = self._row.load()
        self._saved = self._state
        self._doubtful = True
        self._examples: SqliteExampleStore | None = None
        self._chance: tuple[str, float] | None = None
        self._notes = Notes()

    @property
    def state(self) -> session.State:
        """Where the session stands."""
        return self._state

    @property
    def slots(self) -> ModelSlots:
        """The versions on this device."""
        return self._keeper.slots

    @property
    def examples(self) -> SqliteExampleStore:
        """The example store, under the vocabulary of the newest version that is here."""
        if self._examples is None:
            self._examples = SqliteExampleStore(self.home / "examples.db", None, self._ports.entropy)
        if self._examples.vocabulary is None:
            held = self.current()
            if held is not None:
                self._examples.vocabulary = self.slots.vocabulary(held.manifest.vocabulary_sha256)
        return self._examples

    def current(self) -> Held | None:
        """Return the version for the keyboard, or None before the first."""
        return self._keeper.current()

    def fetch_refresh(self) -> Manifest:
        """Fetch and install the announced refresh over HTTP, whatever the hour; a new device begins with it.

        Raises `Unreachable`, `NotThere`, `VersionRefused`, `ManifestRefused`, `StorageFull`.
        """
        return self._keeper.fetch_refresh()

    def turn(self, wait_s: float = 0.0) -> TurnReport:
        """Do what is due now; where a reply is awaited, wait at most `wait_s` real seconds for it."""
        self._notes = self._link.notes = self._keeper.notes = Notes()
        decision = Decision(may_train=False, may_send=False, reason="its disk fails: room, or another disk, would help")
        try:
            self._recall()
            decision = self._decide()
            self._link.reason = decision.reason
            self._link.keep(decision.may_send and self._has_business(decision), self._keeper.versions)
            awaiting = self._state.phase in (Phase.CHECKING_IN, Phase.SENDING) or self._keeper.chunks.awaited
            for received in self._link.receive(wait_s if awaiting else 0.0):
                self._take(received)
            self._go_on_with_pieces(decision)
            # A training takes its time: whether the link may still be used is asked again after it.
            self._look(self._decide() if self._notes.training_steps else decision)
            if self._state.phase is Phase.SENDING and self._state.attempts == 0:
                self._look(self._decide())
            if decision.may_send:
                self._keeper.install_refresh(self._draw)
            self._link.report(self._keeper.versions)
            self._link.flush()
        except Unreachable:
            self._link.lose(self._draw())
        except TooLarge:
            self._notes.refused.append("packet_too_large")
        except (StorageFull, StorageFailed, Forgotten) as e:
            # The state on the disk is the last whole one; what could not be written is done again.
            self._notes.refused.append(name_of(e))
            self._doubtful = True
        try:
            self._recall()
            self._save()
        except (StorageFull, StorageFailed, Forgotten) as e:
            self._notes.refused.append(name_of(e))
            self._doubtful = True
        self._budget.add_sent(self._ports.clock.now(), self._notes.bytes_up)
        self._save_usage()
        if self._notes.versions and self._examples is not None:
            self._examples.vocabulary = None
        self._notes.bytes_down += self._keeper.take_bytes_down()
        return self._notes.close(self._state.phase.value, decision.reason, connected=self._link.connected)

    def _recall(self) -> None:
        """Read the state anew if memory may differ from the disk: at first, after a failed write, after a `forget`."""
        forgotten = self._row.was_forgotten()
        if not (forgotten or self._doubtful):
            return
        self._saved = self._row.load()
        # How long to wait may be newer in memory: a full disk is not to be tried again at once.
        if forgotten or session_row.differ(self._saved, self._state):
            self._state = self._saved
        self._doubtful = False
        try:
            if self._state.phase is not Phase.TRAINING:
                checkpoints.drop(self.home)
            if forgotten:
                self._sweep_vectors()
        except (StorageFull, StorageFailed) as e:
            self._notes.refused.append(name_of(e))

    def _sweep_vectors(self) -> None:
        from edge_runtime.adapters.vectors import Vectors

        Vectors(self.home / "vectors", self._store).sweep()

    def _save_usage(self) -> None:
        try:
            self._budget.record(self._ports.clock.now())
        except (StorageFull, StorageFailed) as e:
            self._notes.refused.append(name_of(e))

    def usage(self, now: float) -> Usage:
        """Return what the night of `now` has used, a running training included."""
        return self._budget.usage(now)

    def updates_waiting(self) -> tuple[str, ...]:
        """Return the ids of updates without a verdict."""
        return self._outbox.waiting()

    def check_version(self, held: Held) -> None:
        """Run the golden checks on a version that is here. Raises `VersionRefused`."""
        self._check_version(held.data, held.manifest)

    def forget_word(self, word: str) -> int:
        """Delete the sentences with `word`, and all that was made of any text; return how many sentences that was.

        Nobody can tell which words a copy, checkpoint, residual or update came from, so all of them go, and with them
        the lease; also when no sentence holds the word any more, for an older training may have seen it. The other
        sentences stay, and another training begins with them. An agent that runs in this home stops its training.
        Raises `StorageFull` or `StorageFailed`.
        """
        try:
            return self.examples.forget_word(word)
        finally:
            self._forget_what_was_made()

    def forget_everything(self) -> int:
        """Delete the examples and all that was made of them: copy, checkpoint, residual, lease, updates that wait.

        Returns how many words that was. What a broker has already taken can't be called back. An agent that runs in
        this home stops its training. Raises `StorageFull` or `StorageFailed`.
        """
        try:
            words = self.examples.count_words()
            self.examples.forget_everything()
            return words
        finally:
            self._forget_what_was_made()

    def _forget_what_was_made(self) -> None:
        # After the text: what a running agent makes of it until here goes with the transaction; what it has in memory
        # after it, it may not write (`Forgotten`).
        from edge_runtime.adapters import personal_copy

        self._state = self._saved = self._row.forget()
        checkpoints.drop(self.home)
        personal_copy.forget(self.home)
        self._sweep_vectors()

    def close(self) -> None:
        """Leave the broker politely and close the files."""
        self._link.leave(self._keeper.versions)
        self._close_files()

    def abandon(self) -> None:
        """Let go of everything as a killed process would: nothing is saved, the broker gets no word."""
        self._link.drop()
        self._close_files()

    def _close_files(self) -> None:
        self._store.close()
        if self._examples is not None:
            self._examples.close()

    def _decide(self) -> Decision:
        now = self._ports.clock.now()
        decision = eligibility.decide(self._ports.sensors.read(now), self._policy, self.usage(now), now)
        due = self._state.phase is Phase.RESTING and now >= self._state.not_before
        if decision.may_train and due and not self.examples.count_words():
            reason = "there is no text to learn from yet: typing would change that"
            return replace(decision, may_train=False, reason=reason)
        return decision

    def _has_business(self, decision: Decision) -> bool:
        # An interrupted training needs no link until it is done.
        at_rest = self._state.phase in (Phase.RESTING, Phase.TRAINING)
        return not at_rest or decision.may_train or self._keeper.wants_news

    def _draw(self) -> float:
        return int.from_bytes(self._ports.entropy(8), "big") / 2.0**64

    def _look(self, decision: Decision) -> None:
        # Chance is drawn anew only after it was used, so that a seeded device does not depend on how often it looked.
        before = self._state
        if self._chance is None:
            self._chance = (self._ports.entropy(16).hex(), self._draw())
        now, may_send = self._ports.clock.now(), decision.may_send and self._link.connected
        self._apply(session.Looked(now, decision.may_train, may_send, *self._chance))
        if self._state is not before:
            self._chance = None

    def _apply(self, event: session.Event) -> None:
        events = [event]
        while events:
            after, effects = session.step(self._state, events.pop(0))
            settled = [effect for effect in effects if isinstance(effect, session.Settle)]
            if settled:
                # The verdict's effect and the state after it are one transaction.
                self._task().settle(settled[0].update_id, settled[0].verdict, partial(self._row.put, after))
                self._saved = after
            elif effects:
                self._row.put(after)
                self._saved = after
            self._state = after
            for effect in effects:
                answer = self._perform(effect)
                if answer is not None:
                    events.append(answer)

    def _save(self) -> None:
        if self._state is not self._saved:
            self._row.put(self._state)
            self._saved = self._state

    def _perform(self, effect: session.Effect) -> session.Event | None:
        match effect:
            case session.AskForWork(nonce):
                self._check_in(nonce)
            case session.FetchBase(offer):
                return self._keeper.fetch_base(offer, self._draw())
            case session.Train(offer):
                return self._train(offer)
            case session.DropTraining():
                checkpoints.drop(self.home)
            case session.SendUpdate():
                return self._send(effect)
            case session.AskStatus(update_id, nonce):
                now = int(self._ports.clock.now())
                query = StatusQuery(device=self.identity.device, update_id=update_id, nonce=nonce, sent_at=now)
                self._link.request(encode_message(query))
        return None

    def _check_in(self, nonce: str) -> None:
        request = CheckIn(
            device=self.identity.device,
            population=self.enrolled.population,
            nonce=nonce,
            sent_at=int(self._ports.clock.now()),
            held_version=self.slots.slot("training").version,
            capabilities=CAPABILITIES,
            examples=-(-self.examples.count_words() // ROW_TOKENS),
        )
        self._link.request(encode_message(request))
        self._notes.checked_in = True

    def _send(self, effect: session.SendUpdate) -> session.Event | None:
        now = self._ports.clock.now()
        update = self._outbox.get(effect.update_id)
        if update is None:
            return session.Undeliverable(now, self._draw(), "the update is not in the outbox any more")
        try:
            for topic, piece in update.pieces(self.identity.device, effect):
                self._row.refuse_forgotten()
                self._link.publish(topic, piece)
        except TooLarge as e:
            self._notes.refused.append("packet_too_large")
            return session.Undeliverable(now, self._draw(), str(e))
        self._link.flush()
        self._notes.update_sent = True
        return None

    def _take(self, received: Received) -> None:
        self._notes.bytes_down += len(received.payload)
        try:
            event = self._inbox.read(received, self._state, self._notes, self._ports.clock.now())
        except ContractError as e:
            self._notes.refused.append(type(e).__name__.lower())
            event = None
        if event is not None:
            self._apply(event)
        self._save()
        self._link.ack(received)

    def _go_on_with_pieces(self, decision: Decision) -> None:
        """Install a version whose pieces have all come over the broker, or ask for the next ones."""
        chunks, now, offer = self._keeper.chunks, self._ports.clock.now(), self._state.offer
        if self._keeper.install_chunks() and self._state.phase is Phase.FETCHING and offer and self._keeper.base(offer):
            # Of what the plan names beside the base, something may be missing still.
            self._apply(self._keeper.fetch_base(offer, self._draw()))
        if decision.may_send and self._link.connected and chunks.due(now):
            nonce = self._ports.entropy(16).hex()
            self._link.request(encode_message(chunks.request(self.identity.device, now, nonce, self._draw())))

    def _check_version(self, data: bytes, manifest: Manifest) -> None:
        from edge_runtime.model_check import CheckFailed, check

        try:
            check(data, manifest, self._ports.runtime)
        except CheckFailed as e:
            raise VersionRefused(e.reason, str(e)) from e

    def _task(self) -> "TrainingTask":
        from edge_runtime.training_task import TrainingTask

        ports = self._ports
        return TrainingTask(
            self.home, self._store, self.identity, ports.runtime, ports.entropy, self._settings.chunk_bytes,
            self._row.times_forgotten,
        )  # fmt: skip

    def _may_go_on(self) -> bool:
        self._link.tend()
        return self._decide().may_train

    def _train(self, offer: TaskOffer) -> session.Event:
        from edge_runtime import training_task

        began = self._ports.clock.now()
        held = self._keeper.base(offer)
        vocabulary = self.slots.vocabulary(held.manifest.vocabulary_sha256) if held is not None else None
        if held is None or vocabulary is None:
            return session.CannotTrain(began, self._draw(), "the base version is not on the disk any more")
        if not self._decide().may_train:
            self._notes.interrupted = True
            return session.Interrupted(began, "a condition fell before the first step")
        self.examples.expire(began)
        self._budget.begin_training(began)
        try:
            outcome = self._task().run(
                offer,
                held,
                id_stream(self.examples.sentences(), vocabulary),
                may_go_on=self._may_go_on,
                finished_at=self._ports.clock.now,
                save_usage=self._save_usage,
                save_state=self._save_queued,
            )
        finally:
            now = self._ports.clock.now()
            self._budget.end_training(now)
        self._notes.training_steps += outcome.steps
        if isinstance(outcome, training_task.Queued):
            self._budget.written()
            self._notes.update_queued = outcome.update_id
            return session.UpdateQueued(outcome.finished_at, outcome.update_id)
        if isinstance(outcome, training_task.Stopped):
            self._notes.interrupted = True
            return session.Interrupted(now, "a condition fell between two steps")
        if isinstance(outcome, training_task.NoRoom):
            self._notes.refused.append("storage_full")
            return session.NotKept(now, self._draw(), outcome.reason)
        self._notes.refused.append("plan_refused")
        return session.CannotTrain(now, self._draw(), outcome.reason)

    def _save_queued(self, update_id: str, finished_at: float) -> None:
        # In the outbox's own transaction: an update is never queued without the state that sends it, or the reverse.
        # The state in memory follows with the event, after the commit.
        state, _ = session.step(self._state, session.UpdateQueued(finished_at, update_id))
        self._row.put(state)
        self._budget.write(self._store.connection, finished_at)
