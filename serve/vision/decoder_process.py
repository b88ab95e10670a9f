"""The child of `serve.vision.guarded`: a fresh interpreter with PIL and numpy that decodes until its parent goes away.

Started as `python -m serve.vision.decoder_process CONNECTION_FD MEMORY_FD LIMITS`, LIMITS being DecodeLimits as JSON.
"""

import json
import mmap
import os
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from serve.vision.hash import HASH_BYTES, NUM_VARIANTS, fingerprint_bytes
from serve.vision.image import ImageError, decode_image

if TYPE_CHECKING:  # the child imports no settings: it gets the limits as plain values
    from serve.vision.spec import DecodeLimits

READY = b"ready"
ORPHAN_CHECK_S = 30.0  # the socket may be held open by a fork of the parent
ALARM_AFTER_S = 5.0  # past the time limit: the parent should have ended us, so it is gone or stopped


@dataclass(frozen=True)
class SharedLayout:
    """Where things lie in the shared memory: the encoded image, its fingerprint, its pixels."""

    max_bytes: int
    max_pixels: int

    @property
    def hashes_at(self) -> int:
        return -(-self.max_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def colours_at(self) -> int:
        return self.hashes_at + NUM_VARIANTS * HASH_BYTES

    @property
    def pixels_at(self) -> int:
        return self.hashes_at + mmap.PAGESIZE

    @property
    def size(self) -> int:
        return self.pixels_at + self.max_pixels * 3


def array_at(memory: mmap.mmap, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 view of the shared memory."""
    return np.frombuffer(memory, np.uint8, int(np.prod(shape)), offset).reshape(shape)


def answer(memory: mmap.mmap, limits: "DecodeLimits", request: dict[str, Any]) -> dict[str, Any]:
    """Does one request {num_bytes, at_least_px, pixels, fingerprint}: results into the memory.

    The reply is {shape, quality}, as far as they were asked for, or {code, detail} of an ImageError.
    """
    layout = SharedLayout(limits.max_bytes, limits.max_pixels)
    data = memory[: request["num_bytes"]]
    reply: dict[str, Any] = {}
    try:
        if request["pixels"]:
            pixels = decode_image(data, limits, at_least_px=request["at_least_px"])
            array_at(memory, layout.pixels_at, pixels.shape)[:] = pixels
            reply["shape"] = pixels.shape
        if request["fingerprint"]:
            found = fingerprint_bytes(data, limits)
            array_at(memory, layout.hashes_at, found.hashes.shape)[:] = found.hashes
            array_at(memory, layout.colours_at, found.colours.shape)[:] = found.colours
            reply["quality"] = found.quality
    except ImageError as error:
        return {"code": error.code, "detail": error.detail}
    return reply


def main() -> None:
    """Serves requests; returns when the parent is gone."""
    connection, limits = Connection(int(sys.argv[1])), cast("DecodeLimits", SimpleNamespace(**json.loads(sys.argv[3])))
    memory = mmap.mmap(int(sys.argv[2]), SharedLayout(limits.max_bytes, limits.max_pixels).size)
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends us
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, we go first
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + limits.max_memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no upload on disk
    try:
        connection.send_bytes(READY)
    except BrokenPipeError:  # the parent ended while we started
        return
    while os.getppid() == parent:
        if connection.poll(ORPHAN_CHECK_S):
            try:
                request = json.loads(connection.recv_bytes())
            except EOFError:
                return
            signal.setitimer(signal.ITIMER_REAL, limits.timeout_s + ALARM_AFTER_S)  # SIGALRM's default: the end
            reply = answer(memory, limits, request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
