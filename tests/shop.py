"""A small rendered shop with curated tables, written without Spark: what bundles are measured on."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from jobs import render_catalog
from jobs.config import Config
from tests.parts import ROOT

NUM_PRODUCTS, NUM_SCENES = 12, 6


def render_shop(folder: Path) -> dict[str, Any]:
    """Sections of settings: tables `products` and `images` of a rendered catalog, street scenes as evaluate.queries."""
    render = {"folder": str(folder / "rendered"), "num_products": NUM_PRODUCTS, "num_scenes": NUM_SCENES, "num_workers": 1}
    sections = {
        "store": {"root": str(folder / "store"), "tables": str(folder / "tables")},
        "registry": {"uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "mlruns")},
        "bundle": {"path": str(ROOT / "serve" / "bundles" / "generated-v1")},
        "evaluate": {"queries": str(folder / "rendered" / "queries.jsonl")},
        "evaluate_bundle": {"report": str(folder / "report"), "curves": ["blur", "light"], "curve_queries": 3},
    }
    render_catalog.run(Config.model_validate(sections | {"render": render | {"with_bad_rows": False}}))
    write_tables(folder / "rendered" / "feed.jsonl", folder / "tables")
    return sections


def write_tables(feed: Path, tables: Path) -> None:
    """The feed's rows as curate_catalog would have them."""
    rows = [json.loads(line) for line in feed.read_text().splitlines()]
    products = [
        {"product_id": row["product_id"], "title": row["title"], "description": row.get("description")}
        | {"category": row["category"], "group_id": row.get("group_id")}
        for row in rows
    ]
    images = [
        {"product_id": row["product_id"], "position": position, "image_uri": str(feed.parent / uri)}
        for row in rows
        for position, uri in enumerate(row.get("image_uris") or [row["image_uri"]])
    ]
    write_deltalake(str(tables / "products"), pa.Table.from_pylist(products))
    write_deltalake(str(tables / "images"), pa.Table.from_pylist(images))
