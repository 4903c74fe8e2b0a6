"""What cannot be exported, in words that a person can act on: which layer, why, what to change."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """One layer (or the model) that stays out, before anything is converted."""

    layer: str
    kind: str
    reason: str
    change: str

    def line(self) -> str:
        """Return the refusal as one line."""
        return f"{self.layer} ({self.kind}): {self.reason}; {self.change}"


@dataclass(frozen=True, slots=True)
class Refused:
    """The model cannot be exported: one entry for each thing to change, all at once."""

    refusals: tuple[Refusal, ...]

    def lines(self) -> str:
        """Return one line for each refusal."""
        return "\n".join(refusal.line() for refusal in self.refusals)
