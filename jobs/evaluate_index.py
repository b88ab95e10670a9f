"""Measures the built release and decides whether it may be published: the gate.

Reads   releases/.building-<release_id>, catalog photos by their URIs, evaluate.queries (photos with known answers), the bundle
Writes  evaluation.json there: chosen nprobe of each partition, calibrated hash exit, recall
Engine  Ray measures one partition a task, and probes photos; FAISS against exact search by matrix products

    python -m jobs.evaluate_index --conf conf/local.yaml [--set section.key=value ...]

Exit status 3 when recall@10 against exact search is below evaluate.min_recall_at_10: such a release is not published.
"""

import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import ray

from jobs.building import BuildPlan, Evaluation, find_building, first_specs, hash_entry, manifest_of, write_part
from jobs.config import Config, JobError, run_job
from jobs.evaluation.hash_probes import CatalogSample, calibrate_exit, probe_photos, sample_catalog
from jobs.evaluation.index_recall import PLACES, PartitionRecall, measure_partition, sample_queries
from jobs.evaluation.metrics import recall_at
from jobs.evaluation.photo_recall import measure_photos
from jobs.evaluation.queries import load_queries
from jobs.raydata.session import start_ray
from jobs.runs import configure_logging, pairs
from serve.index.hash_exit import ORIGINAL, HashExit
from serve.index.manifest import PartitionSpec
from serve.index.merge import merge_top_k
from serve.index.release import Release
from serve.index.shard import Shard
from serve.vision.bundle import Bundle

log = logging.getLogger("jobs.evaluate_index")

PROBED_AT_ONCE = 16  # photos a task
GATE_EXIT_CODE = 3


@dataclass(frozen=True)
class EvaluateResult:
    """The gate's figures; photo figures are None without evaluate.queries."""

    release_id: str
    recall_at_1: float | None
    recall_at_10: float | None
    recall_at_100: float | None
    hash_false_accept_frac: float | None
    hash_found_frac: float | None
    photo_recall_at_1: float | None
    photo_recall_at_10: float | None


def run(config: Config) -> EvaluateResult:
    """Measures, writes evaluation.json. Raises JobError, with exit code 3 where the gate refuses."""
    found = find_building(config.store)
    if found is None:
        log.info("nothing to evaluate")
        return EvaluateResult("", *[None] * 7)
    folder, plan = found
    specs = first_specs(plan)
    shards = {
        shard.path: Shard.open(folder / shard.path, specs[partition.name], plan.bundle.dim)
        for partition in plan.partitions
        for shard in partition.shards
    }
    start_ray(config.ray)
    specs, metrics = choose_specs(config, folder, plan, specs, shards)
    hash_exit = calibrate_hashes(config, list(shards.values()))
    metrics |= {"hash_false_accept_frac": hash_exit.false_accept_frac, "hash_found_frac": hash_exit.found_frac}
    metrics |= {"bytes_per_crop": bytes_of(folder / "shards") / plan.counts.crops}
    if config.evaluate.queries is not None:
        queries = load_queries(
            config.evaluate.queries, config.evaluate.queries_where, config.evaluate.max_queries, config.evaluate.seed
        )
        release = Release(folder, manifest_of(folder, plan, specs, hash_entry(hash_exit), metrics))
        bundle = Bundle.load(config.store.root / plan.bundle.folder, config.runtime, plan.bundle.digest)
        metrics |= asdict(measure_photos(queries, release, bundle, config.decode))
    floor = config.evaluate.min_recall_at_10
    passed = metrics["recall_at_10"] >= floor
    evaluation = Evaluation(passed=passed, metrics=metrics, specs=specs, hash=hash_entry(hash_exit))
    write_part(folder / "evaluation.json", evaluation)
    result = EvaluateResult(plan.release_id, *[metrics.get(name) for name in list(EvaluateResult.__dataclass_fields__)[1:]])
    log.info("evaluate_index %s", pairs(asdict(result)))
    if not passed:
        raise JobError(
            f"release {plan.release_id}: recall@10 against exact search is {metrics['recall_at_10']:.4f}, "
            f"evaluate.min_recall_at_10 is {floor}: not published, the champion stays. "
            "Raise index.refine_factor or index.pq_bytes, or set index.kind=flat",
            GATE_EXIT_CODE,
        )
    return result


def choose_specs(
    config: Config, folder: Path, plan: BuildPlan, first: dict[str, PartitionSpec], shards: dict[str, Shard]
) -> tuple[dict[str, PartitionSpec], dict[str, float]]:
    """Search settings of every partition, and recall@1/10/100 of all of them together."""
    queries = sample_queries(shards, config.evaluate.num_queries, config.evaluate.seed)
    measure = ray.remote(num_cpus=config.index.threads)(measure_partition)
    shared = ray.put(queries)
    index = config.index
    tasks = [
        measure.remote(folder, p, first[p.name], plan.bundle.dim, shared, index.target_recall, index.threads)
        for p in plan.partitions
    ]
    measured: list[PartitionRecall] = ray.get(tasks)
    for partition, recall in zip(plan.partitions, measured, strict=True):
        spec = recall.spec
        log.info(
            "partition=%s factory=%s nprobe=%d refine_factor=%d recall_at_10=%.4f",
            *(partition.name, spec.factory, spec.nprobe, spec.refine_factor, recall.recall),
        )
    found_QK, exact_QK = (merged_scores([getattr(r, side) for r in measured]) for side in ("found_QK", "exact_QK"))
    metrics = {f"recall_at_{k}": round(recall_at(found_QK, exact_QK, k), 4) for k in (1, 10, 100)}
    return {p.name: recall.spec for p, recall in zip(plan.partitions, measured, strict=True)}, metrics


def merged_scores(parts: list[np.ndarray]) -> np.ndarray:
    """(Q, PLACES) best scores over the partitions; where a score is none, so is its row."""
    scores_SQK = np.stack(parts)
    return merge_top_k(scores_SQK, np.where(np.isfinite(scores_SQK), 0, -1), PLACES)[0]


def calibrate_hashes(config: Config, shards: list[Shard]) -> HashExit:
    """The hash exit, calibrated on a sample of the catalog's photos. Raises JobError when none of them can be fetched."""
    sample: CatalogSample = sample_catalog(shards, config.evaluate.hash_photos, config.evaluate.seed)
    photos = [(row, sample.uris[row]) for row in range(sample.num_probes)]
    probe = ray.remote(num_cpus=1)(probe_photos)
    tasks = [
        probe.remote(photos[i : i + PROBED_AT_ONCE], config.feed.schemes, config.decode, config.embed.fetch_timeout_s)
        for i in range(0, len(photos), PROBED_AT_ONCE)
    ]
    probes = [found for part in ray.get(tasks) for found in part]
    num_read = Counter(found.distortion for found in probes)[ORIGINAL]
    if not num_read:
        raise JobError(f"none of {len(photos)} catalog photos can be fetched, such as {photos[0][1]}; is the feed still there?")
    hash_exit = calibrate_exit(sample, probes, config.hash)
    log.info("hash_exit photos=%d of=%d %s", num_read, len(photos), pairs(asdict(hash_exit)))
    return hash_exit


def bytes_of(folder: Path) -> int:
    """Size of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
