"""Training photos out of the curated catalog, and of its users: read through Ray Data, kept as arrays, the marker last.

Reads the tables `products` and `images` at one exact version each and, where `training.user_photos` names some, photos with
known products. Without user photos, a product's photos behind its first one stand for them: other views of the same thing.
Letters: N crops, T side of a tile.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from jobs.config import Config, JobError
from jobs.evaluation.queries import Query, load_queries
from jobs.raydata.delta import pinned_version
from jobs.raydata.fetch import FetchError, FetchRules, fetch_rules
from jobs.raydata.polite import PoliteFetcher
from jobs.raydata.session import map_actors, progress
from jobs.runs import pairs
from jobs.tables import Tables, read_table
from jobs.training.crops import CONTEXT, SHOP, USER, WHOLE, CropSet, TrainingProduct, TrainingSet, tile_of
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError
from serve.vision.spec import DecodeLimits

log = logging.getLogger(__name__)

DONE = "done.json"
BATCH_ROWS = 64
MAX_USER_PHOTOS = 1_000_000
ATTRIBUTES = ("color", "brand", "gender")  # columns of `products` that a photo may show
PHOTO = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("product", pa.int64(), nullable=False),  # row in done.json
        pa.field("domain", pa.int64(), nullable=False),
        pa.field("held_out", pa.bool_(), nullable=False),
        pa.field("box", pa.list_(pa.float32())),  # xyxy pixels; null = the whole photo
    ]
)
TILE = pa.schema(
    [*PHOTO, pa.field("tile", pa.binary()), pa.field("tile_box", pa.list_(pa.float32())), pa.field("reason", pa.string())]
)


@dataclass(frozen=True)
class StagedProduct:
    """A product in done.json. `unseen`: its style is left out of training."""

    product: TrainingProduct
    unseen: bool


def stage_catalog(config: Config) -> Path:
    """The folder of tiles of these versions and settings, made if it is not there yet; needs a started Ray. Raises JobError."""
    tables, training = Tables(config.store.tables), config.training
    versions = {name: pinned_version(tables, name, written_by="jobs.curate_catalog") for name in ("products", "images")}
    folder = training.folder.resolve() / f"catalog-{digest_of(config, versions)}"
    if (folder / DONE).is_file():
        return folder
    products = staged_products(tables, versions, training.heldout_styles_frac, training.seed)
    photos = photo_rows(config, tables, versions, products)
    folder.mkdir(parents=True, exist_ok=True)
    reasons: dict[str, int] = {}
    arguments = {
        "rules": fetch_rules(config),
        "limits": config.decode,
        "tile_px": training.tile_px,
    }
    tiles = map_actors(
        ray.data.from_arrow(photos).repartition(max(1, photos.num_rows // BATCH_ROWS)),
        TileReader,
        arguments,
        actors=config.embed.decode_actors,
        batch_size=BATCH_ROWS,
        cpus=config.embed.decode_cpus,
        gpus=0,
        max_restarts=config.embed.max_restarts,
    )
    with progress("training_photos", photos.num_rows, "photos") as shown:
        for number, rows in enumerate(tiles.iter_batches(batch_size=None, batch_format="pyarrow")):
            for reason in rows["reason"].drop_null().to_pylist():
                reasons[reason] = reasons.get(reason, 0) + 1
            write_part(folder / f"part-{number:06d}.npz", rows, training.tile_px)
            shown.add(rows.num_rows)
    if sum(reasons.values()) == photos.num_rows:
        raise JobError(f"training: none of {photos.num_rows} photos can be read: {pairs(reasons)}")
    log.info("training_photos=%s photos=%d rejected=%d %s", folder.name, photos.num_rows, sum(reasons.values()), pairs(reasons))
    done = {"versions": versions, "rejected": reasons, "products": [asdict(product) for product in products]}
    partial = folder / f"{DONE}.partial"
    partial.write_text(json.dumps(done))
    partial.rename(folder / DONE)
    return folder


def digest_of(config: Config, versions: dict[str, int]) -> str:
    """Names a folder of tiles: another version, setting or list of user photos is another folder."""
    user_photos = config.training.user_photos
    given = hashlib.sha256(user_photos.read_bytes()).hexdigest() if user_photos and user_photos.is_file() else ""
    values = [config.store.tables, versions, config.training.model_dump(mode="json", exclude={"folder"}), given]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def staged_products(tables: Tables, versions: dict[str, int], unseen_frac: float, seed: int) -> list[StagedProduct]:
    """All products, sorted by id; a seeded `unseen_frac` of their styles is left out of training. Raises JobError for none."""
    columns = ["product_id", "title", "description", "category", "group_id", *ATTRIBUTES]
    rows = read_table(tables, "products", columns, versions["products"]).sort_by("product_id").to_pylist()
    if not rows:
        raise JobError(f"{tables.root}: the table products is empty; run jobs.curate_catalog on a feed first")
    styles = sorted({row["group_id"] or row["product_id"] for row in rows})
    unseen = set(np.random.default_rng(seed).permutation(styles)[: round(unseen_frac * len(styles))].tolist())
    return [
        StagedProduct(
            TrainingProduct(
                product_id=row["product_id"],
                style=(style := row["group_id"] or row["product_id"]),
                category=row["category"],
                texts=tuple(text for text in (row["title"], row["description"]) if text),
                attributes={name: row[name] for name in ATTRIBUTES if row[name]},
            ),
            style in unseen,
        )
        for row in rows
    ]


def photo_rows(config: Config, tables: Tables, versions: dict[str, int], products: Sequence[StagedProduct]) -> pa.Table:
    """PHOTO rows: the catalog's photos, and the users'. Raises JobError where there is nothing to learn from or to measure on."""
    training = config.training
    row_of = {staged.product.product_id: row for row, staged in enumerate(products)}
    images = read_table(tables, "images", ["product_id", "position", "image_uri"], versions["images"]).to_pylist()
    rows: list[dict[str, Any]] = []
    for image in images:
        product = row_of[image["product_id"]]
        other_view = training.user_photos is None and image["position"] > 0
        domain, apart = (USER, products[product].unseen) if other_view else (SHOP, False)
        rows.append({"uri": image["image_uri"], "product": product, "domain": domain, "held_out": apart, "box": None})
    if training.user_photos is not None:
        limit, seed = MAX_USER_PHOTOS, training.seed
        held_out = load_queries(training.user_photos, training.heldout_where, limit, seed) if training.heldout_where else []
        measured = {query.path for query in held_out}
        learned = [q for q in load_queries(training.user_photos, training.user_where, limit, seed) if q.path not in measured]
        for queries, apart in ((learned, False), (held_out, True)):
            rows += user_rows(queries, row_of, products, apart, measured=bool(held_out))
    if not any(row["held_out"] for row in rows):
        raise JobError(
            "training: nothing is held out to measure on; set training.heldout_where (column: value of user photos), or "
            "training.heldout_styles_frac for a catalog whose products have several photos"
        )
    return pa.Table.from_pylist(rows, schema=PHOTO)


def user_rows(
    queries: Sequence[Query], row_of: dict[str, int], products: Sequence[StagedProduct], held_out: bool, *, measured: bool
) -> Iterator[dict[str, Any]]:
    """PHOTO rows of user photos. Photos to learn from are dropped where their product is unseen; where no photos are set apart
    to measure on (`measured`), these are what is measured on.
    """
    for query in queries:
        boxes: Sequence[Any] = query.boxes_N4 or [None] * len(query.product_ids)
        for product_id, box in zip(query.product_ids, boxes, strict=True):
            row = row_of.get(product_id)
            if row is None:
                continue  # withdrawn since
            apart = held_out or (products[row].unseen and not measured)
            if apart or not products[row].unseen:
                yield {"uri": str(query.path.absolute()), "product": row, "domain": USER, "held_out": apart, "box": box}


class TileReader:
    """Reads PHOTO, writes TILE: each photo fetched, decoded by the guarded decoder, cut to its tile. Bad ones keep a reason."""

    def __init__(self, rules: FetchRules, limits: DecodeLimits, tile_px: int) -> None:
        self.fetcher = PoliteFetcher(rules)
        self.decoder = GuardedDecoder(limits)
        self.tile_px = tile_px

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        fetched = [self.fetcher.submit(row["uri"]) for row in rows]
        for row, future in zip(rows, fetched, strict=True):
            row |= {"tile": None, "tile_box": None, "reason": None}
            try:
                pixels = self.decoder.decode(future.result().whole)
            except FetchError as error:
                row["reason"] = error.reason
                continue
            except ImageError as error:
                row["reason"] = error.code
                continue
            whole = [0, 0, pixels.shape[1], pixels.shape[0]]
            box, context = (whole, WHOLE) if row["box"] is None else (row["box"], CONTEXT)
            tile, tile_box = tile_of(pixels, np.array(box, np.float32), self.tile_px, context)
            row |= {"tile": tile.tobytes(), "tile_box": tile_box.tolist()}
        return pa.Table.from_pylist(rows, schema=TILE)


def write_part(path: Path, rows: pa.Table, tile_px: int) -> None:
    """The rows with a tile as arrays (temp + rename)."""
    kept = [row for row in rows.to_pylist() if row["tile"] is not None]
    if not kept:
        return
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            tiles=np.stack([np.frombuffer(row["tile"], np.uint8).reshape(tile_px, tile_px, 3) for row in kept]),
            boxes=np.array([row["tile_box"] for row in kept], np.float32),
            products=np.array([row["product"] for row in kept], np.int64),
            domains=np.array([row["domain"] for row in kept], np.int64),
            held_out=np.array([row["held_out"] for row in kept]),
        )
    partial.rename(path)


def load_catalog(folder: Path, heldout_catalog: bool = False) -> TrainingSet:
    """The staged photos, in memory. `heldout_catalog`: catalog photos of unseen products are learned from, too.

    Raises JobError where nothing is left to learn from.
    """
    done = json.loads((folder / DONE).read_text())
    products = tuple(
        TrainingProduct(**entry["product"] | {"texts": tuple(entry["product"]["texts"])}) for entry in done["products"]
    )
    unseen_P = np.array([entry["unseen"] for entry in done["products"]])
    parts = []
    for path in sorted(folder.glob("part-*.npz")):
        with np.load(path) as part:
            parts.append([part[name] for name in ("tiles", "boxes", "products", "domains", "held_out")])
    tiles, boxes, rows, domains, held_out = (np.concatenate(column) for column in zip(*parts, strict=True))
    crops = CropSet(tiles, boxes, rows, domains, products)
    learned = np.flatnonzero(~held_out & (~unseen_P[rows] | (heldout_catalog & (domains != USER))))
    measured = np.flatnonzero(held_out | (domains != USER))
    if not len(learned) or not len(measured):
        raise JobError(f"{folder}: {len(learned)} photos to learn from, {len(measured)} to measure on; both are needed")
    queries = measured[domains[measured] == USER]
    kept = crops.part(measured)
    return TrainingSet(crops.part(learned), kept, unseen_P[rows[queries]])
