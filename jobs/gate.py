"""The gate: what a release must reach to be published, by itself and beside the champion."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.compute as pc
from deltalake import DeltaTable

from jobs.config import Ceiling, Floor, GateConfig
from jobs.tables import Tables, read_table, table_version

GATE_EXIT_CODE = 3
ROUNDING = 1e-9
WORDS = {
    "recall_at_10": "recall@10 against exact search",
    "photo_recall_at_10": "known answers among the first 10",
    "p99_ms": "99th percentile of a query in ms",
    "bytes_per_crop": "bytes a crop",
    "accepted_rows_frac": "share of the feed's rows that are good",
    "embedded_photos_frac": "share of the photos that can be searched",
    "products": "products that can be searched",
    "same_results_frac": "share of the champion's 10 nearest products that come back",
    "same_text_results_frac": "share of the champion's 10 products for a text that come back",
}
HINTS = {"recall_at_10": "raise index.refine_factor or index.pq_bytes, or set index.kind=flat"}


@dataclass(frozen=True)
class Figure:
    """One figure of the release, and the two to compare, measured on what both it and the champion have."""

    value: float
    ours: float | None = None
    champion: float | None = None
    noise: float = 0.0  # what chance may move: a bound above zero allows so much


@dataclass(frozen=True)
class Check:
    """A figure held against its bounds."""

    name: str
    words: str
    figure: Figure
    faults: tuple[str, ...]  # in words


def judge(gate: GateConfig, figures: Mapping[str, Figure]) -> list[Check]:
    """Every figure that the gate knows; those named photo_recall_at_10.CATEGORY share a bound."""
    checks = []
    for name, figure in figures.items():
        kind, _, part = name.partition(".")
        setting = "category_recall_at_10" if part else kind
        bound: Floor | Ceiling = getattr(gate, setting)
        faults = floor_faults(bound, figure) if isinstance(bound, Floor) else ceiling_faults(bound, figure)
        words = WORDS[kind] + (f" of {part}" if part else "")
        hint = f": {HINTS[kind]}" if kind in HINTS else ""
        checks.append(Check(name, words, figure, tuple(f"{words} {fault.format(f'gate.{setting}')}{hint}" for fault in faults)))
    return checks


def floor_faults(floor: Floor, figure: Figure) -> list[str]:
    """What is too low; {} stands for the setting."""
    faults = []
    if figure.value < floor.least:
        faults.append(f"is {figure.value:.4g}, {{}}.least is {floor.least:g}")
    if figure.champion is not None and figure.ours is not None and floor.drop_frac is not None:
        allowed = max(floor.drop_frac * figure.champion, figure.noise if floor.drop_frac else 0.0)
        if figure.ours < figure.champion - allowed - ROUNDING:
            faults.append(f"is {figure.ours:.4g}, the champion's {figure.champion:.4g}, {{}}.drop_frac is {floor.drop_frac:g}")
    return faults


def ceiling_faults(ceiling: Ceiling, figure: Figure) -> list[str]:
    """What is too high; {} stands for the setting."""
    faults = []
    if figure.value > ceiling.most:
        faults.append(f"is {figure.value:.4g}, {{}}.most is {ceiling.most:g}")
    if figure.champion is not None and figure.ours is not None and ceiling.rise_frac is not None:
        allowed = max(figure.champion * (1 + ceiling.rise_frac), ceiling.free)
        if figure.ours > allowed:
            faults.append(f"is {figure.ours:.4g}, the champion's {figure.champion:.4g}, {{}}.rise_frac is {ceiling.rise_frac:g}")
    return faults


def catalog_figures(tables: Tables, versions: Mapping[str, int], bundle_digest: str) -> dict[str, float]:
    """Shares of rows and of photos that came through; without those whose tables are not there."""
    figures = {}
    counts = {
        name: DeltaTable(tables.path(name)).count() for name in ("listings", "rejects") if table_version(tables, name) is not None
    }
    if counts.get("listings"):
        figures["accepted_rows_frac"] = round(1 - counts.get("rejects", 0) / counts["listings"], 4)
    uris = pc.unique(read_table(tables, "images", ["image_uri"], versions["images"])["image_uri"])
    ours = (pc.field("bundle_digest") == bundle_digest) & (pc.field("status") == "embedded")
    fetches = DeltaTable(tables.path("fetches"), version=versions["fetches"]).to_pyarrow_dataset()
    embedded = fetches.to_table(["image_uri"], ours)["image_uri"]
    figures["embedded_photos_frac"] = round(pc.sum(pc.is_in(uris, embedded)).as_py() / len(uris), 4)
    return figures
