"""The agent: one device's life, turn by turn. The shell around `session`; everything it knows lies in its home.

    HOME/device_key, enrolled.bin      who the device is (`identity`)
    HOME/settings.toml                 the owner's terms (`config`)
    HOME/state.db                      session, usage, outbox with kept vectors (`adapters.state_store`)
    HOME/examples.db                   the person's examples (`adapters.example_store`)
    HOME/vectors/                      the residual (`adapters.vectors`)
    HOME/checkpoint-a.bin, -b.bin      a training between two steps (`adapters.checkpoints`)
    HOME/slots, models, manifests, templates, vocabularies/    the versions (`model_slots`)
    HOME/index_sets/ HOME/bases/       what plans name beside the base (`public_files`)
    HOME/personal/                     the person's own copy (`adapters.personal_copy`)

The rules:
- a turn drains the inbox, reads the sensors, steps the session and performs the effects;
- the state is durable before an effect is performed, and a message is acknowledged after both;
- an agent that was killed anywhere goes on when a new one opens the same home;
- while the trainer works in a process of its own nothing is waited for, neither link nor download: a condition that
  falls is to be seen at once;
- after a failed write, or when another process was told to forget, the disk is right and memory is read from it anew;
- numpy and the interpreter live behind the Trainer port, on a device in a process of its own: never here.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edge_runtime import job_outcome, news, personal_task, session, session_row
from edge_runtime.adapters import checkpoints, files, vector_files
from edge_runtime.adapters.example_store import SqliteExampleStore
from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.adapters.outbox import Outbox
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.check_ins import CheckIns
from edge_runtime.conditions import NO_TEXT, Conditions
from edge_runtime.config import Settings
from edge_runtime.eligibility import JUST_STARTED, Decision, Standing, Usage
from edge_runtime.forgetting import forget_what_was_made
from edge_runtime.home_examples import HomeExamples
from edge_runtime.home_room import HomeRoom
from edge_runtime.identity import load, load_enrolled
from edge_runtime.inbox import Inbox
from edge_runtime.jobs import Evaluate, LongJob, Personalize, Train
from edge_runtime.link import Link, LinkMemory, encode_memory, read_memory
from edge_runtime.model_slots import Held, ModelSlots
from edge_runtime.night_budget import NightBudget
from edge_runtime.offer_terms import declined
from edge_runtime.ports import (
    Clock,
    Downloads,
    Entropy,
    Forgotten,
    Received,
    Sensors,
    StorageFailed,
    StorageFull,
    TooLarge,
    Trainer,
    Transport,
    Unreachable,
)
from edge_runtime.session import Phase
from edge_runtime.session_journal import SessionJournal
from edge_runtime.session_row import SessionRow
from edge_runtime.turn_report import Notes, TurnReport
from edge_runtime.upload import Upload
from edge_runtime.version_keeper import VersionKeeper, name_of
from edge_runtime.workbench import Workbench
from wire_contract.errors import ContractError
from wire_contract.manifest import Manifest
from wire_contract.messages import (
    EvaluationOffer,
    StatusQuery,
    TaskOffer,
    encode_message,
)

LINK = "link"
PERSONAL_AGAIN_S = 1800.0
# A killed agent forgets at most so many seconds of training that the night has used.
USAGE_WRITTEN_S = 60.0


@dataclass(frozen=True)
class Ports:
    """The outside world of one agent."""

    clock: Clock
    sensors: Sensors
    transport: Transport
    downloads: Downloads
    trainer: Trainer
    entropy: Entropy


class Agent:
    """Open it over an enrolled home, call `turn` again and again, `close` it.

    Raises `identity.NotEnrolled`, `SettingsInvalid`, `StorageFailed`.
    """

    def __init__(self, home: Path, settings: Settings, ports: Ports, standing: Standing = JUST_STARTED) -> None:
        self.home = home
        self.identity = load(home)
        self.enrolled = load_enrolled(home)
        self._ports = ports
        self._settings = settings
        policy = settings.policy.as_policy()
        self._store = StateStore(home / "state.db")
        self._outbox = Outbox(self._store)
        self._budget = NightBudget(self._store, policy, ports.clock.elapsed)
        self._conditions = Conditions(ports.clock, ports.sensors, policy, self._budget, settings.spread_s, standing)
        self._row = SessionRow(self._store)
        self._ledger = LedgerRows(self._store, settings.ledger.as_terms())
        self._journal = SessionJournal(self._store, self._row, self._ledger)
        self._bench = Workbench(home, ports.trainer, self._store, self._row, self._ledger, self._budget, ports.clock)
        self._keeper = VersionKeeper(
            home, self.enrolled, ports.downloads, ports.clock, self._bench.check, self._bench.rebuild,
            seen_at=news.seen_at(self._store), remember=self._remember_news,
            try_out=self._bench.try_out,
        )  # fmt: skip
        self._link = Link(
            ports.transport, self.identity, self.enrolled.population, ports.trainer.runtime, ports.clock, ports.entropy,
            memory=read_memory(self._store.get(LINK)), remember=self._remember_link, spread_s=settings.spread_s,
        )  # fmt: skip
        self._upload = Upload(self._store, self._row, self.identity, self._link, settings.chunk_bytes)
        self.room = HomeRoom(home, self._keeper.slots, settings.ballast_bytes)
        self._person = HomeExamples(home, self.identity, ports.entropy, settings.held_out_share)
        self._check_ins = CheckIns(
            self.identity, self.enrolled.population, self._link, ports.clock, ports.entropy,
            count_examples=lambda tokens: self._person.store.count_examples(tokens),
            held_version=lambda: self.slots.slot("training").version,
        )  # fmt: skip
        self._inbox = Inbox(
            self.identity, self.enrolled, self._keeper, self._draw, ports.clock.prove, self._check_ins.just_asked
        )
        self._state = self._row.load()
        self._saved = self._state
        self._doubtful = True
        self._chance: tuple[str, float] | None = None
        self._personal_again = 0.0
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
        store = self._person.store
        if store.vocabulary is None:
            held = self.current()
            if held is not None:
                store.vocabulary = self.slots.vocabulary(held.manifest.vocabulary_sha256)
        return store

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
        self._notes = self._link.notes = self._keeper.notes = self._upload.notes = Notes()
        decision = Decision(may_train=False, may_send=False, reason="its disk fails: room, or another disk, would help")
        try:
            self._recall()
            self._collect()
            decision = self._decide()
            self._link.reason = self._keeper.trial_said or decision.reason
            self._keep_link(decision)
            if not self.works:
                self._hear(decision, wait_s)
            # A training takes its time: whether the link may still be used is asked again after it.
            self._look(self._decide() if self._notes.training_steps else decision)
            if self._state.phase is Phase.SENDING and self._state.attempts == 0:
                self._look(self._decide())
            if not self.works:
                self._keeper.go_on_with_trial()
                if decision.may_send:
                    self._keeper.install_refresh(self._draw)
                self._link.report(self._keeper.versions)
                self._link.flush()
            self._personalize(decision)
        except Unreachable:
            self._link.lose(self._draw())
        except TooLarge:
            self._notes.refused.append("packet_too_large")
        except (StorageFull, StorageFailed, Forgotten) as e:
            # The state on the disk is the last whole one; what could not be written is done again.
            self._notes.refused.append(name_of(e))
            self._doubtful = True
            if isinstance(e, StorageFull):
                self.room.give_back()
        try:
            self._recall()
            self._save()
        except (StorageFull, StorageFailed, Forgotten) as e:
            self._notes.refused.append(name_of(e))
            self._doubtful = True
            if isinstance(e, StorageFull):
                self.room.give_back()
        self._budget.add_sent(self._ports.clock.now(), self._notes.bytes_up)
        self._budget.add(self._ports.clock.now(), Usage(written_bytes=files.take_written_bytes()))
        self._save_usage()
        if self._notes.versions:
            self._person.forget_vocabulary()
        self._notes.bytes_down += self._keeper.take_bytes_down()
        return self._notes.close(
            self._state.phase.value, decision.reason, may_train=decision.may_train, connected=self._link.connected
        )

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
                self._bench.stop()
                vector_files.sweep(self.home / "vectors", self._store)
        except (StorageFull, StorageFailed) as e:
            self._notes.refused.append(name_of(e))

    def _remember_link(self, memory: LinkMemory) -> None:
        self._store.put(LINK, encode_memory(memory), times_forgotten=self._row.times_forgotten)

    def _remember_news(self, seen_at: float) -> None:
        self._store.put(news.NAME, repr(seen_at).encode(), times_forgotten=self._row.times_forgotten)

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
        """Run the golden checks on a version that is here. Raises `VersionRefused`, `RuntimeFailed`."""
        self._bench.check(held.data, held.manifest)

    @property
    def works(self) -> bool:
        """Whether a training, an evaluation or a personal copy is in the making: then `watch` it."""
        return self._bench.job is not None

    def work_is_over(self) -> bool:
        """Whether the trainer has answered, so that a turn should follow at once."""
        return self._bench.over

    @property
    def lease_until(self) -> float | None:
        """When the lease of the work in hand ends, in Unix seconds."""
        return self._state.lease_until

    def count_words(self) -> int:
        """Return how many words of the person's text are stored; an example of arrays counts as one."""
        return self._person.store.count_words()

    def watch(self) -> None:
        """Look at the conditions while the trainer works, and stop it if one fell; call it several times a second."""
        try:
            if self.works and not self._may_go_on():
                self._bench.stop()
        except (StorageFull, StorageFailed, Forgotten):
            self._bench.stop()
            self._doubtful = True

    def forget_word(self, word: str) -> int:
        """Delete the sentences with `word`, and all that was made of any text; return how many sentences that was.

        Also when no sentence holds the word any more, for an older training may have seen it. The other sentences stay,
        and another training begins with them. An agent that runs in this home stops its training (`forgetting`). Raises
        `StorageFull` or `StorageFailed`.
        """
        try:
            return self._person.store.forget_word(word)
        finally:
            self._forget_what_was_made()

    def forget_everything(self) -> int:
        """Delete the examples and all that was made of them: copy, checkpoint, residual, lease, updates that wait.

        Returns how many words that was. An agent that runs in this home stops its training (`forgetting`). Raises
        `StorageFull` or `StorageFailed`.
        """
        try:
            return self._person.forget_everything()
        finally:
            self._forget_what_was_made()

    def _forget_what_was_made(self) -> None:
        self._state = self._saved = forget_what_was_made(self.home, self._store, self._row)

    def close(self) -> None:
        """Leave the broker politely and close the files."""
        self._link.leave(self._keeper.versions)
        self._close_files()

    def abandon(self) -> None:
        """Let go of everything as a killed process would: nothing is saved, the broker gets no word."""
        self._link.drop()
        self._close_files()

    def _close_files(self) -> None:
        self._bench.close()
        self._store.close()
        self._person.close()

    def _decide(self) -> Decision:
        decision = self._conditions.decide(training=self.works, lease_until=self.lease_until)
        due = self._state.phase is Phase.RESTING and session.due(self._state, self._ports.clock.now())
        if decision.may_train and due and not self._person.store.count_words():
            return replace(decision, may_train=False, reason=NO_TEXT)
        return decision

    def _keep_link(self, decision: Decision) -> None:
        wanted = decision.may_send and self._has_business(decision)
        if self._link.connected or not self.works:
            self._link.keep(wanted, self._keeper.versions, self._conditions.opened_at())

    def _hear(self, decision: Decision, wait_s: float) -> None:
        """Deal with what came, and ask for what only the broker can bring."""
        awaiting = self._state.phase in (Phase.CHECKING_IN, Phase.SENDING) or self._keeper.chunks.awaited
        awaiting = awaiting or self._check_ins.lack_time(decision)
        for received in self._link.receive(wait_s if awaiting else 0.0):
            self._take(received)
        self._go_on_with_pieces(decision)
        self._check_ins.ask_the_time(decision)

    def _has_business(self, decision: Decision) -> bool:
        if self._state.phase is Phase.RESTING:
            due = decision.may_train and not self.works and session.due(self._state, self._ports.clock.now())
        else:
            # An interrupted training needs no link until it is done.
            due = self._state.phase is not Phase.TRAINING or decision.may_train
        return due or self._keeper.wants_news or self._check_ins.lack_time(decision)

    def _draw(self) -> float:
        return int.from_bytes(self._ports.entropy(8), "big") / 2.0**64

    def _look(self, decision: Decision) -> None:
        # Chance is drawn anew only after it was used, so that a seeded device does not depend on how often it looked.
        before = self._state
        if self.works and self.lease_until is not None:
            if self._lease_is_over():
                self._bench.stop()
            return
        if self._chance is None:
            self._chance = (self._ports.entropy(16).hex(), self._draw())
        now, trusted = self._ports.clock.now(), self._ports.clock.trusted()
        # While the trainer makes a personal copy, nothing else is asked for or sent.
        may_send = decision.may_send and self._link.connected and not self.works
        self._apply(session.Looked(now, decision.may_train, may_send, *self._chance, trusted=trusted))
        if self._state is not before:
            self._chance = None

    def _apply(self, event: session.Event) -> None:
        events = [event]
        while events:
            after, effects = session.step(self._state, events.pop(0))
            settled = [effect for effect in effects if isinstance(effect, session.Settle)]
            if settled:
                # The verdict's effect and the state after it are one transaction.
                self._bench.settle(settled[0].update_id, settled[0].verdict, after)
                self._saved = after
            elif effects:
                self._put(after)
                self._saved = after
            self._state = after
            for effect in effects:
                answer = self._perform(effect)
                if answer is not None:
                    events.append(answer)

    def _save(self) -> None:
        if self._state is not self._saved:
            self._put(self._state)
            self._saved = self._state

    def _put(self, after: session.State) -> None:
        self._journal.put(self._saved, after, self._ports.clock.now())

    def _perform(self, effect: session.Effect) -> session.Event | None:
        match effect:
            case session.AskForWork(nonce):
                self._check_ins.ask(nonce)
            case session.FetchBase(offer):
                return self._declined(offer) or self._keeper.fetch_base(offer, self._draw())
            case session.Train(offer):
                times, chunk_bytes = self._row.times_forgotten, self._upload.chunk_bytes
                if not self.room.for_training():
                    self._notes.refused.append("no_room")
                    return session.NotKept(self._ports.clock.now(), self._draw(), "the disk has no room for a training")
                return self._begin(Train(offer=offer, times_forgotten=times, chunk_bytes=chunk_bytes))
            case session.ScoreVersion(offer):
                return self._score(offer)
            case session.SendReport(report):
                sent = msgspec.structs.replace(report, sent_at=int(self._ports.clock.now()))
                self._link.request(encode_message(sent))
            case session.DropTraining():
                checkpoints.drop(self.home)
            case session.SendUpdate():
                return self._upload.send(effect, self._may_send, self._ports.clock.now(), self._draw())
            case session.GoOn(update_id):
                self._upload.go_on(update_id, self._may_send)
            case session.AskStatus(update_id, nonce):
                now = int(self._ports.clock.now())
                query = StatusQuery(device=self.identity.device, update_id=update_id, nonce=nonce, sent_at=now)
                self._link.request(encode_message(query))
        return None

    def _declined(self, offer: TaskOffer | EvaluationOffer) -> session.Declined | None:
        return declined(offer, self._ledger, self._notes, now=self._ports.clock.now(), draw=self._draw)

    def _may_send(self) -> bool:
        return self._decide().may_send

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
        # If dealing with it broke the link, it comes again, and changes nothing: the state says that it was told.
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

    def _score(self, offer: EvaluationOffer) -> session.Event | None:
        fetched = self._declined(offer) or self._keeper.fetch_evaluated(offer, self._draw())
        return fetched or self._begin(Evaluate(offer=offer, times_forgotten=self._row.times_forgotten))

    def _personalize(self, decision: Decision) -> None:
        """Make the person's own copy, if one is wanted and nothing else is to be done."""
        at_rest = self._state.phase in (Phase.RESTING, Phase.SENDING)
        if not (self._settings.personal and decision.may_train and at_rest and not self.works):
            return
        if self._ports.clock.elapsed() < self._personal_again:
            return
        if personal_task.due(self.home, self.slots, self._person.store):
            # What could not be made now (a full disk) is not begun again with every turn of the night.
            self._personal_again = self._ports.clock.elapsed() + PERSONAL_AGAIN_S
            event = self._begin(Personalize(times_forgotten=self._row.times_forgotten, seed=0))
            if event is not None:
                self._apply(event)

    def _begin(self, job: LongJob) -> session.Event | None:
        now = self._ports.clock.now()
        if not self._decide().may_train:
            self._notes.interrupted = True
            return session.Interrupted(now, "a condition fell before the first step")
        self._row.refuse_forgotten()
        if isinstance(job, Evaluate):
            self._journal.begin(job.offer, now)
        if self._ports.clock.trusted():
            self._person.store.expire(now)
        self._bench.begin(job, self._may_go_on)
        return self._outcome()

    def _collect(self) -> None:
        event = self._outcome()
        if event is not None:
            self._apply(event)

    def _outcome(self) -> session.Event | None:
        """Return what the long job came to, if it is over, as the session's event."""
        finished = self._bench.collect()
        if finished is None:
            return None
        now, device = self._ports.clock.now(), self.identity.device
        return job_outcome.event_of(*finished, self._notes, device=device, now=now, draw=self._draw)

    def _lease_is_over(self) -> bool:
        until = self.lease_until
        clock = self._ports.clock
        return until is not None and clock.trusted() and clock.now() >= until

    def _may_go_on(self) -> bool:
        self._link.tend()
        if self._row.was_forgotten():
            return False
        if self._budget.unwritten_s >= USAGE_WRITTEN_S:
            self._save_usage()
        return self._decide().may_train
