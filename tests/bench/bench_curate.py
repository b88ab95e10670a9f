"""How curate_catalog grows with the feed, and what a night costs on which 1 % of the rows changed.

    python -m tests.bench.bench_curate [--rows 1000000 3000000 10000000] [--folder DIR] [--out FILE]

Each size is a JSONL feed of products with one photo each (no photo is read), curated into empty tables by one process, and again
after every hundredth row got another price. `growth` is the exponent of the fit seconds ~ rows ** growth: 1 is linear.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.bench.record import growth, record
from tests.parts import write_conf

COLOURS, THINGS = ("red", "green", "blue", "black", "white", "olive", "navy"), ("shirt", "boot", "bag", "lamp", "mug", "coat")
CHUNK_ROWS = 200_000
MEMORY = "6g"


def write_feed(path: Path, num_rows: int, raised: bool) -> None:
    """`num_rows` products; with `raised`, every hundredth costs 1 more."""
    draw = np.random.default_rng(3)
    with path.open("w") as file:
        for first in range(0, num_rows, CHUNK_ROWS):
            size = min(CHUNK_ROWS, num_rows - first)
            prices, stocks = draw.integers(3, 300, size).tolist(), draw.integers(0, 40, size).tolist()
            for place, price, stock in zip(range(first, first + size), prices, stocks, strict=True):
                colour, thing = COLOURS[place % len(COLOURS)], THINGS[place % len(THINGS)]
                row = {
                    "product_id": f"p{place:09d}",
                    "title": f"{colour.title()} {thing} {place % 9973}",
                    "description": f"A {colour} {thing} of model {place % 9973}, for every day and every season of the year.",
                    "category": f"goods/{thing}s",
                    "price": price + int(raised and place % 100 == 0),
                    "currency": "EUR",
                    "stock": stock,
                    "brand": f"brand {place % 211}",
                    "image_uris": [f"https://shop.example/photos/{place:09d}.jpg"],
                }
                file.write(json.dumps(row) + "\n")


def curated(conf: Path) -> dict[str, float]:
    """Seconds and CPU seconds of one `python -m jobs.curate_catalog`, its JVM among them."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jobs.curate_catalog", "--conf", str(conf)])
    cpu: dict[int, float] = {}
    while process.poll() is None:
        time.sleep(0.2)
        try:
            for each in (root := psutil.Process(process.pid), *root.children(recursive=True)):
                cpu[each.pid] = sum(each.cpu_times()[:2])
        except psutil.Error:
            continue  # it has just ended
    if process.returncode:
        raise SystemExit(process.returncode)
    return {"s": round(time.perf_counter() - start, 1), "cpu_s": round(sum(cpu.values()), 1)}


def measure(sizes: list[int], folder: Path) -> dict[str, Any]:
    """Seconds by rows."""
    found = []
    for num_rows in sizes:
        root = folder / str(num_rows)
        root.mkdir(parents=True)
        feed = root / "feed.jsonl"
        spark = {"master": "local[2]", "driver_memory": MEMORY, "shuffle_partitions": max(2, num_rows // 250_000)}
        # Millions of rows pay for the second compiler, which a local session of ours leaves out.
        spark |= {"settings": {"spark.driver.extraJavaOptions": "-XX:+UseG1GC"}}
        conf = write_conf(root, {"feed": {"uri": str(feed)}, "spark": spark})
        write_feed(feed, num_rows, raised=False)
        first = curated(conf)
        write_feed(feed, num_rows, raised=True)
        night = curated(conf)
        row = {"rows": num_rows, "rows_per_s": round(num_rows / first["s"])}
        row |= {f"first_{name}": value for name, value in first.items()} | {f"night_{name}": v for name, v in night.items()}
        row["night_over_first"] = round(night["cpu_s"] / first["cpu_s"], 3)
        found.append(row)
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
        shutil.rmtree(root)
    figures: dict[str, Any] = {"changed_frac": 0.01, "sizes": found}
    if len(found) > 1:
        figures["growth"] = growth(sizes, [row["first_s"] for row in found])
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored: the feed is generated")
    parser.add_argument("--rows", type=int, nargs="+", default=[300_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where feed and tables lie meanwhile (default: a temporary one)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-curate-", dir=args.folder) as folder:
        path = record("curate", measure(args.rows, Path(folder)), ("pyspark", "delta-spark"), args.out)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
