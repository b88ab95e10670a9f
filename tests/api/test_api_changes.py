"""Products put, changed and deleted over HTTP: durable, found by every stage, gone from every stage, also after a restart."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from jobs.forget_product import keep_rows
from jobs.retention import compact, vacuum
from jobs.tables import Tables
from serve.api.cascade import Cascade
from serve.api.changes import Change
from serve.api.host import Host
from serve.api.inserts import Inserts
from serve.api.metrics import Metrics
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.api.towers import AskEncoder
from serve.index.inserts import CHANGE, DELETE, EMPTY
from tests.api.conftest import searchers
from tests.api.live_app import live
from tests.api.tiny_release import NUM_PRODUCTS, RELEASE_ID, TinyRelease, encoded, picture
from tests.parts import ROOT

SEEN_S = 2.0  # by then every replica knows


@dataclass(frozen=True)
class Store:
    """A store of its own for one test, and endpoints on it."""

    served: ServedRelease
    tiny: TinyRelease
    encode: AskEncoder

    def cascade(self) -> Cascade:
        """A replica: its own ingress and its own searchers."""
        return Cascade(self.served, self.tiny.settings, self.encode, searchers(self.served, self.tiny.settings))

    def replica(self) -> Any:
        return live(create_app(Host(self.cascade()), Metrics()))


@pytest.fixture
def store(tiny: TinyRelease, encode: AskEncoder, tmp_path: Path) -> Store:
    root = tmp_path / "store"
    shutil.copytree(tiny.settings.store.root, root)
    place = tiny.settings.store.model_copy(update={"root": root, "tables": str(root / "tables")})
    serve = tiny.settings.serve.model_copy(update={"tail_s": 0.1})
    settings = tiny.settings.model_copy(update={"store": place, "serve": serve})
    return Store(ServedRelease.resolve(settings, RELEASE_ID), replace(tiny, settings=settings), encode)


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    with store.replica() as address:
        wait(address)
        yield address


def wait(url: str) -> None:
    for _ in range(300):
        if httpx.get(f"{url}/readyz").status_code == 200:
            return
        time.sleep(0.1)
    pytest.fail("not ready")


def put(url: str, product_id: str, photo: bytes | None, **fields: Any) -> httpx.Response:
    parts = {name: (None, str(value)) for name, value in fields.items()}
    return httpx.put(f"{url}/v1/products/{product_id}", files=parts | ({"image": ("x.jpg", photo)} if photo else {}))


def search(url: str, photo: bytes, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{url}/v1/search", files={"image": photo}, data={"k": 50, **fields}).json()
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    return [result["product_id"] for result in answer["results"]]


def eventually(found: Any) -> None:
    deadline = time.monotonic() + SEEN_S
    while not found():
        assert time.monotonic() < deadline, f"not seen within {SEEN_S} s"
        time.sleep(0.02)


NEW = encoded(picture(900))


def test_a_new_product_is_found_everywhere_and_a_deleted_one_nowhere(url: str, store: Store) -> None:
    with store.replica() as other:
        wait(other)
        answer = put(url, "new/1", NEW, title="New", price=9.5, currency="EUR", stock=3, category="bags/totes")
        assert answer.status_code == 200 and answer.json()["kind"] == "put" and answer.json()["photos"] == 1, answer.text
        found = search(url, NEW, explain="true")
        assert found["stage"] == "hash" and found["results"][0]["match"] == "exact", "acknowledged, so here at once"
        first = found["results"][0]
        assert first["product_id"] == "new/1" and first["attributes"]["stock"] == 3 and first["explain"]["shard"] == "fresh"
        assert len(ids(found)) == NUM_PRODUCTS + 1
        assert httpx.get(url + first["image_url"]).content == NEW
        eventually(lambda: ids(search(other, NEW))[0] == "new/1")
        like = httpx.get(f"{other}/v1/products/new/1/similar", params={"k": 50}).json()
        assert len(ids(like)) == NUM_PRODUCTS
        assert "new/1" in ids(search(other, encoded(picture(901)), filters='{"price_max": 9.9}'))
        assert "new/1" not in ids(search(other, NEW, filters='{"price_max": 9.0}'))
        for gone in ("new/1", "p/03"):
            assert httpx.delete(f"{url}/v1/products/{gone}").json()["kind"] == "delete"
            assert gone not in ids(search(url, NEW)) and gone not in ids(search(url, store.tiny.photo("p/03")))
            eventually(lambda: gone not in ids(search(other, NEW)) + ids(search(other, store.tiny.photo("p/03"))))  # noqa: B023
            assert httpx.get(f"{other}/v1/products/{gone}/similar").status_code == 404
            assert httpx.delete(f"{url}/v1/products/{gone}").status_code == 404
        like = httpx.get(f"{other}/v1/products/p/01/similar", params={"k": NUM_PRODUCTS - 2}).json()
        assert len(ids(like)) == NUM_PRODUCTS - 2, "k stays full without it"


def test_price_and_stock_change_without_an_encoder(store: Store, url: str) -> None:
    changed = httpx.put(f"{url}/v1/products/p/05", json={"price": 99.0, "stock": 0})
    assert changed.status_code == 200 and changed.json()["kind"] == "change"
    found = search(url, store.tiny.photo("p/05"))
    attributes = found["results"][0]["attributes"]
    assert ids(found)[0] == "p/05" and found["results"][0]["match"] == "exact" and ids(found).count("p/05") == 1
    assert (attributes["price"], attributes["stock"], attributes["available"]) == (99.0, 0, False)
    assert (attributes["currency"], attributes["title"]) == ("EUR", "Thing 5")
    assert "p/05" not in ids(search(url, encoded(picture(1000)), filters='{"price_max": 50}'))
    assert "p/05" in ids(search(url, encoded(picture(1000)), filters='{"price_min": 98}'))
    like_before = httpx.get(f"{url}/v1/products/p/05/similar", params={"k": 3}).json()
    assert len(ids(like_before)) == 3


def test_a_new_photo_takes_the_place_of_the_old(url: str, store: Store) -> None:
    assert put(url, "p/07", NEW).status_code == 200
    found = search(url, NEW)
    assert ids(found)[0] == "p/07" and found["results"][0]["attributes"]["title"] == "Thing 7"
    assert search(url, store.tiny.photo("p/07"))["results"][0]["match"] == "similar"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 404, "product_id"),
        ({"price": -1}, 422, "price"),
        ({"price": "1"}, 422, "price"),
        ({"currency": "euro"}, 422, "currency"),
        ({"stock": 1.5}, 422, "stock"),
        ({"category": "a//b"}, 422, "category"),
        ({"title": ""}, 422, "title"),
        ({"colour": "red"}, 422, "colour"),
        ({"image_uri": "file:///etc/passwd"}, 422, "image_uri"),
        ({"image_base64": "%%"}, 422, "image_base64"),
        ({"image_base64": "AAAA"}, 415, "image"),
    ],
)
def test_what_a_product_must_not_be(url: str, body: dict[str, Any], status: int, field: str) -> None:
    response = httpx.put(f"{url}/v1/products/nobody", json=body)
    assert response.status_code == status, response.text
    assert response.json()["errors"][0]["field"] == field
    assert httpx.put(f"{url}/v1/products/{'x' * 257}", json={"stock": 1}).status_code == 422
    assert put(url, "untitled", NEW).json()["errors"][0]["field"] == "title"
    assert put(url, "priced", NEW, title="x", price=3).json()["errors"][0]["field"] == "currency"
    assert httpx.put(f"{url}/v1/products/p/01", content=b"x", headers={"content-type": "text/csv"}).status_code == 415


def test_changes_at_once_are_written_together_and_none_is_lost(url: str, store: Store) -> None:
    def change(number: int) -> None:
        answer = httpx.put(f"{url}/v1/products/p/{number % 6:02d}", json={"stock": number} if number < 6 else {"color": "red"})
        assert answer.status_code == 200

    threads = [threading.Thread(target=change, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = store.cascade().changes.inserts.read_new()
    assert len(rows) == 12 and len({row["at"] for row in rows}) == 12
    for number in range(6):
        attributes = search(url, store.tiny.photo(f"p/{number:02d}"))["results"][0]["attributes"]
        assert (attributes["stock"], attributes["color"]) == (number, "red")


def test_a_restart_knows_what_was_acknowledged(store: Store) -> None:
    with store.replica() as url:
        wait(url)
        put(url, "new/1", NEW, title="New")
        httpx.delete(f"{url}/v1/products/p/02")
    with store.replica() as url:
        wait(url)
        assert ids(search(url, NEW))[0] == "new/1" and "p/02" not in ids(search(url, NEW))


def test_acknowledged_means_durable_whoever_is_killed(store: Store) -> None:
    """A process writes changes one after the other and says so; it is killed in the middle; what it said is there."""
    program = (
        "import sys; from pathlib import Path; from serve.api.inserts import Inserts; from serve.index.inserts import EMPTY;"
        "from serve.index.manifest import read_manifest; from serve.settings import StoreConfig;"
        "store = StoreConfig(root=sys.argv[1], tables=sys.argv[2]); inserts = Inserts(store, read_manifest(Path(sys.argv[3])));\n"
        "for at in range(1, 10_000):\n"
        "    inserts.append([{**EMPTY, 'product_id': f'n{at}', 'at': at, 'kind': 'delete', 'bundle_digest': ''}])\n"
        "    print(at, flush=True)"
    )
    place = store.tiny.settings.store
    command = [sys.executable, "-c", program, str(place.root), place.tables, str(store.served.folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(8)]
    process.kill()
    said += process.stdout.read().split()
    there = {row["at"] for row in Inserts(place, store.served.manifest).read_new()}
    assert set(map(int, filter(None, said))) <= there and len(there) >= 8


def test_what_the_release_holds_is_not_read_again(store: Store) -> None:
    cascade = store.cascade()
    cascade.changes.refresh()
    outcome = cascade.changes._write([Change("p/01", CHANGE, {"stock": 7})])
    assert isinstance(outcome[0], dict) and cascade.changes.fresh.rows.keys() == {"p/01"}
    version = DeltaTable(cascade.changes.inserts.path).version()
    cascade.changes._write([Change("p/02", CHANGE, {"stock": 8})])
    manifest = store.served.manifest.model_copy(update={"tables": {**store.served.manifest.tables, "inserts": version}})
    later = Inserts(store.tiny.settings.store, manifest)
    assert [row["product_id"] for row in later.read_new()] == ["p/02"] and later.read_new() == []
    assert all("pixels" not in name for name in pq.read_schema(next(Path(later.path).glob("*.parquet"))).names)
    cascade.close()


@pytest.mark.parametrize("rewrite", ["joined", "one forgotten"])
def test_old_rows_in_files_written_anew_are_not_read_again(store: Store, rewrite: str) -> None:
    """What was put or deleted long ago stays folded in, for open replicas and for new ones; what is new is found."""
    tables = Tables(store.tiny.settings.store.tables)

    def row(product_id: str, minute: int) -> dict[str, Any]:
        return {**EMPTY, "product_id": product_id, "at": 60_000_000 * minute, "kind": DELETE, "bundle_digest": "", "crops": None}

    first = Inserts(store.tiny.settings.store, store.served.manifest)
    first.append([row("old/1", 10), row("forgotten", 10)])
    first.append([row("old/2", 98), row("last minute", 100)])
    manifest = store.served.manifest.model_copy(update={"tables": {**store.served.manifest.tables, "inserts": 2}})
    open_already = Inserts(store.tiny.settings.store, manifest)
    assert open_already.read_new() == []
    first.append([row("new/1", 101), row("forgotten", 101)])
    if rewrite == "joined":
        assert compact(tables, "inserts", small_files=4) == 0, "three files are few"
        assert compact(tables, "inserts", small_files=3) == 3
    else:
        keep_rows(tables, "inserts", pc.field("product_id") != "forgotten")
    vacuum(tables, "inserts", (), min_age_hours=0)
    for replica in (open_already, Inserts(store.tiny.settings.store, manifest)):
        assert {found["product_id"] for found in replica.read_new()} - {"forgotten", "last minute"} == {"new/1"}
        assert replica.read_new() == []
