"""`edge-runtime history`: what this device took part in and sent, and what each night used. Numbers only, no text."""

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.result import Result, table
from edge_runtime.adapters.ledger_rows import LedgerRows
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.config import Settings, read_settings
from edge_runtime.eligibility import Usage, zone
from edge_runtime.energy import watt_hours
from edge_runtime.ledger import DAY_S, Participation, totals
from edge_runtime.ports import PortError

STATE_FILE = "state.db"
NIGHT_HEADER = ("night", "training s", "cpu s", "energy wh (est.)", "sent bytes", "written bytes", "starts")
# The end of the year 9998: what an aggregator dated later is shown as this, which a calendar can read in any zone.
_LAST_S = 253_370_764_799.0
_SPANS_S = {"h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}


def history(home: Path, since: str, limit: int) -> Result:
    """Return participations and nights, newest first: at most `limit` of each (0: all) since `since`.

    `since` is a span (`12h`, `7d`, `4w`), a date, or "" for all that is kept. Raises `CommandError`.
    """
    settings = read_settings(home)
    path = home / STATE_FILE
    begin = parse_since(since, time.time())
    if limit < 0:
        raise CommandError(f"--limit is 0 or more, got {limit}", exit_code=ExitCode.USAGE, code="USAGE")
    if not path.is_file():
        raise CommandError(
            f"{home} has no history: it holds no {STATE_FILE}",
            exit_code=ExitCode.REFUSED, code="NOT_ENROLLED", hint="edge-runtime enrol SERVER --token-file FILE",
        )  # fmt: skip
    try:
        store = StateStore(path)
        try:
            ledger = LedgerRows(store, settings.ledger.as_terms())
            return told(ledger.rows(begin), ledger.nights(night_name(begin)), settings, limit)
        finally:
            store.close()
    except PortError as e:
        raise CommandError(str(e), code="HOME_BROKEN") from e


def parse_since(text: str, now: float) -> float:
    """Return the Unix seconds that `--since` means. Raises `CommandError` (exit 2)."""
    span = re.fullmatch(r"([0-9]{1,5})([hdw])", text)
    if not text:
        return 0.0
    if span:
        return max(0.0, now - int(span[1]) * _SPANS_S[span[2]])
    try:
        return max(0.0, datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError) as e:
        raise CommandError(
            f"--since is a span like 12h, 7d or 4w, or a date like 2026-11-01, got {text!r:.40}",
            exit_code=ExitCode.USAGE, code="USAGE",
        ) from e  # fmt: skip


def night_name(begin: float) -> str:
    """Return the first night that `--since` may mean: a night's name is the local date on which it began, which may be
    the day before the date in UTC."""
    return datetime.fromtimestamp(max(0.0, begin - DAY_S), UTC).date().isoformat() if begin else ""


def told(
    rows: tuple[Participation, ...], nights: tuple[tuple[str, Usage], ...], settings: Settings, limit: int
) -> Result:
    """Return the answer as JSON and as two tables."""
    shown, shown_nights = (rows[:limit], nights[:limit]) if limit else (rows, nights)
    watts = settings.policy.watts
    data = {
        "totals": asdict(totals(rows)),
        "participations": len(rows),
        "nights_kept": len(nights),
        "items": [_as_item(row) for row in shown],
        "nights": [{"night": night, **asdict(used), "energy_wh": _energy(used, watts)} for night, used in shown_nights],
    }
    where = settings.policy.time_zone
    header = (
        f"when ({where})",
        "kind",
        "task",
        "version",
        "examples",
        "steps",
        "sent bytes",
        "sent",
        "update",
        "verdict",
    )
    parts = [
        table([_as_row(row, where) for row in shown], header) if shown else "it has taken part in nothing yet",
        *([f"{len(shown)} of {len(rows)}; more: --limit 0"] if len(shown) < len(rows) else []),
        "",
        table([_as_night(night, used, watts) for night, used in shown_nights], NIGHT_HEADER)
        if shown_nights
        else "no night has used anything yet",
        *([f"{len(shown_nights)} of {len(nights)}; more: --limit 0"] if len(shown_nights) < len(nights) else []),
    ]
    return Result(data, "\n".join(parts))


def _as_item(row: Participation) -> dict[str, object]:
    times = {name: getattr(row, name) for name in ("at", "sent_at", "verdict_at")}
    return {**asdict(row), **{name: _iso(moment) if moment else "" for name, moment in times.items()}}


def _as_row(row: Participation, time_zone: str) -> tuple[object, ...]:
    verdict = row.verdict or ("no receipt yet" if row.update_id else "nothing sent")
    sent = _local(row.sent_at, time_zone) if row.sent_at else "-"
    update = row.update_id[:8] or "-"
    return (_local(row.at, time_zone), row.kind, row.task[:8], row.base_version, row.examples, row.steps, row.bytes,
            sent, update, verdict)  # fmt: skip


def _local(moment: float, time_zone: str) -> str:
    return datetime.fromtimestamp(min(moment, _LAST_S), zone(time_zone)).strftime("%Y-%m-%d %H:%M")


def _as_night(night: str, used: Usage, watts: float) -> tuple[object, ...]:
    return (night, round(used.training_s), round(used.cpu_s), _energy(used, watts), used.sent_bytes, used.written_bytes,
            used.starts)  # fmt: skip


def _energy(used: Usage, watts: float) -> float:
    return round(watt_hours(used.cpu_s, watts), 2)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(min(moment, _LAST_S), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
