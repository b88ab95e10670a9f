"""Measures the built release and decides whether it may be published: the gate.

Reads   releases/.building-<release_id>, catalog photos by their URIs, evaluate.queries (photos with known answers), the bundle
Writes  evaluation.json there: chosen nprobe of each partition, calibrated hash exit, routing threshold, recall;
        waterfall.txt, .json, .png: which stage lost which known answer (with evaluate.queries)
Engine  Ray measures one partition a task, and probes photos; FAISS against exact search by matrix products

    python -m jobs.evaluate_index --conf conf/local.yaml [--set section.key=value ...]

Exit status 3 when recall@10 against exact search is below evaluate.min_recall_at_10, or a stage loses more than its budget
(evaluate.budgets): such a release is not published.
"""

import logging
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import ray

from jobs.building import (
    BuildPlan,
    Evaluation,
    find_building,
    first_specs,
    hash_entry,
    manifest_of,
    vectors_path,
    write_part,
)
from jobs.config import Config, JobError, run_job
from jobs.evaluation.hash_probes import CatalogSample, calibrate_exit, probe_photos, sample_catalog
from jobs.evaluation.index_recall import SHARES, PartitionRecall, measure_partition, ranked, sample_queries
from jobs.evaluation.index_recall import Queries as IndexQueries
from jobs.evaluation.metrics import recall_at
from jobs.evaluation.photo_recall import K, measure_photos, see_photos
from jobs.evaluation.queries import load_queries
from jobs.evaluation.routing import choose_threshold
from jobs.evaluation.waterfall import Waterfall, charge
from jobs.evaluation.waterfall_report import write_waterfall
from jobs.raydata.session import progress, start_ray
from jobs.runs import configure_logging, pairs
from serve.index.hash_exit import ORIGINAL, HashExit
from serve.index.manifest import OperatingPoint, PartitionSpec
from serve.index.release import Release
from serve.index.search import routes_of
from serve.index.shard import Shard
from serve.vision.bundle import Bundle

log = logging.getLogger("jobs.evaluate_index")

PROBED_AT_ONCE = 16  # photos a task
GATE_EXIT_CODE = 3
UNFIT = re.compile(r"[^\w\-. :/]")  # for the name of a metric in MLflow
SEARCH_ALL = 1.1  # as routing threshold: no probability passes it
WHERE = "waterfall.json beside the shards names every miss; a budget is one line of evaluate.budgets"


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
    specs, points, metrics = choose_specs(config, folder, plan, specs, shards)
    hash_exit = calibrate_hashes(config, list(shards.values()))
    metrics |= {"hash_false_accept_frac": hash_exit.false_accept_frac, "hash_found_frac": hash_exit.found_frac}
    metrics |= {"bytes_per_crop": bytes_of(folder / "shards") / plan.counts.crops}
    evaluation = Evaluation(
        passed=True,
        metrics=metrics,
        specs=specs,
        points=points,
        route_threshold=config.index.route_threshold or SEARCH_ALL,
        hash=hash_entry(hash_exit),
    )
    faults = []
    if config.evaluate.queries is not None:
        evaluation, waterfall = ask_photos(config, folder, plan, evaluation)
        faults = waterfall.over_budget(config.evaluate.budgets)
    metrics, floor = evaluation.metrics, config.evaluate.min_recall_at_10
    if metrics["recall_at_10"] < floor:
        faults.insert(
            0,
            f"recall@10 against exact search is {metrics['recall_at_10']:.4f}, evaluate.min_recall_at_10 is {floor}: "
            "raise index.refine_factor or index.pq_bytes, or set index.kind=flat",
        )
    write_part(folder / "evaluation.json", evaluation.model_copy(update={"passed": not faults}))
    result = EvaluateResult(plan.release_id, *[metrics.get(name) for name in list(EvaluateResult.__dataclass_fields__)[1:]])
    log.info("evaluate_index %s", pairs(asdict(result)))
    if faults:
        raise JobError(
            f"release {plan.release_id}: {'; '.join(faults)}: not published, the champion stays. {WHERE}", GATE_EXIT_CODE
        )
    return result


def ask_photos(config: Config, folder: Path, plan: BuildPlan, evaluation: Evaluation) -> tuple[Evaluation, Waterfall]:
    """The photos with known answers: how few partitions may be searched, recall, and which stage loses what."""
    evaluate = config.evaluate
    assert evaluate.queries is not None
    queries = load_queries(evaluate.queries, evaluate.queries_where, evaluate.max_queries, evaluate.seed)
    bundle = Bundle.load(config.store.root / plan.bundle.folder, config.runtime, plan.bundle.digest)
    with progress("query_photos", len(queries), "photos") as shown:
        seen = see_photos(queries, bundle, config.decode, shown.add)
    release = Release(folder, manifest_of(folder, plan, evaluation))
    known = [(product, probs) for product_id, probs in seen.asked(queries) if (product := release.product(product_id))]
    asked = [(product["category"], probs) for product, probs in known]
    routing = choose_threshold(release.manifest, asked, config.index.route_max_loss_frac, config.index.route_threshold or None)
    evaluation = evaluation.model_copy(update={"route_threshold": routing.threshold})
    log.info("routing %s", pairs(asdict(routing)))
    release = Release(folder, manifest_of(folder, plan, evaluation))
    recall, asked_pairs = measure_photos(queries, seen, release, bundle, config.decode)
    routes = routes_of(release.manifest, seen.features)
    originals = {shard.path: vectors_path(folder, shard) for partition in plan.partitions for shard in partition.shards}
    waterfall = charge(asked_pairs, seen.embeddings_QD, routes, release, originals, K)
    write_waterfall(folder, waterfall)
    log.info("waterfall of %d known answers\n%s", waterfall.num_pairs, waterfall.table())
    metrics = evaluation.metrics | asdict(recall) | waterfall.metrics()
    metrics |= {"route_loss_frac": routing.loss_frac, "route_searched_frac": round(routing.searched_frac, 4)}
    return evaluation.model_copy(update={"metrics": metrics}), waterfall


def choose_specs(
    config: Config, folder: Path, plan: BuildPlan, first: dict[str, PartitionSpec], shards: dict[str, Shard]
) -> tuple[dict[str, PartitionSpec], dict[str, tuple[OperatingPoint, ...]], dict[str, float]]:
    """Search settings of every partition, what they were chosen from, and recall: together, by partition, by age, filtered."""
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
    exact_SQK = np.stack([recall.exact_QK for recall in measured])
    exact_QK, _ = ranked(exact_SQK, exact_SQK)
    _, found_QK = ranked(np.stack([recall.found_QK for recall in measured]), np.stack([recall.true_QK for recall in measured]))
    metrics = {f"recall_at_{k}": round(recall_at(found_QK, exact_QK, k), 4) for k in (1, 10, 100)}
    metrics |= {
        f"recall_at_10.{UNFIT.sub('_', p.name)}": round(r.recall, 4) for p, r in zip(plan.partitions, measured, strict=True)
    }
    for place, share in enumerate(SHARES):
        metrics[f"filtered_recall_at_10.{100 * share:g}_percent"] = round(
            float(np.mean([r.filtered[place] for r in measured])), 4
        )
    age_Q = ages(shards, queries)
    if np.isfinite(age_Q).any():
        is_new_Q = age_Q >= np.nanmedian(age_Q)
        for name, chosen in (("newer_half", is_new_Q), ("older_half", ~is_new_Q & np.isfinite(age_Q))):
            metrics[f"recall_at_10.{name}"] = round(recall_at(found_QK[chosen], exact_QK[chosen], 10), 4)
    names = [p.name for p in plan.partitions]
    specs = {name: recall.spec for name, recall in zip(names, measured, strict=True)}
    return specs, {name: recall.points for name, recall in zip(names, measured, strict=True)}, metrics


def ages(shards: dict[str, Shard], queries: IndexQueries) -> np.ndarray:
    """(Q,) microseconds since 1970 of when the product of each query was last changed; NaN where the feed does not say."""
    places = zip(queries.shards_Q, queries.rows_Q, strict=True)
    records = [(shards[path].records, int(row)) for path, row in places]
    changed = [found.products["updated_at"][int(found.product_of_row_R[row])].value for found, row in records]
    return np.array([np.nan if value is None else value for value in changed], np.float64)


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
