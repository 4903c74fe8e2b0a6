"""A report as a picture: what each tensor's rounding costs beside its bytes, and what that means for recall.

Imports matplotlib, and nothing else of it than what draws into a file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from model_export.held_out import FormScore
from model_export.quantization_report import TensorReport

_STORED, _BY_ROW = "#1b6ca8", "#d98200"


def draw(path: Path, reports: list[TensorReport], scores: Mapping[str, FormScore]) -> None:
    """Write the picture beside its name and rename it. Raises `OSError`."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _errors(left, reports)
    _recalls(right, scores)
    beside = path.with_name(f".{path.name}.part")
    canvas = FigureCanvasSVG(figure) if path.suffix == ".svg" else FigureCanvasAgg(figure)
    # Without a date, and with names that do not change, the same report gives the same picture.
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.canvas = canvas
    try:
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": "edge-federation"}):
            figure.savefig(beside, format=path.suffix[1:], metadata=metadata)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _errors(axes: Any, reports: list[TensorReport]) -> None:
    rounded = [r for r in reports if r.error > 0]
    axes.scatter([r.size_bytes for r in rounded], [r.error for r in rounded], color=_STORED, label="in the file")
    by_row = [(r.size_bytes, r.row_scales_error) for r in rounded if r.row_scales_error is not None]
    axes.scatter([x for x, _ in by_row], [y for _, y in by_row], color=_BY_ROW, marker="s", label="with a scale a row")
    for r in rounded:
        axes.annotate(r.name, (r.size_bytes, r.error), xytext=(0, 7), textcoords="offset points", ha="center")
    axes.margins(x=0.35)
    axes.set_xlabel("bytes in the file")
    axes.set_ylabel("relative error of the weights")
    if rounded:
        axes.set_xscale("log")
        axes.set_ylim(0, 1.15 * max(r.error for r in rounded))
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no tensor is rounded", transform=axes.transAxes, ha="center")


def _recalls(axes: Any, scores: Mapping[str, FormScore]) -> None:
    names = list(scores)[::-1]
    values = [scores[name].top3 for name in names]
    bars = axes.barh([name.replace(", ", ",\n") for name in names], values, color=_STORED)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    axes.set_xlim(0, 1.25 * max(values) or 1.0)
    axes.set_xlabel("top-3 recall on held-out text, %")
