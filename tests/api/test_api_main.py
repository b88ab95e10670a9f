"""`python -m serve` in a process of its own: one clear line for what can be wrong, and one whole life of the server."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.api.tiny_release import RELEASE_ID, TinyRelease, encoded, picture
from tests.parts import ROOT, free_port

START_S = 300.0  # five processes that import torch, faiss and OpenVINO on a busy machine


def serve(conf: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A start that fails."""
    command = [sys.executable, "-m", "serve", "--conf", str(conf), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def failed(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One line on standard error with these words."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_port_in_use(tiny: TinyRelease) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        failed(serve(tiny.conf, "--port", port), 1, f"port {port} is in use", "--port")


def test_no_champion_and_unknown_releases(tiny: TinyRelease) -> None:
    failed(serve(tiny.conf, "--port", str(free_port())), 1, "no champion", "python -m jobs.nightly")
    failed(serve(tiny.conf, "--port", str(free_port()), "--release", "rnone"), 1, "rnone", RELEASE_ID)


def test_a_damaged_file_is_named(tiny: TinyRelease, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny.settings.store.root, store)
    flags = ["--port", str(free_port()), "--release", RELEASE_ID, "--set", f"store.root={store}"]
    vectors = store / "releases" / RELEASE_ID / "bags" / "0" / "vectors.f16"
    whole = vectors.read_bytes()
    vectors.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    failed(serve(tiny.conf, *flags), 1, "bags/0/vectors.f16", "SHA-256")
    vectors.write_bytes(whole)
    weights = next(store.glob("bundles/*/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    failed(serve(tiny.conf, *flags), 1, "digest")


def test_wrong_settings(tiny: TinyRelease) -> None:
    failed(serve(tiny.conf, "--set", "serve.prot=1"), 2, "serve.prot", "port")
    failed(serve(tiny.conf, "--port", "99999"), 2, "serve.port")


@pytest.mark.slow
def test_a_whole_life(tiny: TinyRelease) -> None:
    """Start, both stages answered over HTTP, a searcher killed, SIGTERM; then no process is left."""
    port = free_port()
    command = [sys.executable, "-m", "serve", "--conf", str(tiny.conf), "--port", str(port), "--release", RELEASE_ID]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until_ready(url, process)
        told = told_until(process, "Ctrl-C stops it.")  # a query may be answered before the server says where it is
        children = psutil.Process(process.pid).children(recursive=True)
        client = httpx.Client(timeout=60)
        found = client.post(f"{url}/v1/search", files={"image": tiny.photo("p/03")}).json()
        assert (found["stage"], found["results"][0]["product_id"], found["partial"]) == ("hash", "p/03", False)
        found = client.post(f"{url}/v1/search", files={"image": encoded(picture(777))}).json()
        assert (found["stage"], found["shards"]) == ("vector", {"asked": 2, "answered": 2})
        headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1", "content-type": "text/plain"}
        assert client.post(f"{url}/v1/search", content=b"x", headers=headers).status_code == 415
        impatient = {"x-request-timeout-seconds": "0.001"}
        answer = client.post(f"{url}/v1/search", files={"image": encoded(picture(778))}, headers=impatient)
        assert answer.status_code == 200, "a client's header sets no time limit"
        counted = client.get(f"{url}/metrics").text
        assert 'visual_search_answers_total{stage="vector"} 2.0' in counted and "visual_search_hash_hit_frac" in counted
        assert client.get(f"{url}/").status_code == 200
        large = httpx.post(f"{url}/v1/search", content=bytes(11_000_000), headers={"content-type": "image/jpeg"})
        assert large.status_code == 413
        searcher = next(p for p in children if "ShardSearcher-1" in " ".join(p.cmdline()))
        searcher.kill()
        answers = [client.post(f"{url}/v1/search", json={"product_id": "p/03", "k": 50}) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        for answer in (a.json() for a in answers):
            assert answer["partial"] or len(answer["results"]) == 11
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert f"{url}/" in told and told.count("\n") < 10, told
    assert "stopped" in output and output.count("\n") < 5, output  # Ray may tell of the killed searcher
    _, alive = psutil.wait_procs(children, timeout=15)
    assert [p.name() for p in alive] == []


@pytest.mark.slow
def test_a_killed_server_gives_its_port_back(tiny: TinyRelease) -> None:
    """kill -9 leaves its HAProxy, which holds the port; the next server ends that one and serves there."""
    port = free_port()
    command = [sys.executable, "-m", "serve", "--conf", str(tiny.conf), "--port", str(port), "--release", RELEASE_ID]

    def started() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert "Ctrl-C" in told_until(process, "Ctrl-C stops it.")  # not /readyz, which the first may answer for a moment more
        return process

    first = started()
    first.kill()
    first.communicate(timeout=60)
    assert listens(port)
    second = started()
    second.terminate()
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0 and "stopped" in output, output
    assert not listens(port)


def listens(port: int) -> bool:
    """Whether a connection to it is taken."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def told_until(process: subprocess.Popen[str], last: str) -> str:
    """What the server prints, up to the line `last`, or to its end."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.strip() == last:
            break
    return "".join(lines)


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Until /readyz says so; the server's own output when it ended before."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended: {process.communicate()[0]}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    process.kill()
    pytest.fail("the server was not ready in time")
