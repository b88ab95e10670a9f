"""An open release: search over partitions, verification of every byte, products, groups."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from serve.index.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, ReleaseError, read_manifest, verify_release
from serve.index.release import Filters, ProductStore, Release, ShardGroup, assign_shards, merge_candidates
from serve.vision.hash import Fingerprint
from tests.index.parts import unit, write_release

DIM, NUM = 16, 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two partitions, two buckets, three photos a product."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("release") / "r"
    parts = {}
    for name in ("home", "toys"):
        centres = np.repeat(random.standard_normal((NUM // 3, DIM)), 3, axis=0)
        parts[name] = ([f"{name}-{i // 3:03d}" for i in range(NUM)], unit(centres + 0.2 * random.standard_normal((NUM, DIM))))
    write_release(path, parts)
    return path


@pytest.fixture(scope="module")
def release(folder: Path) -> Release:
    return Release.open(folder)


def queries(num: int = 4) -> np.ndarray:
    """Any directions."""
    directions = np.random.default_rng(9).standard_normal((num, DIM)).astype(np.float32)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def test_search_is_exact_over_shards(release: Release) -> None:
    for query, found in zip(queries(), release.search(queries(), 12), strict=True):
        best: dict[str, float] = {}
        for opened in release.group.shards:
            vectors = opened.shard.vectors_ND[:].astype(np.float32)
            cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
            for row, product in enumerate(opened.shard.records.product_of_row_R):
                product_id = opened.shard.records.product_id(int(product))
                best[product_id] = max(best.get(product_id, -1), float(cosines[row]))
        wanted = sorted(best, key=lambda product_id: -best[product_id])[:12]
        assert [candidate.product_id for candidate in found] == wanted
        assert [candidate.score for candidate in found] == pytest.approx([best[p] for p in wanted], abs=1e-5)


def test_partitions_and_filters(release: Release) -> None:
    assert all(c.product_id.startswith("home") for c in release.search(queries(1), 500, partitions=["home"])[0])
    assert len(release.search(queries(1), 500)[0]) == 2 * NUM // 3
    assert release.search(queries(2), 5, partitions=[]) == [[], []]
    found = release.search(queries(1), 500, filters=Filters(category="toys", price_max=3))[0]
    assert {candidate.product_id for candidate in found} == {f"toys-00{n}" for n in range(4)}
    first = release.search(queries(1), 1)[0][0].product_id
    assert first not in {c.product_id for c in release.search(queries(1), 500, filters=Filters(without=frozenset({first})))[0]}


def test_candidates_are_plain(release: Release) -> None:
    [candidate] = release.search(queries(1), 1)[0]
    assert pickle.loads(pickle.dumps(candidate)) == candidate and len(pickle.dumps(candidate)) < 600
    assert len(candidate.image_id) == 64 and candidate.image_uri.startswith("file://") and candidate.box == (0.0, 1.0, 2.0, 3.0)


def test_products(release: Release, folder: Path) -> None:
    product = release.product("home-007")
    assert product is not None and product["category"] == "home/kind" and product["price"] == 7.0 and product["image_uri"]
    embedding = release.product_embedding("home-007")
    assert embedding is not None and release.search(embedding[None], 1)[0][0].product_id == "home-007"
    assert release.product("nobody") is None and release.product_embedding("nobody") is None
    assert ProductStore.open(folder, release.manifest).product("toys-001") == release.product("toys-001")


def test_groups_together_are_the_release(release: Release, folder: Path) -> None:
    paths = assign_shards(release.manifest, 3)
    assert sorted(path for group in paths for path in group) == sorted(release.group.paths)
    groups = [ShardGroup.open(folder, release.manifest, group) for group in paths]
    found = [group.search(queries(), 10) for group in groups]
    assert [merge_candidates([part[q] for part in found], 10) for q in range(4)] == release.search(queries(), 10)
    with pytest.raises(ReleaseError, match="no shard"):
        ShardGroup.open(folder, release.manifest, ["shards/none"])


def test_deleted_products_are_gone_from_the_group(folder: Path, release: Release) -> None:
    group = ShardGroup.open(folder, release.manifest)
    first = [candidate.product_id for candidate in group.search(queries(1), 3)[0]]
    assert group.delete([*first, "nobody"]) == 3
    assert not set(first) & {candidate.product_id for candidate in group.search(queries(1), 500)[0]}
    assert [candidate.product_id for candidate in release.search(queries(1), 3)[0]] == first  # the release itself never changes


@pytest.mark.parametrize("bad", ["width", "nan", "infinite", "zero", "flat"])
def test_bad_queries_are_refused(release: Release, bad: str) -> None:
    embeddings = {
        "width": np.ones((1, DIM + 1)),
        "nan": np.full((1, DIM), np.nan),
        "infinite": np.full((1, DIM), np.inf),
        "zero": np.zeros((1, DIM)),
        "flat": np.ones(DIM),
    }[bad]
    with pytest.raises(ReleaseError, match="query embedding"):
        release.search(embeddings.astype(np.float32), 3)


def test_hash_stage(release: Release) -> None:
    shard = release.group.shards[1].shard
    image = 5
    random = np.random.default_rng(3)
    hashes, colours = (random.integers(0, 256, (8, width), dtype=np.uint8) for width in (32, 48))
    hashes[3], colours[3] = shard.hashes_M32[image], shard.colours_M48[image]
    match = release.hash_stage(Fingerprint(hashes, colours, 80.0))
    assert match is not None and (match.variant, match.distance, match.colour_distance) == (3, 0, 0.0)
    owner = shard.records.product_id(int(shard.records.product_of_image[image]))
    assert match.product_ids == (owner,) and match.image_id == shard.records.image_id(image)
    np.testing.assert_array_equal(match.embedding, shard.embedding(int(shard.records.crop_rows[image])))
    assert release.hash_stage(Fingerprint(hashes, colours, 80.0), Filters(without=frozenset({owner}))) is None
    assert release.hash_stage(Fingerprint(hashes, colours, 0.0)) is None
    colours[3] = 255 - colours[3]
    assert release.hash_stage(Fingerprint(hashes, colours, 80.0)) is None


def every_file() -> list[str]:
    """Names a flat shard has."""
    return ["products.arrow", "images.arrow", "rows.arrow", "vectors.f16", "hashes.u8", "colours.u8"]


@pytest.mark.parametrize("name", every_file())
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_every_damaged_file_is_named(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    copy = tmp_path / "r"
    shutil.copytree(folder, copy)
    manifest = read_manifest(copy)
    assert {entry.name for _, shard in manifest.shards() for entry in shard.files} == set(every_file())
    for _, shard in manifest.shards():
        path = copy / shard.path / name
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(content[:-1])
        else:
            place = len(content) // 2
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ReleaseError, match=name) as refused:
            Release.open(copy)
        assert str(path) in str(refused.value) and "rollback" in str(refused.value)
        path.write_bytes(content)
    verify_release(copy, manifest)


def changed(folder: Path, tmp_path: Path, **values: object) -> Path:
    """A copy of the manifest with other values."""
    data = json.loads((folder / MANIFEST_NAME).read_text()) | values
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data))
    return tmp_path


def test_bad_manifests_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="no finished release"):
        read_manifest(tmp_path)
    with pytest.raises(ReleaseError, match="format_version is 1"):
        read_manifest(changed(folder, tmp_path, format_version=1))
    with pytest.raises(ReleaseError, match=f"format_version is {FORMAT_VERSION + 1}"):
        read_manifest(changed(folder, tmp_path, format_version=FORMAT_VERSION + 1))
    with pytest.raises(ReleaseError, match="surprise"):
        read_manifest(changed(folder, tmp_path, surprise=1))
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(ReleaseError, match="not valid JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("path", ["../outside", "/etc", "shards/../../x", ""])
def test_paths_stay_inside(folder: Path, tmp_path: Path, path: str) -> None:
    partitions = json.loads((folder / MANIFEST_NAME).read_text())["partitions"]
    partitions[0]["shards"][0]["path"] = path
    with pytest.raises(ReleaseError, match="inside its folder"):
        read_manifest(changed(folder, tmp_path, partitions=partitions))


def test_shard_of_another_size_is_not_opened(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "r"
    shutil.copytree(folder, copy)
    path = next(copy.rglob("hashes.u8"))
    path.write_bytes(path.read_bytes()[:-32])
    with pytest.raises(ReleaseError, match="disagree"):
        Release.open(copy, verify=False)


def test_other_hash_kind_is_refused(folder: Path, release: Release) -> None:
    manifest: Manifest = release.manifest
    other = manifest.model_copy(update={"hash": manifest.hash.model_copy(update={"version": 99})})
    with pytest.raises(ReleaseError, match="99"):
        Release(folder, other)
