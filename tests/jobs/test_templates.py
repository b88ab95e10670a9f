"""Templates are kept while they fit, and trained anew where the rows have moved; samples do not depend on the order of rows."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.templates import find_or_train, sample_vectors
from serve.index.plan import plan_index
from serve.index.spec import IndexConfig
from tests.index.parts import unit

DIM, NUM = 16, 4000


def staged(path: Path, centres: np.ndarray, seed: int, order: np.ndarray | None = None) -> Path:
    """Rows of one shard as train_index stages them, as far as sampling reads them."""
    random = np.random.default_rng(seed)
    vectors = unit(centres[random.integers(0, len(centres), NUM)] + 0.2 * random.standard_normal((NUM, DIM)))
    columns = {
        "image_id": [hashlib.sha256(b"%d-%d" % (seed, i)).hexdigest() for i in range(NUM)],
        "crop": pa.array([0] * NUM, pa.int32()),
        "product_id": [f"p{i}" for i in range(NUM)],
        "embedding": pa.array([vector.tobytes() for vector in vectors], pa.binary()),
    }
    table = pa.table(columns)
    pq.write_table(table if order is None else table.take(pa.array(order)), path, row_group_size=700)
    return path


def test_kept_until_drift(tmp_path: Path) -> None:
    random, config = np.random.default_rng(0), IndexConfig(max_drift_frac=0.2)
    centres = random.standard_normal((40, DIM))
    plan = plan_index(NUM, DIM, config)
    templates = tmp_path / "templates"
    templates.mkdir()

    def tonight(file: Path, group: str = "shoes", bundle: str = "b1") -> str:
        return find_or_train(templates, [file], plan, DIM, group, bundle, config)

    first = tonight(staged(tmp_path / "1", centres, 1))
    assert tonight(staged(tmp_path / "2", centres, 2)) == first  # other rows, the same shop
    assert tonight(tmp_path / "2", bundle="b2") != first and tonight(tmp_path / "2", group="bags") != first
    moved = tonight(staged(tmp_path / "3", random.standard_normal((40, DIM)), 3))
    assert moved != first and tonight(tmp_path / "3") == moved
    (templates / f"{moved}.faiss").write_bytes(b"damaged")
    assert tonight(tmp_path / "3") == moved and (templates / f"{moved}.faiss").stat().st_size > 100


def test_sample_is_the_same_in_any_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    centres, order = random.standard_normal((40, DIM)), random.permutation(NUM)
    one, other = staged(tmp_path / "1", centres, 1), staged(tmp_path / "2", centres, 1, order)
    for num in (500, NUM, 2 * NUM):
        sample = sample_vectors([one], num, DIM, 17)
        np.testing.assert_array_equal(sample, sample_vectors([other], num, DIM, 17))
        assert 0.7 * min(num, NUM) <= len(sample) <= num
        assert len(np.unique(sample, axis=0)) == len(sample)
    assert not np.array_equal(sample_vectors([one], 500, DIM, 17), sample_vectors([one], 500, DIM, 18))
