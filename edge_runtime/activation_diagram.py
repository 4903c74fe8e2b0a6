"""The activation's table as the picture in docs/activation.md: `python -m edge_runtime.activation_diagram`."""

import sys
from collections.abc import Iterable

from edge_runtime.activation import TABLE, Row, Stage


def diagram(rows: Iterable[Row] = TABLE) -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Stage.EMPTY.value}"]
    for row in rows:
        label = row.event.__name__ + (f", {row.when}" if row.when else "")
        lines.append(f"    {row.stage.value} --> {row.target.value}: {label}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(diagram())
