"""Another champion takes over while queries go on; a bad one is refused; back the same way."""

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.api.cascade import Cascade
from serve.api.host import Host, prove
from serve.api.kept import Kept
from serve.api.metrics import Metrics
from serve.api.routes import create_app, warm_up_photo
from serve.api.served import ServedRelease
from serve.api.shard_searcher import ShardSearcher
from serve.api.towers import AskEncoder
from serve.index.manifest import MANIFEST_NAME, Manifest, ReleaseError, file_sha256, read_manifest, write_manifest
from serve.registry import CHAMPION, FOLDER_TAG, RELEASE_ID_TAG, SHA256_TAG, registry_client
from serve.settings import Settings
from tests.api.conftest import searchers
from tests.api.live_app import live
from tests.api.tiny_release import RELEASE_ID, TinyRelease, encoded, picture
from tests.parts import free_port

WATCH_S = 0.1
SWITCH_S = 60.0


@dataclass
class Shop:
    """A store with several releases, its registry, and an endpoint that follows it."""

    settings: Settings
    encode: AskEncoder
    url: str = ""
    opened: list[str] = field(default_factory=list)
    open_now: set[str] = field(default_factory=set)
    most: int = 0

    def release(self, release_id: str, **changes: Any) -> Path:
        """A copy of the tiny release whose shards have paths of their own, so that answers tell whose they are."""
        root = self.settings.store.releases
        folder = root / release_id
        folder.mkdir()
        manifest = read_manifest(root / RELEASE_ID)
        partitions = []
        for partition in manifest.partitions:
            shutil.copytree(root / RELEASE_ID / partition.name, folder / f"{release_id}-{partition.name}")
            shards = tuple(s.model_copy(update={"path": f"{release_id}-{s.path}"}) for s in partition.shards)
            partitions.append(partition.model_copy(update={"shards": shards}))
        write_manifest(folder, manifest.model_copy(update={"release_id": release_id, "partitions": tuple(partitions), **changes}))
        return folder

    def champion(self, release_id: str) -> None:
        """As jobs.publish_release says it to the registry."""
        client, model = registry_client(self.settings.registry), self.settings.registry.model
        if not client.search_registered_models(filter_string=f"name = '{model}'"):
            client.create_registered_model(model)
        folder = self.settings.store.releases / release_id
        tags = {RELEASE_ID_TAG: release_id, SHA256_TAG: file_sha256(folder / MANIFEST_NAME), FOLDER_TAG: f"releases/{release_id}"}
        version = client.create_model_version(model, folder.as_uri(), tags=tags)
        client.set_registered_model_alias(model, CHAMPION, version.version)

    def cascade(self, served: ServedRelease) -> Cascade:
        """As the ingress opens one; counted."""
        shop, release_id = self, served.manifest.release_id
        self.opened.append(release_id)
        self.open_now.add(release_id)
        self.most = max(self.most, len(self.open_now))

        class Counted(Cascade):
            def close(self) -> None:
                shop.open_now.discard(release_id)
                super().close()

        return Counted(served, self.settings, self.encode, searchers(served, self.settings))

    def served(self) -> str:
        return str(httpx.get(f"{self.url}/v1/release").json()["release"]["id"])

    def refused(self) -> dict[str, str] | None:
        found: dict[str, str] | None = httpx.get(f"{self.url}/v1/release").json()["refused"]
        return found

    def wait(self, done: Any) -> None:
        deadline = time.monotonic() + SWITCH_S
        while not done():
            assert time.monotonic() < deadline, f"still {self.served()}, refused {self.refused()}"
            time.sleep(0.05)


@pytest.fixture
def shop(tiny: TinyRelease, encode: AskEncoder, tmp_path: Path) -> Iterator[Shop]:
    root = tmp_path / "store"
    shutil.copytree(tiny.settings.store.root, root)
    update = {
        "store": tiny.settings.store.model_copy(update={"root": root, "tables": str(root / "tables")}),
        "serve": tiny.settings.serve.model_copy(update={"watch_s": WATCH_S}),
        "registry": tiny.settings.registry.model_copy(update={"uri": f"sqlite:///{tmp_path}/mlflow.db"}),
    }
    shop = Shop(tiny.settings.model_copy(update=update), encode)
    shop.champion(RELEASE_ID)
    host = Host(shop.cascade(ServedRelease.resolve(shop.settings)), shop.cascade, shop.settings)
    with live(create_app(host, Metrics())) as shop.url:
        shop.wait(lambda: httpx.get(f"{shop.url}/readyz").status_code == 200)
        yield shop


def test_a_new_champion_takes_over_under_load_and_gives_way_again(shop: Shop, tiny: TinyRelease) -> None:
    shop.release("rtwo")
    answers: list[httpx.Response] = []
    done = threading.Event()

    def ask() -> None:
        client = httpx.Client(timeout=30)
        while not done.is_set():
            for files in ({"image": tiny.photo("p/03")}, {"image": encoded(picture(777))}):
                answers.append(client.post(f"{shop.url}/v1/search", files=files, data={"k": 5, "explain": "true"}))
            answers.append(client.get(f"{shop.url}/v1/products/p/05/similar"))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for release_id in ("rtwo", RELEASE_ID, "rtwo"):
        shop.champion(release_id)
        shop.wait(lambda: shop.served() == release_id)  # noqa: B023
    shop.wait(lambda: shop.open_now == {"rtwo"})
    done.set()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}, [a.text for a in answers if a.status_code != 200][:1]
    bodies = [answer.json() for answer in answers]
    assert {body["release"]["id"] for body in bodies} == {RELEASE_ID, "rtwo"}
    for body in bodies:
        shards = [result["explain"]["shard"] for result in body["results"] if result["explain"]]
        assert all(shard.startswith("rtwo-") == (body["release"]["id"] == "rtwo") for shard in shards), "of one release alone"
    assert shop.opened == [RELEASE_ID, "rtwo", RELEASE_ID, "rtwo"] and shop.most == 2


def spoil(manifest: Manifest, folder: Path, how: str) -> None:
    """Damage after the release was registered, or a release that this code can't serve."""
    shard = next(folder.glob("*/0"))
    if how == "flipped byte":
        vectors = shard / "vectors.f16"
        vectors.write_bytes(vectors.read_bytes()[:-1] + b"\x77")
    elif how == "missing file":
        (shard / "rows.arrow").unlink()
    elif how == "missing release":
        shutil.rmtree(folder)
    elif how == "changed manifest":
        write_manifest(folder, manifest.model_copy(update={"route_threshold": 0.5}))


@pytest.mark.parametrize(
    "how",
    [
        "flipped byte", "missing file", "missing release", "changed manifest", "other hashes", "other bundle", "other width",
        "partition without shards",
    ],
)  # fmt: skip
def test_a_bad_champion_is_refused_and_the_old_one_goes_on(shop: Shop, how: str, tiny: TinyRelease) -> None:
    manifest = read_manifest(shop.settings.store.releases / RELEASE_ID)
    changes: dict[str, Any] = {}
    if how == "other hashes":
        changes["hash"] = manifest.hash.model_copy(update={"version": 999})
    if how == "other bundle":
        changes["bundle"] = manifest.bundle.model_copy(update={"digest": "0" * 64})
    if how == "other width":
        changes["bundle"] = manifest.bundle.model_copy(update={"dim": 2 * manifest.bundle.dim})
    folder = shop.release("rbad", **changes)
    if how == "partition without shards":
        bad = read_manifest(folder)
        emptied = bad.partitions[0].model_copy(update={"shards": ()})
        write_manifest(folder, bad.model_copy(update={"partitions": (emptied, *bad.partitions[1:])}))
    shop.champion("rbad")
    spoil(read_manifest(folder), folder, how)
    shop.wait(lambda: shop.refused() is not None)
    refused = shop.refused()
    assert refused is not None and refused["release"] == "rbad" and refused["reason"]
    assert shop.served() == RELEASE_ID
    answer = httpx.post(f"{shop.url}/v1/search", files={"image": tiny.photo("p/03")}).json()
    assert answer["release"]["id"] == RELEASE_ID and answer["results"][0]["product_id"] == "p/03"
    shop.release("rgood")
    shop.champion("rgood")
    shop.wait(lambda: shop.served() == "rgood")
    assert shop.refused() is None


def test_a_champion_whose_version_is_deleted_changes_nothing(shop: Shop) -> None:
    shop.release("rtwo")
    shop.champion("rtwo")
    shop.wait(lambda: shop.served() == "rtwo")
    client, model = registry_client(shop.settings.registry), shop.settings.registry.model
    client.delete_model_version(model, client.get_model_version_by_alias(model, CHAMPION).version)
    time.sleep(5 * WATCH_S)
    assert shop.served() == "rtwo" and httpx.get(f"{shop.url}/readyz").status_code == 200
    shop.champion(RELEASE_ID)
    shop.wait(lambda: shop.served() == RELEASE_ID)


def test_vectors_that_find_nothing_are_no_release(shop: Shop) -> None:
    """Every digest is right, yet a shard's vectors belong to other products: the golden queries say so."""
    served = ServedRelease.resolve(shop.settings)
    cascade = shop.cascade(served)

    async def nothing(embeddings_QD: Any, *_: Any) -> Any:
        return [[] for _ in embeddings_QD]

    cascade.searchers.groups = [nothing]
    with pytest.raises(ReleaseError, match="not found by its own vector"):
        asyncio.run(prove(cascade, warm_up_photo()))
    cascade.close()


def test_a_pinned_release_stays(shop: Shop) -> None:
    assert ServedRelease.resolve(shop.settings, RELEASE_ID).pinned and not ServedRelease.resolve(shop.settings).pinned
    host = Host(shop.cascade(ServedRelease.resolve(shop.settings, RELEASE_ID)))
    asyncio.run(asyncio.wait_for(host.follow(b""), 5))  # there is nothing to follow
    host.current.close()


def test_a_replica_that_starts_late_opens_what_is_champion_then(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long after its deployment: another champion by then, the deployment's release cleared away, the registry away."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    deployed, settings = ServedRelease.resolve(shop.settings), shop.settings
    away = settings.model_copy(
        update={"registry": settings.registry.model_copy(update={"uri": f"http://127.0.0.1:{free_port()}"})}
    )
    assert ServedRelease.of_now(deployed, settings) is deployed is ServedRelease.of_now(deployed, away)
    shop.release("rlater", created_at="2031-01-01T00:00:00+00:00")
    shop.release("rbad", created_at="2032-01-01T00:00:00+00:00")
    shop.champion("rlater")
    assert ServedRelease.of_now(deployed, settings).manifest.release_id == "rlater"
    pinned = ServedRelease.resolve(settings, RELEASE_ID)
    assert ServedRelease.of_now(pinned, settings) is pinned
    assert ServedRelease.of_now(deployed, away) is deployed
    shop.wait(lambda: shop.served() == "rlater")
    shutil.rmtree(settings.store.releases / RELEASE_ID)
    bad = settings.store.releases / "rbad"
    spoil(read_manifest(bad), bad, "missing file")
    for registry in (settings, away):
        assert ServedRelease.of_now(deployed, registry).manifest.release_id == "rlater"
    ended = ShardSearcher(settings, RELEASE_ID, 0)  # nothing to open yet, and no reason not to start
    assert not ended.groups.all() and ended.groups.get("rlater")
    ended.close()
    shutil.rmtree(settings.store.releases / "rlater")
    with pytest.raises(ReleaseError, match="no release in it is whole"):
        ServedRelease.of_now(deployed, away)


def test_no_more_than_two_are_kept() -> None:
    kept = Kept(str.upper)
    for key in ("a", "b", "a", "c", "a"):
        assert kept.get(key) == key.upper()
    assert kept.all() == ["C", "A"]


def test_while_one_is_opened_the_open_one_is_given() -> None:
    """A switch must not hold up the queries of the release before it."""
    started, finish = threading.Event(), threading.Event()

    def open_one(key: str) -> str:
        if key == "new":
            started.set()
            assert finish.wait(30)
        return key.upper()

    kept = Kept(open_one)
    assert kept.get("old") == "OLD" and "old" in kept and "new" not in kept
    with ThreadPoolExecutor(2) as threads:
        opened = [threads.submit(kept.get, "new") for _ in range(2)]
        assert started.wait(30)
        assert kept.get("old") == "OLD" and not any(one.done() for one in opened)
        finish.set()
        assert [one.result(30) for one in opened] == ["NEW", "NEW"]
    assert kept.all() == ["OLD", "NEW"]
