"""Measures bundles without an index, on photos with known answers, and compares them: what did a training or a remedy change?

Reads   products, images (at one exact version each) and the photos they name; evaluate.queries; the bundles
Writes  evaluate_bundle.report/report.html (tables, curves, domain gap, calibration, worst failures) and report.json,
        a run a bundle in MLflow with its figures, curves and the page
Engine  one process, exact search

    python -m jobs.evaluate_bundle --conf conf/local.yaml --set evaluate.queries=photos.jsonl
        [--set 'evaluate_bundle.bundles={plain: store/training/plain, erased: store/training/erased}']   first = baseline
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.config import Config, JobError, run_job
from jobs.evaluation.bundle_quality import BundleQuality, measure_bundle
from jobs.evaluation.bundle_recall import recall_change
from jobs.evaluation.bundle_report import write_bundle_report
from jobs.evaluation.queries import load_queries
from jobs.evaluation.robustness import DISTORTIONS
from jobs.evaluation.shelf import choose_products
from jobs.experiment import log_run
from jobs.runs import configure_logging
from serve.vision.assemble import assemble_bundle
from serve.vision.runtime import DeviceError
from serve.vision.spec import BundleConfig, BundleError

log = logging.getLogger("jobs.evaluate_bundle")


@dataclass(frozen=True)
class EvaluateBundleResult:
    """Figures by bundle, and where the report lies."""

    figures: dict[str, dict[str, float]]
    report: str


def run(config: Config) -> EvaluateBundleResult:
    """Measures every bundle, writes the report. Raises JobError."""
    evaluate, settings = config.evaluate, config.evaluate_bundle
    if evaluate.queries is None:
        raise JobError("evaluate.queries: missing; name a JSONL of photos with --set evaluate.queries=FILE")
    unknown = [kind for kind in settings.curves if kind not in DISTORTIONS]
    if unknown:
        raise JobError(f"evaluate_bundle.curves={unknown}: allowed are {', '.join(DISTORTIONS)}")
    queries = load_queries(evaluate.queries, evaluate.queries_where, evaluate.max_queries, evaluate.seed)
    asked = {product_id for query in queries for product_id in query.product_ids}
    products = choose_products(config, asked, settings.max_images)
    try:
        measured = [measure_bundle(config, name, folder, products, queries) for name, folder in bundle_folders(config)]
    except (BundleError, DeviceError) as error:
        raise JobError(str(error)) from error
    changes = [recall_change(measured[0].asked, other.asked, evaluate.seed) for other in measured[1:]]
    pages = write_bundle_report(settings.report, measured, changes, settings.failures)
    for one in measured:
        params = {"bundle": one.name, "digest": one.digest, "queries": str(evaluate.queries), "baseline": measured[0].name}
        log_run(config.registry, f"evaluate_bundle {one.name}", params, metrics_of(one), pages)
    log.info("evaluate_bundle bundles=%d report=%s", len(measured), pages[0])
    return EvaluateBundleResult({one.name: one.figures for one in measured}, str(pages[0]))


def bundle_folders(config: Config) -> list[tuple[str, Path]]:
    """Names and folders of the bundles, all there before the first one is measured. Raises BundleError."""
    specs = {name: BundleConfig(path=path) for name, path in config.evaluate_bundle.bundles.items()} or {"bundle": config.bundle}
    return [(name, assemble_bundle(spec, config.store.bundles, config.registry.uri)) for name, spec in specs.items()]


def metrics_of(one: BundleQuality) -> Iterator[tuple[str, float, int]]:
    """Figures and curves for MLflow; a curve's steps are its levels in their order."""
    for name, value in one.figures.items():
        yield name, value, 0
    for kind, curve in one.curves.items():
        for step, level in enumerate(sorted(curve)):
            yield f"curve.{kind}", curve[level], step
            yield f"curve.{kind}.level", level, step


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, prints_result=True)


if __name__ == "__main__":
    main()
