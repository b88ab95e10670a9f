"""Sends photos to an endpoint from a process of its own and keeps what came back: closed loop (clients) or open loop (a rate).

    python -m tests.load.generator --url http://127.0.0.1:8000 --photos FOLDER --clients 16 --seconds 20 --out FILE

Raw HTTP/1.1 over kept connections: a client library would take longer than the answers it waits for. In an open loop a request
that has to wait for its turn counts from the moment it was due, so that a slow server can't hide behind its own slowness.
"""

import argparse
import asyncio
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from tests.parts import ROOT

RELEASE = re.compile(rb'"release":\{"id":"([^"]+)"')
STAGE = re.compile(rb'"stage":"(\w+)"')
MAX_WAITING = 512  # requests of an open loop that are under way at once; more are counted as not sent
ANSWER_S = 30.0


@dataclass(frozen=True)
class Reply:
    """One request: when it was due (seconds from the start), how long its answer took, and what it was. status 0 = no answer."""

    at: float
    seconds: float
    status: int
    stage: str
    release: str
    partial: bool
    retry_after: bool
    fault: str = ""


class Client:
    """One kept connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host, self.port, self.path = parts.hostname, parts.port or 80, parts.path
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, body: bytes, content_type: str) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer. Raises OSError, EOFError, TimeoutError."""
        try:
            async with asyncio.timeout(ANSWER_S):
                if self.streams is None:
                    self.streams = await asyncio.open_connection(self.host, self.port)
                reader, writer = self.streams
                head = f"{method} {self.path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: {content_type}\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", answer)
                data = await reader.readexactly(int(length[1])) if length else b""
                if b"connection: close" in answer.lower():
                    self.close()
                return int(answer[9:12]), answer, data
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The next request opens another connection."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


async def ask_once(client: Client, due: float, start: float, photo: bytes, retries: int, method: str) -> Reply:
    """One search, asked again up to `retries` times when nothing came back."""
    for left in range(retries, -1, -1):
        try:
            status, head, body = await client.ask(method, photo, "image/jpeg")
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            if left:
                continue
            return Reply(due - start, time.monotonic() - due, 0, "", "", False, False, type(error).__name__)
        stage, release = STAGE.search(body), RELEASE.search(body)
        return Reply(
            at=due - start,
            seconds=time.monotonic() - due,
            status=status,
            stage=stage[1].decode() if stage else "",
            release=release[1].decode() if release else "",
            partial=b'"partial":true' in body,
            retry_after=b"retry-after" in head.lower(),
            fault="" if status == 200 else body[:200].decode(errors="replace"),
        )
    raise AssertionError("the last try always returns")


async def closed_loop(url: str, photos: Sequence[bytes], clients: int, seconds: float, retries: int, method: str) -> list[Reply]:
    """`clients` ask one after the other, as fast as they are answered."""
    start, replies, turn = time.monotonic(), list[Reply](), itertools.count()

    async def one() -> None:
        client = Client(url)
        while time.monotonic() < start + seconds:
            replies.append(await ask_once(client, time.monotonic(), start, photos[next(turn) % len(photos)], retries, method))
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return replies


async def open_loop(url: str, photos: Sequence[bytes], rate: float, seconds: float, retries: int, method: str) -> list[Reply]:
    """`rate` requests a second whatever becomes of them, evenly spaced."""
    start, replies, free, waiting = time.monotonic(), list[Reply](), list[Client](), set[asyncio.Task[None]]()

    async def one(due: float, photo: bytes) -> None:
        client = free.pop() if free else Client(url)
        replies.append(await ask_once(client, due, start, photo, retries, method))
        free.append(client)

    for number in range(int(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if len(waiting) >= MAX_WAITING:
            replies.append(Reply(due - start, 0.0, 0, "", "", False, False, "not sent: too many are under way"))
            continue
        task = asyncio.create_task(one(due, photos[number % len(photos)]))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    return replies


@dataclass(frozen=True)
class Load:
    """What a run of the generator gave."""

    replies: list[Reply]
    seconds: float

    @property
    def good(self) -> list[Reply]:
        """Answered with 200."""
        return [reply for reply in self.replies if reply.status == 200]

    @property
    def per_s(self) -> float:
        """Good answers a second."""
        return len(self.good) / self.seconds

    def ms(self, quantile: float) -> float:
        """Milliseconds within which that share of the good answers came."""
        return float(np.quantile([reply.seconds for reply in self.good], quantile) * 1000) if self.good else float("nan")

    def statuses(self) -> dict[str, int]:
        """How many of each; 0 = no answer."""
        return {str(status): num for status, num in sorted(Counter(reply.status for reply in self.replies).items())}

    @property
    def failed(self) -> int:
        """Neither answered nor told to come back: no answer, a 5xx without Retry-After."""
        return sum(reply.status != 200 and not reply.retry_after for reply in self.replies)


class Running:
    """A generator under way in its own process."""

    def __init__(
        self,
        url: str,
        photos: Path,
        seconds: float,
        *,
        clients: int = 0,
        rate: float = 0.0,
        retries: int = 0,
        method: Literal["POST", "GET"] = "POST",
    ) -> None:
        self.out = Path(tempfile.mkstemp(suffix=".json")[1])
        self.seconds = seconds
        command = [sys.executable, "-m", "tests.load.generator", "--url", url, "--photos", str(photos), "--out", str(self.out)]
        command += ["--clients", str(clients)] if clients else ["--rate", str(rate)]
        command += ["--seconds", str(seconds), "--retries", str(retries), "--method", method]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def result(self) -> Load:
        """Waits for its end."""
        assert self.process.wait(self.seconds + 120) == 0, "the load generator failed"
        replies = [Reply(**reply) for reply in json.loads(self.out.read_text())]
        self.out.unlink()
        return Load(replies, self.seconds)


def load(url: str, photos: Path, seconds: float, **how: Any) -> Load:
    """One run from start to end."""
    return Running(url, photos, seconds, **how).result()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the endpoint; /v1/search is asked unless it has a path")
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEGs, sent again and again")
    parser.add_argument("--clients", type=int, default=0, help="closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--retries", type=int, default=0, help="how often a request without an answer is sent again")
    parser.add_argument("--method", choices=["POST", "GET"], default="POST")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(args.photos.iterdir())]
    url = args.url if urlsplit(args.url).path not in ("", "/") else f"{args.url.rstrip('/')}/v1/search"
    if args.clients:
        run = closed_loop(url, photos, args.clients, args.seconds, args.retries, args.method)
    else:
        run = open_loop(url, photos, args.rate, args.seconds, args.retries, args.method)
    args.out.write_text(json.dumps([asdict(reply) for reply in asyncio.run(run)]))


if __name__ == "__main__":
    main()
