"""The waterfall for people: a table, every miss as JSON, and a picture."""

import json
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.evaluation.waterfall import Waterfall


def write_waterfall(folder: Path, waterfall: Waterfall) -> None:
    """waterfall.txt, waterfall.json and waterfall.png in `folder`."""
    (folder / "waterfall.txt").write_text(waterfall.table())
    figures = {"pairs": waterfall.num_pairs, "lost": waterfall.lost, "misses": [asdict(miss) for miss in waterfall.misses]}
    (folder / "waterfall.json").write_text(json.dumps(figures, indent=1) + "\n")
    figure = Figure(figsize=(10, 4), layout="tight")
    draw(figure.subplots(), waterfall.num_pairs, waterfall.lost)
    figure.savefig(folder / "waterfall.png", dpi=90)


def draw(axes: Axes, num_pairs: int, lost: dict[str, int]) -> None:
    """One bar a stage, hanging where the stage before has left it; the last bar is what was found."""
    left = num_pairs
    axes.bar("asked", num_pairs, color="#9ca3af")
    for stage, num in lost.items():
        left -= num
        axes.bar(stage, num, bottom=left, color="#ef4444")
        if num:
            axes.annotate(f"{num}", (stage, left + num), ha="center", va="bottom")
    axes.bar("found", left, color="#22c55e")
    axes.annotate(f"{left}", ("found", left), ha="center", va="bottom")
    axes.set(ylim=(0, 1.1 * num_pairs), ylabel="known answers", title=f"{left} of {num_pairs} among the first 10")
    axes.tick_params(axis="x", rotation=30)
