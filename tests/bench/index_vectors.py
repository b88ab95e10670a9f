"""Vectors, queries and exact answers that the index benchmarks share, as .npy files that every system reads.

    vectors.npy (N, D) fp16   queries.npy (Q, D) float32, the easy half first   truth.npy (Q, PLACES) int64

Clusters have power-law sizes and a falling spectrum, as embeddings do. Easy queries are stored vectors, moved a little; hard ones
lie between two stored vectors, where lists meet. Letters: N rows, D width, Q queries, C clusters.
"""

from pathlib import Path

import numpy as np

from serve.index.exact import exact_search
from serve.vision.bundle import Bundle
from serve.vision.image import decode_image
from serve.vision.spec import DecodeLimits, RuntimeConfig

DIM = 256
NUM_QUERIES = 1000
PLACES = 100
CHUNK = 100_000
SPREAD = 0.9  # of a cluster against the distance of clusters
EASY_NOISE = 0.35


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32."""
    rows = rows.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def spectrum() -> np.ndarray:
    """(D,) standard deviations, falling as 1 / sqrt(1 + i / 16)."""
    return np.asarray(1 / np.sqrt(1 + np.arange(DIM) / 16), np.float32)


def generated(folder: Path, num: int, seed: int = 7) -> Path:
    """The files for `num` generated vectors below `folder`; made once."""
    target = folder / f"generated-{num}"
    if (target / "truth.npy").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    num_clusters = max(num // 100, 10)
    centres = random.standard_normal((num_clusters, DIM), np.float32) * spectrum()
    weights = 1 / np.arange(1, num_clusters + 1) ** 0.8
    rotation = np.linalg.qr(random.standard_normal((DIM, DIM)))[0].astype(np.float32)
    vectors = np.lib.format.open_memmap(target / "vectors.npy", "w+", np.float16, (num, DIM))
    for start in range(0, num, CHUNK):
        size = min(CHUNK, num - start)
        owner = random.choice(num_clusters, size, p=weights / weights.sum())
        rows = centres[owner] + SPREAD * spectrum() * random.standard_normal((size, DIM), np.float32)
        vectors[start : start + size] = unit(rows @ rotation)
    vectors.flush()
    return with_queries(target, vectors, random)


def embedded(photos: Path, bundle_folder: Path) -> np.ndarray:
    """(M, D) embeddings of every JPEG below a folder, whole."""
    bundle = Bundle.load(bundle_folder, RuntimeConfig())
    pixels = (decode_image(path.read_bytes(), DecodeLimits()) for path in sorted(photos.rglob("*.jpg")))
    return np.concatenate([bundle.encoder.encode([image])[0] for image in pixels])


def tiled(folder: Path, real: np.ndarray, num: int, seed: int = 7) -> Path:
    """The files for real embeddings, repeated with noise to `num` rows."""
    target = folder / f"photos-{num}"
    if (target / "truth.npy").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    random, dim = np.random.default_rng(seed), real.shape[1]
    vectors = np.lib.format.open_memmap(target / "vectors.npy", "w+", np.float16, (num, dim))
    for start in range(0, num, CHUNK):
        size = min(CHUNK, num - start)
        owner = random.integers(0, len(real), size)
        vectors[start : start + size] = unit(real[owner] + 0.5 * random.standard_normal((size, dim), np.float32) / np.sqrt(dim))
    vectors.flush()
    return with_queries(target, vectors, random)


def with_queries(target: Path, vectors: np.ndarray, random: np.random.Generator) -> Path:
    """Adds queries and truth."""
    half, dim = NUM_QUERIES // 2, vectors.shape[1]
    rows = np.sort(random.choice(len(vectors), 3 * half, replace=False))
    random.shuffle(rows)
    picked = np.stack([vectors[row] for row in rows]).astype(np.float32)
    easy = picked[:half] + EASY_NOISE * random.standard_normal((half, dim), np.float32) / np.sqrt(dim)
    queries = unit(np.concatenate([easy, picked[half : 2 * half] + picked[2 * half :]]))
    np.save(target / "queries.npy", queries)
    np.save(target / "truth.npy.part.npy", exact_search(queries, vectors, PLACES)[1])
    (target / "truth.npy.part.npy").rename(target / "truth.npy")
    return target


def recall(found_QK: np.ndarray, truth_QK: np.ndarray, k: int = 10) -> float:
    """Mean share of the k truly nearest rows among the k found."""
    return float(np.mean([len(set(f[:k]) & set(t[:k])) / k for f, t in zip(found_QK.tolist(), truth_QK.tolist(), strict=True)]))
