"""The endpoint under load from a second process on loopback, beside bare uvicorn, the bare kernel and itself undisturbed.

    python -m tests.bench.bench_serve [--seconds 20] [--products 240] [--set serve.num_ingress=2] [--shop FOLDER] [--out FILE]

Hash answers against bare uvicorn with the same decode, hash and look-up; vector answers against the proxy's floor and what
decoder, networks and FAISS take alone; throughput against the networks in batches; CPU seconds with and without the hash stage
on a stream with 30 % known photos; products put while it is searched; releases switched meanwhile. All ratios are of one run.
The endpoint is that of conf/local.yaml, one process that encodes and searches itself, but for what `--set` changes.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil

from jobs import publish_release
from jobs.config import Config
from serve.api.served import ServedRelease
from serve.index.release import Release
from serve.settings import Settings
from serve.vision.bundle import Bundle
from serve.vision.guarded import GuardedDecoder
from tests.bench.record import record
from tests.load.generator import Running, load
from tests.load.shops import Shop, opened_shop
from tests.parts import ROOT, endpoint, free_port

PARTS = ("hash", "vector", "look", "cascade", "insert", "switch")
BATCH = 8
PUT_RATE = 20.0  # products a second
PUT_CLIENTS = 24  # puts under way at once at most; one that is due while all are waits, and its wait counts
PRODUCT_SEARCH_USD = 4.50  # Google Product Search, 1,000 queries (cloud.google.com/vision/product-search/pricing)
CORE_HOUR_USD = 0.04  # a rented core; 1,000 queries cost so many core seconds
SWITCH_S = 60.0  # within which a new champion must be served


@contextlib.contextmanager
def bare_uvicorn(conf: Path) -> Iterator[str]:
    """The hash stage without Ray Serve."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bare_hash", "--conf", str(conf), "--port", str(port)], cwd=ROOT
    )
    try:
        until(lambda: reachable(f"http://127.0.0.1:{port}/"), 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def reachable(url: str) -> bool:
    """Somebody answers."""
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.HTTPError:
        return False


def until(happened: Any, seconds: float) -> float:
    """Seconds until `happened()`."""
    start = time.monotonic()
    while not happened():
        assert time.monotonic() < start + seconds, f"not within {seconds:g} s"
        time.sleep(0.05)
    return time.monotonic() - start


def cpu_seconds() -> float:
    """Of every process of the endpoint: all children of this one but the generators, which are ended by then."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def hash_figures(url: str, shop: Shop, seconds: float) -> dict[str, Any]:
    """Known photos, against bare uvicorn, one after the other and 16 at once; the two take turns."""
    found: dict[str, Any] = {}
    with bare_uvicorn(shop.conf) as bare:
        for clients in (1, 16):
            ours, theirs = [], []
            for _ in range(2):
                theirs.append(load(bare, shop.known, seconds / 2, clients=clients))
                ours.append(load(url, shop.known, seconds / 2, clients=clients))
            assert all(reply.stage == "hash" for run in ours for reply in run.good)
            rates = [median(run.per_s for run in runs) for runs in (ours, theirs)]
            tails = [median(run.ms(0.99) for run in runs) for runs in (ours, theirs)]
            found[f"clients_{clients}"] = {
                "per_s": round(rates[0], 1),
                "bare_per_s": round(rates[1], 1),
                "per_s_ratio": round(rates[0] / rates[1], 3),
                "p99_ms": round(tails[0], 1),
                "bare_p99_ms": round(tails[1], 1),
                "p99_ratio": round(tails[0] / tails[1], 2),
                "failed": sum(run.failed for run in ours),
            }
    return found


def vector_figures(url: str, shop: Shop, seconds: float) -> dict[str, Any]:
    """Street photos: latency of one client against its parts measured alone, throughput of 16 against networks in batches."""
    settings = Settings.load(shop.conf)
    served = ServedRelease.resolve(settings)
    release = Release.open(served.folder)
    bundle = Bundle.load(served.bundle_folder, settings.runtime)
    photos = [path.read_bytes() for path in sorted(shop.novel.iterdir())]
    floor = load(f"{url}/healthz", shop.novel, seconds / 4, clients=1, method="GET")
    one = load(url, shop.novel, seconds, clients=1)
    many = load(url, shop.novel, seconds, clients=16)
    decode_ms, networks_ms, search_ms = [], [], []
    with GuardedDecoder(settings.decode) as decoder:
        images = []
        for photo in photos:
            start = time.perf_counter()
            decoder.fingerprint(photo)  # the hash stage is asked first
            images.append(decoder.decode(photo))
            decode_ms.append(1000 * (time.perf_counter() - start))
        for image in images:
            start = time.perf_counter()
            crops = bundle.analyse([image])[0]
            networks_ms.append(1000 * (time.perf_counter() - start))
            embeddings_QD = np.stack([crop.embedding for crop in crops])
            start = time.perf_counter()
            release.search(embeddings_QD, 10)
            search_ms.append(1000 * (time.perf_counter() - start))
        start, num = time.perf_counter(), 0
        while time.perf_counter() < start + seconds / 2:
            at = num % len(images)
            bundle.analyse((images + images)[at : at + BATCH])
            num += BATCH
        batched_per_s = num / (time.perf_counter() - start)
    parts = {"proxy": floor.ms(0.5), "decode": median(decode_ms), "networks": median(networks_ms), "search": median(search_ms)}
    return {
        "p50_ms": round(one.ms(0.5), 1),
        "parts_alone_p50_ms": {name: round(value, 1) for name, value in parts.items()},
        "p50_over_parts_ms": round(one.ms(0.5) - sum(parts.values()), 1),
        "clients_16_per_s": round(many.per_s, 1),
        "networks_in_batches_per_s": round(batched_per_s, 1),
        "throughput_ratio": round(many.per_s / batched_per_s, 3),
        "clients_16_p99_ms": round(many.ms(0.99), 1),
        "failed": one.failed + many.failed,
    }


def look_figures(url: str, shop: Shop, seconds: float) -> dict[str, Any]:
    """A product's look, one client, beside the proxy's floor; the two take turns."""
    links = (Config.load(shop.conf).train_looks.links[0]).read_text().splitlines()
    product_id = json.loads(links[0])["product_ids"][0]
    asked = f"{url}/v1/products/{product_id}/look"
    assert httpx.get(asked).json()["items"], f"{product_id} has no look"
    floor, look = [], []
    for _ in range(2):
        floor.append(load(f"{url}/healthz", shop.known, seconds / 4, clients=1, method="GET"))
        look.append(load(asked, shop.known, seconds / 4, clients=1, method="GET"))
    p50 = {name: median(run.ms(0.5) for run in runs) for name, runs in (("floor", floor), ("look", look))}
    return {
        "p50_ms": round(p50["look"], 2),
        "floor_p50_ms": round(p50["floor"], 2),
        "over_floor_ms": round(p50["look"] - p50["floor"], 2),
        "failed": sum(run.failed for run in look),
    }


def cascade_figures(shop: Shop, seconds: float, changed: Sequence[str]) -> dict[str, Any]:
    """CPU seconds of 1,000 queries, 30 % of them known photos, with the hash stage and without it."""
    spent = {}
    for name, switch in (("cascade", "true"), ("vector_only", "false")):
        with endpoint(shop.conf, *changed, "--set", f"serve.hash_stage={switch}") as url:
            load(url, shop.mixed, 5, clients=4)
            before = cpu_seconds()
            run = load(url, shop.mixed, seconds, clients=4)
            spent[name] = 1000 * (cpu_seconds() - before) / len(run.good)
    usd = {f"{name}_usd_per_1000": round(value / 3600 * CORE_HOUR_USD, 5) for name, value in spent.items()}
    return {
        **{f"{name}_cpu_s_per_1000": round(value, 1) for name, value in spent.items()},
        "saved_frac": round(1 - spent["cascade"] / spent["vector_only"], 3),
        **usd,
        "product_search_usd_per_1000": PRODUCT_SEARCH_USD,
    }


def insert_figures(url: str, shop: Shop, seconds: float) -> dict[str, Any]:
    """Products put at PUT_RATE, each when it is due, while photos are searched: when each is found, and what searching pays."""
    rate = 5.0
    quiet = load(url, shop.mixed, seconds, rate=rate)
    photos = [path.read_bytes() for path in sorted(shop.put.iterdir())]
    searching = Running(url, shop.mixed, seconds, rate=rate)
    start = time.monotonic()

    def put(client: httpx.Client, number: int) -> float | None:
        """Seconds from when it was due until it was found; None = refused."""
        product_id, due = f"bench-{number:05d}", start + number / PUT_RATE
        time.sleep(max(0.0, due - time.monotonic()))
        answer = client.put(
            f"{url}/v1/products/{product_id}",
            files={"image": photos[number % len(photos)]},
            data={"title": f"Put {number}", "category": "bags/tote"},
        )
        if answer.status_code != 200:
            return None
        until(lambda: client.get(f"{url}/v1/products/{product_id}/similar", params={"k": 1}).status_code == 200, 30)
        return time.monotonic() - due

    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(PUT_CLIENTS) as clients:
        found = list(clients.map(partial(put, client), range(int(PUT_RATE * seconds))))
    spent = time.monotonic() - start
    busy = searching.result()
    waited = [one for one in found if one is not None]
    return {
        "asked_per_s": PUT_RATE,
        "put_per_s": round(len(waited) / spent, 1),
        "refused": len(found) - len(waited),
        "searchable_p50_s": round(float(np.quantile(waited, 0.5)), 3),
        "searchable_p99_s": round(float(np.quantile(waited, 0.99)), 3),
        "search_p99_ms": round(busy.ms(0.99), 1),
        "search_p99_ratio": round(busy.ms(0.99) / quiet.ms(0.99), 2),
        "failed": busy.failed,
    }


def switch_figures(url: str, shop: Shop, seconds: float) -> dict[str, Any]:
    """A rollback and back again, while photos are searched."""
    rate, config = 5.0, Config.load(shop.conf)
    quiet = load(url, shop.mixed, seconds, rate=rate)
    searching = Running(url, shop.mixed, 2 * seconds + 2 * SWITCH_S, rate=rate)
    took = []
    for wanted in (shop.releases[0], shop.releases[1]):
        publish_release.run(config, rollback=True)  # in this process: a start of Python beside the load is no part of a switch
        took.append(until(lambda name=wanted: httpx.get(f"{url}/v1/release").json()["release"]["id"] == name, SWITCH_S))
    busy = searching.result()
    return {
        "switches": len(took),
        "seconds_until_served": [round(one, 1) for one in took],
        "requests": len(busy.replies),
        "failed": busy.failed,
        "answered_by": sorted({reply.release for reply in busy.good}),
        "p99_ms": round(busy.ms(0.99), 1),
        "p99_ratio": round(busy.ms(0.99) / quiet.ms(0.99), 2),
    }


def show(name: str, figures: Any) -> Any:
    """Prints as it goes."""
    sys.stdout.write(f"{name}: {figures}\n")
    sys.stdout.flush()
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored: the catalog is generated")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measured run")
    parser.add_argument("--products", type=int, default=240)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="a setting of the endpoint; repeatable")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="some of the parts")
    parser.add_argument("--shop", type=Path, help="folder in which the store is made once and used again; none = a temporary one")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    wanted = args.only or PARTS
    figures: dict[str, Any] = {"settings": args.set}
    changed = [word for setting in args.set for word in ("--set", setting)]
    with opened_shop(args.shop, args.products, serve={"watch_s": 1.0, "num_encoders": 0, "num_searchers": 0}) as shop:
        with endpoint(shop.conf, *changed) as url:
            load(url, shop.mixed, 5, clients=4)  # warm
            if "hash" in wanted:
                figures["hash"] = show("hash", hash_figures(url, shop, args.seconds))
            if "vector" in wanted:
                figures["vector"] = show("vector", vector_figures(url, shop, args.seconds))
            if "look" in wanted:
                figures["look"] = show("look", look_figures(url, shop, args.seconds))
            if "switch" in wanted:
                figures["switch"] = show("switch", switch_figures(url, shop, args.seconds))
            if "insert" in wanted:
                figures["insert"] = show("insert", insert_figures(url, shop, 3 * args.seconds))
        if "cascade" in wanted:
            figures["cascade"] = show("cascade", cascade_figures(shop, args.seconds, changed))
    path = record("serve", figures, ("ray", "uvicorn", "openvino", "torch"), args.out)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
