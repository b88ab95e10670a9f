"""What people are asked to judge: query photos with known places, and the products that releases or settings found for them.

`jobs.evaluate_search` writes one file a release or setting; the endpoint shows the union of all of them, so that nobody sees who
found what. Photos of users never come here: only those of `evaluate.queries`, which the shop owns.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.index.manifest import write_durably

POOL_FOLDER = "judging"  # below store.root
POOL_DEPTH = 5  # products of one release or setting a photo


@dataclass(frozen=True)
class PooledPhoto:
    """One query photo and the products that anyone found for it."""

    image_id: str
    path: Path
    product_ids: tuple[str, ...]


def write_pool(root: Path, name: str, ranked: Mapping[str, tuple[Path, Sequence[str]]]) -> None:
    """What `name` found. `ranked`: image_id → photo and product ids, best first. Replaces what it had found before."""
    folder = root / POOL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    photos = {
        image_id: {"path": str(path.absolute()), "product_ids": list(product_ids)[:POOL_DEPTH]}
        for image_id, (path, product_ids) in ranked.items()
    }
    write_durably(folder / f"{name}.json", json.dumps(photos, indent=1).encode())


def read_pool(root: Path) -> dict[str, PooledPhoto]:
    """Photos by image_id, in the order of their ids: the union over everything in the pool; empty where there is none."""
    paths: dict[str, Path] = {}
    products: dict[str, dict[str, None]] = {}
    for file in sorted((root / POOL_FOLDER).glob("*.json")):
        for image_id, found in json.loads(file.read_text()).items():
            paths[image_id] = Path(found["path"])
            products.setdefault(image_id, {}).update(dict.fromkeys(found["product_ids"]))
    return {image_id: PooledPhoto(image_id, paths[image_id], tuple(products[image_id])) for image_id in sorted(paths)}
