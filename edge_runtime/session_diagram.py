"""The session's table as a picture: `python -m edge_runtime.session_diagram > docs/agent-states.md`."""

import sys
from collections.abc import Iterable

from edge_runtime.session import TRANSITIONS, Phase, Transition


def diagram(rows: Iterable[Transition] = TRANSITIONS) -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.RESTING.value}"]
    for row in rows:
        label = row.event.__name__ + (f": {row.when}" if row.when else "")
        effects = " / " + ", ".join(effect.__name__ for effect in row.effects) if row.effects else ""
        # Mermaid ends a label at a colon or a semicolon that follows another.
        lines.append(f"    {row.phase.value} --> {row.target.value}: {label.replace(':', ',')}{effects}")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return docs/agent-states.md."""
    return (
        "# The agent's states\n\n"
        "Drawn from the table in `edge_runtime/session.py` by `python -m edge_runtime.session_diagram`; a test "
        "compares.\n"
        "An arrow says: the event, its condition / the effects. An event without an arrow changes nothing.\n\n"
        f"```mermaid\n{diagram()}```\n"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
