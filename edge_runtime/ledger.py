"""What the device took part in, and whether it may take part now. Pure: rows, offer, terms and the time are arguments.

The rules:
- a *participation* is a lease that the device began to work on. It counts from its beginning, whatever came of it: an
  update that was refused may have been read all the same. What was begun is gone on with, however long it takes;
- a device takes part in a task again only `separation_versions` versions and `separation_s` seconds after it last did,
  both of the new offer's plan: what differential privacy counts on (b-min-separation, Choquette-Choo et al. 2023,
  arXiv:2306.08153). A version below one that it took part with is no later step of the sequence: refused;
- the owner's terms add to that: `minimum_days` between two participations in a task, and at most `most_a_week` in all
  tasks over any seven days. Evaluations count for the owner's week and have no separation;
- a clock that jumped does not shorten a separation, nor does an aggregator that lies about the time. A participation is
  dated by the wall clock where that lies within its lease, else by the offer's own signed time; "now" is the earlier of
  the wall clock and the new offer's signed time. What is dated ahead of that counts as just now;
- a row is kept for `kept_days`, and at most the newest `kept_rows` are; but the rows that a separation asks for (of
  each task the latest and the one of the highest version) and those of the owner's week are kept in any case.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from wire_contract.messages import EvaluationOffer, TaskOffer

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
MOST_KEPT_ROWS = 100_000

Kind = Literal["train", "evaluate"]


@dataclass(frozen=True, slots=True)
class Participation:
    """One lease that the device worked on: numbers and ids only, no text.

    `at` is Unix seconds when it began; `examples` and `steps` are the training's (of an evaluation `examples` are the
    words scored), `update_id` is what it sent ("" if nothing yet), `bytes` how long that was, `sent_at` when it was put
    out for sending, `verdict` the aggregator's, "" until it came at `verdict_at`.
    """

    lease: str
    population: str
    task: str
    kind: Kind
    base_version: int
    at: float
    examples: int = 0
    steps: int = 0
    update_id: str = ""
    bytes: int = 0
    verdict: str = ""
    verdict_at: float = 0.0
    sent_at: float = 0.0


@dataclass(frozen=True, slots=True)
class OwnTerms:
    """The owner's: `[ledger]` of the settings. `most_a_week` 0: no such limit."""

    minimum_days: float = 0.0
    most_a_week: int = 0
    kept_days: float = 400.0
    kept_rows: int = 1000


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether the device may take part; if not, why in one sentence, and when it may if time alone changes that."""

    may: bool
    reason: str = ""
    not_before: float | None = None


def participation(offer: TaskOffer | EvaluationOffer, now: float) -> Participation:
    """Return the row of a participation that begins at `now` (Unix seconds by the wall clock)."""
    training = isinstance(offer, TaskOffer)
    return Participation(
        lease=offer.lease,
        population=offer.population,
        task=offer.task,
        kind="train" if training else "evaluate",
        base_version=offer.base_version if isinstance(offer, TaskOffer) else offer.version,
        at=float(min(max(now, offer.issued_at), max(offer.issued_at, offer.deadline))),
    )


def admit(rows: Iterable[Participation], offer: TaskOffer | EvaluationOffer, terms: OwnTerms, now: float) -> Permission:
    """Return whether the device may begin with what the offer asks for; `now` is Unix seconds by the wall clock."""
    rows = tuple(rows)
    if any(row.lease == offer.lease for row in rows):
        return Permission(True)
    proved_now = min(now, float(offer.issued_at))
    mine = [row for row in rows if row.task == offer.task and row.kind == "train"]
    if isinstance(offer, TaskOffer) and mine:
        refused = _too_few_versions(mine, offer) or _too_soon(mine, offer, terms, proved_now)
        if refused is not None:
            return refused
    return _within_the_week(rows, terms, proved_now)


def _too_few_versions(mine: Sequence[Participation], offer: TaskOffer) -> Permission | None:
    asked = offer.plan.separation_versions
    last = max(row.base_version for row in mine)
    if not asked or offer.base_version - last >= asked:
        return None
    reason = (
        f"it took part in this task with version {last}: its plan lets it again from version {last + asked},"
        f" this is {offer.base_version}"
    )
    return Permission(False, reason)


def _too_soon(mine: Sequence[Participation], offer: TaskOffer, terms: OwnTerms, now: float) -> Permission | None:
    last = max(row.at for row in mine)
    asked_s, whose = max(
        (float(offer.plan.separation_s), "its plan asks for"),
        (terms.minimum_days * DAY_S, "ledger.minimum_days asks for"),
    )
    passed = passed_s(last, now)
    if passed >= asked_s:
        return None
    reason = f"it took part in this task {_long(passed)} ago: {whose} {_long(asked_s)} between two times"
    return Permission(False, reason, last + asked_s)


def _within_the_week(rows: Sequence[Participation], terms: OwnTerms, now: float) -> Permission:
    recent = sorted(row.at for row in rows if passed_s(row.at, now) < WEEK_S)
    if not terms.most_a_week or len(recent) < terms.most_a_week:
        return Permission(True)
    reason = f"it took part {len(recent)} times in seven days: ledger.most_a_week lets it {terms.most_a_week} times"
    return Permission(False, reason, recent[-terms.most_a_week] + WEEK_S)


def passed_s(since: float, now: float) -> float:
    """Return the seconds that certainly passed since `since`: none if that lies ahead of `now`."""
    return max(0.0, now - since)


def kept(rows: Iterable[Participation], terms: OwnTerms, now: float) -> tuple[Participation, ...]:
    """Return the rows to keep, newest first; what `admit` says is the same with them as with all."""
    newest_first = sorted(rows, key=lambda row: (row.at, row.lease), reverse=True)
    needed = _needed(newest_first, terms, now)
    return tuple(
        row
        for number, row in enumerate(newest_first)
        if row.lease in needed or (number < terms.kept_rows and passed_s(row.at, now) <= terms.kept_days * DAY_S)
    )


def _needed(newest_first: Sequence[Participation], terms: OwnTerms, now: float) -> set[str]:
    # The week's newest are enough to count to the owner's limit; a next plan may ask for any separation whatever.
    week = [row.lease for row in newest_first if passed_s(row.at, now) < WEEK_S]
    needed = set(week[: terms.most_a_week])
    latest: dict[str, Participation] = {}
    highest: dict[str, Participation] = {}
    for row in newest_first:
        if row.kind == "train":
            latest.setdefault(row.task, row)
            if row.task not in highest or row.base_version > highest[row.task].base_version:
                highest[row.task] = row
    return needed | {row.lease for each in (latest, highest) for row in each.values()}


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over some participations; `sent_bytes` are the updates' lengths, sealed, each counted once."""

    trainings: int = 0
    evaluations: int = 0
    updates: int = 0
    sent_bytes: int = 0
    examples: int = 0
    accepted: int = 0
    stale: int = 0
    refused: int = 0
    waiting: int = 0


def totals(rows: Iterable[Participation]) -> Totals:
    """Return the counts of `rows`."""
    rows = tuple(rows)
    sent = [row for row in rows if row.update_id]
    verdicts = [row.verdict for row in sent]
    accepted, stale, waiting = (verdicts.count(each) for each in ("accepted", "stale", ""))
    return Totals(
        trainings=sum(row.kind == "train" for row in rows),
        evaluations=sum(row.kind == "evaluate" for row in rows),
        updates=len(sent),
        sent_bytes=sum(row.bytes for row in sent),
        examples=sum(row.examples for row in rows),
        accepted=accepted,
        stale=stale,
        refused=len(sent) - accepted - stale - waiting,
        waiting=waiting,
    )


def _long(seconds: float) -> str:
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 2 * DAY_S else f"{seconds / DAY_S:.1f} days"
