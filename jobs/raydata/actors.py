"""The actors of embed_images: fetch and decode, embed, and who owns which bytes.

    ASKED -> Decoder -> DECODED -> Embedder -> ROWS        one row per image_uri all the way: rows in = rows out

A row that is not an image stays a row, with its reason; nothing raises for one bad image. Each actor only wraps the kernel.
"""

from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.raydata.fetch import Fetched, FetchError, FetchRules, Validator
from jobs.raydata.polite import PoliteFetcher
from serve.vision.bundle import Bundle, CropFeatures
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError, image_id_of
from serve.vision.spec import DecodeLimits, RuntimeConfig

EMBEDDED, DUPLICATE, REJECTED, UNCHANGED = "embedded", "duplicate", "rejected", "unchanged"
CLAIM_ROWS = 8  # images whose bytes are claimed in one call
YIELD_BYTES = 64_000_000  # bounds the memory of a block of large photos

# What is to be looked at. Of an image that is asked for again: its status so far, its bytes then, and their Validator.
ASKED = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("known", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("last_modified", pa.string()),
    ]
)

# What both actors write about an image. status: embedded (on the way there, in DECODED), duplicate (another URI of equal
# bytes carries the features), rejected, or unchanged (the bytes are those that were looked at before).
_IMAGE = [
    pa.field("image_uri", pa.string(), nullable=False),
    pa.field("known", pa.string()),
    pa.field("image_id", pa.string()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("num_bytes", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("last_modified", pa.string()),
    pa.field("fetched_at", pa.timestamp("us", "UTC"), nullable=False),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("hash", pa.binary()),
    pa.field("hash_quality", pa.float32()),
    pa.field("colour", pa.binary()),
]
DECODED = pa.schema([*_IMAGE, pa.field("pixels", pa.large_binary())])  # height * width * 3 bytes, RGB
CROP = pa.struct(
    [
        pa.field("crop", pa.int32(), nullable=False),
        pa.field("x0", pa.float32(), nullable=False),
        pa.field("y0", pa.float32(), nullable=False),
        pa.field("x1", pa.float32(), nullable=False),
        pa.field("y1", pa.float32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("category_prob", pa.float32()),
        pa.field("embedding", pa.binary(), nullable=False),
    ]
)
ROWS = pa.schema([*_IMAGE, pa.field("crops", pa.list_(CROP))])


class ImageClaims:
    """Which URI owns which bytes: the first that claims them is decoded and embedded, the others are duplicates.

    One actor a run. It knows the images that are stored already (32 bytes each) and those of this run, at most the number of
    pending URIs (about 250 bytes each). A URI that claims again gets the same answer, so a retried block loses nothing.
    """

    def __init__(self, stored_ids: np.ndarray, owners: dict[bytes, str]) -> None:
        """stored_ids (N,) S32, sorted: SHA-256 digests with features; owners: digest -> URI, of rows staged before a kill."""
        self.stored_ids, self.owners = stored_ids, owners

    def claim(self, uris: list[str], ids: list[bytes]) -> list[bool]:
        """Whether each URI owns its id."""
        wanted = np.array(ids, dtype="S32")
        places = np.searchsorted(self.stored_ids, wanted)
        places[places == len(self.stored_ids)] = 0
        stored = self.stored_ids[places] == wanted if len(self.stored_ids) else np.zeros(len(ids), bool)
        return [not known and self.owners.setdefault(id_, uri) == uri for uri, id_, known in zip(uris, ids, stored, strict=True)]


def start_claims(stored_ids: list[str], owners: dict[bytes, str]) -> ActorHandle:
    """The run's ImageClaims, on the driver's node: other nodes may go. It is not restarted: without it a run ends, and the next
    one goes on from what is staged.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    stored_N = np.sort(np.array([bytes.fromhex(image_id) for image_id in stored_ids], dtype="S32"))
    return ray.remote(ImageClaims).options(num_cpus=0, max_restarts=0, scheduling_strategy=here).remote(stored_N, owners)


class Decoder:
    """Reads ASKED, writes DECODED. Files are fetched by threads while those that have come are decoded in a guarded process.

    Calls may overlap, so that a block whose last photos are slow does not hold up the next one.
    """

    def __init__(self, rules: FetchRules, limits: DecodeLimits, claims: ActorHandle) -> None:
        self.fetcher = PoliteFetcher(rules)
        self.decoder = GuardedDecoder(limits)
        self.claims = claims

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One row for each URI of `batch`, as the files arrive, in tables of up to about YIELD_BYTES of pixels."""
        asked = {self.fetcher.submit(row["image_uri"], known_validator(row)): row for row in batch.to_pylist()}
        arriving = as_completed(list(asked))
        rows: list[dict[str, Any]] = []
        pixels: list[np.ndarray | None] = []
        while some := list(islice(arriving, CLAIM_ROWS)):  # the others are still on their way meanwhile
            claimed = [fetched_row(asked.pop(future), future) for future in some]
            self._mark_duplicates(claimed)
            pixels += [self._decode(row, row.pop("data", None)) for row in claimed]
            rows += claimed
            if sum(image.nbytes for image in pixels if image is not None) >= YIELD_BYTES:
                yield decoded_table(rows, pixels)
                rows, pixels = [], []
        if rows:
            yield decoded_table(rows, pixels)

    def _mark_duplicates(self, rows: list[dict[str, Any]]) -> None:
        """Asks who owns the bytes of these rows."""
        whole = [row for row in rows if row["status"] == EMBEDDED]
        ids = [bytes.fromhex(row["image_id"]) for row in whole]
        for row, owned in zip(whole, ray.get(self.claims.claim.remote([row["image_uri"] for row in whole], ids)), strict=True):
            if not owned:
                row["status"] = DUPLICATE

    def _decode(self, row: dict[str, Any], data: bytes | None) -> np.ndarray | None:
        """The pixels of a row to embed, its size and fingerprint put into it; None, and maybe a reason, for others."""
        if row["status"] != EMBEDDED or data is None:
            return None
        try:
            pixels, fingerprint = self.decoder.decode_with_fingerprint(data)
        except ImageError as error:
            row |= {"status": REJECTED, "reason": error.code, "detail": error.detail}
            return None
        row |= {"height": pixels.shape[0], "width": pixels.shape[1]}
        row |= {"hash": fingerprint.hashes[0].tobytes(), "colour": fingerprint.colours[0].tobytes()}
        row["hash_quality"] = fingerprint.quality
        return pixels


def known_validator(asked: dict[str, Any]) -> Validator | None:
    """Of the bytes that are known of a row of ASKED."""
    return Validator(asked["etag"], asked["last_modified"]) if asked["known"] else None


def fetched_row(asked: dict[str, Any], future: "Future[Fetched]") -> dict[str, Any]:
    """The row of a URI that was fetched, or asked for; new bytes under `data`."""
    row = {"image_uri": asked["image_uri"], "known": asked["known"], "fetched_at": datetime.now(UTC)}
    try:
        found = future.result()
    except FetchError as error:
        return row | {"status": REJECTED, "reason": error.reason, "detail": error.detail}
    row |= {"etag": found.validator.etag, "last_modified": found.validator.last_modified}
    image_id = asked["image_id"] if found.data is None else image_id_of(found.data)
    if image_id == asked["image_id"]:
        return row | {"status": UNCHANGED, "image_id": image_id}
    assert found.data is not None
    return row | {"status": EMBEDDED, "image_id": image_id, "num_bytes": len(found.data), "data": found.data}


def decoded_table(rows: list[dict[str, Any]], pixels: list[np.ndarray | None]) -> pa.Table:
    """A DECODED table."""
    return pa.Table.from_pylist(rows, schema=pa.schema(_IMAGE)).append_column(DECODED.field("pixels"), pixel_column(pixels))


def pixel_column(images: list[np.ndarray | None]) -> pa.Array:
    """(H, W, 3) uint8 images, or None, as one Arrow column: a single copy, and views on the other side.

    Measured by tests/bench/bench_embed.py against Ray's variable-shaped tensors and a column of bytes objects.
    """
    sizes = [0 if image is None else image.nbytes for image in images]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    buffer = pa.allocate_buffer(int(offsets[-1]))  # Arrow's pool keeps its pages: half the time of np.empty on large photos
    data = np.frombuffer(buffer, np.uint8)
    for image, start, size in zip(images, offsets, sizes, strict=False):
        if image is not None:
            data[start : start + size] = image.reshape(-1)
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(images), [None, pa.py_buffer(offsets), buffer])


def pixel_views(table: pa.Table) -> list[np.ndarray]:
    """The images of a DECODED table's rows to embed, (H, W, 3) uint8, read-only views of its memory."""
    views = []
    for row in range(table.num_rows):
        if table["status"][row].as_py() == EMBEDDED:
            shape = (table["height"][row].as_py(), table["width"][row].as_py(), 3)
            views.append(np.frombuffer(table["pixels"][row].as_buffer(), np.uint8).reshape(shape))
    return views


class Embedder:
    """Reads DECODED, writes ROWS: what the bundle finds in each image."""

    def __init__(self, bundle_folder: Path, digest: str, runtime: RuntimeConfig) -> None:
        self.bundle = Bundle.load(bundle_folder, runtime, digest)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row for each row of `batch`, in its order."""
        found = iter(self.bundle.analyse(pixel_views(batch)))
        rows = batch.drop_columns(["pixels"]).to_pylist()
        for row in rows:
            crops = next(found) if row["status"] == EMBEDDED else None
            if crops is not None and not all(is_unit(crop.embedding) for crop in crops):
                row |= {"status": REJECTED, "reason": "bad_embedding", "detail": "not finite, or not of unit length"}
                crops = None
            row["crops"] = None if crops is None else [crop_row(number, crop) for number, crop in enumerate(crops)]
        return pa.Table.from_pylist(rows, schema=ROWS)


def is_unit(embedding_D: np.ndarray) -> bool:
    """Whether a vector may enter an index: FAISS takes NaN and zero vectors without a word."""
    return bool(abs(float(np.linalg.norm(embedding_D)) - 1.0) < 1e-3)


def crop_row(number: int, found: CropFeatures) -> dict[str, Any]:
    """A CROP. The embedding is rounded to fp16, little-endian."""
    x0, y0, x1, y1 = found.crop.box
    return {
        "crop": number,
        "x0": x0,
        "y0": y0,
        "x1": x1,
        "y1": y1,
        "label": found.crop.label,
        "score": found.crop.score,
        "category": found.category,
        "category_prob": found.category_prob,
        "embedding": found.embedding.astype("<f2").tobytes(),
    }
