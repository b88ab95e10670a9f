"""What a catalog of any size would cost: GPU hours, nights, bytes, shards, machines, money; and the tail of many shards.

Reads   the champion release (crops a photo, width, its shards' latencies), section capacity (machines, prices, targets)
Writes  capacity.report/capacity.txt, capacity.json, capacity.png
Engine  a calibration run on one core of this machine, FAISS

    python -m jobs.plan_capacity --conf conf/local.yaml --set capacity.num_images='[1000000, 2000000000]'

How it scales: jobs/capacity/model.py. How far its predictions are from real runs at three sizes: tests/bench/bench_capacity.py.
"""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass

import faiss
import numpy as np
from matplotlib.figure import Figure

from jobs.capacity.calibration import measure_rates
from jobs.capacity.hedging import QUANTILES, Tail, simulate
from jobs.capacity.model import CapacityPlan, Machines, Rates, plan_capacity
from jobs.config import Config, JobError, run_job
from jobs.runs import configure_logging
from serve.index.manifest import ReleaseError
from serve.index.partition import Partition
from serve.index.records import RECORD_FILES
from serve.index.release import Release
from serve.registry import NoChampionError, champion

log = logging.getLogger("jobs.plan_capacity")

SHARD_COUNTS = (1, 10, 100, 1000)
LATENCY_QUERIES = 400


@dataclass(frozen=True)
class CapacityResult:
    """Where the report lies, and its first line."""

    report: str
    plans: int


def run(config: Config) -> CapacityResult:
    """Measures, plans, writes the report. Raises JobError."""
    try:
        release = Release.open(champion(config.registry, config.store), verify=False)
        dim, counts = release.manifest.bundle.dim, release.manifest.counts
        rates = measure_rates(config.capacity.calibration_rows, dim, config.index)
        log.info("calibration %s", asdict(rates))
        machines = Machines(**config.capacity.model_dump(include=set(Machines.__dataclass_fields__)))
        files = [file for _, shard in release.manifest.shards() for file in shard.files if file.name in RECORD_FILES]
        record_bytes, per_image = sum(file.bytes for file in files) / counts.crops, counts.crops / counts.images
        plans = [
            plan_capacity(num, per_image, record_bytes, config.capacity.rows_per_shard, dim, config.index, rates, machines)
            for num in config.capacity.num_images
        ]
    except (NoChampionError, ReleaseError, ValueError) as error:
        raise JobError(str(error)) from error
    latencies_ms = shard_latencies(release)
    scaled = latencies_ms / latencies_ms.mean() * plans[-1].shard.search_ms  # as large as the planned ones
    write_report(config, plans, rates, simulate(scaled, SHARD_COUNTS))
    return CapacityResult(str(config.capacity.report / "capacity.txt"), len(plans))


def shard_latencies(release: Release) -> np.ndarray:
    """Milliseconds of single searches in the largest shard of the release."""
    faiss.omp_set_num_threads(1)
    shard = max((opened.shard for opened in release.group.shards), key=lambda shard: shard.num_rows)
    alone = Partition([shard], shard.spec)
    rows = np.random.default_rng(17).integers(0, shard.num_rows, LATENCY_QUERIES)
    found = []
    for row in rows:
        query = shard.embedding(int(row))[None]
        start = time.perf_counter()
        alone.search_products(query, 10)
        found.append(1000 * (time.perf_counter() - start))
    return np.array(found[LATENCY_QUERIES // 10 :])  # the first ones read the files


def write_report(config: Config, plans: list[CapacityPlan], rates: Rates, tails: list[Tail]) -> None:
    """The table for people, all figures as JSON, a plot; the table on standard output as well."""
    folder = config.capacity.report
    folder.mkdir(parents=True, exist_ok=True)
    text = table(plans) + "\n" + tail_table(tails)
    (folder / "capacity.txt").write_text(text)
    figures = {"rates": asdict(rates), "plans": [asdict(plan) for plan in plans], "tails": [asdict(tail) for tail in tails]}
    (folder / "capacity.json").write_text(json.dumps(figures, indent=1) + "\n")
    figure = Figure(figsize=(11, 4), layout="tight")
    left, right = figure.subplots(1, 2)
    images, bottom = [f"{plan.num_images:.0e}" for plan in plans], np.zeros(len(plans))
    for part in plans[0].disk_bytes:
        share = np.array([plan.disk_bytes[part] / plan.num_images for plan in plans])
        left.bar(images, share, bottom=bottom, label=part)
        bottom += share
    left.set(xlabel="photos", ylabel="bytes a photo on disk")
    left.legend()
    for name, side in (("plain", "plain_ms"), ("hedged", "hedged_ms")):
        right.plot(
            [tail.num_shards for tail in tails], [getattr(tail, side)[1] for tail in tails], marker="o", label=f"p99 {name}"
        )
    right.set(xlabel="shards asked", ylabel="ms", xscale="log", title="the merged query")
    right.legend()
    figure.savefig(folder / "capacity.png", dpi=90)
    sys.stdout.write(text)


def table(plans: list[CapacityPlan]) -> str:
    """One column a plan."""
    lines = {
        "photos": [f"{plan.num_images:,}" for plan in plans],
        "GPU hours to embed": [f"{plan.gpu_hours:,.1f}" for plan in plans],
        "nights": [f"{plan.nights:,.2f}" for plan in plans],
        "core hours to build": [f"{plan.build_core_hours:,.1f}" for plan in plans],
        "shards": [f"{plan.num_shards:,}" for plan in plans],
        "rows a shard": [f"{plan.shard.rows:,}" for plan in plans],
        "index": [plan.shard.plan.factory for plan in plans],
        "RAM, GB": [f"{plan.ram_bytes / 1e9:,.1f}" for plan in plans],
        **{f"disk, {part}, GB": [f"{plan.disk_bytes[part] / 1e9:,.1f}" for plan in plans] for part in plans[0].disk_bytes},
        "ms of a shard": [f"{plan.shard.search_ms:.2f}" for plan in plans],
        "replicas": [f"{plan.replicas}" for plan in plans],
        "nodes": [f"{plan.nodes}" for plan in plans],
        "first build, money": [f"{plan.first_build_price:,.0f}" for plan in plans],
        "a month, money": [f"{plan.price_per_month:,.0f}" for plan in plans],
        "1,000 queries, money": [f"{plan.price_per_1000_queries:.4f}" for plan in plans],
    }
    return "".join(f"{name:<26}" + "".join(f"{value:>34}" for value in values) + "\n" for name, values in lines.items())


def tail_table(tails: list[Tail]) -> str:
    """Latency of the merged query over more and more shards."""
    head = (
        f"{'shards asked':<14}"
        + "".join(f"{f'p{100 * at:g} plain':>14}{'hedged':>10}" for at in QUANTILES)
        + "   more requests\n"
    )
    rows = (
        f"{tail.num_shards:<14}"
        + "".join(f"{plain:>14.2f}{hedged:>10.2f}" for plain, hedged in zip(tail.plain_ms, tail.hedged_ms, strict=True))
        + f"{tail.extra_frac:>16.1%}\n"
        for tail in tails
    )
    return head + "".join(rows)


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
