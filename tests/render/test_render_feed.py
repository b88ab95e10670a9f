"""The written catalog: well-formed rows, declared faults, and a second run that changes nothing."""

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from jobs.config import JobError, RenderConfig
from jobs.render.faults import BAD_ROWS
from jobs.render.feed import aside_folder, write_feed
from jobs.render.outfits import SLOTS, goes_with, make_outfits, partners
from jobs.render.products import make_products

NUM = 200


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def config_for(folder: Path, **changes: object) -> RenderConfig:
    values = {"num_products": NUM, "num_scenes": 6, "image_px": 64, "scene_px": 128, "num_workers": 1} | changes
    return RenderConfig(folder=folder, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "shop"
    write_feed(config_for(folder), progress=False)
    return folder


def test_rows_are_well_formed_and_bad_rows_as_declared(folder: Path) -> None:
    rows = lines(folder / "feed.jsonl")
    faults = json.loads((folder / "faults.json").read_text())
    declared = {fault["line"]: fault["kind"] for fault in faults["rows"]}
    assert set(declared.values()) == set(BAD_ROWS)
    assert len(rows) == NUM + len(declared) and len(declared) == 5
    for number, row in enumerate(rows):
        broken = {
            "missing_product_id": row["product_id"] is None,
            "no_image": row["image_uris"] == [],
            "bad_price": row["price"] < 0,
            "unknown_currency": row["currency"] != "EUR",
            "broken_category": "//" in row["category"],
        }
        assert [kind for kind, is_broken in broken.items() if is_broken] == ([declared[number]] if number in declared else [])
        assert all((folder / uri).is_file() for uri in row["image_uris"])
    good = [row["product_id"] for number, row in enumerate(rows) if number not in declared]
    assert good == [product.product_id for product in make_products(NUM, 7)]


def test_files_are_as_declared(folder: Path) -> None:
    faults = json.loads((folder / "faults.json").read_text())["files"]
    assert {fault["kind"] for fault in faults} == {"truncated", "not_an_image", "same_bytes"}
    kinds = {fault["image_uri"]: fault for fault in faults}
    listed = [
        uri for row in lines(folder / "feed.jsonl") for uri in row["image_uris"] if not str(row["product_id"]).startswith("bad")
    ]
    assert set(kinds) <= set(listed)
    for path in sorted((folder / "images").iterdir())[:120] + [folder / uri for uri in kinds]:
        kind = kinds.get(f"images/{path.name}", {}).get("kind")
        picture = io.BytesIO(path.read_bytes())
        if kind == "not_an_image":
            with pytest.raises(UnidentifiedImageError):
                Image.open(picture)
        elif kind == "truncated":
            with pytest.raises(OSError, match="truncated"):
                Image.open(picture).load()
        else:
            assert Image.open(picture).convert("RGB").size == (64, 64)
    contents = Counter(
        path.read_bytes()
        for path in (folder / "images").iterdir()
        if kinds.get(f"images/{path.name}", {}).get("kind") != "not_an_image"
    )
    doubled = sum(fault["kind"] == "same_bytes" for fault in faults)
    assert sum(count - 1 for count in contents.values()) == doubled > 0


def test_queries_name_real_products_and_boxes(folder: Path) -> None:
    known = {product.product_id for product in make_products(NUM, 7)}
    queries = lines(folder / "queries.jsonl")
    assert len(queries) == 6
    for query in queries:
        assert query["kind"] == "scene" and set(query["product_ids"]) <= known
        assert len(query["boxes"]) == len(query["product_ids"])
        assert Image.open(folder / query["path"]).size == (128, 128)


def test_second_run_changes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_feed(config_for(folder), progress=False).changed is False
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_workers_and_a_killed_run_give_the_same_files(tmp_path: Path) -> None:
    config = config_for(tmp_path / "one", num_products=40, num_scenes=3)
    write_feed(config, progress=False)
    whole = content(config.folder)
    workers = config_for(tmp_path / "two", num_products=40, num_scenes=3, num_workers=2)
    write_feed(workers, progress=False)
    assert content(workers.folder) == whole

    (config.folder / "_done.json").unlink()  # as a run leaves it that was killed while it drew
    (config.folder / "images/gen-00007-1.jpg").unlink()
    config.folder.rename(aside_folder(config))
    assert write_feed(config, progress=False).changed
    assert content(config.folder) == whole


def test_other_settings_replace_the_catalog(tmp_path: Path) -> None:
    write_feed(config_for(tmp_path / "shop", num_products=12, num_scenes=1), progress=False)
    counts = write_feed(config_for(tmp_path / "shop", num_products=9, num_scenes=0, with_bad_rows=False), progress=False)
    assert (counts.rows, counts.bad_rows, counts.bad_images, counts.images) == (9, 0, 0, 27)
    assert len(list((tmp_path / "shop/images").iterdir())) == 27


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(JobError, match="no generated catalog"):
        write_feed(config_for(tmp_path), progress=False)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_partners_are_what_outfits_are_drawn_from() -> None:
    products = make_products(NUM, 7)
    fitting = dict(partners(products, NUM))
    assert list(partners(products, 3)) == list(fitting.items())[:3]
    for outfit in make_outfits(products, 7):
        assert all(b in fitting[a] for a in outfit.product_ids for b in outfit.product_ids if a != b)


def test_outfits_keep_their_rules() -> None:
    products = {product.product_id: product for product in make_products(NUM, 7)}
    outfits = make_outfits(list(products.values()), 7)
    assert len(outfits) > NUM // 4 and outfits == make_outfits(list(products.values()), 7)
    for outfit in outfits:
        members = [products[product_id] for product_id in outfit.product_ids]
        slots = [SLOTS[member.spec.leaf] for member in members]
        assert len(set(slots)) == len(slots)
        assert all(goes_with(one, two) for i, one in enumerate(members) for two in members[:i])
