"""Categories from neighbours and head: the vote, the pool, the calibration, and the part of a bundle that holds them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from serve.vision.bundle import Bundle, assemble_bundle
from serve.vision.categories import FusedVote, build_predictor, fuse, sharpen, vote
from serve.vision.spec import BundleConfig, BundleError, CategoryConfig, RuntimeConfig
from tests.vision.conftest import photos

CPU = RuntimeConfig()


def test_nearest_prototypes_vote_by_their_cosine() -> None:
    cosines = np.array([[0.9, 0.9, 0.8, 0.1]], np.float32)
    rows = np.array([0, 1, 1, 2])
    assert vote(cosines, rows, 3, 1, 0.1).max() == 1.0
    two = vote(cosines, rows, 3, 2, 0.1)
    assert two[0] == pytest.approx([0.5, 0.5, 0])
    weights = np.exp(np.array([0, 0, -1.0]))  # 0.1 of cosine is one temperature
    assert vote(cosines, rows, 3, 3, 0.1)[0] == pytest.approx(np.array([1, weights[1] + weights[2], 0]) / weights.sum())
    assert vote(cosines, rows, 3, 99, 1e3)[0] == pytest.approx([0.25, 0.5, 0.25], abs=1e-3)


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5), st.floats(0, 0.5))
def test_sharpening_keeps_the_order_and_sums_to_one(seed: int, temperature: float, floor: float) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(6), 4).astype(np.float32)
    sharp = sharpen(probabilities, temperature, floor)
    assert sharp.sum(axis=1) == pytest.approx(1, abs=1e-4) and (sharp >= floor / 6 - 1e-6).all()
    assert np.array_equal(sharp.argmax(axis=1), probabilities.argmax(axis=1))
    surer = sharp.max(axis=1) >= probabilities.max(axis=1) - 1e-5
    assert surer.all() if temperature <= 1 and floor == 0 else True


def test_the_pool_knows_what_either_side_knows() -> None:
    config = CategoryConfig(weights="x", labels=("a", "b"), neighbours=2, head_weight=0.25, floor=0)
    predictor = FusedVote(config, np.eye(2, dtype=np.float32), np.array([0, 1]), ("c", "b"))
    assert predictor.labels == ("a", "b", "c")
    (of_both,) = predictor.predict(np.array([[0, 1]], np.float32), np.array([[0.6, 0.4]], np.float32))
    assert of_both == pytest.approx([0, 0.75 + 0.1, 0.15], abs=1e-4)
    assert predictor.predict(np.array([[0, 1]], np.float32), None)[0] == pytest.approx([0, 1, 0], abs=1e-4)
    assert fuse(np.array([[1.0]]), None, 0.5)[0, 0] == 1.0
    assert predictor.predict(np.empty((0, 2), np.float32), None).shape == (0, 3)


@pytest.fixture
def prototypes(tmp_path: Path) -> Path:
    """Six labelled vectors of 16 numbers, three categories."""
    vectors = np.random.default_rng(2).standard_normal((6, 16))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    save_file({"vectors": unit, "rows": np.array([0, 0, 1, 1, 2, 2], np.int32)}, tmp_path / "six.safetensors")
    return tmp_path / "six.safetensors"


def with_categories(small_config: BundleConfig, prototypes: Path) -> BundleConfig:
    """The small bundle with a vote over the shop's own categories, one of which its head knows too."""
    own = CategoryConfig(weights=str(prototypes), labels=("hats", "shoes/boots", "toys"), neighbours=3)
    return small_config.model_copy(update={"categories": own})


@pytest.mark.slow
def test_a_bundle_predicts_the_shops_categories(small_config: BundleConfig, prototypes: Path, tmp_path: Path) -> None:
    plain = assemble_bundle(small_config, tmp_path / "bundles")
    folder = assemble_bundle(with_categories(small_config, prototypes), tmp_path / "bundles")
    assert folder != plain and (folder / "prototypes.safetensors").is_file()
    bundle, images = Bundle.load(folder, CPU), photos(3)
    assert bundle.labels == ("hats", "shoes/boots", "toys", "bags/totes", "shoes/sandals")
    for (fused,), (alone,) in zip(bundle.analyse(images), Bundle.load(plain, CPU).analyse(images), strict=True):
        assert fused.category_probs is not None and set(fused.category_probs) == set(bundle.labels)
        assert sum(fused.category_probs.values()) == pytest.approx(1, abs=1e-4)
        assert np.array_equal(fused.embedding, alone.embedding) and fused.category_probs != alone.category_probs


def test_damaged_prototypes_are_named(tmp_path: Path) -> None:
    config = CategoryConfig(weights="prototypes.safetensors", labels=("a", "b", "c"))
    ones = np.ones((2, 16), np.float16)
    cases = {
        "expected vectors and rows": {"vectors": ones},
        "expected finite ones of 16 numbers": {"vectors": np.ones((2, 8), np.float16), "rows": np.zeros(2, np.int32)},
        "rows do not name one of 3 labels": {"vectors": ones, "rows": np.array([0, 3], np.int32)},
    }
    for message, tensors in cases.items():
        save_file(tensors, tmp_path / config.weights)
        with pytest.raises(BundleError, match=message):
            build_predictor(config, tmp_path, (), 16)
    (tmp_path / config.weights).write_bytes(b"nothing")
    with pytest.raises(BundleError, match="not a whole safetensors file"):
        build_predictor(config, tmp_path, (), 16)
