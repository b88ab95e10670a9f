"""What is known of a product before anybody linked it: its picture's embedding, its words, its category.

Letters: N nodes, D embedding width, F features.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jobs.config import JobError
from jobs.tables import Tables, read_table

WORD = re.compile(r"[^\W\d_]{2,}")
PICTURE_DIMS = 64  # principal directions that are kept of the embeddings
WORD_BUCKETS = 256
COLUMNS = ["product_id", "title", "description", "category", "gender", "brand", "color", "group_id", "popularity", "available"]


@dataclass(frozen=True)
class Content:
    """N nodes of the look graph: products, or the groups that join the variants of a style."""

    ids: tuple[str, ...]  # product_id or group_id
    members: tuple[tuple[str, ...], ...]  # product ids of each node, most popular available one first
    kinds: tuple[str, ...]  # category path; "" = unknown
    features_NF: np.ndarray  # float32
    embeddings_ND: np.ndarray  # float32, unit length

    @property
    def num_nodes(self) -> int:
        return len(self.ids)


def read_content(tables: Tables, bundle_digest: str, by_group: bool) -> Content:
    """Nodes of every product with an embedded photo, sorted by id. Raises JobError where there is none."""
    pictures = first_pictures(tables, bundle_digest)
    rows = [row for row in read_table(tables, "products", COLUMNS).to_pylist() if row["product_id"] in pictures]
    if not rows:
        raise JobError(f"{tables.root}: no product has an embedded photo (bundle {bundle_digest[:12]}); run embed_images first")
    nodes: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (not row["available"], -(row["popularity"] or 0.0), row["product_id"])):
        nodes.setdefault((row["group_id"] if by_group else None) or row["product_id"], []).append(row)
    ids = tuple(sorted(nodes))
    members = tuple(tuple(row["product_id"] for row in nodes[node]) for node in ids)
    embeddings_ND = unit(np.stack([np.mean([pictures[product_id] for product_id in own], axis=0) for own in members]))
    words = word_features([words_of(nodes[node][0]) for node in ids])
    features_NF = np.concatenate([principal(embeddings_ND), words], axis=1).astype(np.float32)
    return Content(ids, members, tuple(nodes[node][0]["category"] or "" for node in ids), features_NF, embeddings_ND)


def first_pictures(tables: Tables, bundle_digest: str) -> dict[str, np.ndarray]:
    """product_id: (D,) float32 embedding of its first photo."""
    ours = pc.field("bundle_digest") == bundle_digest
    fetches = read_table(tables, "fetches").filter(ours & (pc.field("status") == "embedded")).select(["image_uri", "image_id"])
    images = read_table(tables, "images", ["product_id", "position", "image_uri"])
    photos = images.join(fetches, "image_uri", join_type="inner").sort_by(
        [("product_id", "ascending"), ("position", "ascending")]
    )
    wanted = dict(zip(reversed(photos["product_id"].to_pylist()), reversed(photos["image_id"].to_pylist()), strict=True))
    whole = read_table(tables, "features", ["image_id", "bundle_digest", "crop", "embedding"])
    whole = whole.filter(ours & (pc.field("crop") == 0))
    vectors = dict(zip(whole["image_id"].to_pylist(), whole["embedding"].to_pylist(), strict=True))
    return {product_id: np.frombuffer(vectors[image], "<f2").astype(np.float32) for product_id, image in wanted.items()}


def words_of(row: dict[str, Any]) -> list[str]:
    """Words of title and description, and the facts as words of their own."""
    levels = (row["category"] or "").split("/")
    facts = [f"category={'/'.join(levels[: i + 1])}" for i in range(len(levels))]
    facts += [f"{name}={row[name].lower()}" for name in ("gender", "brand", "color") if row[name]]
    return facts + WORD.findall(f"{row['title']} {row['description'] or ''}".lower())


def word_features(documents: Sequence[Sequence[str]]) -> np.ndarray:
    """(N, WORD_BUCKETS) float32, unit length: which words a product has, rare ones counting more (hashed tf-idf)."""
    present = np.zeros((len(documents), WORD_BUCKETS), np.float32)
    for row, words in enumerate(documents):
        for word in set(words):
            digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
            present[row, int.from_bytes(digest, "little") % WORD_BUCKETS] = 1.0
    rarity = np.log((1 + len(documents)) / (1 + present.sum(axis=0)))
    return unit(present * rarity)


def principal(embeddings_ND: np.ndarray) -> np.ndarray:
    """(N, at most PICTURE_DIMS) the embeddings along their principal directions, mean length 1."""
    centred = embeddings_ND - embeddings_ND.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    kept = centred @ directions[:, ::-1][:, :PICTURE_DIMS]
    return np.asarray(kept / max(np.linalg.norm(kept, axis=1).mean(), 1e-9))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32; a zero row stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-9), np.float32)
