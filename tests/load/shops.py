"""A store of two releases to serve, and photos to ask for: what the benchmarks and drills of serving stand on."""

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from tests.parts import run_module, write_conf

NUM_PHOTOS = 64  # of each kind, sent again and again


@dataclass(frozen=True)
class Shop:
    """Settings of a store with two published releases, and folders of photos: known ones, and those of the street."""

    conf: Path
    releases: tuple[str, str]  # the older one first; the newer one is champion
    known: Path  # catalog photos, compressed again: the hash stage answers
    novel: Path  # street scenes: the vector stage answers
    mixed: Path  # 30 % known, 70 % novel
    put: Path  # for products that are put: photos that no search asks for


@contextlib.contextmanager
def opened_shop(kept: Path | None, num_products: int, **sections: dict[str, Any]) -> Iterator[Shop]:
    """The shop of these settings below `kept`, made there first where there is none; none = one that is gone afterwards."""
    if kept is None:
        with tempfile.TemporaryDirectory() as temp:
            yield make_shop(Path(temp), num_products, sections)
        return
    kept = kept / hashlib.sha256(json.dumps([num_products, sections], sort_keys=True).encode()).hexdigest()[:8]
    noted = kept / "releases.json"  # written last
    shutil.rmtree(kept / "store" / "tables" / "inserts", ignore_errors=True)  # what an earlier run put
    if not noted.exists():
        kept.mkdir(parents=True, exist_ok=True)
        noted.write_text(json.dumps(make_shop(kept, num_products, sections).releases))
    older, newer = json.loads(noted.read_text())
    yield shop_in(kept, older, newer)


def shop_in(folder: Path, older: str, newer: str) -> Shop:
    """What `make_shop` has made there."""
    known, novel, mixed, put = (folder / name for name in ("known", "novel", "mixed", "put"))
    return Shop(folder / "conf.yaml", (older, newer), known, novel, mixed, put)


def make_shop(folder: Path, num_products: int, sections: dict[str, dict[str, Any]]) -> Shop:
    """Renders a catalog, publishes it, changes prices and publishes it again. `sections`: of the settings."""
    rendered = folder / "rendered"
    own: dict[str, Any] = {
        "render": {"folder": str(rendered), "num_products": num_products, "num_scenes": NUM_PHOTOS},
        "feed": {"uri": str(rendered / "feed.jsonl"), "max_reject_frac": 0.5},
        "train_looks": {"links": [str(rendered / "outfits.jsonl")], "model": "cooccurrence"},
    }
    conf = write_conf(folder, own | sections)
    run(conf, "jobs.render_catalog")
    releases = []
    for _ in range(2):
        releases.append(run(conf, "jobs.nightly"))
        change_prices(rendered / "feed.jsonl")
    shop = shop_in(folder, *releases)
    write_photos(sorted((rendered / "images").glob("*-1.jpg")), shop.known, again)
    write_photos(sorted((rendered / "scenes").glob("*.jpg")), shop.novel, darker)
    write_photos(sorted((rendered / "scenes").glob("*.jpg")), shop.put, cut)
    shop.mixed.mkdir(exist_ok=True)
    for number, (one, other) in enumerate(zip(sorted(shop.known.iterdir()), sorted(shop.novel.iterdir()), strict=False)):
        source = one if number % 10 in (0, 3, 6) else other
        (shop.mixed / f"{number:03d}.jpg").write_bytes(source.read_bytes())
    return shop


def run(conf: Path, module: str) -> str:
    """The release that a job speaks of in its last line; empty where it speaks of none."""
    done = run_module(module, conf)
    assert done.returncode == 0, done.stderr[-2000:]
    last = (done.stdout.strip().splitlines() or ["{}"])[-1]
    if not last.startswith("{"):
        return ""
    stages = json.loads(last).get("stages", [])
    return next((stage["counts"].get("release_id", "") for stage in reversed(stages) if stage["counts"].get("release_id")), "")


def change_prices(feed: Path) -> None:
    """Every tenth product costs more: another release, the same vectors."""
    rows = [json.loads(line) for line in feed.read_text().splitlines()]
    for row in rows[::10]:
        if isinstance(row.get("price"), (int, float)):
            row["price"] = round(row["price"] * 1.1 + 0.05, 2)
    feed.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_photos(paths: list[Path], folder: Path, change: Any) -> None:
    """NUM_PHOTOS of `paths`, each changed."""
    folder.mkdir(exist_ok=True)
    for number, path in enumerate(paths[:NUM_PHOTOS]):
        buffer = io.BytesIO()
        try:
            image = Image.open(path).convert("RGB")
        except OSError:
            continue  # the generated catalog has damaged files
        change(image, number).save(buffer, "JPEG", quality=85)
        (folder / f"{number:03d}.jpg").write_bytes(buffer.getvalue())


def again(image: Image.Image, _: int) -> Image.Image:
    """As a user sends a shop's photo back."""
    return image


def cut(image: Image.Image, _: int) -> Image.Image:
    """Its middle: another hash than the whole."""
    return image.crop((image.width // 10, image.height // 10, image.width * 9 // 10, image.height * 9 // 10))


def darker(image: Image.Image, number: int) -> Image.Image:
    """In another light, so that no photo is one of the catalog."""
    return ImageEnhance.Brightness(image).enhance(float(np.random.default_rng(number).uniform(0.6, 0.95)))
