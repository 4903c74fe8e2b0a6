"""What happened in one turn of the agent: collected while it runs, frozen when it ends."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TurnReport:
    """`phase` is the session's (`session.Phase`); `reason` says why it does not train now; `refused` names the rules
    that stopped a message, a version, a plan or a write; `personal` is what a
    personal copy came to; `versions` are (track, version) that became current."""

    phase: str
    reason: str
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

    def close(self, phase: str, reason: str, *, connected: bool) -> TurnReport:
        """Return the frozen report."""
        return TurnReport(
            phase=phase,
            reason=reason,
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
