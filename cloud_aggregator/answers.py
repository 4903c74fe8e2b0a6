"""Answers to check-ins and status queries: what goes down to one device, signed.

The rules:
- a check-in dated a day or more off is turned away with that reason, so that an old one cannot be played again later to
  hold a lease for a device that is not there;
- a device that holds a live lease gets the same lease again (see `leases.is_offered_again`);
- a device that an open evaluation wants gets that before a training (see `evaluations`), and again while it holds it;
- while storage takes no new work no new lease is given; a check-in that cannot even be stored is answered as it stands;
- any other check-in before the retry window that the device was last told is turned away with that same window: by the
  stored time, not the device's word. So no device answers more often than the pace allows, and asking early neither
  moves the window nor anybody else's;
- capabilities and examples are checked before a lease is spent;
- the answer carries the check-in's nonce.
"""

from dataclasses import dataclass

import msgspec

from cloud_aggregator import evaluations, pace
from cloud_aggregator.config import PaceSettings, PopulationSettings
from cloud_aggregator.ingest import missing_chunks, read_request
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.leases import IN_FLIGHT_PER_GOAL, Lease, draw_lease, is_offered_again, may_offer
from cloud_aggregator.population import Population
from cloud_aggregator.ports import Message
from cloud_aggregator.records import DeviceRecord, Records, UpdateRecord
from wire_contract import envelope
from wire_contract.errors import ContractError
from wire_contract.messages import (
    CheckIn,
    Receipt,
    RetryWindow,
    TaskOffer,
    TaskReply,
    TurnedAway,
    capabilities_needed,
    encode_message,
)
from wire_contract.topics import DeviceTopic, build_topic, parse_topic

MAX_CLOCK_DIFFERENCE_S = 86_400


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message for the broker. `update` is the row whose receipt it is (0: none), `announces` the population whose
    version it announces ("": none)."""

    topic: str
    payload: bytes
    retain: bool = False
    update: int = 0
    announces: str = ""


@dataclass(slots=True)
class Load:
    """Devices turned away in this pass that came when they were told: what the retry windows widen with; and why
    storage takes no new work now (empty: it does, see `back_pressure`)."""

    turned_away: int = 0
    storage: str = ""


def answer_check_in(
    records: Records, population: Population, device: DeviceRecord, check_in: CheckIn, keys: ServiceKeys, load: Load,
    now: int,
) -> TaskReply:  # fmt: skip
    """Return the offer or the reason why there is no work now; a new lease and the window told are stored."""
    reply = _reply(records, population, device, check_in, keys, load, now)
    if check_in.capabilities:
        # A device that names none asks for the time alone: the window is for who asks for work.
        records.set_retry(device.device, reply.retry.earliest, reply.retry.latest)
    return reply


def _reply(
    records: Records, population: Population, device: DeviceRecord, check_in: CheckIn, keys: ServiceKeys, load: Load,
    now: int,
) -> TaskReply:  # fmt: skip
    settings, task = population.settings, population.record.task
    current = population.registry.training
    lease = records.live_lease(task, device.device)
    again = lease is not None and is_offered_again(
        lease, current_version=current.version, held_version=check_in.held_version, now=now
    )
    wanted = [] if again else evaluations.open_for(records, population, check_in, now)
    evaluation = evaluations.live_lease(records, wanted, device, now)
    # A window that begins later than any that could have been told comes from a clock that was wrong then.
    if not again and evaluation is None and 0 < device.retry_earliest - now <= settings.pace.maximum_seconds:
        reason = f"this device was told to ask again in {device.retry_earliest - now} s"
        retry = RetryWindow(earliest=device.retry_earliest, latest=device.retry_latest)
        return TurnedAway(device=device.device, nonce=check_in.nonce, reason=reason, issued_at=now, retry=retry)
    refusal = _is_wrong(population, check_in, now)
    if not refusal and not again:
        if evaluation is None and not load.storage:
            evaluation = evaluations.give_lease(records, population, wanted, device, keys, now)
        if evaluation is not None:
            return evaluations.offer_of(records, population, check_in, evaluation, _retry(population, now), now)
    refusal = refusal or _cannot_take(population, check_in)
    if refusal:
        return _turn_away(population, check_in, refusal, load, now)
    if lease is not None and not again:
        records.set_lease_state(lease.lease, "replaced" if now < lease.deadline else "expired")
        lease = None
    if lease is None:
        if load.storage:
            return _turn_away_for_storage(population.settings.pace, check_in, load.storage, now)
        in_flight = records.count_in_flight(task, now)
        if not may_offer(in_flight, settings.goal_count):
            reason = f"{in_flight} leases are in flight, the goal count is {settings.goal_count}"
            return _turn_away(population, check_in, reason, load, now)
        lease = draw_lease(
            keys.seed,
            task=task,
            device=device.device,
            counter=records.count_leases(task, device.device),
            base=(current.version, current.sha256),
            now=now,
            lease_s=settings.lease_seconds,
        )
        records.add_lease(lease)
    return _offer(population, check_in, lease, keys, now)


def _is_wrong(population: Population, check_in: CheckIn, now: int) -> str:
    off = check_in.sent_at - now
    if abs(off) >= MAX_CLOCK_DIFFERENCE_S:
        return f"the check-in is dated {off:+d} s from the aggregator's clock, less than a day is allowed"
    if check_in.population != population.name:
        return f"this device is enrolled in population {population.name}, not {check_in.population}"
    return ""


def _cannot_take(population: Population, check_in: CheckIn) -> str:
    plan = population.plan
    lacking = sorted(capabilities_needed(plan) - set(check_in.capabilities))
    if lacking:
        return f"the task needs {', '.join(lacking)}"
    if check_in.examples < plan.minimum_examples:
        return f"the task needs {plan.minimum_examples} examples, the device has {check_in.examples}"
    return ""


def _turn_away(population: Population, check_in: CheckIn, reason: str, load: Load, now: int) -> TurnedAway:
    load.turned_away += 1
    settings = population.settings
    retry = pace.retry_window(
        now,
        waiting=load.turned_away,
        room=IN_FLIGHT_PER_GOAL * settings.goal_count,
        minimum_s=settings.pace.minimum_seconds,
        maximum_s=settings.pace.maximum_seconds,
    )
    return TurnedAway(device=check_in.device, nonce=check_in.nonce, reason=reason, issued_at=now, retry=retry)


def _turn_away_for_storage(pace_settings: PaceSettings, check_in: CheckIn, reason: str, now: int) -> TurnedAway:
    # A disk takes hours to get well, not minutes: the second half of the longest window.
    longest = pace_settings.maximum_seconds
    retry = RetryWindow(earliest=now + max(pace_settings.minimum_seconds, longest // 2), latest=now + longest)
    return TurnedAway(device=check_in.device, nonce=check_in.nonce, reason=reason[:400], issued_at=now, retry=retry)


def answer_unstored(records: Records, message: Message, keys: ServiceKeys, reason: str, now: int) -> Outgoing | None:
    """Return the turning away of a check-in that cannot be stored; None for any other message, or one to be ignored.

    Nothing of it is kept: it is answered as it stands, and only if its device signed it.
    """
    try:
        topic = parse_topic(message.topic)
        known = records.device(topic.device) if isinstance(topic, DeviceTopic) and topic.leaf == "req" else None
        if known is None or known.revoked_at is not None:
            return None
        request = read_request(envelope.verify(message.payload, "request", known.public_key))
    except ContractError:
        return None
    population = next((p for p in records.populations() if p.population == known.population), None)
    if population is None or not isinstance(request, CheckIn) or request.device != known.device:
        return None
    settings = msgspec.json.decode(population.settings, type=PopulationSettings)
    return task_message(_turn_away_for_storage(settings.pace, request, reason, now), keys)


def _offer(population: Population, check_in: CheckIn, lease: Lease, keys: ServiceKeys, now: int) -> TaskOffer:
    return TaskOffer(
        device=lease.device,
        population=population.name,
        task=lease.task,
        lease=lease.lease,
        nonce=check_in.nonce,
        base_version=lease.base_version,
        base_sha256=lease.base_sha256,
        layout_fingerprint=population.manifest.layout_fingerprint,
        plan=population.plan,
        seed=lease.seed,
        sealing_key=keys.sealing_public,
        shard=0,
        issued_at=now,
        deadline=lease.deadline,
        retry=_retry(population, now),
    )


def _retry(population: Population, now: int) -> RetryWindow:
    """When a device comes again that has got something to do."""
    settings = population.settings
    return pace.retry_window(
        now,
        waiting=0,
        room=IN_FLIGHT_PER_GOAL * settings.goal_count,
        minimum_s=settings.pace.minimum_seconds,
        maximum_s=settings.pace.maximum_seconds,
    )


def task_message(reply: TaskReply, keys: ServiceKeys) -> Outgoing:
    """Return an offer or a turning away as the device's message."""
    topic = build_topic(DeviceTopic(reply.device, "down/task"))
    return Outgoing(topic, envelope.sign(keys.signing, "task", encode_message(reply)))


def receipt_message(receipt: Receipt, keys: ServiceKeys, update: int = 0) -> Outgoing:
    """Return a receipt as the device's message; `update` is its row, to be marked once the broker has it."""
    topic = build_topic(DeviceTopic(receipt.device, "down/rcpt"))
    return Outgoing(topic, envelope.sign(keys.signing, "receipt", encode_message(receipt)), update=update)


def stored_receipt(row: UpdateRecord) -> Outgoing:
    """Return the receipt that an update was given, the very bytes."""
    return Outgoing(build_topic(DeviceTopic(row.device, "down/rcpt")), row.receipt, update=row.id)


def receipt_of(row: UpdateRecord, now: int) -> Receipt:
    """Return the receipt of a judged update."""
    return Receipt(
        device=row.device,
        update_id=row.update_id,
        verdict=row.verdict or "",
        reason=row.reason,
        staleness=None if row.staleness is None else max(0, row.staleness),
        issued_at=now,
    )


def answer_status(
    records: Records, device: str, update_id: str, keys: ServiceKeys, now: int, *, repeated: bool
) -> list[Outgoing]:
    """Return what has become of an update; nothing while it waits for this very pass.

    `repeated`: the device sent the whole update again. After an acceptance that is a `duplicate`; a plain status query
    gets the first receipt's own bytes.
    """
    answer = _status(records, device, update_id, keys, now, repeated=repeated)
    return [] if answer is None else [answer]


def _status(
    records: Records, device: str, update_id: str, keys: ServiceKeys, now: int, *, repeated: bool
) -> Outgoing | None:
    row = records.update(update_id)
    if row is None or row.device != device:
        return receipt_message(
            Receipt(
                device=device,
                update_id=update_id,
                verdict="incomplete",
                reason="nothing of this update is here",
                init_missing=True,
                issued_at=now,
            ),
            keys,
        )
    if row.state == "received":
        return None
    if row.state == "open":
        missing = missing_chunks(records, row)
        return receipt_message(
            Receipt(
                device=device,
                update_id=update_id,
                verdict="incomplete",
                reason=f"{len(missing)} of {row.chunks} chunks are missing",
                missing=missing,
                issued_at=now,
            ),
            keys,
        )
    if repeated and row.verdict == "accepted":
        records.add_event(now, "duplicate", device, f"update {update_id} came again")
        reason = "accepted before; it was counted once"
        again = Receipt(
            device=device,
            update_id=update_id,
            verdict="duplicate",
            reason=reason,
            staleness=row.staleness,
            issued_at=now,
        )
        return receipt_message(again, keys)
    return stored_receipt(row) if row.receipt else None
