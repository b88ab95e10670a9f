"""One small catalog with every fault planted once, beside products that only seem to have it; photos are real files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from PIL import Image
from pyspark.sql import SparkSession

from jobs.catalog_doctor import DoctorResult, examine
from jobs.config import Config, JobError
from jobs.evaluation.doctor_report import Facts
from jobs.tables import FEATURES, FETCHES
from serve.vision.hash import fingerprint

LABELS = ("bags/handbag", "shoes/boot")
RED, GREEN, BLACK = (200, 30, 30), (30, 150, 60), (20, 20, 20)
TABLES = {
    "products": pa.schema([(name, pa.string()) for name in ("product_id", "title", "brand", "category", "color", "group_id")]),
    "images": pa.schema([("product_id", pa.string()), ("position", pa.int32()), ("image_uri", pa.string())]),
    "rejects": pa.schema([(name, pa.string()) for name in ("listing_id", "product_id", "reason", "detail", "raw")]),
    "fetches": FETCHES,
    "features": FEATURES,
    "duplicates": pa.schema([("image_id", pa.string()), ("group_id", pa.string())]),
}


@dataclass
class Shop:
    """Rows of every table, and photos on disk."""

    folder: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in TABLES})
    angles: Iterator[int] = field(default_factory=lambda: iter(range(100)))

    def product(self, product_id: str, title: str = "Thing", **columns: str) -> None:
        self.rows["products"].append({"product_id": product_id, "title": title, **columns})

    def photo(self, product_id: str, image_id: str, colour: tuple[int, int, int] = RED, angle: int | None = None) -> None:
        """A square on white, in a file of its own; its embedding points `angle` degrees, else where no other does."""
        path = self.folder / f"{image_id}-of-{product_id}.jpg"
        pixels = np.full((80, 80, 3), 250, np.uint8)
        pixels[20:60, 20:60] = colour
        Image.fromarray(pixels).save(path, quality=95)
        number = sum(row["product_id"] == product_id for row in self.rows["images"])
        self.rows["images"].append({"product_id": product_id, "position": number, "image_uri": path.as_uri()})
        if not any(row["image_id"] == image_id for row in self.rows["features"]):
            self.crop(image_id, 0, (0, 0, 80, 80), angle=next(self.angles) * 3 if angle is None else angle, pixels=pixels)
        self.rows["fetches"].append(fetch(path.as_uri(), image_id=image_id, status="embedded"))

    def crop(
        self,
        image_id: str,
        crop: int,
        box: tuple[int, int, int, int],
        category: str | None = None,
        prob: float | None = None,
        angle: float = 0.0,
        pixels: np.ndarray | None = None,
    ) -> None:
        radians = np.radians(angle)
        row = dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True)) | {"width": 80, "height": 80, "score": 1.0}
        row |= {"image_id": image_id, "bundle_digest": "b1", "crop": crop, "category": category, "category_prob": prob}
        row["embedding"] = np.array([np.cos(radians), np.sin(radians)], "<f2").tobytes()
        if pixels is not None:
            row["colour"] = fingerprint(pixels).colours[0].tobytes()
        self.rows["features"].append(row)

    def dead(self, product_id: str, uri: str, reason: str) -> None:
        self.rows["images"].append({"product_id": product_id, "position": 0, "image_uri": uri})
        self.rows["fetches"].append(fetch(uri, status="rejected", reason=reason, detail="HTTP 404"))

    def write(self) -> None:
        for name, schema in TABLES.items():
            write_deltalake(str(self.folder / "tables" / name), pa.Table.from_pylist(self.rows[name], schema=schema))


def fetch(uri: str, **columns: str) -> dict[str, str]:
    return {"image_uri": uri, "bundle_digest": "b1", "run_id": "r", **columns}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    for number in range(2):  # one picture under two siblings, another under strangers
        shop.product(f"sibling-{number}", group_id="s1")
        shop.photo(f"sibling-{number}", "of-siblings")
        shop.product(f"stranger-{number}")
        shop.photo(f"stranger-{number}", "of-strangers")
    for brand in ("Acme", "acme ", "Zenith"):
        shop.product(f"copy-{brand.strip()}-{len(brand)}", brand=brand)
        shop.photo(f"copy-{brand.strip()}-{len(brand)}", f"copy-{brand}-{len(brand)}")
    shop.rows["duplicates"] += [{"image_id": i, "group_id": "d1"} for i in ("copy-Acme-4", "copy-Zenith-6")]
    shop.rows["duplicates"] += [{"image_id": i, "group_id": "d2"} for i in ("copy-acme -5", "of-siblings")]  # one brand
    for name, seen, prob, other in (
        ("wrong", "bags/handbag", 0.97, None),
        ("unsure", "bags/handbag", 0.5, None),
        ("right", "shoes/boot", 0.99, None),
        ("acquitted", "bags/handbag", 0.97, "shoes/boot"),
    ):
        shop.product(f"{name}-boot", category="Shoes/Boot/Winter")
        shop.photo(f"{name}-boot", f"{name}-boot")
        shop.crop(f"{name}-boot", 1, (10, 10, 70, 70), seen, prob)
        if other:
            shop.crop(f"{name}-boot", 2, (20, 20, 60, 60), other, 0.4)
    shop.product("lamp", category="Home/Lamp")  # the bundle knows no lamps
    shop.photo("lamp", "lamp")
    shop.crop("lamp", 1, (10, 10, 70, 70), "shoes/boot", 0.99)
    shop.product("called-green", color="Dark Green")
    shop.photo("called-green", "called-green", RED)
    shop.product("green", color="green")
    shop.photo("green", "green", GREEN)
    shop.product("partly", color="Green/White")  # what is white is not judged
    shop.photo("partly", "partly", RED)
    shop.product("cap", title="Black cap")
    shop.photo("cap", "cap", BLACK)
    shop.photo("cap", "cap-2", RED)
    shop.product("unreachable", title="Gone")
    shop.dead("unreachable", "https://cdn.example/a.jpg", "fetch_failed")
    shop.product("half", title="Half gone")
    shop.photo("half", "half")
    shop.dead("half", "https://cdn.example/b.jpg", "timeout")
    shop.rows["rejects"].append({"listing_id": "l", "product_id": "bare", "reason": "no_image", "detail": "image_uri=none"})
    for name, angle in (("short", 200), ("long", 201), ("other", 290)):
        shop.product(f"dress-{name}", title="Dress", group_id="dress")
        shop.photo(f"dress-{name}", f"dress-{name}", angle=angle)
    shop.write()
    return shop


@pytest.mark.slow
def test_every_fault_is_found_once_and_shown(spark: SparkSession, shop: Shop) -> None:
    report = shop.folder / "report"
    settings = {
        "store": {"root": shop.folder / "store", "tables": str(shop.folder / "tables")},
        "registry": {"uri": f"sqlite:///{shop.folder}/mlflow.db"},
        "bundle": {"path": "none"},
        "doctor": {"report": report},
    }
    config = Config.model_validate(settings)
    expected = DoctorResult(
        shared_picture=2,
        across_brands=1,
        wrong_category=1,
        colour_differs=1,
        without_photo=2,
        look_alikes=1,
        dead_links=2,
        changed=True,
    )
    assert examine(config, "b1", LABELS) == expected
    told = json.loads((report / "report.json").read_text())["findings"]
    found = {
        name: [(e["kind"], sorted({p["product_id"] for p in e["products"]})) for e in finding["examples"]]
        for name, finding in told.items()
    }
    assert found == {
        "shared_picture": [("strangers", ["stranger-0", "stranger-1"]), ("siblings", ["sibling-0", "sibling-1"])],
        "across_brands": [("brands", ["copy-Acme-4", "copy-Zenith-6"])],
        "wrong_category": [("bags/handbag", ["wrong-boot"])],
        "colour_differs": [("green", ["called-green"])],
        "without_photo": [("fetch_failed", ["unreachable"]), ("no_image", ["bare"])],
        "look_alikes": [("pairs", ["dress-long", "dress-short"])],
        "dead_links": [("fetch_failed, timeout", ["half", "unreachable"])],
    }
    assert told["wrong_category"]["note"].startswith("Judged: 4 of 5 products")
    assert told["dead_links"]["examples"][0]["told"].startswith("cdn.example: 2 of 2 photos")
    page = (report / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 10 and "called-green" in page and "lamp" not in page

    (report / "report.json").unlink()
    assert examine(config, "b1", LABELS) == replace(expected, changed=False)
    assert not (report / "report.json").exists(), "the same tables were examined again"


def test_what_cannot_be_judged_is_said() -> None:
    bare = Facts(
        products=3, photos=3, branded=0, coloured=0, grouped=0, categorised=3, known=0, labels=(), suspected=0, looked_at=0
    )
    notes = bare.notes()
    assert set(notes) == {"across_brands", "wrong_category", "look_alikes"}
    assert "no head" in notes["wrong_category"]
    foreign = replace(bare, labels=LABELS).notes()["wrong_category"]
    assert "bags/handbag, shoes/boot" in foreign and "none of them a category of this shop" in foreign
    assert replace(bare, branded=1, labels=LABELS, known=3).notes() == {}


def test_a_missing_table_says_what_to_run(tmp_path: Path) -> None:
    settings = {
        "store": {"root": tmp_path, "tables": str(tmp_path)},
        "registry": {"uri": "sqlite://"},
        "bundle": {"path": "none"},
    }
    with pytest.raises(JobError, match=r"run jobs\.curate_catalog first"):
        examine(Config.model_validate(settings), "b1", ())
