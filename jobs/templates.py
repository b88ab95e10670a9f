"""Templates of the store: trained on a sample of the staged rows, kept by digest, and used again while they fit.

    <store.root>/templates/<digest>.faiss    a trained, empty index
                           <key>.json        which template was trained last for one group of partitions, and how well it fitted

A template fits as long as the rows lie no farther from its lists than `index.max_drift_frac` more than those it was trained on.
"""

import hashlib
import logging
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from serve.index.manifest import Part, file_sha256, write_durably
from serve.index.plan import IndexPlan
from serve.index.shard import check_vectors
from serve.index.spec import IndexConfig
from serve.index.template import fit_of, train_template
from serve.index.writer import rows_of

log = logging.getLogger(__name__)

SPARE = 1.2  # times the rows wanted are drawn, so that chance leaves enough
KEY_DIGITS = 15  # hex digits of an image_id that a range is drawn from


class TrainedTemplate(Part):
    """The newest template of one group of partitions."""

    digest: str
    fit: float  # mean squared distance of its sample from the lists


def find_or_train(
    templates: Path, files: list[Path], plan: IndexPlan, dim: int, group: str, bundle_digest: str, config: IndexConfig
) -> str:
    """SHA-256 of the group's template, its name in the store; trained anew only where the kept one no longer fits."""
    faiss.omp_set_num_threads(config.threads)
    sample_ND = sample_vectors(files, plan.train_rows, dim, config.seed)
    check_vectors(sample_ND, dim, "training sample")
    record = record_of(templates, plan, dim, group, bundle_digest, config)
    kept = kept_template(templates, record)
    if kept is not None:
        drift = fit_of((templates / f"{kept.digest}.faiss").read_bytes(), sample_ND) / max(kept.fit, 1e-9) - 1
        log.info("template=%s group=%s drift_frac=%.4f max=%g", kept.digest[:12], group, drift, config.max_drift_frac)
        if drift <= config.max_drift_frac:
            return kept.digest
    template = train_template(plan, sample_ND.astype(np.float32), config.seed, on_gpu=config.train_on_gpu)
    digest = hashlib.sha256(template).hexdigest()
    write_durably(templates / f"{digest}.faiss", template)
    trained = TrainedTemplate(digest=digest, fit=fit_of(template, sample_ND))
    write_durably(record, trained.model_dump_json().encode())
    return digest


def record_of(templates: Path, plan: IndexPlan, dim: int, group: str, bundle_digest: str, config: IndexConfig) -> Path:
    """The file that names the group's newest template."""
    recipe = f"{faiss.__version__} {plan.factory} {config.seed} {dim} {bundle_digest} {group}"
    return templates / f"{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.json"


def kept_template(templates: Path, record: Path) -> TrainedTemplate | None:
    """What `record` names, where it is there and undamaged."""
    if not record.is_file():
        return None
    kept = TrainedTemplate.model_validate_json(record.read_bytes())
    path = templates / f"{kept.digest}.faiss"
    return kept if path.is_file() and file_sha256(path) == kept.digest else None


def sample_vectors(files: list[Path], num_rows: int, dim: int, seed: int) -> np.ndarray:
    """(rows, dim) fp16: a seeded sample in one pass over the files, the same however the rows are ordered in them.

    An image_id is a digest, so a range of ids is a random sample, and Parquet hands out its rows alone.
    """
    rows = pyarrow.dataset.dataset(files)
    share = SPARE * num_rows / max(rows.count_rows(), 1)
    columns = ["image_id", "crop", "product_id", "embedding"]
    found = rows.to_table(columns, filter=None if share >= 1 else in_range(np.random.default_rng(seed).random(), share))
    order = pc.sort_indices(found, [(name, "ascending") for name in columns[:3]]).to_numpy()
    chosen = np.random.default_rng(seed).choice(len(order), min(num_rows, len(order)), replace=False)
    taken = found["embedding"].take(pa.array(order[np.sort(chosen)]))
    return rows_of(taken, 2 * dim, "embedding").view(np.float16)


def in_range(start: float, share: float) -> pc.Expression:
    """The image_ids of a share of all, from `start` on, around the end."""
    low, high = (f"{int(place % 1 * 16**KEY_DIGITS):0{KEY_DIGITS}x}" for place in (start, start + share))
    above, below = pc.field("image_id") >= low, pc.field("image_id") < high
    return above & below if low < high else above | below
