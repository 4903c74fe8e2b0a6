"""The aggregator's shell: what comes in becomes rows, a pass over the rows becomes answers, steps and announcements.

The rules:
- `take_group` is one transaction; when it returns, the messages may be acknowledged;
- `turn` is one transaction too: check-ins in the order of device ids, then updates in the order (finished_at, device),
  a step as soon as the goal count is reached, so that later updates of the same pass meet the new version;
- nothing is published before the commit; what was not published is published after a restart;
- whatever is in memory is a function of committed rows: after a failed pass it is thrown away and loaded again;
- one message that cannot be taken in stops no other: it is dropped, with an event;
- the release gate may take minutes and works outside the lock, one release at a time (see `release_runner`).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from cloud_aggregator import enrolment, evaluations, named_sets, releases, trust
from cloud_aggregator.addresses import without_credentials
from cloud_aggregator.aggregation_kernel import NUMPY_KERNEL, Kernel
from cloud_aggregator.announcements import current_announcements, renew, renew_trust
from cloud_aggregator.answers import (
    Load,
    Outgoing,
    answer_check_in,
    answer_status,
    answer_unstored,
    receipt_message,
    stored_receipt,
    task_message,
)
from cloud_aggregator.back_pressure import BackPressure
from cloud_aggregator.delta_publisher import NO_DELTAS
from cloud_aggregator.errors import NotFound, Refused, StorageFailed, StorageFull
from cloud_aggregator.housekeeping import DEFAULT_RETENTION, Retention, drop_old_rows, unneeded_files
from cloud_aggregator.ingest import read_request, take_messages
from cloud_aggregator.judging import judge_updates, with_receipt
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.labels import check_label, printable
from cloud_aggregator.model_chunks import BrokerBytes, answer_model_request
from cloud_aggregator.population import Population, checkpoint, close_round, load
from cloud_aggregator.ports import Blobs, Clock, Database, Deltas, Entropy, Evaluator, Message, Transport
from cloud_aggregator.records import EvaluationRecord, Records, ReleaseRecord, RequestRecord, ScheduleRecord
from cloud_aggregator.release_gate import judge
from cloud_aggregator.release_runner import Outcome, ReleaseRunner, advance
from cloud_aggregator.release_schedule import is_due
from cloud_aggregator.schedule import next_due
from cloud_aggregator.turn_report import Pass, Pending, TurnReport
from wire_contract import envelope
from wire_contract.errors import ContractError
from wire_contract.messages import (
    CheckIn,
    Enrolled,
    Enrolment,
    EvaluationReport,
    ModelRequest,
    TaskOffer,
    TurnedAway,
    encode_message,
)

MAX_A_PASS = 4096
PURGE_EVERY_S = 3600
CHECKPOINT_UPDATES = 256
CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Gate:
    """How releases are judged; without an evaluator they are not."""

    evaluator: Evaluator | None = None
    tolerance_points: float = 0.2


@dataclass(frozen=True, slots=True)
class Addresses:
    """What an enrolling device is told: URLs of the broker and of the HTTP side."""

    broker_url: str = ""
    model_url: str = ""


class Service:
    """One aggregator. Safe to call from several threads; see the module's rules.

    Start with `start`, feed with `take_group`, and call `turn` after each group and at least once a second.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        keys: ServiceKeys,
        transport: Transport,
        clock: Clock,
        *,
        entropy: Entropy,
        gate: Gate = Gate(),
        retention: Retention = DEFAULT_RETENTION,
        checkpoint_updates: int = CHECKPOINT_UPDATES,
        pressure: BackPressure | None = None,
        deltas: Deltas = NO_DELTAS,
        kernel: Kernel = NUMPY_KERNEL,
    ) -> None:
        self.database = database
        self.blobs = blobs
        self.keys = keys
        self.clock = clock
        self.deltas = deltas
        self.kernel = kernel
        self.addresses = Addresses()
        self._transport = transport
        self._entropy = entropy
        self._gate = gate
        self._retention = retention
        self._checkpoint_updates = checkpoint_updates
        self.pressure = pressure or BackPressure()
        self._purged_at = 0
        self._lock = threading.RLock()
        self._populations: dict[str, Population] = {}
        # Appended to on the transport's thread, emptied in the next transaction.
        self._published: deque[int] = deque()
        self._broker_bytes = BrokerBytes()
        # Receipts that the transport holds: they are not handed over again while it does.
        self._handed: set[int] = set()
        # Populations whose announcements were handed over; None until `start`.
        self._announced: set[str] | None = None
        self._judging = threading.Lock()
        self._closing = threading.Event()
        self._trust = trust.TrustTurns()
        self._releases = ReleaseRunner(self._release_due, threaded=gate.evaluator is not None)

    def start(self) -> None:
        """Publish again what may not have been published before the last end: announcements and receipts."""
        with self._lock:
            with self.database.transaction() as records:
                announced = {population.population for population in records.populations()}
                outgoing = current_announcements(records, sorted(announced))
                outgoing += self._receipts(records, int(self.clock.now()))
            self._publish(outgoing)
            self._announced = announced

    def close(self, abandon: Callable[[], None] = lambda: None) -> None:
        """Give up the release that is being judged, if there is one: it stays due. `abandon` ends its evaluation."""
        self._closing.set()
        abandon()
        self._releases.join(CLOSE_TIMEOUT_S)
        self._checkpoint()

    def _checkpoint(self) -> None:
        """Keep every open round's sums, so that the next start has nothing to fold."""
        with self._lock:
            try:
                if any(population.folded_since_checkpoint for population in self._populations.values()):
                    with self._pass() as records:
                        for population in self._populations.values():
                            checkpoint(population, records)
            except StorageFailed:
                # Nothing depends on it: the updates are there, and the next start folds them.
                return

    def take(self, topic: str, payload: bytes) -> None:
        """Take one message in, durably."""
        self.take_group([Message(topic, payload)])

    def take_group(self, messages: Sequence[Message]) -> None:
        """Take messages in, durably, in one transaction.

        Raises `StorageFailed`; then they were not all taken, and giving all of them again does no harm. Where there is
        no room, check-ins are turned away at once and named in the error. A message that fails for any other reason is
        dropped with an event, and the others are taken one by one.
        """
        now = int(self.clock.now())
        try:
            self._take_or_drop(messages, now)
        except StorageFull as e:
            self.pressure.failed_full(str(e))
            e.answered = self._turn_away_unstored(messages, now)
            raise

    def _turn_away_unstored(self, messages: Sequence[Message], now: int) -> list[Message]:
        reason = "storage full: the aggregator stores nothing new until there is room"
        with self.database.reading() as records:
            answers = [(message, answer_unstored(records, message, self.keys, reason, now)) for message in messages]
        self._publish([answer for _, answer in answers if answer is not None])
        return [message for message, answer in answers if answer is not None]

    def _take_or_drop(self, messages: Sequence[Message], now: int) -> None:
        with self._lock:
            if self._try_to_take(messages, now) is None:
                return
            for message in messages:
                failure = self._try_to_take([message], now)
                if failure is not None:
                    with self.database.transaction() as records:
                        told = f"{message.topic}: {type(failure).__name__}: {failure}"
                        records.add_event(now, "message dropped", "", told)

    def _try_to_take(self, messages: Sequence[Message], now: int) -> Exception | None:
        try:
            with self.database.transaction() as records:
                take_messages(records, messages, now)
                self._tell_of_room(records, now)
        except StorageFailed:
            raise
        except Exception as e:  # noqa: BLE001 - nothing that a message holds may stop the intake
            return e
        return None

    def _tell_of_room(self, records: Records, now: int) -> None:
        """In a transaction that writes: note that there was no room for a while, which could not be noted then."""
        told = self.pressure.stored()
        if told:
            records.add_event(now, "storage full", "", told)

    def pending(self) -> Pending:
        """Return what waits for the next turn, so that a simulator can wait for a whole tick's messages."""
        with self._lock, self.database.reading() as records:
            return Pending(records.count_requests("check-in"), records.count_updates("received"))

    def turn(self, now: float) -> TurnReport:
        """Make one pass, publish its outcome, and start releases that are due. `now` is Unix seconds."""
        moment = int(now)
        done = Pass()
        self.pressure.measured_room(self.database.room_bytes())
        with self._lock:
            with self._pass() as records:
                self._answer_requests(records, done, moment)
                self._admit_updates(records, done, moment)
                for population in self._populations.values():
                    # A deadline may close a round in a pass that brought no update.
                    self._step(population, records, done, moment)
                    if is_due(records.schedule(population.name), moment):
                        done.due.append(population.name)
                    done.outgoing += renew(population, records, self.keys, moment)
                if self._announced is not None:
                    # Founded beside the running service.
                    done.announced = sorted(self._populations.keys() - self._announced)
                    done.outgoing += current_announcements(records, done.announced)
                done.outgoing += self._receipts(records, moment)
                self._tell_of_room(records, moment)
                for population in self._populations.values():
                    checkpoint(population, records, self._checkpoint_updates)
                renewed, told = renew_trust(self._trust, records, self._populations, self.keys, moment)
                done.outgoing += renewed
                unneeded = self._purge(records, moment)
            self._publish(done.outgoing)
            if self._announced is not None:
                self._announced.update(done.announced)
            troubles = (*self._drop(unneeded), *self.deltas.troubles(), *told)
        ended = self._releases.run(done.due, now)
        return done.report(ended, troubles)

    def enrol(self, request: Enrolment, now: float) -> bytes:
        """Return the signed `Enrolled` answer.

        Raises `InvalidToken`, `NotFound` (no such population), or `InvalidSetting` (the label).
        """
        moment = int(now)
        with self._lock, self._look() as records:
            population = self._population(request.population)
            device = enrolment.enrol(records, request, moment)
            enrolled = Enrolled(
                device=device.device,
                population=device.population,
                aggregator_key=self.keys.public,
                manifest_key=population.record.manifest_key,
                broker_url=without_credentials(self.addresses.broker_url),
                model_url=self.addresses.model_url,
                shard=0,
                issued_at=moment,
                root=trust.root_for(records, population.record),
            )
        return envelope.sign(self.keys.signing, "enrolled", encode_message(enrolled))

    def mint_token(self, population: str, label: str, now: float, *, uses: int = 1, valid_s: int = 7 * 86_400) -> str:
        """Return a fresh enrolment token. Raises `NotFound` for a population that is none, `InvalidSetting`."""
        with self._lock, self._look() as records:
            self._population(population)
            return enrolment.mint(
                records, self._entropy, population=population, label=label, uses=uses, valid_s=valid_s, now=int(now)
            )

    def candidate(self, population: str) -> releases.Candidate:
        """Return what a release would bring now. Raises `Refused` if there is nothing newer."""
        with self._lock, self._look() as records:
            return releases.candidate_of(self._population(population), records, self.blobs)

    def release(self, population: str, now: float, *, cause: str = releases.BY_OPERATOR) -> ReleaseRecord:
        """Judge the training version and release or hold it.

        Raises `Refused` if there is nothing newer, or while another release is being judged.
        """
        if not self._judging.acquire(blocking=False):
            raise Refused("another release is being judged", "wait for it; see release list")
        try:
            candidate = self.candidate(population)
            verdict = judge(candidate.candidate, candidate.current, self._gate.evaluator, self._gate.tolerance_points)
            if self._closing.is_set():
                raise Refused("the service stops: nothing was released", "release again when it is back")
            with self._lock:
                with self._pass() as records:
                    found = self._population(population)
                    release = releases.record_release(found, records, self.keys, candidate, verdict, cause, int(now))
                    if cause == releases.BY_SCHEDULE:
                        advance(records, population, int(now))
                    if release.outcome == "released":
                        found.index_sets = named_sets.renew(
                            records, self.blobs, found.manifest, found.settings, release.version
                        )
                    reached = [population] if release.outcome == "released" else []
                    outgoing = current_announcements(records, reached, ("refresh",))
                self._publish(outgoing)
        finally:
            self._judging.release()
        return release

    def _release_due(self, population: str, now: float) -> Outcome:
        with self._lock, self._look() as records:
            try:
                releases.candidate_of(self._population(population), records, self.blobs)
            except Refused as e:
                advance(records, population, int(now))
                return Outcome(population, None, str(e))
        return Outcome.of(self.release(population, now, cause=releases.BY_SCHEDULE))

    def undo(self, population: str, now: float, *, version: int | None = None, dry_run: bool = False) -> ReleaseRecord:
        """Release old weights under a new, higher number. Raises `NotFound` or `Refused`."""
        with self._lock:
            with self._pass() as records:
                found = self._population(population)
                target = releases.undo_target(found, records, version)
                if dry_run:
                    number, previous = found.registry.highest + 1, found.registry.refresh.version
                    return ReleaseRecord(
                        0, population, number, previous, target.sha256, "undone", releases.BY_OPERATOR,
                        f"would give the weights of version {target.version} the number {number}", int(now),
                    )  # fmt: skip
                release = releases.record_undo(found, records, self.keys, target, int(now))
                outgoing = current_announcements(records, [population], ("refresh",))
            self._publish(outgoing)
        return release

    def set_schedule(self, population: str, cron: str, time_zone: str, now: float) -> ScheduleRecord:
        """Set when refreshes go out by themselves (`cron` empty: only by hand). Raises `InvalidSetting`."""
        due = next_due(cron, time_zone, int(now)) if cron else None
        with self._lock, self._look() as records:
            self._population(population)
            before = records.schedule(population)
            schedule = ScheduleRecord(population, cron, time_zone, due, before.last_run if before else None)
            records.set_schedule(schedule)
        return schedule

    def ask_evaluation(
        self, population: str, now: float, *, version: int | None, devices: int, minimum_words: int, most_words: int,
        valid_s: int,
    ) -> EvaluationRecord:  # fmt: skip
        """Ask devices to evaluate an announced version (None: the refresh). Raises `NotFound` or `Refused`."""
        with self._lock, self._look() as records:
            return evaluations.ask(
                records, self._population(population), self.keys, version=version, devices=devices,
                minimum_words=minimum_words, most_words=most_words, valid_s=valid_s, now=int(now),
            )  # fmt: skip

    def revoke(self, device: str, now: float) -> None:
        """Refuse everything that a device sends from now on. Raises `NotFound`."""
        with self._lock, self.database.transaction() as records:
            known = records.device(device)
            if known is None:
                raise NotFound(f"no device of id {printable(device)[:80]!r}")
            records.replace_device(replace(known, revoked_at=known.revoked_at or int(now)))

    def label(self, device: str, label: str) -> None:
        """Give a device another label. Raises `NotFound` or `InvalidSetting`."""
        with self._lock, self.database.transaction() as records:
            known = records.device(device)
            if known is None:
                raise NotFound(f"no device of id {printable(device)[:80]!r}")
            records.replace_device(replace(known, label=check_label(label)))

    @contextmanager
    def _pass(self) -> Iterator[Records]:
        """A transaction that may change populations: if it fails, they are loaded again from the rows."""
        try:
            with self._look() as records:
                yield records
        except BaseException as e:
            self._populations.clear()
            if isinstance(e, StorageFull):
                self.pressure.failed_full(str(e))
            raise

    @contextmanager
    def _look(self) -> Iterator[Records]:
        """A transaction in which every population is in memory and none is changed."""
        with self.database.transaction() as records:
            for record in records.populations():
                if record.population not in self._populations:
                    loaded = load(records, self.blobs, record, self.keys, self.kernel.decode)
                    self._populations[record.population] = loaded
            self._drain_published(records)
            yield records

    def _population(self, name: str) -> Population:
        found = self._populations.get(name)
        if found is None:
            raise NotFound(f"no population {name!r}, there are {sorted(self._populations) or 'none'}")
        return found

    def _answer_requests(self, records: Records, done: Pass, now: int) -> None:
        pressure = self.pressure.now()
        load_now = Load(storage=f"{pressure.name}: {pressure.told}" if pressure.name else "")
        for population in self._populations.values():
            records.expire_leases(population.record.task, now)
        waiting = records.requests(MAX_A_PASS)
        done.more = len(waiting) == MAX_A_PASS
        for row in waiting:
            self._answer(records, row, load_now, done, now)
        records.drop_requests([row.id for row in waiting])

    def _answer(self, records: Records, row: RequestRecord, load_now: Load, done: Pass, now: int) -> None:
        device = records.device(row.device)
        population = None if device is None else self._populations.get(device.population)
        if device is None or device.revoked_at is not None or population is None:
            records.add_event(now, "unknown_device", row.device, "a request of a device that is gone or revoked")
            return
        if row.kind == "repeat":
            done.outgoing += answer_status(records, row.device, row.key, self.keys, now, repeated=True)
            return
        try:
            # Verified before it became a row.
            request = read_request(row.payload)
        except ContractError as e:
            records.add_event(now, "malformed request", row.device, str(e))
            return
        records.touch_device(row.device, now)
        if isinstance(request, CheckIn):
            reply = answer_check_in(records, population, device, request, self.keys, load_now, now)
            done.offers += isinstance(reply, TaskOffer)
            done.turned_away += isinstance(reply, TurnedAway)
            done.outgoing.append(task_message(reply, self.keys))
        elif isinstance(request, ModelRequest):
            done.outgoing += answer_model_request(
                population, request, self.deltas, self.blobs, self._broker_bytes, self.keys, now
            )
        elif isinstance(request, EvaluationReport):
            receipt = evaluations.answer_report(records, population, request, now)
            done.outgoing.append(receipt_message(receipt, self.keys))
        else:
            done.outgoing += answer_status(records, row.device, request.update_id, self.keys, now, repeated=False)

    def _admit_updates(self, records: Records, done: Pass, now: int) -> None:
        rows = records.received_updates(MAX_A_PASS)
        done.more = done.more or len(rows) == MAX_A_PASS
        for population, row in judge_updates(records, self._populations, rows, self.keys, now):
            done.verdicts[row.verdict or ""] += 1
            if population is not None and row.verdict == "accepted":
                done.staleness[row.staleness or 0] += 1
                self._step(population, records, done, now)

    def _step(self, population: Population, records: Records, done: Pass, now: int) -> None:
        version = close_round(population, records, self.blobs, self.keys, now)
        if version is None:
            return
        done.steps.append((population.name, version.version))
        done.applied += version.updates
        done.outgoing += current_announcements(records, [population.name], ("training",))

    def _receipts(self, records: Records, now: int) -> list[Outgoing]:
        """Sign receipts that judged updates lack, and return all that the broker has not acknowledged."""
        self._drain_published(records)
        rows = [row for row in records.unpublished_receipts(MAX_A_PASS) if row.id not in self._handed]
        signed = {row.id: with_receipt(row, self.keys, now) for row in rows if not row.receipt}
        records.set_verdicts(list(signed.values()))
        return [stored_receipt(signed.get(row.id, row)) for row in rows]

    def _purge(self, records: Records, now: int) -> set[str]:
        """Delete what is too old, once an hour; return the files that may go once that is committed."""
        if now < self._purged_at + PURGE_EVERY_S:
            return set()
        self._purged_at = now
        drop_old_rows(records, now, self._retention)
        return unneeded_files(records, self._populations, self._retention.versions)

    def _drop(self, files: set[str]) -> tuple[str, ...]:
        troubles = []
        for sha256 in sorted(files):
            try:
                self.blobs.drop(sha256)
            except StorageFailed as e:
                # It is unneeded still, and found again in an hour.
                troubles.append(str(e))
        return tuple(troubles)

    def _drain_published(self, records: Records) -> None:
        ids = []
        while self._published:
            ids.append(self._published.popleft())
        records.mark_published(ids)
        self._handed.difference_update(ids)

    def _publish(self, outgoing: Sequence[Outgoing]) -> None:
        for message in outgoing:
            if message.announces:
                self.deltas.prepare(message.announces)
            done = partial(self._published.append, message.update) if message.update else None
            if message.update:
                self._handed.add(message.update)
            self._transport.publish(message.topic, message.payload, retain=message.retain, done=done)
