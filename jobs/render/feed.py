"""Writes a generated catalog as a shop would hand it over: photos, feed.jsonl, and the truth about it.

images/<product_id>-<view>.jpg   studio photos, 3 a product
feed.jsonl                       one row a product, in the columns of the feed contract; image_uris relative to the folder
scenes/scene-<number>.jpg        street scenes
queries.jsonl                    one row a scene: path, product_ids, boxes (xyxy pixels), categories, occluded_frac, kind
outfits.jsonl                    sets that go well together by the rules of outfits.py: kind, product_ids
partners.jsonl                   for some products everything that those rules allow beside it: what a look is judged by
faults.json                      what is wrong on purpose: rows and files
_done.json                       settings and counts; written last

All is drawn in a folder aside, which keeps finished files over a killed run, and takes its place in one rename.
"""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from jobs.config import JobError, RenderConfig
from jobs.render.faults import BadFile, add_bad_rows, choose_bad_files
from jobs.render.outfits import make_outfits, partners
from jobs.render.products import RenderedProduct, make_products
from jobs.render.scenes import street_scene
from jobs.render.studio import NUM_VIEWS, studio_photo

FORMAT = 2  # raise it when the same settings give other files
DONE = "_done.json"
MAX_PARTNERED = 240  # products whose partners are written down, in partners.jsonl
CHUNK = 16  # products or scenes per task of a worker
JPEG_QUALITY = 90
MAX_IN_SCENE = 4


@dataclass(frozen=True)
class FeedCounts:
    """What a catalog folder holds. `changed`: false where it was there already."""

    products: int
    rows: int
    bad_rows: int
    images: int
    bad_images: int
    scenes: int
    outfits: int
    changed: bool


def write_feed(config: RenderConfig, *, progress: bool = True) -> FeedCounts:
    """Makes `config.folder` the catalog of these settings; does nothing where it is already. Raises JobError."""
    settings, folder = settings_of(config), config.folder
    if (folder / DONE).is_file():
        done = json.loads((folder / DONE).read_text())
        if done["settings"] == settings:
            return FeedCounts(**done["counts"] | {"changed": False})
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"render.folder={folder} is there and is no generated catalog; name another one, or empty it")

    aside = aside_folder(config)
    (aside / "images").mkdir(parents=True, exist_ok=True)
    (aside / "scenes").mkdir(exist_ok=True)
    products = make_products(config.num_products, config.seed)
    with workers(config.num_workers) as pool:
        in_chunks(pool, partial(write_photos, aside, config.image_px), products, "products" if progress else None)
        casts = [Cast(number, cast_of(products, config.seed, number)) for number in range(config.num_scenes)]
        draw_scenes = partial(write_scenes, aside, config.scene_px, config.seed)
        queries = in_chunks(pool, draw_scenes, casts, "scenes" if progress else None)

    files = choose_bad_files(products, config.seed) if config.with_bad_rows else []
    for file in files:
        write_aside(aside / file.image_uri, file.content((aside / file.source_uri).read_bytes()))
    extra = {file.product_id: file for file in files}
    rows = [feed_row(product, extra.get(product.product_id)) for product in products]
    bad_rows: list[dict[str, Any]] = []
    if config.with_bad_rows:
        rows, bad_rows = add_bad_rows(rows, config.seed)
    outfits = make_outfits(products, config.seed)
    write_lines(aside / "feed.jsonl", rows)
    write_lines(aside / "queries.jsonl", queries)
    write_lines(aside / "outfits.jsonl", (asdict(outfit) for outfit in outfits))
    fitting = partners(products, MAX_PARTNERED)
    write_lines(aside / "partners.jsonl", ({"product_id": p, "type": "fits", "linked": linked} for p, linked in fitting))
    faults = {"rows": bad_rows, "files": [asdict(file) | {"image_uri": file.image_uri} for file in files]}
    write_aside(aside / "faults.json", json.dumps(faults, indent=1).encode())

    counts = FeedCounts(
        products=len(products),
        rows=len(rows),
        bad_rows=len(bad_rows),
        images=len(products) * NUM_VIEWS + len(files),
        bad_images=sum(file.kind != "same_bytes" for file in files),
        scenes=config.num_scenes,
        outfits=len(outfits),
        changed=True,
    )
    write_aside(aside / DONE, json.dumps({"settings": settings, "counts": asdict(counts)}, indent=1).encode())
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    return counts


def settings_of(config: RenderConfig) -> dict[str, Any]:
    """The settings that decide what the files hold."""
    return config.model_dump(mode="json", exclude={"folder", "num_workers"}) | {"format": FORMAT}


def aside_folder(config: RenderConfig) -> Path:
    """Where a catalog of these settings is drawn before it takes its place."""
    digest = sha256(json.dumps(settings_of(config), sort_keys=True).encode()).hexdigest()[:12]
    return config.folder.parent / f".{config.folder.name}-{digest}"


def feed_row(product: RenderedProduct, extra: BadFile | None) -> dict[str, Any]:
    """One row of the feed, in the columns of the feed contract."""
    uris = [photo_uri(product, view) for view in range(NUM_VIEWS)] + ([extra.image_uri] if extra else [])
    columns = ("title", "description", "category", "price", "currency", "stock", "available", "gender", "brand", "popularity")
    row = {"product_id": product.product_id, "image_uris": uris} | {name: getattr(product, name) for name in columns}
    return row | {"updated_at": product.updated_at, "group_id": product.group_id, "color": product.color}


def photo_uri(product: RenderedProduct, view: int) -> str:
    """Path of a studio photo inside the catalog's folder."""
    return f"images/{product.product_id}-{view}.jpg"


def write_photos(folder: Path, px: int, products: Sequence[RenderedProduct]) -> list[dict[str, Any]]:
    """Draws the studio photos that are not there yet; gives nothing back."""
    for product in products:
        for view in range(NUM_VIEWS):
            path = folder / photo_uri(product, view)
            if not path.exists():
                write_jpeg(path, studio_photo(product, view, px))
    return []


@dataclass(frozen=True)
class Cast:
    """Which products a scene shows."""

    number: int
    products: tuple[RenderedProduct, ...]


def cast_of(products: Sequence[RenderedProduct], seed: int, number: int) -> tuple[RenderedProduct, ...]:
    """One to MAX_IN_SCENE products for scene `number`."""
    rng = np.random.default_rng([seed, 1, number + 1])
    num = min(int(rng.integers(1, MAX_IN_SCENE + 1)), len(products))
    return tuple(products[i] for i in rng.choice(len(products), num, replace=False))


def write_scenes(folder: Path, px: int, seed: int, casts: Sequence[Cast]) -> list[dict[str, Any]]:
    """Draws scenes and gives their rows of queries.jsonl."""
    queries = []
    for cast in casts:
        scene = street_scene(cast.products, np.random.default_rng([seed, 5, cast.number + 1]), px)
        path = f"scenes/scene-{cast.number:05d}.jpg"
        write_jpeg(folder / path, scene.pixels)
        queries.append(
            {
                "path": path,
                "product_ids": list(scene.product_ids),
                "boxes": scene.boxes_N4.tolist(),
                "categories": list(scene.categories),
                "occluded_frac": [round(float(share), 3) for share in scene.occluded_frac_N],
                "kind": "scene",
            }
        )
    return queries


@contextmanager
def workers(num: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes started afresh, never forked from this one, which may hold threads; None for one worker: this process."""
    if num == 1:
        yield None
        return
    with ProcessPoolExecutor(num, mp_context=multiprocessing.get_context("forkserver")) as pool:
        yield pool


def in_chunks(
    pool: ProcessPoolExecutor | None,
    work: Callable[[Sequence[Any]], list[dict[str, Any]]],
    items: Sequence[Any],
    title: str | None,
) -> list[dict[str, Any]]:
    """Rows that `work` gives for pieces of `items`, in order. `title`: of the progress bar; None shows none."""
    chunks = [items[at : at + CHUNK] for at in range(0, len(items), CHUNK)]
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(items), desc=title, disable=title is None) as bar:
        for chunk, result in zip(chunks, (pool.map if pool else map)(work, chunks), strict=True):
            rows += result
            bar.update(len(chunk))
    return rows


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Saves (H, W, 3) uint8 RGB; the name appears when the file is whole."""
    part = path.with_suffix(".part")
    Image.fromarray(pixels).save(part, "JPEG", quality=JPEG_QUALITY)
    part.replace(path)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Saves rows as JSON lines."""
    write_aside(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_aside(path: Path, content: bytes) -> None:
    """Saves bytes; the name appears when the file is whole."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
