"""Small releases of generated vectors, written by the kernel itself."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from serve.index.manifest import (
    BundleEntry,
    Counts,
    HashEntry,
    Manifest,
    PartitionEntry,
    PartitionSpec,
    ShardEntry,
    file_entry,
    write_manifest,
)
from serve.index.partition import Partition
from serve.index.plan import FLAT
from serve.index.records import PRODUCTS, bucket_of
from serve.index.shard import Shard
from serve.index.writer import write_shard
from serve.vision.hash import HASH_KIND, HASH_VERSION


def searched(folder: Path, spec: PartitionSpec, dim: int) -> Partition:
    """One shard as a partition of its own."""
    return Partition([Shard.open(folder, spec, dim)], spec)


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Rows of unit length, fp16."""
    vectors_ND = vectors_ND.astype(np.float32)
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float16)


def crops_table(product_ids: list[str], vectors_ND: np.ndarray, seed: int = 0) -> pa.Table:
    """One photo a vector, with crop 0 alone."""
    random, num = np.random.default_rng(seed), len(product_ids)
    columns = {
        "product_id": product_ids,
        "position": list(range(num)),
        "image_uri": [f"file:///photos/{i}.jpg" for i in range(num)],
        "image_id": [hashlib.sha256(f"{seed}-{i}".encode()).hexdigest() for i in range(num)],
        "crop": pa.array([0] * num, pa.int32()),
        **{name: pa.array([float(i)] * num, pa.float32()) for i, name in enumerate(("x0", "y0", "x1", "y1"))},
        "embedding": pa.array([vector.tobytes() for vector in vectors_ND], pa.binary()),
        "hash": pa.array([random.bytes(32) for _ in range(num)], pa.binary()),
        "colour": pa.array([random.bytes(48) for _ in range(num)], pa.binary()),
    }
    return pa.table(columns)


def products_table(product_ids: list[str], category: str | None = None) -> pa.Table:
    """The distinct products; product number = price, even ones are available."""
    distinct = sorted(set(product_ids))
    numbers = [int("".join(filter(str.isdigit, product_id)) or 0) for product_id in distinct]
    rows = [
        {
            "product_id": p,
            "title": f"Title {p}",
            "category": category,
            "price": float(n),
            "available": n % 2 == 0,
            "brand": f"b{n % 3}",
        }
        for p, n in zip(distinct, numbers, strict=True)
    ]
    return pa.Table.from_pylist(rows, PRODUCTS)


def write_release(
    folder: Path,
    partitions: dict[str, tuple[list[str], np.ndarray]],
    num_buckets: int = 2,
    queries_BD: np.ndarray | None = None,
) -> Manifest:
    """Flat partitions (name: product ids, vectors), each cut into buckets; every file in the manifest."""
    entries, dim = [], 0
    for name, (product_ids, vectors) in partitions.items():
        dim = vectors.shape[1]
        crops, products = crops_table(product_ids, vectors, seed=len(entries)), products_table(product_ids, f"{name}/kind")
        shards = []
        for bucket in range(num_buckets):
            path = f"shards/{name}-b{bucket}"
            (folder / path).mkdir(parents=True)
            ours = pa.array([bucket_of(p, num_buckets) == bucket for p in product_ids], pa.bool_())
            owned = pa.array([bucket_of(p, num_buckets) == bucket for p in products["product_id"].to_pylist()], pa.bool_())
            write_shard(folder / path, crops.filter(ours), products.filter(owned), dim, None, queries_BD=queries_BD)
            files = tuple(file_entry(folder / path, file.name) for file in sorted((folder / path).iterdir()))
            num_rows, num_products = sum(ours.to_pylist()), sum(owned.to_pylist())
            shards.append(ShardEntry(path=path, bucket=bucket, num_rows=num_rows, num_products=num_products, files=files))
        spec = PartitionSpec(factory=FLAT, nprobe=1, refine_factor=10, metric="cosine")
        entries.append(PartitionEntry(name=name, categories=(name,), spec=spec, template_digest=None, shards=tuple(shards)))
    hashes = {"max_distance": 20, "max_colour_distance": 30.0, "min_quality": 1.0, "false_accept_frac": 0.0, "found_frac": 1.0}
    manifest = Manifest(
        release_id="rtest",
        created_at="2026-01-01T00:00:00+00:00",
        code_version="0",
        tables={"products": 1},
        bundle=BundleEntry(name="none", digest="0" * 64, folder="bundles/none", dim=dim),
        hash=HashEntry(kind=HASH_KIND, version=HASH_VERSION, **hashes),
        route_threshold=0.9,
        num_buckets=num_buckets,
        partition_depth=1,
        partitions=tuple(entries),
        counts=Counts(products=0, images=0, crops=sum(len(vectors) for _, vectors in partitions.values())),
        metrics={},
    )
    write_manifest(folder, manifest)
    return manifest
