"""The endpoint and the search page on this machine: `python -m serve --conf conf/local.yaml [--port 8000] [--release ID]`.

Checks first what can be wrong (settings, port, release), then starts a Ray of its own with Ray Serve, waits for one
answered query, and stays in the foreground; Ctrl-C ends everything it started. Photos are kept in memory only: nothing is
spilled to disk.
"""

import argparse
import contextlib
import errno
import fcntl
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from serve.api.client_headers import CALLBACK
from serve.index.manifest import ReleaseError
from serve.settings import ConfigError, ServeConfig, Settings
from serve.vision.spec import BundleError

OWNER = "VISUAL_SEARCH_SERVER_LOCK"  # in the environment of every process that the server starts: a file it holds locked
START_ATTEMPTS = 3  # Ray gives its node 30 s, which a busy small machine may need
START_TIMEOUT_S = 180.0  # two cold cores import torch, faiss and OpenVINO in five processes
OWN_PORTS = range(20_000, 30_000)  # below what systems lend to clients (32,768 on), beside Ray's workers (10,002 to 19,999)
MAX_FOLDER_LENGTH = 97 - len("/m.sock") - 57  # of HAProxy's socket paths, in which Ray puts a folder with a digest for name


class StartError(RuntimeError):
    """Why the server can't start, in one line, and what to do."""


def main() -> None:
    """Flags, one line for every known way to fail, exit status 0 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/local.yaml")
    parser.add_argument("--port", type=int, metavar="N", help="instead of serve.port of the settings")
    parser.add_argument("--release", metavar="ID", help="serve this release instead of the champion")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="overrides one setting; repeatable")
    args = parser.parse_args()
    port = [] if args.port is None else [f"serve.port={args.port}"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # or it tells of every table of a new registry
    try:
        settings = Settings.load(args.conf, [*args.set, *port])
        end_orphans()
        check_port(settings.serve)
        run(settings, args.release)
    except (ConfigError, ReleaseError, BundleError, StartError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")


def end_orphans() -> None:
    """Ends what a killed server (kill -9, out of memory) has left: its HAProxy has a session of its own and keeps the port.

    A server whose lock file is not here, as that of another container, is left alone.
    """
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # not ours, or its server lives and holds the lock
            if owner := process.environ().get(OWNER):
                with Path(owner).open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                process.kill()
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=10)


def check_port(config: ServeConfig) -> None:
    """The port is free. Raises StartError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"port {config.port} is in use: stop what uses it, or choose another with --port") from None
            raise StartError(
                f"cannot listen on {config.host}:{config.port}: {error.strerror}; set serve.host and serve.port"
            ) from None


def run(settings: Settings, release_id: str | None) -> None:
    """Serve until interrupted; returns never, raises KeyboardInterrupt."""
    from serve.api.served import ServedRelease

    served = ServedRelease.resolve(settings, release_id)
    with local_ray(settings.serve) as logs:
        deploy(served, settings)
        manifest, url = served.manifest, address(settings.serve)
        sys.stdout.write(
            f"release {manifest.release_id}, bundle {manifest.bundle.name}: "
            f"{manifest.counts.products:,} products, {manifest.counts.images:,} photos\n"
            f"  search page  {url}/\n  API          {url}/docs\n  logs         {logs}\nCtrl-C stops it.\n"
        )
        sys.stdout.flush()
        while True:
            signal.pause()


def address(config: ServeConfig) -> str:
    """Where a client on this machine finds the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    return f"http://{host}:{config.port}"


@contextlib.contextmanager
def local_ray(config: ServeConfig) -> Iterator[Path]:
    """A Ray for this server alone; yields its log folder. Ends every process it started."""
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    if len(str(folder)) > MAX_FOLDER_LENGTH:
        folder.rmdir()
        raise StartError(f"TMPDIR={folder.parent} is too long for the sockets that lie below it: set TMPDIR=/tmp")
    lock = lock_file(folder).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ.update(environment(config, folder))
    import ray  # Ray reads its environment when it is imported
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        context = start_ray()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own there, which aborts the process
        yield Path(context.address_info["session_dir"]) / "logs"
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if ray.is_initialized():
            with silence():
                ray_serve.shutdown()
                ray.shutdown()
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def lock_file(folder: Path) -> Path:
    """Locked by the server for as long as it lives."""
    return folder / "lock"


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed inside: Ray reports its own end as faults."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def start_ray() -> Any:
    """`ray.init`, tried again where a busy machine was too slow for it. Raises StartError."""
    import ray

    for _ in range(START_ATTEMPTS):
        try:
            return ray.init(
                address="local",
                num_cpus=max(2, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=256_000_000,  # uploads and embeddings in flight
            )
        except Exception as error:  # Ray's own class of this fault is Exception
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    raise StartError(f"Ray did not start within its 30 s, {START_ATTEMPTS} times: this machine is too busy; try again")


def environment(config: ServeConfig, folder: Path) -> dict[str, str]:
    """What Ray and Ray Serve read from the environment. Its own `folder` and ports let two servers live on one machine."""
    settings = {
        OWNER: str(lock_file(folder)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_automatic_object_spilling_enabled": "0",  # an upload in the object store must never reach the disk
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 s kills a proxy that starts on two busy cores, again and again
    }
    if config.haproxy:
        metrics, stats, http, grpc = free_ports(4)
        settings |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "10",  # Serve's default is an hour: half-sent requests would pile up
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # one machine: nobody needs 30 s to notice the end
            "RAY_SERVE_HAPROXY_LOG_TARGET": f"{folder}/no-log",  # no access log: request lines go nowhere
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/a.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/m.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
        }
    return settings


def free_ports(count: int) -> list[int]:
    """`count` ports that nobody listens on now, and that no client is given before they are used. Raises StartError."""
    free: list[int] = []
    for port in random.sample(OWN_PORTS, len(OWN_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            free.append(port)
        if len(free) == count:
            return free
    raise StartError(f"no {count} free ports between {OWN_PORTS.start} and {OWN_PORTS.stop - 1}: stop what uses them")


def deploy(served: Any, settings: Settings) -> None:
    """Start the application and wait until a query is answered. Raises StartError."""
    from ray import serve as ray_serve

    from serve.api.app import assemble

    config = settings.serve
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": config.host,
            "port": config.port,
            "request_timeout_s": config.request_timeout_s + 1.0,  # ours comes first, as problem JSON
            "keep_alive_timeout_s": 90,
        },
    )
    try:
        ray_serve.run(assemble(served, settings), name="visual-search", route_prefix="/")
    except RuntimeError as error:
        raise StartError(f"the application did not start: {' '.join(str(error).split())[:600]}") from error
    wait_until_ready(config)


def wait_until_ready(config: ServeConfig) -> None:
    """Until /readyz says so. Raises StartError with its last reason."""
    deadline = time.monotonic() + START_TIMEOUT_S
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address(config)}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as error:
            reason = error.read(2_000).decode(errors="replace")
        except OSError as error:
            reason = str(error)
        time.sleep(0.2)
    raise StartError(f"not ready after {START_TIMEOUT_S:g} s: {reason}")


if __name__ == "__main__":
    main()
