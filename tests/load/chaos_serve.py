"""Faults of the endpoint, one after the other, under load from a second process: what clients notice of each, and what not.

    python -m tests.load.chaos_serve [--seconds 30] [--only switch bad_release ...]

Every fault is a real one: processes are killed or stopped, files of a release are damaged, more is asked than can be answered.
One line a fault with its figures; exit status 1 when one of them is not survived as promised.
"""

import argparse
import contextlib
import json
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from jobs.config import Config
from jobs.release_registry import Registry
from serve.settings import Settings
from tests.load.generator import Load, Running, load
from tests.load.shops import Shop, opened_shop
from tests.parts import RegistryServer, endpoint, free_port, run_module

RATE = 4.0  # requests a second, of which 7 in 10 go through the networks: what two busy cores answer with room to spare
NOTICED_S = 60.0  # within which a new champion is served, or a bad one named
SLOW_CLIENTS, CUT_S = 500, 11.0
HALF_SENT = (  # the headers of a request, and a body
    b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Ty",
    b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 100000\r\n\r\n\xff\xd8",
)
RECOVERED_S = 60.0  # a killed process is back: Python, torch and OpenVINO are imported again


@dataclass(frozen=True)
class Verdict:
    """What a fault did, and what of it should not have been; empty = survived."""

    figures: dict[str, Any]
    wrong: tuple[str, ...]


def verdict(figures: dict[str, Any], **promises: bool) -> Verdict:
    """`promises`: name → kept."""
    return Verdict(figures, tuple(name for name, kept in promises.items() if not kept))


def figures_of(run: Load) -> dict[str, Any]:
    """In short."""
    return {
        "requests": len(run.replies),
        "statuses": run.statuses(),
        "failed": run.failed,
        "partial": sum(reply.partial for reply in run.good),
        "p50_ms": round(run.ms(0.5)),
        "p99_ms": round(run.ms(0.99)),
    }


class Drill:
    """One endpoint with two replicas of every part, its registry, and what can be done to them."""

    def __init__(self, url: str, shop: Shop, seconds: float, registry: RegistryServer) -> None:
        self.url, self.shop, self.seconds, self.registry = url, shop, seconds, registry

    def processes(self, name: str) -> list[psutil.Process]:
        """Of the deployment `name`, this endpoint's alone."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f"ServeReplica:visual-search:{name}" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill_one(self, name: str, times: int) -> list[int]:
        """Kills a process of the deployment so many times, whenever it has another one; the killed ones."""
        killed = []
        for _ in range(times):
            victims = self.processes(name)
            if len(victims) > 1:
                victims[0].kill()
                killed.append(victims[0].pid)
            time.sleep(self.seconds / 3)
        return killed

    def replaced(self, name: str, seconds: float) -> bool:
        """Kills one process of the deployment; whether two are there again within `seconds`, and stay."""
        before = {process.pid for process in self.processes(name)}
        self.processes(name)[0].kill()

        def there() -> bool:
            return len({process.pid for process in self.processes(name)} - before) == 1 and len(self.processes(name)) == 2

        if self.until(there, seconds) is None:
            return False
        now = {process.pid for process in self.processes(name)}
        time.sleep(self.seconds / 3)  # one that cannot open its release ends again
        return {process.pid for process in self.processes(name)} == now

    def during(self, act: Callable[[], Any], seconds: float | None = None, **how: Any) -> Load:
        """Load while `act` is done, and for `seconds` in all."""
        running = Running(self.url, self.shop.mixed, seconds or self.seconds, **{"rate": RATE, **how})
        time.sleep(1.5)
        act()
        return running.result()

    def release(self) -> dict[str, Any]:
        """What /v1/release says."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/v1/release", timeout=30).json()
        return answer

    def until(self, happened: Callable[[], bool], seconds: float) -> float | None:
        """Seconds until it did; None = it did not."""
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            with contextlib.suppress(httpx.HTTPError):
                if happened():
                    return round(time.monotonic() - start, 1)
            time.sleep(0.2)
        return None

    def whole(self) -> bool:
        """An answer from every part."""
        answer = httpx.post(
            f"{self.url}/v1/search", content=next(self.shop.novel.iterdir()).read_bytes(), headers=JPEG, timeout=30
        )
        return answer.status_code == 200 and not answer.json()["partial"]

    def roll_back(self) -> None:
        """The other one of the two releases becomes champion."""
        done = run_module("jobs.publish_release", self.shop.conf, flags=("--rollback",))
        assert done.returncode == 0, done.stderr


JPEG = {"content-type": "image/jpeg"}


def switch(drill: Drill) -> Verdict:
    """F14, F16: a good release, and back again, under load."""
    took: list[float | None] = []

    def act() -> None:
        for wanted in drill.shop.releases:
            drill.roll_back()
            took.append(drill.until(lambda name=wanted: drill.release()["release"]["id"] == name, NOTICED_S))

    run = drill.during(act, 3 * drill.seconds)
    answered = {reply.release for reply in run.good}
    return verdict(
        figures_of(run) | {"served_after_s": took},
        no_request_failed=run.failed == 0,
        both_served_in_time=None not in took,
        only_whole_releases=answered <= set(drill.shop.releases) and len(answered) == 2,
    )


def bad_release(drill: Drill) -> Verdict:
    """F13, F15, F27: champions with a flipped byte, a missing shard and another bundle, each under load."""
    settings = Settings.load(drill.shop.conf)
    old = drill.release()["release"]["id"]
    other = next(name for name in drill.shop.releases if name != old)
    folder = settings.store.root / "releases" / other
    safe = folder.with_name("safe")
    shutil.copytree(folder, safe)
    refused: dict[str, Any] = {}
    registry = Registry(Config.load(drill.shop.conf))

    def promote(release_id: str) -> None:  # publish_release itself would see the damage
        version = registry.version_of(release_id)
        assert version is not None
        registry.promote(version)

    def flip() -> None:
        vectors = next(folder.glob("shards/**/vectors.*"))
        data = vectors.read_bytes()
        vectors.unlink()  # never through a file that may be mapped
        vectors.write_bytes(bytes([data[0] ^ 1]) + data[1:])

    def lose() -> None:
        shutil.rmtree(next(path.parent for path in folder.glob("shards/**/vectors.*")))

    def mix() -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["bundle"]["digest"] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def act() -> None:
        for name, damage in (("flipped byte", flip), ("missing shard", lose), ("other bundle", mix)):
            damage()
            promote(other)
            refused[name] = drill.until(lambda: bool(drill.release()["refused"]), NOTICED_S)
            promote(old)
            drill.until(lambda: not drill.release()["refused"], NOTICED_S)
            shutil.rmtree(folder)
            shutil.copytree(safe, folder)

    run = drill.during(act, 4 * drill.seconds)
    shutil.rmtree(safe)
    return verdict(
        figures_of(run) | {"refused_after_s": refused},
        no_request_failed=run.failed == 0,
        each_refused=None not in refused.values() and len(refused) == 3,
        old_one_served={reply.release for reply in run.good} == {old},
    )


def searcher_killed(drill: Drill) -> Verdict:
    """F17: one of two replicas of a shard group, again and again."""
    killed: list[int] = []
    run = drill.during(lambda: killed.extend(drill.kill_one("ShardSearcher-0", 3)), 1.5 * drill.seconds)
    return verdict(
        figures_of(run) | {"killed": len(killed)},
        something_was_killed=len(killed) > 0,
        no_request_failed=run.failed == 0,
        never_partial=not any(reply.partial for reply in run.good),
    )


def shard_dead(drill: Drill) -> Verdict:
    """F18: all replicas of a shard group, for longer than a query waits: answers say that they are partial, then are whole."""

    def act() -> None:
        end = time.monotonic() + drill.seconds / 3
        while time.monotonic() < end:  # those that Serve starts in their place, too
            for process in drill.processes("ShardSearcher-0"):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.5)

    run = drill.during(act)
    recovered = drill.until(drill.whole, RECOVERED_S)
    return verdict(
        figures_of(run) | {"whole_again_after_s": recovered},
        no_request_failed=run.failed == 0,
        partial_is_said=any(reply.partial for reply in run.good),
        recovered=recovered is not None,
    )


def searcher_hangs(drill: Drill) -> Verdict:
    """F22: a shard group that is stopped, not dead: the deadline is kept, the answer is marked, nothing piles up."""
    stopped = drill.processes("ShardSearcher-0")

    def act() -> None:
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        time.sleep(drill.seconds / 3)
        for process in stopped:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)

    run = drill.during(act)
    recovered = drill.until(drill.whole, RECOVERED_S)
    settings = Settings.load(drill.shop.conf).serve
    slowest = max((reply.seconds for reply in run.replies), default=0.0)
    return verdict(
        figures_of(run) | {"slowest_s": round(slowest, 1), "whole_again_after_s": recovered},
        no_request_failed=run.failed == 0,
        partial_is_said=any(reply.partial for reply in run.good),
        deadline_kept=slowest <= settings.request_timeout_s + 1.0,
        recovered=recovered is not None,
    )


def ingress_killed(drill: Drill) -> Verdict:
    """F19: one of two ingress replicas: a client that asks once more loses nothing."""
    killed: list[int] = []
    run = drill.during(lambda: killed.extend(drill.kill_one("Ingress", 2)), retries=2)
    figures = figures_of(run) | {"killed": len(killed)}
    return verdict(figures, something_was_killed=len(killed) > 0, no_request_failed=run.failed == 0)


def registry_away(drill: Drill) -> Verdict:
    """F23: MLflow stops: nothing is noticed, a replica that starts meanwhile answers; once it is back, a switch is followed."""
    took: list[float | None] = []
    replaced: list[bool] = []
    served = drill.release()["release"]["id"]
    other = next(name for name in drill.shop.releases if name != served)

    def act() -> None:
        drill.registry.stop()
        replaced.append(drill.replaced("Ingress", RECOVERED_S))
        drill.registry.start()
        for wanted in (other, served):
            drill.roll_back()
            took.append(drill.until(lambda name=wanted: drill.release()["release"]["id"] == name, NOTICED_S))

    run = drill.during(act, 4 * drill.seconds, retries=2)
    return verdict(
        figures_of(run) | {"served_after_s": took},
        no_request_failed=run.failed == 0,
        replica_started_without_it=replaced == [True],
        followed_again=None not in took,
    )


def outlived(drill: Drill) -> Verdict:
    """The release that the endpoint was started on is cleared away after a switch; processes that die then come back."""
    replaced: dict[str, bool] = {}
    first = drill.release()["release"]["id"]
    other = next(name for name in drill.shop.releases if name != first)
    folder = Settings.load(drill.shop.conf).store.releases / first

    def act() -> None:
        drill.roll_back()
        drill.until(lambda: drill.release()["release"]["id"] == other, NOTICED_S)
        folder.rename(folder.with_name(f".gone-{first}"))
        for name in ("Ingress", "ShardSearcher-0"):
            replaced[name] = drill.replaced(name, RECOVERED_S)

    run = drill.during(act, 4 * drill.seconds, retries=2)
    whole = drill.until(drill.whole, RECOVERED_S)
    folder.with_name(f".gone-{first}").rename(folder)
    drill.roll_back()
    back = drill.until(lambda: drill.release()["release"]["id"] == first, NOTICED_S)
    return verdict(
        figures_of(run) | {"whole_again_after_s": whole},
        no_request_failed=run.failed == 0,
        each_replaced=all(replaced.values()) and len(replaced) == 2,
        whole_again=whole is not None and back is not None,
    )


def slow_clients(drill: Drill) -> Verdict:
    """S3: half-sent headers and bodies on hundreds of connections: others hardly notice, and each is told so, or cut, in time.

    Half-sent bodies count as queries that wait: with so many of them some others are told to come back.
    """
    before = load(drill.url, drill.shop.mixed, drill.seconds / 2, rate=RATE)
    place = httpx.URL(drill.url)
    opened: dict[socket.socket, float] = {}
    cut_after: list[float] = []

    def act() -> None:
        with selectors.DefaultSelector() as selector:
            for number in range(SLOW_CLIENTS):
                connection = socket.create_connection((place.host, place.port), timeout=10)
                connection.sendall(HALF_SENT[number % len(HALF_SENT)])
                opened[connection] = time.monotonic()
                selector.register(connection, selectors.EVENT_READ)
            end = time.monotonic() + 2 * CUT_S
            while selector.get_map() and time.monotonic() < end:
                for key, _ in selector.select(1.0):
                    if (answer := recv(key.fileobj)) == b"" or b" 408 " in answer[:32]:
                        cut_after.append(time.monotonic() - opened[key.fileobj])
                        selector.unregister(key.fileobj)
            for connection in opened:
                connection.close()

    def recv(connection: Any) -> bytes:
        try:
            return bytes(connection.recv(65_536))
        except OSError:
            return b""

    run = drill.during(act, max(drill.seconds, 2 * CUT_S))
    return verdict(
        figures_of(run)
        | {"slow": SLOW_CLIENTS, "cut": len(cut_after), "cut_after_s": round(max(cut_after, default=0.0), 1)}
        | {"p99_before_ms": round(before.ms(0.99))},
        no_request_failed=run.failed == 0,
        each_cut_in_time=len(cut_after) == SLOW_CLIENTS and max(cut_after) <= CUT_S,
        others_hardly_notice=run.ms(0.99) <= 2 * before.ms(0.99) + 50,
    )


def overload(drill: Drill) -> Verdict:
    """F21: three times what it can answer: some are told to come back, the others are answered, then all is as before."""
    capacity = load(drill.url, drill.shop.novel, drill.seconds / 2, clients=8)
    rate = 3 * capacity.per_s
    memory = sum(process.memory_info().rss for name in ("Ingress", "QueryEncoder") for process in drill.processes(name))
    run = load(drill.url, drill.shop.novel, drill.seconds, rate=rate)
    grown = sum(process.memory_info().rss for name in ("Ingress", "QueryEncoder") for process in drill.processes(name)) - memory
    time.sleep(10)
    after = load(drill.url, drill.shop.novel, 5, clients=1)
    refused = [reply for reply in run.replies if reply.status in (429, 503)]
    return verdict(
        figures_of(run)
        | {"capacity_per_s": round(capacity.per_s, 1), "asked_per_s": round(rate, 1), "answered_per_s": round(run.per_s, 1)}
        | {"grown_mb": round(grown / 1e6), "p50_after_ms": round(after.ms(0.5))},
        no_request_failed=run.failed == 0,
        told_to_come_back=bool(refused) and all(reply.retry_after for reply in refused),
        memory_bounded=grown < 500e6,
        normal_after=after.failed == 0 and bool(after.good),
    )


FAULTS: dict[str, Callable[[Drill], Verdict]] = {
    "switch": switch,
    "bad_release": bad_release,
    "searcher_killed": searcher_killed,
    "shard_dead": shard_dead,
    "searcher_hangs": searcher_hangs,
    "ingress_killed": ingress_killed,
    "registry_away": registry_away,
    "outlived": outlived,
    "slow_clients": slow_clients,
    "overload": overload,
}


@contextlib.contextmanager
def drilled(seconds: float, kept: Path | None) -> Iterator[Drill]:
    """An endpoint for all faults."""
    serve = {"watch_s": 1.0, "num_searchers": 2, "searcher_replicas": 2, "num_ingress": 2, "request_timeout_s": 10.0}
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(opened_shop(kept, 60, serve=serve, index={"num_shards": 2}))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        database = Path(Config.load(shop.conf).registry.uri.removeprefix("sqlite:///"))  # that the jobs of the drill write to
        registry = stack.enter_context(RegistryServer(Path(folder), free_port(), database))
        url = stack.enter_context(endpoint(shop.conf, "--set", f"registry.uri={registry.uri}"))
        yield Drill(url, shop, seconds, registry)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of load; a fault takes one to four times as long")
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS), help="some of the faults")
    parser.add_argument("--shop", type=Path, help="folder in which the store is made once and used again; none = a temporary one")
    args = parser.parse_args()
    wrong = 0
    with drilled(args.seconds, args.shop) as drill:
        for name in args.only:
            drill.until(drill.whole, RECOVERED_S)
            found = FAULTS[name](drill)
            wrong += bool(found.wrong)
            says = "NOT SURVIVED: " + ", ".join(found.wrong) if found.wrong else "survived"
            sys.stdout.write(f"{name:<16}{says}  {json.dumps(found.figures)}\n")
            sys.stdout.flush()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
