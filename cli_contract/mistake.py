"""One mistake in a configuration file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """Where it is (from 1; line 0: the file as a whole), which key (dotted; "" if no key has it), what is wrong.

    `message` names the key; it is one line and says what to write instead.
    """

    line: int
    column: int
    key: str
    message: str

    def told(self, name: str) -> str:
        """Return the mistake as `FILE:LINE:COLUMN: what is wrong`."""
        return f"{name}:{self.line}:{self.column}: {self.message}" if self.line else f"{name}: {self.message}"


def dotted(path: tuple[str | int, ...]) -> str:
    """Return a key's path as a person writes it: `policy.night_start`, `plan.rules[1].name`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")
