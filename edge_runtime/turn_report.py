"""What happened in one turn of the agent: collected while it runs, frozen when it ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class TurnReport:
    """`phase` is the session's (`session.Phase`); `reason` says why it does not train now; `refused` names the rules
    that stopped a message, a version, a plan or a write; `personal` is what a
    personal copy came to; `versions` are (track, version) that became current."""

    phase: str
    reason: str
    may_train: bool = False
    connected: bool = False
    checked_in: bool = False
    turned_away: str = ""
    training_steps: int = 0
    interrupted: bool = False
    personal: str = ""
    update_queued: str = ""
    update_sent: bool = False
    receipts: tuple[str, ...] = ()
    versions: tuple[tuple[str, int], ...] = ()
    refused: tuple[str, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass
class Notes:
    """A report in the making."""

    checked_in: bool = False
    turned_away: str = ""
    training_steps: int = 0
    interrupted: bool = False
    personal: str = ""
    update_queued: str = ""
    update_sent: bool = False
    receipts: list[str] = field(default_factory=list)
    versions: list[tuple[str, int]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0

    def close(self, phase: str, reason: str, *, may_train: bool, connected: bool) -> TurnReport:
        """Return the frozen report."""
        return TurnReport(
            phase=phase,
            reason=reason,
            may_train=may_train,
            connected=connected,
            checked_in=self.checked_in,
            turned_away=self.turned_away,
            training_steps=self.training_steps,
            interrupted=self.interrupted,
            personal=self.personal,
            update_queued=self.update_queued,
            update_sent=self.update_sent,
            receipts=tuple(self.receipts),
            versions=tuple(self.versions),
            refused=tuple(self.refused),
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
        )


def merge(reports: Sequence[TurnReport]) -> TurnReport:
    """Return one report of several turns in a row: what happened in any, sums of bytes and steps, the last phase."""
    return replace(
        reports[-1],
        checked_in=any(report.checked_in for report in reports),
        turned_away=next((report.turned_away for report in reports if report.turned_away), ""),
        training_steps=sum(report.training_steps for report in reports),
        interrupted=any(report.interrupted for report in reports),
        update_queued=next((report.update_queued for report in reports if report.update_queued), ""),
        personal=next((report.personal for report in reports if report.personal), ""),
        update_sent=any(report.update_sent for report in reports),
        receipts=tuple(verdict for report in reports for verdict in report.receipts),
        versions=tuple(version for report in reports for version in report.versions),
        refused=tuple(name for report in reports for name in report.refused),
        bytes_up=sum(report.bytes_up for report in reports),
        bytes_down=sum(report.bytes_down for report in reports),
    )
