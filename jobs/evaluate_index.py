"""Measures the built release and decides whether it may be published: the gate.

Reads   releases/.building-<release_id>, the champion, catalog photos by their URIs, evaluate.queries (photos with known answers),
        the bundle
Writes  evaluation.json there: chosen nprobe of each partition, calibrated hash exit, routing threshold, recall;
        waterfall.txt, .json, .png: which stage lost which known answer (with evaluate.queries);
        gate.report: every figure with its bounds beside the champion's, and the photos whose answer got worse
Engine  Ray measures one partition a task, and probes photos; FAISS against exact search by matrix products

    python -m jobs.evaluate_index --conf conf/local.yaml [--set section.key=value ...]
    python -m jobs.evaluate_index --conf conf/local.yaml --force      lets through what the gate refuses

Exit status 3 when a figure is beyond a bound of section `gate`: such a release is not published.
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
from jobs.evaluation.beside_champion import KnownAnswer, by_category, got_worse, known_answers, recalls, replay, replay_texts
from jobs.evaluation.gate_report import write_gate_report
from jobs.evaluation.hash_probes import CatalogSample, calibrate_exit, probe_photos, sample_catalog
from jobs.evaluation.index_recall import (
    PLACES,
    SHARES,
    TARGET_PLACES,
    PartitionRecall,
    measure_partition,
    ranked,
    sample_queries,
)
from jobs.evaluation.index_recall import Queries as IndexQueries
from jobs.evaluation.metrics import recall_at
from jobs.evaluation.no_match import NearestCrops, calibrate_no_match
from jobs.evaluation.photo_recall import K, SeenPhotos, measure_photos, see_photos
from jobs.evaluation.queries import Query, load_queries
from jobs.evaluation.routing import choose_threshold
from jobs.evaluation.waterfall import Pair, Waterfall, charge
from jobs.evaluation.waterfall_report import write_waterfall
from jobs.failpoint import failpoint
from jobs.gate import GATE_EXIT_CODE, Figure, catalog_figures, judge
from jobs.raydata.fetch import fetch_rules
from jobs.raydata.session import progress, start_ray
from jobs.runs import configure_logging, pairs
from jobs.tables import Tables
from serve.index.hash_exit import ORIGINAL, HashExit
from serve.index.manifest import BundleEntry, OperatingPoint, PartitionSpec, ReleaseError
from serve.index.release import Release
from serve.index.search import partition_of, routes_of
from serve.index.shard import Shard
from serve.registry import NoChampionError
from serve.registry import champion as champion_folder
from serve.vision.bundle import Bundle

log = logging.getLogger("jobs.evaluate_index")

PROBED_AT_ONCE = 16  # photos a task
UNFIT = re.compile(r"[^\w\-. :/]")  # for the name of a metric in MLflow
SEARCH_ALL = 1.1  # as routing threshold: no probability passes it


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


def run(config: Config, force: bool = False) -> EvaluateResult:
    """Measures, writes evaluation.json. Raises JobError, with exit code 3 where the gate refuses and `force` is not given."""
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
    specs, points, metrics, nearest = choose_specs(config, folder, plan, specs, shards)
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
    asked = None
    if config.evaluate.queries is not None:
        evaluation, asked = ask_photos(config, folder, plan, evaluation, nearest)
    release = Release(folder, manifest_of(folder, plan, evaluation))
    champion = open_champion(config)
    figures, answers = figures_of(config, plan, evaluation, release, champion, asked)
    checks = judge(config.gate, figures)
    faults = [fault for check in checks for fault in check.faults]
    faults += asked.waterfall.over_budget(config.gate.budgets) if asked is not None else []
    worse = got_worse(answers)[: config.gate.report_queries]
    page = write_gate_report(config.gate.report, release, champion, checks, faults, worse)
    metrics = {UNFIT.sub("_", name): figure.value for name, figure in figures.items()} | evaluation.metrics
    passed = force or not faults
    write_part(folder / "evaluation.json", evaluation.model_copy(update={"passed": passed, "metrics": metrics}))
    failpoint("evaluate:after_write")
    result = EvaluateResult(plan.release_id, *[metrics.get(name) for name in list(EvaluateResult.__dataclass_fields__)[1:]])
    log.info("evaluate_index %s", pairs(asdict(result)))
    for fault in faults if passed else ():
        log.warning("release=%s forced although %s", plan.release_id, fault)
    if not passed:
        told = f"release {plan.release_id}: {'; '.join(faults)}: not published, the champion stays. {page} shows what got worse"
        raise JobError(told, GATE_EXIT_CODE)
    return result


@dataclass(frozen=True)
class AskedPhotos:
    """The photos with known answers, and what came back."""

    queries: list[Query]
    seen: SeenPhotos
    bundle: Bundle
    pairs: list[Pair]
    waterfall: Waterfall


def ask_photos(
    config: Config, folder: Path, plan: BuildPlan, evaluation: Evaluation, nearest: NearestCrops
) -> tuple[Evaluation, AskedPhotos]:
    """The photos with known answers: how few partitions may be searched, recall, and which stage loses what."""
    evaluate = config.evaluate
    assert evaluate.queries is not None
    queries = load_queries(evaluate.queries, evaluate.queries_where, evaluate.max_queries, evaluate.seed)
    bundle = load_bundle(config, plan.bundle)
    with progress("query_photos", len(queries), "photos") as shown:
        seen = see_photos(queries, bundle, config.decode, shown.add)
    release = Release(folder, manifest_of(folder, plan, evaluation))
    known = [(product, probs) for product_id, probs in seen.asked(queries) if (product := release.product(product_id))]
    asked = [(product["category"], probs) for product, probs in known]
    routing = choose_threshold(release.manifest, asked, config.index.route_max_loss_frac, config.index.route_threshold or None)
    evaluation = evaluation.model_copy(update={"route_threshold": routing.threshold})
    log.info("routing %s", pairs(asdict(routing)))
    release = Release(folder, manifest_of(folder, plan, evaluation))
    found = measure_photos(queries, seen, release, bundle, config.decode)
    routes = routes_of(release.manifest, seen.features)
    originals = {shard.path: vectors_path(folder, shard) for partition in plan.partitions for shard in partition.shards}
    waterfall = charge(found.pairs, seen.embeddings_QD, routes, release, originals, K)
    write_waterfall(folder, waterfall)
    log.info("waterfall of %d known answers\n%s", waterfall.num_pairs, waterfall.table())
    metrics = evaluation.metrics | asdict(found.recall) | waterfall.metrics()
    metrics |= {"route_loss_frac": routing.loss_frac, "route_searched_frac": round(routing.searched_frac, 4)}
    right = [(name, r.score) for r in found.right if (name := partition_of(release.manifest, r.category)) is not None]
    no_match = calibrate_no_match(nearest, right, evaluate.max_false_match_frac, evaluate.max_lost_match_frac, evaluate.seed)
    if no_match is not None:
        log.info("no_match right=%d %s", len(right), pairs(no_match.model_dump()))
        metrics |= {"no_match_false_match_frac": no_match.false_match_frac, "no_match_lost_frac": no_match.lost_frac}
    evaluation = evaluation.model_copy(update={"metrics": metrics, "no_match": no_match})
    return evaluation, AskedPhotos(queries, seen, bundle, found.pairs, waterfall)


def open_champion(config: Config) -> Release | None:
    """The release that is served; None where there is none, or none that can be opened."""
    try:
        return Release.open(champion_folder(config.registry, config.store))
    except NoChampionError:
        return None
    except ReleaseError as error:
        log.warning("nothing is compared with the champion: %s", error)
        return None


def load_bundle(config: Config, entry: BundleEntry) -> Bundle:
    """The bundle that a release is searched with."""
    return Bundle.load(config.store.root / entry.folder, config.runtime, entry.digest)


def figures_of(
    config: Config,
    plan: BuildPlan,
    evaluation: Evaluation,
    release: Release,
    champion: Release | None,
    asked: AskedPhotos | None,
) -> tuple[dict[str, Figure], list[KnownAnswer]]:
    """What the gate judges, and the known answers behind it."""
    old = champion.manifest if champion is not None else None
    again = replay(release, champion, config.evaluate.num_queries, config.evaluate.seed)
    catalog = catalog_figures(Tables(config.store.tables), plan.tables, plan.bundle.digest)
    measured = {name: evaluation.metrics[name] for name in ("recall_at_10", "bytes_per_crop")} | catalog
    figures = {name: Figure(value, value, old.metrics.get(name) if old else None) for name, value in measured.items()}
    figures["products"] = Figure(plan.counts.products, plan.counts.products, old.counts.products if old else None)
    figures["p99_ms"] = Figure(again.p99_ms, again.p99_ms, again.champion_p99_ms)
    if again.same_results_frac is not None:
        figures["same_results_frac"] = Figure(again.same_results_frac)
    if asked is None and config.gate.texts is None:
        return figures, []
    bundle = asked.bundle if asked is not None else load_bundle(config, plan.bundle)
    champion_bundle = bundle
    if champion is not None and champion.manifest.bundle.digest != plan.bundle.digest:
        champion_bundle = load_bundle(config, champion.manifest.bundle)
    if champion is not None and config.gate.texts is not None:
        same = replay_texts(config.gate.texts, release, bundle, champion, champion_bundle)
        figures |= {"same_text_results_frac": Figure(same)} if same is not None else {}
    if asked is None:
        return figures, []
    champion_pairs: list[Pair] = []
    if champion is not None:
        seen = asked.seen if champion_bundle is bundle else see_photos(asked.queries, champion_bundle, config.decode)
        champion_pairs = measure_photos(asked.queries, seen, champion, champion_bundle, config.decode).pairs
    answers = known_answers(asked.queries, asked.pairs, release, champion, champion_pairs)
    slices = {"photo_recall_at_10": answers} if answers else {}
    named = by_category(answers, config.gate.category_depth, config.gate.category_answers)
    slices |= {f"photo_recall_at_10.{name}": own for name, own in named.items()}
    return figures | {name: recalls(own) for name, own in slices.items()}, answers


def choose_specs(
    config: Config, folder: Path, plan: BuildPlan, first: dict[str, PartitionSpec], shards: dict[str, Shard]
) -> tuple[dict[str, PartitionSpec], dict[str, tuple[OperatingPoint, ...]], dict[str, float], NearestCrops]:
    """Search settings of every partition, what they were chosen from, recall (together, by partition, by age, filtered), and
    what lies nearest to stored crops in every partition.
    """
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
    exact_QK, _ = ranked(exact_SQK, exact_SQK, PLACES)
    found = {}
    for places in (TARGET_PLACES, PLACES):
        scores_SQK, true_SQK = (np.stack(side) for side in zip(*(recall.found[places] for recall in measured), strict=True))
        found[places] = ranked(scores_SQK, true_SQK, places)[1]
    found_QK = found[TARGET_PLACES]
    metrics = {
        f"recall_at_{k}": round(recall_at(found[max(k, TARGET_PLACES)], exact_QK, k), 4) for k in (1, TARGET_PLACES, PLACES)
    }
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
    partitions = {shard.path: s for s, partition in enumerate(plan.partitions) for shard in partition.shards}
    own_Q = np.array([partitions[path] for path in queries.shards_Q])
    nearest = NearestCrops(tuple(names), exact_SQK[:, :, 0], own_Q)
    return specs, {name: recall.points for name, recall in zip(names, measured, strict=True)}, metrics, nearest


def ages(shards: dict[str, Shard], queries: IndexQueries) -> np.ndarray:
    """(Q,) microseconds since 1970 of when the product of each query was last changed; NaN where the feed does not say."""
    places = zip(queries.shards_Q, queries.rows_Q, strict=True)
    records = [(shards[path].records, int(row)) for path, row in places]
    changed = [found.products["updated_at"][int(found.product_of_row_R[row])].value for found, row in records]
    return np.array([np.nan if value is None else value for value in changed], np.float64)


def calibrate_hashes(config: Config, shards: list[Shard]) -> HashExit:
    """The hash exit, calibrated on a sample of the catalog's photos. Raises JobError when none of them can be fetched."""
    sample: CatalogSample = sample_catalog(shards, config.evaluate.hash_photos, config.evaluate.seed)
    photos = list(enumerate(sample.uris))
    probe = ray.remote(num_cpus=1)(probe_photos)
    tasks = [
        probe.remote(photos[i : i + PROBED_AT_ONCE], fetch_rules(config), config.decode)
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
    run_job(__doc__ or "", run, flags={"force": "lets a release through that the gate refuses"})


if __name__ == "__main__":
    main()
