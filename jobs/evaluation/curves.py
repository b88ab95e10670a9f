"""Robustness curves: recall of a bundle against the degree of one distortion of its query photos."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from jobs.config import Config
from jobs.evaluation.bundle_recall import ask, recall_figures
from jobs.evaluation.photo_recall import see_photos
from jobs.evaluation.queries import Query
from jobs.evaluation.robustness import DISTORTIONS, UNCHANGED, curve_variants, write_distorted
from jobs.evaluation.shelf import Shelf
from jobs.raydata.session import progress
from serve.vision.bundle import Bundle

Curve = dict[float, float]  # level -> Recall@1


def measure_curves(
    config: Config, kinds: tuple[str, ...], queries: Sequence[Query], image_ids: Sequence[str], bundle: Bundle, shelf: Shelf
) -> dict[str, Curve]:
    """Recall@1 at every level of every kind of distortion, mildest first; all on the same photos."""
    variants = curve_variants(kinds)
    recall = {}
    with progress("curves", len(variants) * len(queries), "photos") as shown:
        for variant in variants:
            with tempfile.TemporaryDirectory(prefix="distorted-") as folder:
                distorted = write_distorted(queries, variant, Path(folder), config.evaluate.seed, config.decode)
                seen = see_photos(distorted, bundle, config.decode, shown.add)
            recall[variant] = recall_figures(ask(distorted, image_ids, seen, seen.embeddings_QD, shelf))["recall_at_1"]
    curves: dict[str, Curve] = {kind: {float(DISTORTIONS[kind].levels[0]): recall[UNCHANGED]} for kind in kinds}
    for variant, value in recall.items():
        if variant != UNCHANGED:
            curves[variant.kind][variant.level] = value
    return curves


def spread(queries: Sequence[Query], num: int) -> list[int]:
    """Places of at most `num` queries, evenly over their order."""
    step = max(1, -(-len(queries) // num))
    return list(range(0, len(queries), step))


def draw_curves(axes: Axes, kind: str, by_bundle: Mapping[str, Mapping[float, float]]) -> None:
    """The curve of one kind of distortion, a line a bundle."""
    for name, curve in by_bundle.items():
        levels = sorted(curve)
        axes.plot(levels, [curve[level] for level in levels], marker="o", markersize=3, label=name)
    axes.set(xlabel=f"{kind}: {DISTORTIONS[kind].unit}", ylabel="Recall@1", ylim=(0, 1.02))
    if kind == "light":
        axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
