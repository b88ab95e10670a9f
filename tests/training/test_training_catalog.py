"""Training photos from Delta tables: who learns, who is measured, and that a bad photo is counted and left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from PIL import Image

from jobs.config import Config, JobError
from jobs.training.catalog import load_catalog, stage_catalog
from jobs.training.crops import SHOP, USER

PRODUCTS = [("hat-1", "hats", "hat"), ("hat-2", "hats", "hat"), ("shoe-1", "shoes", "shoe-1"), ("shoe-2", "shoes", "shoe-2")]


def picture(path: Path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((80, 100)).save(path, "JPEG")
    return str(path)


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, Any]:
    """Settings of a catalog of four products, the first photo of each good, the second of shoe-2 broken; three user photos."""
    products = [
        {"product_id": id_, "title": f"a {category[:-1]}", "description": None, "category": category, "group_id": style}
        | {"color": "red", "brand": None, "gender": None}
        for id_, category, style in PRODUCTS
    ]
    images = []
    for number, (id_, _, _) in enumerate(PRODUCTS):
        for position in range(2):
            uri = picture(tmp_path / f"photos/{id_}-{position}.jpg", 10 * number + position)
            images.append({"product_id": id_, "position": position, "image_uri": uri})
    (tmp_path / "photos/shoe-2-1.jpg").write_bytes(b"no photo")
    write_deltalake(str(tmp_path / "tables/products"), pa.Table.from_pylist(products))
    write_deltalake(str(tmp_path / "tables/images"), pa.Table.from_pylist(images))
    rows = [
        {"path": Path(picture(tmp_path / f"users/{n}.jpg", 50 + n)).name, "product_id": id_, "split": split}
        for n, (id_, split) in enumerate([("hat-1", "train"), ("shoe-1", "train"), ("shoe-1", "val"), ("gone", "train")])
    ]
    (tmp_path / "users/photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "store": {"root": str(tmp_path / "store"), "tables": str(tmp_path / "tables")},
        "registry": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "bundle": {"path": "none"},
        "training": {"source": "catalog", "folder": str(tmp_path / "training"), "tile_px": 40},
    }


def with_users(shop: dict[str, Any], tmp_path: Path, **more: object) -> Config:
    photos = {"user_photos": str(tmp_path / "users/photos.jsonl"), "heldout_where": {"split": "val"}}
    return Config.model_validate(shop | {"training": shop["training"] | photos | more})


def test_user_photos_learn_or_are_measured(ray_local: None, shop: dict[str, Any], tmp_path: Path) -> None:
    config = with_users(shop, tmp_path)
    folder = stage_catalog(config)
    photos = load_catalog(folder)
    assert json.loads((folder / "done.json").read_text())["rejected"] == {"not_an_image": 1}
    assert (photos.learn.domains_N == SHOP).sum() == 7
    assert [photos.learn.products[row].product_id for row in photos.learn.products_N[photos.learn.domains_N == USER]] == [
        "hat-1",
        "shoe-1",
    ]
    assert (photos.held_out.domains_N == USER).sum() == 1 and not photos.unseen_Q.any()
    assert photos.learn.products[0].texts == ("a hat",) and dict(photos.learn.products[0].attributes) == {"color": "red"}
    tile, box = photos.learn.tiles_NTT3[0], photos.learn.boxes_N4[0]
    assert tile.shape == (40, 40, 3)
    np.testing.assert_allclose(box, [0.1, 0, 0.9, 1], atol=1e-6)

    made = (folder / "done.json").stat().st_mtime_ns
    assert stage_catalog(config) == folder and (folder / "done.json").stat().st_mtime_ns == made, "made once"


def test_without_user_photos_other_views_of_unseen_styles_are_measured(
    ray_local: None, shop: dict[str, Any], tmp_path: Path
) -> None:
    config = Config.model_validate(shop | {"training": shop["training"] | {"heldout_styles_frac": 0.34}})
    photos = load_catalog(stage_catalog(config))
    learned = {product.style for product in photos.learn.products}
    asked = {photos.held_out.products[row].style for row in photos.held_out.products_N[photos.held_out.domains_N == USER]}
    assert len(learned) == 2 and len(asked) <= 1 and not learned & asked
    assert photos.unseen_Q.all()
    assert len(photos.held_out.products) == 4, "every product is in the catalog that is searched"


def test_the_catalog_photos_of_new_products_may_be_learned_from(ray_local: None, shop: dict[str, Any], tmp_path: Path) -> None:
    config = with_users(shop, tmp_path, heldout_styles_frac=0.34, seed=0)
    folder = stage_catalog(config)
    without, with_catalog = load_catalog(folder), load_catalog(folder, heldout_catalog=True)
    assert len(without.learn.products) < len(with_catalog.learn.products) == 4
    assert (with_catalog.learn.domains_N == SHOP).sum() == 7
    assert (with_catalog.learn.domains_N == USER).sum() == (without.learn.domains_N == USER).sum()
    np.testing.assert_array_equal(with_catalog.unseen_Q, without.unseen_Q)


def test_what_is_wrong_is_said(ray_local: None, shop: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"nothing is held out .*training\.heldout_where .*heldout_styles_frac"):
        stage_catalog(Config.model_validate(shop))
    with pytest.raises(JobError, match="no row matches"):
        stage_catalog(with_users(shop, tmp_path, heldout_where={"split": "test"}))
    with pytest.raises(JobError, match="no such file"):
        stage_catalog(with_users(shop, tmp_path, user_photos=str(tmp_path / "none.jsonl")))
    (tmp_path / "tables/products/_delta_log").rename(tmp_path / "moved_log")
    with pytest.raises(JobError, match="data files and no log"):
        stage_catalog(with_users(shop, tmp_path))
    (tmp_path / "tables/products").rename(tmp_path / "moved")
    with pytest.raises(JobError, match=r"run jobs\.curate_catalog first"):
        stage_catalog(with_users(shop, tmp_path))
