"""Evaluating a version on devices: which of them is asked, which report counts, and what all of them say together.

The rules:
- an operator asks for an announced version, and for how many devices; until that many leases are out or answered, a
  device of the population that knows the task gets an `EvaluationOffer` instead of a training; each device once;
- a lease that ran out without a report is another device's;
- a report counts once, in the transaction that gives it its verdict: what is kept of it is its hash, and the sums. The
  hash leaves out when it was sent: a report whose receipt was lost is sent again, later, and is the same report;
- counts are in buckets, and a report that breaks a rule of the contract or of its offer is refused by name and adds
  nothing. A device that holds too little text reports words 0: it counts as silent, not as a miss.

| verdict | |
|---|---|
| accepted | added to the sums |
| duplicate | this very report was accepted before |
| conflict | another answer to this lease came first, and counts |
| unknown_task | no such evaluation in the device's population |
| unknown_lease | the device was never given this lease |
| expired | after the lease's deadline and the grace |
| wrong_version | another version than the offer's |
| malformed | its id is not its lease's, or its counts break a rule |
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec

from cloud_aggregator.errors import NotFound, Refused
from cloud_aggregator.keys import ServiceKeys
from cloud_aggregator.leases import Lease, draw_lease
from cloud_aggregator.population import Population
from cloud_aggregator.records import AnnouncementRecord, DeviceRecord, EvaluationRecord, Records, ReportRecord
from wire_contract.messages import (
    EVALUATION_CAPABILITY,
    CheckIn,
    EvaluationOffer,
    EvaluationReport,
    Receipt,
    RetryWindow,
    encode_message,
    evaluation_buckets,
    lease_id,
)

MAX_OPEN: Final = 8

VerdictName = Literal[
    "accepted", "duplicate", "conflict", "unknown_task", "unknown_lease", "expired", "wrong_version", "malformed"
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a report, and why."""

    name: VerdictName
    reason: str


def admit(
    report: EvaluationReport,
    evaluation: EvaluationRecord | None,
    lease: Lease | None,
    stored: ReportRecord | None,
    *,
    body_sha256: str,
    now: int,
    grace_s: int,
) -> Verdict:
    """Return the verdict on a report whose signature holds; `stored` is what its lease has already. Pure."""
    wanted = lease_id(report.device, report.task, report.lease)
    if report.report_id != wanted:
        return Verdict("malformed", f"a report of this lease has the id {wanted}, got {report.report_id}")
    if evaluation is None:
        return Verdict("unknown_task", f"no evaluation {report.task} is known to this device's population")
    if lease is None:
        return Verdict("unknown_lease", f"device {report.device} holds no lease {report.lease}")
    if stored is not None:
        if stored.body_sha256 == body_sha256:
            return Verdict("duplicate", "accepted before; it was counted once")
        return Verdict("conflict", "another report of this lease came first")
    if lease.state == "answered":
        return Verdict("conflict", "this lease was answered before")
    if now > lease.deadline + grace_s:
        return Verdict("expired", f"the lease ended {now - lease.deadline} s ago, grace is {grace_s} s")
    if report.version != evaluation.version:
        return Verdict("wrong_version", f"the offer is for version {evaluation.version}, got {report.version}")
    wrong = _wrong_counts(report, evaluation)
    if wrong:
        return Verdict("malformed", wrong)
    return Verdict("accepted", f"{report.words} words")


def _wrong_counts(report: EvaluationReport, evaluation: EvaluationRecord) -> str:
    counts = (report.words, report.hits1, report.hits3)
    if not report.hits1 <= report.hits3 <= report.words:
        return f"hits1 <= hits3 <= words, got {report.hits1}, {report.hits3}, {report.words}"
    if counts != evaluation_buckets(*counts):
        return f"counts are in buckets, {evaluation_buckets(*counts)} here, got {counts}"
    least = evaluation_buckets(evaluation.minimum_words, 0, 0)[0]
    if report.words and not least <= report.words <= evaluation.most_words:
        return f"words are 0, or {least} to {evaluation.most_words}, got {report.words}"
    return ""


def added(evaluation: EvaluationRecord, report: EvaluationReport) -> EvaluationRecord:
    """Return the sums with an accepted report in them; the order of reports makes no difference."""
    return replace(
        evaluation,
        reports=evaluation.reports + 1,
        silent=evaluation.silent + (report.words == 0),
        words=evaluation.words + report.words,
        hits1=evaluation.hits1 + report.hits1,
        hits3=evaluation.hits3 + report.hits3,
        words_words=evaluation.words_words + report.words**2,
        words_hits3=evaluation.words_hits3 + report.words * report.hits3,
        hits3_hits3=evaluation.hits3_hits3 + report.hits3**2,
    )


def recall(evaluation: EvaluationRecord) -> tuple[float, float, float | None] | None:
    """Return top-1 and top-3 recall in percent, and the standard error of the latter between devices; None of nothing.

    The error is that of a ratio of sums over devices drawn at random (Cochran, Sampling Techniques, 1977, eq. 2.46):
    words of one person are not independent. None with fewer than two devices that scored.
    """
    if not evaluation.words:
        return None
    devices, ratio = evaluation.reports - evaluation.silent, evaluation.hits3 / evaluation.words
    error = None
    if devices > 1:
        squares = evaluation.hits3_hits3 - 2 * ratio * evaluation.words_hits3 + ratio**2 * evaluation.words_words
        error = 100.0 * math.sqrt(max(0.0, squares) * devices / (devices - 1)) / evaluation.words
    return 100.0 * evaluation.hits1 / evaluation.words, 100.0 * ratio, error


def ask(
    records: Records,
    population: Population,
    keys: ServiceKeys,
    *,
    version: int | None,
    devices: int,
    minimum_words: int,
    most_words: int,
    valid_s: int,
    now: int,
) -> EvaluationRecord:
    """Store a new evaluation of an announced version (None: the refresh) and return it.

    Raises `NotFound` for a version that no track announces, `Refused` while too many are open or for a minimum above
    the most.
    """
    if minimum_words > most_words:
        raise Refused(f"the minimum of words is at most the most, got {minimum_words} > {most_words}")
    announced = _announced(records, population.name, version)
    known = records.evaluations(population.name)
    if sum(is_open(each, now) for each in known) >= MAX_OPEN:
        raise Refused(f"at most {MAX_OPEN} evaluations are open at once", "wait until one has its reports, or ends")
    name = b"\n".join((b"edge-federation evaluation v1", keys.seed, population.name.encode(), b"%d" % len(known)))
    evaluation = EvaluationRecord(
        task=hashlib.sha256(name).hexdigest()[:16],
        population=population.name,
        version=announced.version,
        sha256=announced.sha256,
        devices=devices,
        minimum_words=minimum_words,
        most_words=most_words,
        asked_at=now,
        deadline=now + valid_s,
    )
    records.put_evaluation(evaluation)
    return evaluation


def _announced(records: Records, population: str, version: int | None) -> AnnouncementRecord:
    tracks = {track: records.announcement(population, track) for track in ("refresh", "training")}
    found = [each for each in tracks.values() if each is not None]
    if version is None:
        found = [each for track, each in tracks.items() if each is not None and track == "refresh"]
    else:
        found = [each for each in found if each.version == version]
    if not found:
        shown = ", ".join(f"{track} {each.version}" for track, each in tracks.items() if each is not None)
        wanted = "no refresh" if version is None else f"no version {version}"
        raise NotFound(f"population {population} announces {wanted}, only {shown or 'nothing'}")
    return found[0]


def is_open(evaluation: EvaluationRecord, now: int) -> bool:
    """Whether an evaluation still waits for reports."""
    return now < evaluation.deadline and evaluation.reports < evaluation.devices


def open_for(records: Records, population: Population, check_in: CheckIn, now: int) -> list[EvaluationRecord]:
    """Return the open evaluations that a device could be asked for, oldest first; none if it does not know the task."""
    if EVALUATION_CAPABILITY not in check_in.capabilities:
        return []
    found = records.open_evaluations(population.name, now)
    return [evaluation for evaluation in reversed(found) if is_open(evaluation, now)]


def live_lease(records: Records, wanted: Sequence[EvaluationRecord], device: DeviceRecord, now: int) -> Lease | None:
    """Return the lease that the device holds of one of these: the same offer goes out again."""
    for evaluation in wanted:
        lease = records.live_lease(evaluation.task, device.device)
        if lease is not None and now < lease.deadline:
            return lease
    return None


def give_lease(
    records: Records, population: Population, wanted: Sequence[EvaluationRecord], device: DeviceRecord,
    keys: ServiceKeys, now: int,
) -> Lease | None:  # fmt: skip
    """Return a new lease of the oldest of these that wants this device, stored; None if none does."""
    for evaluation in wanted:
        records.expire_leases(evaluation.task, now)
        counted = records.count_leases(evaluation.task, device.device)
        # Nobody fetches a version that is not announced any more.
        overtaken = evaluation.sha256 not in _files(records, population.name)
        if counted or overtaken or records.count_taken(evaluation.task) >= evaluation.devices:
            continue
        lease = draw_lease(
            keys.seed,
            task=evaluation.task,
            device=device.device,
            counter=counted,
            base=(evaluation.version, evaluation.sha256),
            now=now,
            lease_s=min(population.settings.lease_seconds, evaluation.deadline - now),
        )
        records.add_lease(lease)
        return lease
    return None


def _files(records: Records, population: str) -> set[str]:
    tracks = (records.announcement(population, "refresh"), records.announcement(population, "training"))
    return {announced.sha256 for announced in tracks if announced is not None}


def offer_of(
    records: Records, population: Population, check_in: CheckIn, lease: Lease, retry: RetryWindow, now: int
) -> EvaluationOffer:
    """Return the offer of a lease. Raises `LookupError` if its evaluation is gone, which no rule allows."""
    evaluation = records.evaluation(lease.task)
    if evaluation is None:
        raise LookupError(f"lease {lease.lease} is of the evaluation {lease.task}, which is not there")
    return EvaluationOffer(
        device=lease.device,
        population=population.name,
        task=lease.task,
        lease=lease.lease,
        nonce=check_in.nonce,
        version=evaluation.version,
        version_sha256=evaluation.sha256,
        minimum_words=evaluation.minimum_words,
        most_words=evaluation.most_words,
        issued_at=now,
        deadline=lease.deadline,
        retry=retry,
    )


def answer_report(records: Records, population: Population, report: EvaluationReport, now: int) -> Receipt:
    """Give a report its verdict, count it if it is accepted, and return the receipt."""
    evaluation = records.evaluation(report.task)
    if evaluation is not None and evaluation.population != population.name:
        evaluation = None
    body_sha256 = hashlib.sha256(encode_message(msgspec.structs.replace(report, sent_at=0))).hexdigest()
    verdict = admit(
        report,
        evaluation,
        records.lease(report.task, report.device, report.lease),
        records.report(report.task, report.device, report.lease),
        body_sha256=body_sha256,
        now=now,
        grace_s=population.settings.lease_grace_seconds,
    )
    if verdict.name == "accepted" and evaluation is not None:
        records.add_report(ReportRecord(report.task, report.device, report.lease, body_sha256, now))
        records.put_evaluation(added(evaluation, report))
        records.set_lease_state(report.lease, "answered")
    elif verdict.name != "duplicate":
        records.add_event(now, f"report {verdict.name}", report.device, verdict.reason)
    return Receipt(
        device=report.device, update_id=report.report_id, verdict=verdict.name, reason=verdict.reason, issued_at=now
    )
