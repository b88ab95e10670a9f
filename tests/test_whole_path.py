"""From a feed to an answered search, every engine real; and the same feed again changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from deltalake import DeltaTable

from jobs import nightly
from jobs.tables import TABLE_NAMES, Tables, read_table, table_version
from serve.index.manifest import LOG_IS_KEPT, read_manifest
from serve.registry import champion
from tests.api.tiny_release import encoded, picture
from tests.parts import BuiltStore, endpoint, run_module, write_conf

CATALOG = sorted(set(TABLE_NAMES) - {"runs"})  # a run that changes nothing is a record all the same


def fetched(built_store: BuiltStore) -> list[dict[str, Any]]:
    """The photos that have features."""
    rows = read_table(Tables(built_store.config.store.tables), "fetches").to_pylist()
    return [row for row in rows if row["status"] == "embedded"]


def test_every_row_is_accounted_for(built_store: BuiltStore) -> None:
    tables = Tables(built_store.config.store.tables)
    raw = len(built_store.feed.read_text().splitlines())
    listings, rejects = (read_table(tables, name).num_rows for name in ("listings", "rejects"))
    assert listings == raw and 0 < rejects < raw
    uris = set(read_table(tables, "images")["image_uri"].to_pylist())
    fetches = read_table(tables, "fetches").to_pylist()
    assert {row["image_uri"] for row in fetches} == uris and len(fetches) == len(uris)
    embedded = {row["image_id"] for row in fetches if row["status"] == "embedded"}
    assert embedded == set(read_table(tables, "features")["image_id"].to_pylist())
    assert all(row["reason"] for row in fetches if row["status"] == "rejected")


def test_same_feed_again_changes_nothing(built_store: BuiltStore) -> None:
    tables = Tables(built_store.config.store.tables)
    versions = {name: table_version(tables, name) for name in CATALOG}
    released = champion(built_store.config.registry, built_store.config.store)
    nightly.run(built_store.config)
    assert {name: table_version(tables, name) for name in CATALOG} == versions
    assert champion(built_store.config.registry, built_store.config.store) == released


def test_delta_leaves_the_log_of_what_a_release_names(built_store: BuiltStore) -> None:
    tables, released = Tables(built_store.config.store.tables), champion(built_store.config.registry, built_store.config.store)
    for name in read_manifest(released).tables:
        kept = DeltaTable(tables.path(name)).metadata().configuration
        assert LOG_IS_KEPT.items() <= kept.items(), name


def test_every_photo_finds_its_product(built_store: BuiltStore, served: str) -> None:
    tables = Tables(built_store.config.store.tables)
    owner = {row["image_uri"]: row["product_id"] for row in read_table(tables, "images").to_pylist()}
    photos = fetched(built_store)
    for row in photos[::7]:
        photo = Path(row["image_uri"].removeprefix("file://"))
        answer = requests.post(f"{served}/v1/search", files={"image": photo.read_bytes()}, data={"k": 5}, timeout=30).json()
        same_bytes = {owner[other["image_uri"]] for other in photos if other["image_id"] == row["image_id"]}
        assert answer["stage"] == "hash" and answer["results"][0]["match"] == "exact"
        assert answer["results"][0]["product_id"] in same_bytes


def test_scenes_find_their_products_over_http(built_store: BuiltStore, served: str) -> None:
    folder = built_store.conf.parent / "report"
    done = run_module("jobs.evaluate_search", built_store.conf, f"evaluate.url={served}", f"evaluate.report={folder}")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["pairs"] >= figures["queries"] == 8 and figures["recall_at_10"] > 0.3  # chance is 0.25 at 40 products
    assert 0 <= figures["clear_recall_at_1"] <= 1 and figures["recall_at_1"] <= figures["recall_at_10"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 8


def test_distorted_photos_are_sent(built_store: BuiltStore, served: str, tmp_path: Path) -> None:
    """At a five-hundredth of the light hardly anything is found any more; a distortion that does not exist is named."""
    settings = (f"evaluate.url={served}", f"evaluate.report={tmp_path}")
    done = run_module("jobs.evaluate_search", built_store.conf, *settings, "evaluate.distortion=light=0.002")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["distortion"] == "light=0.002" and figures["queries"] == 8 and figures["recall_at_1"] < 0.3
    done = run_module("jobs.evaluate_search", built_store.conf, *settings, "evaluate.distortion=fog=1")
    assert done.returncode == 1 and "evaluate.distortion='fog=1' is no distortion; allowed: none, rotation" in done.stderr


def test_plan_runs_nothing(built_store: BuiltStore) -> None:
    tables = Tables(built_store.config.store.tables)
    versions = {name: table_version(tables, name) for name in TABLE_NAMES}
    done = run_module("jobs.nightly", built_store.conf, flags=("--plan",))
    assert done.returncode == 0 and "curate_catalog" in done.stdout and "embed_images" in done.stdout, done.stderr
    assert {name: table_version(tables, name) for name in TABLE_NAMES} == versions


def test_damaged_release_is_never_served(built_store: BuiltStore) -> None:
    release = champion(built_store.config.registry, built_store.config.store)
    victim = next(release.rglob("vectors.f16"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        done = run_module("serve", built_store.conf)
        assert done.returncode == 1 and "vectors.f16" in done.stderr and "Traceback" not in done.stderr
    finally:
        victim.write_bytes(content)


def test_no_champion_yet(tmp_path: Path) -> None:
    done = run_module("serve", write_conf(tmp_path, {}))
    assert done.returncode == 1 and "jobs.nightly" in done.stderr and "Traceback" not in done.stderr


def test_port_in_use(built_store: BuiltStore, served: str) -> None:
    done = run_module("serve", built_store.conf, flags=("--port", served.rsplit(":", 1)[1]))
    assert done.returncode == 1 and "in use" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_came_over_http_is_folded_in(built_store: BuiltStore, served: str) -> None:
    """Inserted and deleted, the nightly run, then the same answers: no doubles, no ghosts."""
    photo = encoded(picture(4321))
    known = Path(fetched(built_store)[0]["image_uri"].removeprefix("file://")).read_bytes()
    owner = ask(served, known)["results"][0]["product_id"]
    product = f"{served}/v1/products"
    for product_id, data in (("http-1", photo), ("http-2", encoded(picture(99)))):
        form = {"title": "Over HTTP", "category": "apparel/shoes"}
        put = requests.put(f"{product}/{product_id}", files={"image": data}, data=form, timeout=30)
        assert put.status_code == 200, put.text
    for gone in ("http-2", owner):
        assert requests.delete(f"{product}/{gone}", timeout=30).status_code == 200
    before = ask(served, photo)
    nightly.run(built_store.config)
    manifest = read_manifest(champion(built_store.config.registry, built_store.config.store))
    assert manifest.tables["inserts"] == table_version(Tables(built_store.config.store.tables), "inserts")
    with endpoint(built_store.conf) as renewed:
        after, of_known = ask(renewed, photo), ask(renewed, known)
    assert before["release"]["id"] != after["release"]["id"] == manifest.release_id
    assert after["stage"] == "hash" and after["results"][0]["product_id"] == "http-1"
    found = [[result["product_id"] for result in answer["results"]] for answer in (before, after, of_known)]
    assert found[0] == found[1] and len(set(found[1])) == len(found[1])
    assert not {"http-2", owner} & {*found[1], *found[2]}


def ask(url: str, photo: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = requests.post(f"{url}/v1/search", files={"image": photo}, data={"k": 50}, timeout=30).json()
    return answer
