"""train_index, build_shards, evaluate_index, publish_release on real tables, Ray, FAISS, MLflow; again; killed; rolled back."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
import yaml
from deltalake import write_deltalake
from PIL import Image

from jobs import build_shards, evaluate_index, publish_release, train_index
from jobs.building import CODE_VERSION, ShardPlan, find_building
from jobs.config import Config, JobError
from jobs.failpoint import EXIT_CODE
from jobs.publish_release import PublishResult
from jobs.release_registry import Registry
from jobs.tables import FEATURES, FETCHES, Tables
from serve.index.manifest import MANIFEST_NAME, ReleaseError, read_manifest
from serve.index.release import Release
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
        published, "index.seed=50", "evaluate.min_recall_at_10=1.0", "index.refine_factor=1", "index.target_recall=0.1"
    )
    before = registered(config.registry, config.store, "champion")
    train_index.run(config)
    build_shards.run(config)
    with pytest.raises(JobError, match=r"evaluate\.min_recall_at_10") as refused:
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
    victim = next(folder.rglob("vectors.f16"))
    data = bytearray(victim.read_bytes())
    data[7] ^= 1
    victim.write_bytes(data)
    result = build_shards.run(config)
    assert result.kept == result.shards - 1


@pytest.mark.parametrize(("what", "message"), [("memory", r"raise index\.num_shards"), ("disk", r"GB are free")])
def test_a_build_that_does_not_fit_is_refused(tmp_path: Path, what: str, message: str) -> None:
    shard = ShardPlan(path="shards/p000-b000", bucket=0, num_rows=10**9, build_ram_bytes=1, disk_bytes=1)
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
