"""Asks a running endpoint questions with known answers and measures what a client sees: Recall@1/5/10 over HTTP.

Reads   evaluate.queries (JSONL: path, product_id or product_ids, optional boxes, occluded_frac), the endpoint at evaluate.url
Writes  evaluate.report/report.html (pictures: query, found crops, results with the true one marked), report.json;
        judging/NAME.json, the first products of each photo: what people grade at /judge
Engine  plain HTTP, one client

    python -m jobs.evaluate_search --conf conf/local.yaml --set evaluate.queries=photos.jsonl
        [--set evaluate.distortion=light=0.25]     kinds and units: jobs/evaluation/robustness.py
"""

import logging
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import requests
from tqdm import tqdm

from jobs.config import Config, JobError, run_job
from jobs.evaluation.judged import judged_figures
from jobs.evaluation.queries import Query, load_queries
from jobs.evaluation.report import Outcome, write_search_report
from jobs.evaluation.robustness import UNCHANGED, parse_variant, write_distorted
from jobs.runs import configure_logging, pairs
from serve.index.judging import write_pool
from serve.vision.image import image_id_of

log = logging.getLogger("jobs.evaluate_search")

K = 10
MIN_IOU = 0.5  # a found crop stands for a true box from here on, as in PASCAL VOC


@dataclass(frozen=True)
class SearchResult:
    """Figures over all (photo, product) pairs; a photo of several products asks for each of them."""

    queries: int
    pairs: int
    distortion: str
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    clear_recall_at_1: float | None  # of products hardly hidden, and much hidden: Query.visibility
    hidden_recall_at_1: float | None
    hash_stage_frac: float
    boxes_found_frac: float | None
    p50_ms: float
    release: str
    report: str


def run(config: Config) -> SearchResult:
    """Sends every query, writes the report, returns the figures."""
    if config.evaluate.queries is None:
        raise JobError("evaluate.queries: missing; name a JSONL of photos with --set evaluate.queries=FILE")
    try:
        variant = parse_variant(config.evaluate.distortion)
    except ValueError as error:
        raise JobError(f"evaluate.distortion={error}") from error
    queries = load_queries(
        config.evaluate.queries, config.evaluate.queries_where, config.evaluate.max_queries, config.evaluate.seed
    )
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="distorted-") as folder, requests.Session() as session:
        if variant != UNCHANGED:
            queries = write_distorted(queries, variant, Path(folder), config.evaluate.seed, config.decode)
        for query in tqdm(queries, desc="search", unit="photo", disable=not sys.stderr.isatty()):
            answer, milliseconds = ask(session, config.evaluate.url, query.path)
            outcomes += [judge(query, i, answer, milliseconds) for i in range(len(query.product_ids))]
        result = measure(outcomes, len(queries), config)
        ranked = {image_id_of(o.query.path.read_bytes()): (o.query.path, ids_of(o.answer)) for o in outcomes}
        judged = judged_figures(config, {image_id: ids for image_id, (_, ids) in ranked.items()})
        if variant == UNCHANGED:  # distorted photos are gone after this
            write_pool(config.store.root, config.evaluate.pool or result.release, ranked)
        write_search_report(config.evaluate.report, asdict(result) | judged, outcomes, config.evaluate.report_queries)
    log.info("evaluate_search %s", pairs(asdict(result) | judged))
    return result


def ids_of(answer: dict[str, Any]) -> list[str]:
    """Products of the whole answer, best first."""
    return [result["product_id"] for result in answer["results"]]


def ask(session: requests.Session, url: str, photo: Path) -> tuple[dict[str, Any], float]:
    """The endpoint's answer to one photo, and the milliseconds a client waited."""
    try:
        with photo.open("rb") as file:
            response = session.post(f"{url}/v1/search", files={"image": file}, data={"k": K}, timeout=60)
    except requests.ConnectionError as error:
        raise JobError(f"evaluate.url={url}: nobody answers there; start the endpoint with `make serve`") from error
    if response.status_code != 200:
        raise JobError(f"{url} answered {response.status_code} to {photo}: {response.text[:300]}")
    return response.json(), response.elapsed.total_seconds() * 1000


def judge(query: Query, number: int, answer: dict[str, Any], milliseconds: float) -> Outcome:
    """At which rank (0 = first, none = not among the best K) product `number` of the query came back.

    Where its box is known and a crop was found there, that crop's own results count, otherwise the whole answer's:
    a photo of four products cannot have all four in first place.
    """
    results, crop_box = answer["results"], None
    if query.boxes_N4:
        best = max(answer["crops"], key=lambda crop: iou(crop["box"], query.boxes_N4[number]), default=None)
        if best is not None and iou(best["box"], query.boxes_N4[number]) >= MIN_IOU:
            results, crop_box = best["results"], best["box"]
    ranked = [result["product_id"] for result in results[:K]]
    truth = query.product_ids[number]
    return Outcome(query, number, ranked.index(truth) if truth in ranked else None, crop_box, results[:K], answer, milliseconds)


def iou(a: Any, b: Any) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union)


def measure(outcomes: list[Outcome], num_queries: int, config: Config) -> SearchResult:
    """Shares over all outcomes."""
    recall = {k: sum(o.rank is not None and o.rank < k for o in outcomes) / len(outcomes) for k in (1, 5, 10)}
    boxed = [o for o in outcomes if o.query.boxes_N4]
    return SearchResult(
        queries=num_queries,
        pairs=len(outcomes),
        distortion=config.evaluate.distortion,
        recall_at_1=round(recall[1], 4),
        recall_at_5=round(recall[5], 4),
        recall_at_10=round(recall[10], 4),
        clear_recall_at_1=recall_of(outcomes, "clear"),
        hidden_recall_at_1=recall_of(outcomes, "hidden"),
        hash_stage_frac=round(sum(o.answer["stage"] == "hash" for o in outcomes) / len(outcomes), 4),
        boxes_found_frac=round(sum(o.crop_box is not None for o in boxed) / len(boxed), 4) if boxed else None,
        p50_ms=round(median(o.milliseconds for o in outcomes), 1),
        release=outcomes[0].answer["release"]["id"],
        report=str(config.evaluate.report / "report.html"),
    )


def recall_of(outcomes: list[Outcome], visibility: str) -> float | None:
    """Recall@1 of the products that are seen so much (Query.visibility); None where there are none."""
    hits = [o.rank == 0 for o in outcomes if o.query.visibility(o.number) == visibility]
    return round(mean(hits), 4) if hits else None


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, prints_result=True)


if __name__ == "__main__":
    main()
