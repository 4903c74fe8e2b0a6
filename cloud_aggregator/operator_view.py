"""What an operator sees: JSON objects made of records, the same for the HTTP API and for the CLI without a service.

Times are ISO 8601 in UTC; ids are what the commands take; lists are newest first.
"""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec

from cloud_aggregator import named_basis
from cloud_aggregator.aggregation_kernel import Kernel
from cloud_aggregator.back_pressure import Pressure
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.errors import NotFound
from cloud_aggregator.evaluations import is_open, recall
from cloud_aggregator.named_sets import names_of
from cloud_aggregator.records import (
    DeviceRecord,
    EvaluationRecord,
    PopulationRecord,
    Records,
    ReleaseRecord,
    ScheduleRecord,
    UpdateRecord,
    VersionRecord,
)
from cloud_aggregator.round_replay import Replay

View = dict[str, Any]


def iso(seconds: int | None) -> str | None:
    """Return Unix seconds as ISO 8601 UTC, None for None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def round_id(ordinal: int) -> str:
    """Return the id of the round that made, or will make, the step `ordinal`."""
    return f"r-{ordinal:04d}"


def status_view(records: Records, now: int, pressure: Pressure | None = None, kernel: Kernel | None = None) -> View:
    """Return the whole at a glance: a sentence of health, each population's state, how storage is and which kernel
    decodes updates (None: no service runs, so nobody knows)."""
    devices = records.devices()
    populations = [_population_view(records, population, devices, now) for population in records.populations()]
    waiting = records.count_updates("received")
    unpublished = len(records.unpublished_receipts(1000))
    if not populations:
        health = "no population yet: import a bundle"
    elif not devices:
        health = "no device is enrolled yet: mint a token"
    else:
        online = sum(device.online for device in devices)
        health = f"{len(devices)} devices enrolled, {online} online; {waiting} updates wait for a verdict"
    if pressure is not None and pressure.name:
        health = f"{pressure.name}, new work is turned away: {pressure.told}; {health}"
    return {
        "health": health,
        "storage": None if pressure is None else _storage_view(pressure),
        "kernel": None if kernel is None else {"name": kernel.name, "unavailable": kernel.unavailable},
        "time": iso(now),
        "populations": populations,
        "updates_waiting": waiting,
        "uploads_open": records.count_updates("open"),
        "receipts_unpublished": unpublished,
        "events": records.count_events(),
    }


def _storage_view(pressure: Pressure) -> View:
    return {
        "state": pressure.name or "well",
        "commit_seconds": round(pressure.commit_s, 4),
        "waiting_groups": round(pressure.waiting_groups, 2),
        "room_bytes": pressure.room_bytes,
    }


def _population_view(records: Records, population: PopulationRecord, devices: list[DeviceRecord], now: int) -> View:
    settings = msgspec.json.decode(population.settings, type=PopulationSettings)
    members = [device for device in devices if device.population == population.population]
    training = records.announcement(population.population, "training")
    refresh = records.announcement(population.population, "refresh")
    unused = records.updates_of_version(population.task, None)
    accepted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for (verdict, staleness), count in records.count_verdicts(population.task).items():
        if verdict == "accepted":
            accepted[str(staleness)] += count
        else:
            refused[verdict] += count
    schedule = records.schedule(population.population)
    return {
        "population": population.population,
        "training_version": training.version if training else None,
        "refresh_version": refresh.version if refresh else None,
        "devices": len(members),
        "online": sum(device.online for device in members),
        "revoked": sum(device.revoked_at is not None for device in members),
        "goal_count": settings.goal_count,
        "round_updates": len(unused),
        "leases_in_flight": records.count_in_flight(population.task, now),
        "accepted_by_staleness": dict(sorted(accepted.items())),
        "refused": dict(sorted(refused.items())),
        "next_release": iso(schedule.next_due) if schedule else None,
        "codec": settings.plan.codec.mode,
        "index_set": next(reversed(names_of(records, population.population)), None),
        "basis": named_basis.name_of(records, population.population) or None,
    }


def device_view(device: DeviceRecord) -> View:
    """Return one device."""
    return {
        "device": device.device,
        "label": device.label,
        "population": device.population,
        "state": "revoked" if device.revoked_at is not None else "online" if device.online else "offline",
        "last_seen": iso(device.last_seen),
        "training_version": device.training_version,
        "refresh_version": device.refresh_version,
        "runtime": device.runtime,
        "reason": device.reason,
        "enrolled_at": iso(device.enrolled_at),
        "revoked_at": iso(device.revoked_at),
    }


def find_device(records: Records, prefix: str) -> DeviceRecord:
    """Return the device of this id, or else the one whose id begins with `prefix` or whose label it is.

    Raises `NotFound`, also if several do.
    """
    exact = records.device(prefix)
    if exact is not None:
        return exact
    found = [d for d in records.devices() if d.device.startswith(prefix) or (prefix and d.label == prefix)]
    if len(found) != 1:
        raise NotFound(f"{'no device' if not found else f'{len(found)} devices'} of id or label {prefix[:80]!r}")
    return found[0]


def device_list(records: Records, limit: int) -> View:
    """Return devices, newest first; `limit` 0 means all."""
    devices = records.devices()
    return {"items": [device_view(device) for device in devices[: limit or None]], "total": len(devices)}


def round_list(records: Records, limit: int) -> View:
    """Return rounds, the open ones first."""
    items = []
    for population in records.populations():
        steps = [v for v in records.versions(population.population) if v.ordinal]
        items.append(_open_round(records, population, steps[0].ordinal or 0 if steps else 0))
        items += [_round_view(step) for step in steps]
    return {"items": items[: limit or None], "total": len(items)}


def _open_round(records: Records, population: PopulationRecord, done: int) -> View:
    settings = msgspec.json.decode(population.settings, type=PopulationSettings)
    updates = records.updates_of_version(population.task, None)
    opened = min((u.judged_at for u in updates if u.judged_at is not None), default=None)
    return {
        "round": round_id(done + 1),
        "population": population.population,
        "state": "collecting",
        "updates": len(updates),
        "goal_count": settings.goal_count,
        "staleness": _staleness(updates),
        "opened_at": iso(opened),
        "closed_at": None,
        "version": None,
        "cause": None,
    }


def _round_view(step: VersionRecord) -> View:
    return {
        "round": round_id(step.ordinal or 0),
        "population": step.population,
        "state": "closed",
        "updates": step.updates,
        "goal_count": None,
        "staleness": {str(s): n for s, n in enumerate(step.staleness)},
        "opened_at": iso(step.opened_at),
        "closed_at": iso(step.made_at),
        "version": step.version,
        "cause": step.cause,
        "delta_norm": step.delta_norm,
    }


def _staleness(updates: list[UpdateRecord]) -> dict[str, int]:
    counts = Counter(update.staleness or 0 for update in updates)
    return {str(s): counts[s] for s in range(4)}


def round_show(records: Records, prefix: str) -> View:
    """Return one round with the updates in it (never what they hold). Raises `NotFound`."""
    found = [item for item in round_list(records, 0)["items"] if item["round"].startswith(prefix)]
    exact = [item for item in found if item["round"] == prefix]
    chosen = exact if len(exact) == 1 else found
    if len(chosen) != 1:
        raise NotFound(f"{'no round' if not found else f'{len(found)} rounds'} of id {prefix[:80]!r}")
    view = dict(chosen[0])
    task = next(p.task for p in records.populations() if p.population == view["population"])
    updates = records.updates_of_version(task, view["version"])
    view["accepted"] = [
        {
            "update": update.update_id,
            "device": update.device,
            "base_version": update.base_version,
            "staleness": update.staleness,
            "weight": update.weight,
            "norm": update.norm,
            "bytes": update.size_bytes,
        }
        for update in updates
    ]
    return view


def replay_view(again: Replay) -> View:
    """Return what came of a replay."""
    return {
        "population": again.population,
        "version": again.version,
        "identical": again.identical,
        "differs": again.differs or None,
        "sha256": again.sha256,
        "started_from": again.started_from,
        "steps": again.steps,
        "updates": again.updates,
        "from_sums": list(again.from_sums),
    }


def release_view(release: ReleaseRecord) -> View:
    """Return one decision about a refresh."""
    return {
        "release": f"v-{release.version:04d}",
        "population": release.population,
        "version": release.version,
        "previous": release.previous,
        "outcome": release.outcome,
        "cause": release.cause,
        "reason": release.reason,
        "at": iso(release.at),
        "sha256": release.sha256,
    }


def release_list(records: Records, limit: int) -> View:
    """Return releases, newest first."""
    releases = records.releases(None)
    return {"items": [release_view(release) for release in releases[: limit or None]], "total": len(releases)}


def release_show(records: Records, prefix: str) -> View:
    """Return the newest decision about a version, named by `v-0013` or `13`. Raises `NotFound`."""
    for release in records.releases(None):
        if f"v-{release.version:04d}".startswith(prefix) or str(release.version) == prefix:
            return release_view(release)
    raise NotFound(f"no release {prefix[:80]!r}")


def evaluation_view(evaluation: EvaluationRecord, leases: int, now: int) -> View:
    """Return what was asked of devices and what they reported together; `leases` are out or answered."""
    found = recall(evaluation)
    top1, top3, error = found if found is not None else (None, None, None)
    return {
        "evaluation": f"e-{evaluation.task}",
        "population": evaluation.population,
        "version": evaluation.version,
        "state": "open" if is_open(evaluation, now) else "closed",
        "devices_wanted": evaluation.devices,
        "leases": leases,
        "reports": evaluation.reports,
        "too_little_text": evaluation.silent,
        "words": evaluation.words,
        "hits1": evaluation.hits1,
        "hits3": evaluation.hits3,
        "top1_percent": None if top1 is None else round(top1, 3),
        "top3_percent": None if top3 is None else round(top3, 3),
        "top3_standard_error": None if error is None else round(error, 3),
        "minimum_words": evaluation.minimum_words,
        "most_words": evaluation.most_words,
        "asked_at": iso(evaluation.asked_at),
        "deadline": iso(evaluation.deadline),
        "sha256": evaluation.sha256,
    }


def evaluation_list(records: Records, limit: int, now: int) -> View:
    """Return evaluations, newest first; `limit` 0 means all."""
    found = records.evaluations(None)
    shown = [evaluation_view(each, records.count_taken(each.task), now) for each in found[: limit or None]]
    return {"items": shown, "total": len(found)}


def evaluation_show(records: Records, prefix: str, now: int) -> View:
    """Return the one evaluation whose id begins with `prefix`, `e-` or not. Raises `NotFound`."""
    wanted = prefix.removeprefix("e-")
    found = [each for each in records.evaluations(None) if wanted and each.task.startswith(wanted)]
    if len(found) != 1:
        raise NotFound(f"{'no evaluation' if not found else f'{len(found)} evaluations'} of id {prefix[:80]!r}")
    return evaluation_view(found[0], records.count_taken(found[0].task), now)


def schedule_view(schedule: ScheduleRecord) -> View:
    """Return a population's schedule."""
    return {
        "population": schedule.population,
        "cron": schedule.cron,
        "time_zone": schedule.time_zone,
        "next_due": iso(schedule.next_due),
        "last_run": iso(schedule.last_run),
    }


def one_population(records: Records, name: str | None) -> str:
    """Return `name`, or the only population there is. Raises `NotFound` if that is not clear."""
    names = [population.population for population in records.populations()]
    if name is not None and name in names:
        return name
    if name is None and len(names) == 1:
        return names[0]
    raise NotFound(f"name one of the populations {names}" if name is None else f"no population {name[:80]!r}")


def schedule_show(records: Records, population: str | None) -> View:
    """Return the schedule of a population (the only one, if none is named). Raises `NotFound`."""
    name = one_population(records, population)
    schedule = records.schedule(name)
    if schedule is None:
        raise NotFound(f"population {name} has no schedule")
    return schedule_view(schedule)
