"""When the next release is due: a cron expression in a time zone.

The rules:
- the expression is read in the operator's time zone, so that "Sunday 06:00" stays there across summer time;
- what was missed (the aggregator was off) is caught up once, not once for each missed week.
"""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from cloud_aggregator.errors import InvalidSetting


def next_due(cron: str, time_zone: str, after: int) -> int:
    """Return the first moment (Unix seconds) after `after` that the expression names.

    Raises `InvalidSetting` for an expression or a time zone that is none, or an expression that never comes.
    """
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise InvalidSetting(f"a time zone is a name like Europe/Berlin or UTC, got {time_zone[:60]!r}") from e
    try:
        moment = next(CronSim(cron, datetime.fromtimestamp(after, UTC).astimezone(zone)))
    except CronSimError as e:
        raise InvalidSetting(f"a schedule is five cron fields like '0 6 * * 0', got {cron[:60]!r}") from e
    except StopIteration as e:
        raise InvalidSetting(f"the schedule {cron[:60]!r} names no moment within 50 years") from e
    return int(moment.timestamp())
