"""A bundle whose vectors of queries cannot be used says so."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from serve.vision.queries import QUERIES_FILE, VECTORS, load_queries
from serve.vision.spec import BundleConfig, BundleError, QueriesConfig

CONFIG = BundleConfig(name="b", queries=QueriesConfig(weights=QUERIES_FILE))


def test_they_are_of_unit_length_at_every_width(tmp_path: Path) -> None:
    save_file({VECTORS: np.random.default_rng(0).normal(size=(5, 32)).astype(np.float16)}, tmp_path / QUERIES_FILE)
    for dim in (32, 8):
        queries_BD = load_queries(tmp_path, CONFIG, dim)
        assert queries_BD is not None and queries_BD.shape == (5, dim) and queries_BD.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(queries_BD, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({VECTORS: np.zeros((3, 32), np.float16)}, "expected finite vectors of width 32"),
        ({VECTORS: np.full((3, 32), np.nan, np.float16)}, "expected finite vectors of width 32"),
        ({VECTORS: np.ones((3, 8), np.float16)}, r"shape \(3, 8\), expected finite vectors of width 32"),
        ({"others": np.ones((3, 32), np.float16)}, "no vectors of queries can be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, tensors: dict[str, np.ndarray], said: str) -> None:
    save_file(tensors, tmp_path / QUERIES_FILE)
    with pytest.raises(BundleError, match=said + ".*train the encoder again"):
        load_queries(tmp_path, CONFIG, 32)


def test_bytes_that_are_no_tensors(tmp_path: Path) -> None:
    (tmp_path / QUERIES_FILE).write_bytes(b"xx")
    with pytest.raises(BundleError, match=r"no vectors of queries can be read .*train the encoder again"):
        load_queries(tmp_path, CONFIG, 32)
