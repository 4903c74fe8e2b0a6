"""A population's standing order for releases, as a record that knows when it is due.

A schedule that is due runs once, however often it was missed, and then stands for the next time after that run.
"""

from cloud_aggregator.config import ReleaseSettings
from cloud_aggregator.records import ScheduleRecord
from cloud_aggregator.schedule import next_due


def first_schedule(population: str, settings: ReleaseSettings, now: int) -> ScheduleRecord:
    """Return the schedule of a freshly imported population. Raises `InvalidSetting`."""
    due = next_due(settings.cron, settings.time_zone, now) if settings.cron else None
    return ScheduleRecord(population, settings.cron, settings.time_zone, due, None)


def is_due(schedule: ScheduleRecord | None, now: int) -> bool:
    """Whether a scheduled release should run now."""
    return schedule is not None and schedule.next_due is not None and schedule.next_due <= now


def after_run(schedule: ScheduleRecord, now: int) -> ScheduleRecord:
    """Return the schedule after a run at `now`: missed runs before it are not made up for."""
    due = next_due(schedule.cron, schedule.time_zone, now)
    return ScheduleRecord(schedule.population, schedule.cron, schedule.time_zone, due, now)
