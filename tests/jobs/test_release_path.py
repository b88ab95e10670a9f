"""train_index, build_shards, evaluate_index, publish_release on real tables, Ray, FAISS, MLflow; again; killed; rolled back."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from PIL import Image

from jobs import build_shards, clean_store, evaluate_index, forget_product, publish_release, train_index
from jobs.building import CODE_VERSION, ShardPlan, find_building, finished_folders, next_moment
from jobs.config import Config, JobError
from jobs.failpoint import EXIT_CODE
from jobs.publish_release import PublishResult
from jobs.release_registry import Registry
from jobs.retention import pinned_versions
from jobs.reuse import next_generation
from jobs.run_records import record
from jobs.runs import Run
from jobs.tables import FEATURES, FETCHES, Tables
from jobs.traces import traces
from serve.index.manifest import MANIFEST_NAME, ReleaseError, read_manifest
from serve.index.release import Release
from serve.ranking.records import FEEDBACK
from serve.registry import NoChampionError, champion, registered, release_folder
from serve.vision.bundle import assemble_bundle, bundle_digest
from serve.vision.hash import fingerprint_bytes
from serve.vision.spec import DecodeLimits
from tests.parts import ROOT, write_conf

DIM = 32
NUM_PRODUCTS = 600
ROOTS = ("apparel", "home", "toys", "odd")
pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an untrained network: the release path never runs it."""
    import torch
    from safetensors.torch import save_file

    from serve.vision.backbones import EmbeddingNet

    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_file(EmbeddingNet("mobilenet_v3_small", DIM, 0).state_dict(), path)
    torch.manual_seed(0)
    return path


def photo(seed: int) -> bytes:
    """A JPEG of smooth coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(patches).resize((96, 80), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Rows of unit length, fp16."""
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float16)


def write_tables(folder: Path, config: Config, digest: str, num_products: int = NUM_PRODUCTS) -> None:
    """Products with two photos each, a whole crop and one item a photo; the first 12 products' photos exist as files.

    Product 1 has a third photo whose bytes are those of product 0's first; product 2's second photo was rejected.
    """
    tables, random = Tables(config.store.tables), np.random.default_rng(3)
    centres = random.standard_normal((num_products, DIM))
    products, images, fetches, features = [], [], [], []
    for p in range(num_products):
        name = f"sku-{p:04d}"
        category = None if p == 5 else f"{ROOTS[0 if p < 400 else 1 if p < 570 else 2 if p < 590 else 3]}/kind-{p % 3}"
        products.append(
            {"product_id": name, "title": f"Product {p}", "category": category, "price": float(p), "available": p % 2 == 0}
        )
        for position in range(2):
            data = photo(p * 2 + position) if p < 12 else f"{p}-{position}".encode()
            uri = f"file://{folder}/photos/{name}-{position}.jpg"
            if p < 12:
                Path(uri.removeprefix("file://")).write_bytes(data)
            image_id = hashlib.sha256(data).hexdigest()
            rejected = p == 2 and position == 1
            images.append({"product_id": name, "position": position, "image_uri": uri})
            fetch = {"image_uri": uri, "bundle_digest": digest, "run_id": "test", "num_bytes": len(data)}
            fetches.append(
                fetch
                | ({"status": "rejected", "reason": "truncated"} if rejected else {"status": "embedded", "image_id": image_id})
            )
            if rejected:
                continue
            seen = fingerprint_bytes(data, DecodeLimits()) if p < 12 else None
            vectors = unit(centres[p] + 0.35 * random.standard_normal((2, DIM)))
            for crop in range(2):
                row = {"image_id": image_id, "bundle_digest": digest, "crop": crop, "x0": 0.0, "y0": 0.0, "x1": 9.0, "y1": 8.0}
                row |= {"width": 9, "height": 8, "score": 1.0, "embedding": vectors[crop].tobytes()}
                if crop == 0:
                    row |= {
                        "hash": seen.hashes[0].tobytes() if seen else random.bytes(32),
                        "hash_quality": seen.quality if seen else 50.0,
                    }
                    row |= {"colour": seen.colours[0].tobytes() if seen else random.bytes(48)}
                features.append(row)
    first = next(row for row in fetches if row["image_uri"].endswith("sku-0000-0.jpg"))
    copy = f"file://{folder}/photos/copy.jpg"
    images.append({"product_id": "sku-0001", "position": 2, "image_uri": copy})
    fetches.append(first | {"image_uri": copy})
    shutil.copy(folder / "photos" / "sku-0000-0.jpg", folder / "photos" / "copy.jpg")
    other = [row | {"bundle_digest": "0" * 64} for row in features[:10]]  # of another bundle: must not be indexed
    text = {
        name: pa.string()
        for name in ("product_id", "title", "category", "currency", "gender", "brand", "seller", "color", "group_id")
    }
    schema = pa.schema(
        {**text, "price": pa.float64(), "popularity": pa.float64(), "available": pa.bool_(), "stock": pa.int32()}
        | {"updated_at": pa.timestamp("us", "UTC")}
    )
    write_deltalake(tables.path("products"), pa.Table.from_pylist(products, schema), mode="overwrite")
    write_deltalake(tables.path("images"), pa.Table.from_pylist(images), mode="overwrite")
    write_deltalake(tables.path("fetches"), pa.Table.from_pylist(fetches, FETCHES), mode="overwrite")
    write_deltalake(tables.path("features"), pa.Table.from_pylist(features + other, FEATURES), mode="overwrite")


@pytest.fixture(scope="module")
def unpublished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A store with tables, before its first release; returns the folder with conf.yaml."""
    folder = tmp_path_factory.mktemp("release")
    (folder / "photos").mkdir()
    encoder = {"kind": "torchvision", "arch": "mobilenet_v3_small", "weights": str(weights), "embedding_dim": DIM}
    sections = {
        "bundle": {"name": "untrained", "encoder": encoder},
        "ray": {"num_cpus": 2},
        "index": {"flat_below_rows": 650, "num_shards": 2, "min_partition_rows": 150},
        "evaluate": {"num_queries": 60, "hash_photos": 400},
        "publish": {"keep": 2},
    }
    config = Config.load(write_conf(folder, sections))
    bundle = assemble_bundle(config.bundle, config.store.bundles, config.registry.uri)
    write_tables(folder, config, bundle_digest(bundle))
    return folder


def config_of(folder: Path, *settings: str) -> Config:
    """Settings of the store in `folder`."""
    return Config.load(folder / "conf.yaml", list(settings))


def run_all(config: Config) -> PublishResult:
    """The four jobs in order."""
    train_index.run(config)
    build_shards.run(config)
    evaluate_index.run(config)
    return publish_release.run(config)


@pytest.fixture(scope="module")
def published(unpublished: Path) -> Path:
    """The store after its first release."""
    with pytest.raises(NoChampionError, match=r"jobs\.nightly"):
        champion(config_of(unpublished).registry, config_of(unpublished).store)
    assert run_all(config_of(unpublished)).changed
    return unpublished


def test_release_is_whole(published: Path) -> None:
    config = config_of(published)
    release = Release.open(champion(config.registry, config.store))
    manifest = release.manifest
    assert [p.name for p in manifest.partitions] == ["apparel", "home", "rest"]
    assert manifest.partitions[2].categories == ("", "odd", "toys")
    assert (manifest.counts.products, manifest.counts.crops) == (NUM_PRODUCTS, 2 * (2 * NUM_PRODUCTS - 1 + 1))
    assert manifest.partitions[0].spec.factory.startswith("OPQ") and manifest.partitions[2].spec.factory == "Flat"
    assert manifest.metrics["recall_at_10"] >= 0.9
    assert release.product("sku-0005")["title"] == "Product 5" and release.product("sku-9999") is None
    for product in range(3, NUM_PRODUCTS, 17):
        [found] = release.search(release.product_embedding(f"sku-{product:04d}")[None], 5)
        assert found[0].product_id == f"sku-{product:04d}" and found[0].score == pytest.approx(1, abs=1e-3)
        assert len({candidate.product_id for candidate in found}) == 5
    assert not list(release.folder.glob("staged")) and not list(release.folder.glob("*.json"))[1:]


def test_hash_stage_finds_every_owner(published: Path) -> None:
    config = config_of(published)
    release = Release.open(champion(config.registry, config.store))
    match = release.hash_stage(fingerprint_bytes(photo(0), DecodeLimits()))
    assert match is not None and set(match.product_ids) == {"sku-0000", "sku-0001"} and match.distance == 0
    match = release.hash_stage(fingerprint_bytes(photo(7), DecodeLimits()))
    assert match is not None and match.product_ids == ("sku-0003",)
    assert release.hash_stage(fingerprint_bytes(photo(12345), DecodeLimits())) is None


def test_again_changes_nothing(published: Path) -> None:
    config = config_of(published)
    before = registered(config.registry, config.store, "champion")
    assert not train_index.run(config).changed
    again = run_all(config)
    assert not again.changed and registered(config.registry, config.store, "champion") == before
    client = Registry(config).client
    assert len(client.search_model_versions(f"name = '{config.registry.model}'")) == 1


def test_second_release_rollback_and_back(published: Path) -> None:
    first = registered(config_of(published).registry, config_of(published).store, "champion")
    with pytest.raises(JobError, match="no previous release"):
        publish_release.run(config_of(published), rollback=True)
    second = config_of(published, "index.seed=18")
    result = run_all(second)
    assert result.changed and result.previous == first.release_id
    assert publish_release.run(second, rollback=True).release_id == first.release_id
    assert not run_all(second).changed  # the same input does not bring back what was rolled back
    assert champion(second.registry, second.store) == first.folder
    assert publish_release.run(second, rollback=True).release_id == result.release_id
    assert champion(second.registry, second.store).name == result.release_id
    back = run_all(config_of(published))  # old settings again: their release is there, and is champion again
    assert back.changed and back.release_id == first.release_id


def test_old_releases_are_removed(published: Path) -> None:
    for seed in range(30, 34):
        result = run_all(config_of(published, f"index.seed={seed}"))
    config = config_of(published)
    folders = {path.name for path in config.store.releases.glob("r*")}
    assert len(folders) == 4 and {result.release_id, result.previous} <= folders
    with pytest.raises(ReleaseError, match="there are"):
        release_folder(config.store, "rgone")


def test_gate_keeps_the_champion(published: Path) -> None:
    config = config_of(
        published, "index.seed=50", "gate.recall_at_10.least=1.0", "index.refine_factor=1", "index.target_recall=0.1"
    )
    before = registered(config.registry, config.store, "champion")
    train_index.run(config)
    build_shards.run(config)
    with pytest.raises(JobError, match=r"gate\.recall_at_10\.least") as refused:
        evaluate_index.run(config)
    assert refused.value.exit_code == 3
    with pytest.raises(JobError, match="did not pass"):
        publish_release.run(config)
    assert registered(config.registry, config.store, "champion") == before
    refused_id = find_building(config.store)[1].release_id
    train_index.run(config_of(published, "index.seed=51"))  # other input: what was refused is forgotten
    assert find_building(config.store)[1].release_id != refused_id


def test_damaged_shard_is_built_again(published: Path) -> None:
    config = config_of(published, "index.seed=60")
    train_index.run(config)
    build_shards.run(config)
    folder, _ = find_building(config.store)
    damage(next(folder.rglob("vectors.sq8")))
    result = build_shards.run(config)
    assert (result.built, result.kept, result.reused) == (1, 1, 4)


def damage(victim: Path) -> None:
    """One bit of a file; other names of it keep what it was."""
    data = bytearray(victim.read_bytes())
    data[7] ^= 1
    victim.unlink()
    victim.write_bytes(data)


@pytest.mark.parametrize(("what", "message"), [("memory", r"raise index\.num_shards"), ("disk", r"GB are free")])
def test_a_build_that_does_not_fit_is_refused(tmp_path: Path, what: str, message: str) -> None:
    made = {"path": "shards/p000-b000", "bucket": 0, "num_rows": 10**9, "rows_digest": "", "reused": False}
    shard = ShardPlan(**made, build_ram_bytes=1, disk_bytes=1)
    huge = shard.model_copy(update={"build_ram_bytes" if what == "memory" else "disk_bytes": 10**18})
    with pytest.raises(JobError, match=message):
        build_shards.check_room(tmp_path, [shard, huge])
    build_shards.check_room(tmp_path, [shard])


@pytest.mark.drill
@pytest.mark.parametrize(
    ("job", "point"),
    [
        ("train_index", "train:after_staging"),
        ("train_index", "train:after_templates"),
        ("publish_release", "publish:after_manifest"),
        ("publish_release", "publish:after_rename"),
        ("publish_release", "publish:after_register"),
        ("publish_release", "publish:after_previous"),
        ("publish_release", "publish:after_champion"),
    ],
)
def test_killed_and_carried_through(published: Path, job: str, point: str) -> None:
    config = config_of(published, f"index.seed={crc32(point.encode()) % 10_000}", "index.kind=flat")
    conf = published / "killed.yaml"
    conf.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    old = registered(config.registry, config.store, "champion")
    if job == "publish_release":
        train_index.run(config)
        build_shards.run(config)
        evaluate_index.run(config)
    environment = os.environ | {"VS_FAILPOINT": point}
    killed = subprocess.run([sys.executable, "-m", f"jobs.{job}", "--conf", str(conf)], cwd=ROOT, env=environment, check=False)
    assert killed.returncode == EXIT_CODE
    result = run_all(config)
    assert champion(config.registry, config.store).name == result.release_id != old.release_id
    assert result.previous == old.release_id
    versions = Registry(config).client.search_model_versions(f"tags.release_id = '{result.release_id}'")
    assert len(versions) == 1
    Release.open(champion(config.registry, config.store))


def test_changed_manifest_is_refused(published: Path) -> None:
    config = config_of(published)
    path = champion(config.registry, config.store) / MANIFEST_NAME
    content = path.read_bytes()
    data = json.loads(content)
    data["metrics"]["recall_at_10"] = 1.0
    path.write_text(json.dumps(data))
    try:
        assert read_manifest(path.parent).metrics["recall_at_10"] == 1.0
        with pytest.raises(ReleaseError, match="was changed"):
            champion(config.registry, config.store)
    finally:
        path.write_bytes(content)


def test_file_store_is_refused(published: Path) -> None:
    config = config_of(published, "registry.uri=file:///nowhere/mlruns")
    with pytest.raises(ReleaseError, match="sqlite"):
        champion(config.registry, config.store)


def test_code_version_is_the_package_s() -> None:
    assert f'version = "{CODE_VERSION}"' in (ROOT / "pyproject.toml").read_text()


def answers(release: Release, partitions: list[str] | None = None) -> list[list[str]]:
    """Products found for the embedding of every seventh one, best first; none = in all partitions."""
    ids = [f"sku-{product:04d}" for product in range(6, NUM_PRODUCTS, 7)]
    queries = [release.product_embedding(product_id) for product_id in ids]
    return [[found.product_id for found in row] for row in release.search(np.stack(queries), 5, partitions)]


def test_only_what_changed_is_built(published: Path) -> None:
    """New prices touch no vector, a withdrawn product rebuilds its shard alone, and everything built again answers the same."""
    config = config_of(published)
    run_all(config)
    tables, folder = Tables(config.store.tables), champion(config.registry, config.store)
    DeltaTable(tables.path("products")).update({"price": "price + 1"})
    trained = train_index.run(config)
    assert trained.changed and trained.reused == trained.shards == 6
    building, _ = find_building(config.store)
    assert not list((building / "staged").glob("*.crops.parquet")), "no row was read"
    assert (build_shards.run(config).built, run_all(config).changed) == (0, True)
    repriced = Release.open(champion(config.registry, config.store))
    assert repriced.product("sku-0041")["price"] == 42.0 and repriced.product("sku-0041")["title"] == "Product 41"
    for _, entry in repriced.manifest.shards():
        for file in entry.files:
            old, new = folder / entry.path / file.name, repriced.folder / entry.path / file.name
            assert old.samefile(new) == (file.name != "products.arrow")

    for name in ("products", "images"):
        DeltaTable(tables.path(name)).delete("product_id = 'sku-0030'")
    trained = train_index.run(config)
    assert (trained.products, trained.shards - trained.reused) == (NUM_PRODUCTS - 1, 1)
    built = build_shards.run(config)
    assert (built.built, built.reused, built.kept) == (1, 5, 0)
    assert run_all(config).changed
    incremental = Release.open(champion(config.registry, config.store))
    assert incremental.product("sku-0030") is None
    next_generation(config.store)
    assert train_index.run(config).reused == 0
    assert run_all(config).changed and not run_all(config).changed
    rebuilt = Release.open(champion(config.registry, config.store))
    assert rebuilt.manifest.release_id != incremental.manifest.release_id
    assert answers(rebuilt, ["home", "rest"]) == answers(incremental, ["home", "rest"]), (
        "exact partitions answer alike to the last"
    )
    pairs = list(zip(answers(rebuilt), answers(incremental), strict=True))
    assert all(new[0] == old[0] for new, old in pairs)
    recalls = [release.manifest.metrics["recall_at_10"] for release in (rebuilt, incremental)]
    assert recalls[0] == pytest.approx(recalls[1], abs=0.02), "codes of another template round otherwise, and lose no more"


def test_a_damaged_shard_is_not_used_again(published: Path) -> None:
    config = config_of(published)
    run_all(config)
    for folder in finished_folders(config.store.releases):
        damage(folder / "shards" / "p002-b000" / "vectors.f16")
    DeltaTable(Tables(config.store.tables).path("products")).update({"price": "price + 1"})
    trained = train_index.run(config)
    assert trained.shards - trained.reused == 1
    building, _ = find_building(config.store)
    damage(building / "shards" / "p000-b000" / "index.faiss")  # after it was linked
    with pytest.raises(JobError, match="run again, it is built then"):
        build_shards.run(config)
    assert run_all(config).changed
    Release.open(champion(config.registry, config.store))


def test_the_release_of_an_earlier_day(published: Path) -> None:
    """From the tables as the last good run before that moment left them; then today's again."""
    config = config_of(published)
    first = run_all(config).release_id
    night = Run("nightly")
    night.end("published")
    record(config, night, "here", 1)
    DeltaTable(Tables(config.store.tables).path("products")).update({"price": "price + 1"})
    second = run_all(config).release_id
    moment = (night.started_at + timedelta(seconds=1)).isoformat()
    then = run_all(config_of(published, f"nightly.as_of='{moment}'"))
    assert first != second and (then.release_id, then.previous) == (first, second)
    assert run_all(config).release_id == second
    with pytest.raises(JobError, match="no good run before it"):
        train_index.run(config_of(published, "nightly.as_of='2020-01-01T00:00Z'"))


def test_a_table_that_was_made_anew_is_another_one(published: Path) -> None:
    """With as many versions as before, so that only the number of its version is the same: another release all the same."""
    config = config_of(published)
    path = Tables(config.store.tables).path("products")
    now = DeltaTable(path).to_pyarrow_table()
    before, num_versions = run_all(config), DeltaTable(path).version() + 1
    shutil.rmtree(path)
    for _ in range(num_versions - 1):
        write_deltalake(path, now, mode="overwrite")
    dearer = pc.add(now["price"], 1.0)
    write_deltalake(path, now.set_column(now.column_names.index("price"), "price", dearer), mode="overwrite")
    assert DeltaTable(path).version() == num_versions - 1
    after = run_all(config)
    assert after.changed and after.release_id != before.release_id
    folder = champion(config.registry, config.store)
    assert read_manifest(folder).tables["products"] == num_versions - 1
    served = Release.open(folder).product("sku-0007")
    assert served is not None and served["price"] == pc.max(dearer.filter(pc.equal(now["product_id"], "sku-0007"))).as_py()
    assert not run_all(config).changed


def test_features_that_are_gone_are_not_left_out_in_silence(published: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    shutil.copytree(config_of(published).store.tables, tables)
    features = DeltaTable(tables / "features").to_pyarrow_table()
    write_deltalake(tables / "features", features.filter(pc.less(features["image_id"], "8")), mode="overwrite")
    with pytest.raises(JobError, match=r"features: lacks \d+ photos that `fetches` calls embedded.*run jobs\.embed_images"):
        train_index.run(config_of(published, f"store.tables={tables}", f"store.root={tmp_path}/store"))


def test_the_order_of_releases_is_not_that_of_clocks(published: Path) -> None:
    """The newest release was made on a machine that was a day ahead."""
    releases = config_of(published).store.releases
    manifest = finished_folders(releases)[-1] / MANIFEST_NAME
    as_it_was = manifest.read_text()
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
    manifest.write_text(json.dumps(json.loads(as_it_was) | {"created_at": tomorrow}))
    try:
        assert next_moment(releases) > datetime.fromisoformat(tomorrow)
    finally:
        manifest.write_text(as_it_was)
    assert next_moment(releases) < datetime.fromisoformat(tomorrow)


def test_a_catalog_that_shrinks_too_much_is_refused_unless_forced(published: Path) -> None:
    config = config_of(published, f"gate.report={published / 'gate'}")
    before = champion(config.registry, config.store)
    for name in ("products", "images"):
        DeltaTable(Tables(config.store.tables).path(name)).delete("product_id >= 'sku-0400'")
    train_index.run(config)
    build_shards.run(config)
    with pytest.raises(JobError, match=r"gate\.products\.drop_frac is 0\.2") as refused:
        evaluate_index.run(config)
    assert refused.value.exit_code == 3 and "is refused" in (published / "gate" / "report.html").read_text()
    with pytest.raises(JobError, match="did not pass"):
        publish_release.run(config)
    assert champion(config.registry, config.store) == before
    evaluate_index.run(config, force=True)
    assert publish_release.run(config).changed


def test_clean_store_keeps_what_a_kept_release_names(published: Path) -> None:
    """Versions that kept releases pin can still be read, others not; what killed runs left is gone; nothing new is made of it."""
    settings = ("publish.keep=2", "clean.min_age_hours=0", "index.kind=flat")
    tables = Tables(config_of(published).store.tables)
    for price in range(4):
        DeltaTable(tables.path("products")).update({"price": f"price + {price + 1}"})
        run_all(config_of(published, *settings))
    config = config_of(published, *settings)
    pinned = pinned_versions(config)["products"]
    newest = DeltaTable(tables.path("products")).version()
    oldest = finished_folders(config.store.releases)[0].name
    leftovers = [config.store.root / ".generation.4711", config.store.templates / f"{'0' * 64}.faiss"]
    for path in leftovers:
        path.write_bytes(b"x")
    cleaned = clean_store.run(Config.load(published / "conf.yaml", [*settings, f"publish.pinned=[{oldest}]"]))
    assert cleaned.table_files > 0 and cleaned.other_files >= 2 and not any(path.exists() for path in leftovers)
    assert (config.store.releases / oldest).is_dir()
    assert DeltaTable(tables.path("products")).version() == newest, "a commit would be a new release"
    for version in pinned:
        assert DeltaTable(tables.path("products"), version=version).to_pyarrow_table().num_rows > 0
    gone = max(set(range(newest)) - pinned)
    with pytest.raises((OSError, DeltaError)):
        DeltaTable(tables.path("products"), version=gone).to_pyarrow_table()
    assert not run_all(config).changed
    Release.open(champion(config.registry, config.store))


def test_a_forgotten_product_leaves_no_trace(published: Path) -> None:
    """Its rows, releases, statistics in logs, artifacts; every other product stays, and the next release links every shard."""
    config = config_of(published, "index.kind=flat", "forget.product_ids=[sku-0007]")
    run_all(config)
    tables = Tables(config.store.tables)
    feedback = {"query_id": "q", "kind": "click", "client": "c", "at": datetime.now(UTC)}
    rows = [feedback | {"product_id": f"sku-{number:04d}"} for number in (7, 8)]
    write_deltalake(tables.path("feedback"), pa.Table.from_pylist(rows, schema=FEEDBACK), mode="append")
    note = config.store.root / "mlruns" / "note.json"
    note.write_text('{"misses": ["sku-0007"]}')
    with pytest.raises(JobError, match="still holds sku-0007: take them out of the feed"):
        forget_product.run(config)
    names, roots = ["sku-0007"], [config.store.root, Path(tables.root)]
    DeltaTable(tables.path("products")).delete("product_id = 'sku-0007'")
    DeltaTable(tables.path("images")).delete("product_id = 'sku-0007'")
    with pytest.raises(JobError, match=r"the champion .* still holds one of them"):
        forget_product.run(config)
    run_all(config)
    num_features = DeltaTable(tables.path("features")).count()
    assert traces(roots, names)
    forgotten = forget_product.run(config)
    assert forgotten.releases >= 1 and forgotten.logs >= 2 and forgotten.files >= 1
    assert traces(roots, names) == [] and not note.exists()
    assert traces(roots, ["sku-0008"]) and DeltaTable(tables.path("feedback")).count() == 1
    assert DeltaTable(tables.path("features")).count() <= num_features - 4, "its two photos had two crops each"
    trained = train_index.run(config)
    assert trained.changed and trained.reused == trained.shards
    assert run_all(config).changed
    release = Release.open(champion(config.registry, config.store))
    assert release.product("sku-0007") is None and release.product("sku-0008") is not None
    assert traces(roots, names) == []
