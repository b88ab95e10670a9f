"""Shards of earlier releases that the planned one has as well: linked into it, not built again.

A shard is made of its photos (whose, in which place, which bytes), the bundle that saw them and the template that it fills. The
digest of the photos and the bundle stands in the manifest as `rows_digest`. Where a finished release has a shard of the same
digest, index and template, its files are linked: no vector is read. products.arrow alone, with price and stock, is written anew.

    <store.root>/originals/<rows_digest>.f16    vectors of the newest two releases' shards as they were embedded, in the order of
                                                their rows, where the shard itself keeps rounded ones: evaluate_index needs them
    <store.root>/generation                     how often everything was rebuilt on purpose (nightly --full); in every digest
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.building import ShardPlan, finished_folders, vectors_path, write_part
from serve.index.manifest import (
    FORMAT_VERSION,
    ReleaseError,
    ShardEntry,
    file_entry,
    read_manifest,
    sync_file,
    sync_folder,
    verify_shard,
    write_durably,
)
from serve.index.plan import IndexPlan
from serve.index.spec import VectorKind
from serve.index.vectors import FILES
from serve.index.writer import PRODUCTS_FILE, write_products
from serve.settings import StoreConfig

log = logging.getLogger(__name__)

PHOTO_TEXTS = ("product_id", "image_uri", "image_id")
Key = tuple[str, str, str, str | None]  # rows_digest, factory, stored vectors, template
EarlierShard = tuple[Path, ShardEntry]  # its release folder, and what it is made of


class EarlierShards:
    """Shards of the finished releases, the newest first, by what they are made of; each is verified before it is given."""

    def __init__(self, store: StoreConfig, dim: int) -> None:
        self.store, self.dim = store, dim
        self.found: dict[Key, EarlierShard] = {}
        self.verified: dict[Key, bool] = {}
        for folder in finished_folders(store.releases):
            for partition, entry in read_manifest(folder).shards():
                if entry.rows_digest is not None:
                    spec = partition.spec
                    self.found[entry.rows_digest, spec.factory, spec.vectors, partition.template_digest] = folder, entry

    def find(self, rows_digest: str, plan: IndexPlan, template: str | None) -> EarlierShard | None:
        """Release folder and entry of such a shard, whole and undamaged; None where there is none."""
        key = (rows_digest, plan.factory, plan.vectors, template)
        if key not in self.verified:
            self.verified[key] = key in self.found and self._is_whole(*self.found[key], plan.vectors)
        return self.found[key] if self.verified[key] else None

    def _is_whole(self, folder: Path, entry: ShardEntry, kind: VectorKind) -> bool:
        assert entry.rows_digest is not None
        original = original_of(self.store, folder / entry.path, entry.rows_digest, kind)
        if not original.is_file() or original.stat().st_size != 2 * self.dim * entry.num_rows:
            return False
        try:
            verify_shard(folder, entry)
        except ReleaseError as error:
            log.warning("shard=%s is built again: %s", entry.path, error)
            return False
        return True


def rows_digests(photos: pa.Table, num_shards: int, bundle_digest: str, generation: int) -> list[str]:
    """For each shard the digest of its photos: columns product_id, position, image_uri, image_id, num_crops, shard.

    An image and a bundle have one set of features for ever, so that these need not be read.
    """
    made_by = json.dumps([FORMAT_VERSION, faiss.__version__, bundle_digest, generation])
    shards = photos["shard"].to_numpy()
    ordered = photos.take(pa.array(np.argsort(shards, kind="stable")))
    ends = np.cumsum(np.bincount(shards, minlength=num_shards))
    found = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        part = ordered.slice(int(start), int(end - start))
        digest = hashlib.sha256(made_by.encode())
        for name in ("position", "num_crops"):
            digest.update(part[name].to_numpy().astype(np.int64).tobytes())
        for name in PHOTO_TEXTS:
            for data in text_bytes(part[name]):
                digest.update(data)
        found.append(digest.hexdigest())
    return found


def text_bytes(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Lengths and characters of a text column without gaps: the same however Arrow holds it."""
    values = column.combine_chunks().cast(pa.large_binary())
    if not len(values):
        return
    ends = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
    yield np.diff(ends).tobytes()
    yield values.buffers()[2][int(ends[0]) : int(ends[-1])].to_pybytes()


def carry_over(folder: Path, shard: ShardPlan, kind: VectorKind, found: EarlierShard, store: StoreConfig) -> None:
    """The shard of an earlier release as the planned `shard` below `folder`, with its products as they are staged."""
    release, entry = found
    old, target = release / entry.path, folder / shard.path
    fresh = target.with_name(f".{target.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    files = {file.name: file for file in entry.files}
    for name in files.keys() - {PRODUCTS_FILE}:
        link(old / name, fresh / name)
    write_products(fresh, pq.read_table(folder / "staged" / f"{shard.name}.products.parquet"))
    sync_file(fresh / PRODUCTS_FILE)
    files[PRODUCTS_FILE] = file_entry(fresh, PRODUCTS_FILE)
    fresh.rename(target)
    sync_folder(target.parent)
    (folder / "entries").mkdir(exist_ok=True)
    link(original_of(store, old, shard.rows_digest, kind), vectors_path(folder, shard))
    write_part(
        folder / "entries" / f"{shard.name}.json",
        entry.model_copy(update={"path": shard.path, "bucket": shard.bucket, "files": tuple(files.values())}),
    )


def original_of(store: StoreConfig, shard: Path, rows_digest: str, kind: VectorKind) -> Path:
    """The file of a finished shard's vectors as they were embedded."""
    return shard / FILES[kind] if kind == "fp16" else originals(store) / f"{rows_digest}.f16"


def keep_original(store: StoreConfig, ordered: Path, rows_digest: str, kind: VectorKind) -> None:
    """Keeps the ordered vectors of a shard that has only rounded ones itself."""
    if kind != "fp16":
        originals(store).mkdir(parents=True, exist_ok=True)
        link(ordered, originals(store) / f"{rows_digest}.f16")


def drop_originals(store: StoreConfig, releases: Iterable[Path]) -> None:
    """Removes those that no shard of these releases was made from."""
    kept = {f"{entry.rows_digest}.f16" for folder in releases for _, entry in read_manifest(folder).shards()}
    for path in originals(store).glob("*.f16"):
        if path.name not in kept:
            path.unlink()


def originals(store: StoreConfig) -> Path:
    """Their folder."""
    return store.root / "originals"


def link(source: Path, target: Path) -> None:
    """`target` becomes another name of the file `source`; a copy where the file system has no such thing."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_file(target)


def read_generation(store: StoreConfig) -> int:
    """How often everything was rebuilt on purpose."""
    path = store.root / "generation"
    return int(path.read_text()) if path.is_file() else 0


def next_generation(store: StoreConfig) -> None:
    """From now on no shard and no template of an earlier release is used again."""
    store.root.mkdir(parents=True, exist_ok=True)
    write_durably(store.root / "generation", str(read_generation(store) + 1).encode())
