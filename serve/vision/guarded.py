"""`decode_image` and `fingerprint_bytes` in a child process: foreign bytes can crash, hang or bloat that, not us.

The child (serve.vision.decoder_process) is a fresh interpreter, so it inherits no state, no credentials and no open files.
Bytes and pixels cross in one piece of anonymous shared memory, never on disk; a few words of JSON go over a socket.
"""

import json
import mmap
import os
import subprocess
import sys
import threading
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from serve.vision.decoder_process import READY, SharedLayout, array_at
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES, NUM_VARIANTS, Fingerprint
from serve.vision.image import ImageError

if TYPE_CHECKING:
    from serve.vision.spec import DecodeLimits

START_TIMEOUT_S = 60.0  # 0.2 s on an idle machine
END_TIMEOUT_S = 2.0
RELEASE_BYTES = 8_000_000  # the pages of a larger image are given back after it
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


class GuardedDecoder:
    """Decodes in a child process, one image at a time; calls from several threads wait for each other.

    Every fault of the bytes is an ImageError, with the codes of `decode_image` plus "timeout" and "decoder_crashed"; after
    those two the child is replaced. RuntimeError only where no child can be started.
    """

    def __init__(self, limits: "DecodeLimits") -> None:
        self.limits = limits
        self.layout = SharedLayout(limits.max_bytes, limits.max_pixels)
        self.lock = threading.Lock()
        self.memory_fd = os.memfd_create("guarded_decoder", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, self.layout.size)  # pages exist once they are written
        self.memory = mmap.mmap(self.memory_fd, self.layout.size)
        self._start()

    def decode(self, data: bytes, at_least_px: int | None = None) -> np.ndarray:
        """`decode_image`: (H, W, 3) uint8."""
        with self.lock:
            return self._pixels(self._ask(data, pixels=True, at_least_px=at_least_px))

    def fingerprint(self, data: bytes) -> Fingerprint:
        """`fingerprint_bytes`."""
        with self.lock:
            return self._fingerprint(self._ask(data, fingerprint=True))

    def decode_with_fingerprint(self, data: bytes, at_least_px: int | None = None) -> tuple[np.ndarray, Fingerprint]:
        """Both in one round trip."""
        with self.lock:
            reply = self._ask(data, pixels=True, fingerprint=True, at_least_px=at_least_px)
            return self._pixels(reply), self._fingerprint(reply)

    def close(self) -> None:
        """Ends the child and frees the memory; a second call does nothing."""
        if self.memory.closed:
            return
        self._end()
        self.memory.close()
        os.close(self.memory_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, data: bytes, *, pixels: bool = False, fingerprint: bool = False, at_least_px: int | None = None
    ) -> dict[str, Any]:
        """The child's reply. Raises ImageError."""
        if len(data) > self.limits.max_bytes:
            raise ImageError("too_large", f"{len(data)} bytes; at most {self.limits.max_bytes}")
        self._await_ready()
        self.memory[: len(data)] = data
        request = {"num_bytes": len(data), "at_least_px": at_least_px, "pixels": pixels, "fingerprint": fingerprint}
        try:
            self.connection.send_bytes(json.dumps(request).encode())
            if not self.connection.poll(self.limits.timeout_s):
                self._replace()
                raise ImageError("timeout", f"not decoded after {self.limits.timeout_s:g} s")
            reply: dict[str, Any] = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            status = self._replace()
            raise ImageError("decoder_crashed", f"the decoder ended with status {status} on these bytes") from error
        if "code" in reply:
            raise ImageError(reply["code"], reply["detail"])
        return reply

    def _pixels(self, reply: dict[str, Any]) -> np.ndarray:
        pixels = array_at(self.memory, self.layout.pixels_at, tuple(reply["shape"])).copy()
        if pixels.nbytes > RELEASE_BYTES:
            self.memory.madvise(mmap.MADV_REMOVE, self.layout.pixels_at, self.layout.size - self.layout.pixels_at)
        return pixels

    def _fingerprint(self, reply: dict[str, Any]) -> Fingerprint:
        hashes = array_at(self.memory, self.layout.hashes_at, (NUM_VARIANTS, HASH_BYTES)).copy()
        colours = array_at(self.memory, self.layout.colours_at, (NUM_VARIANTS, COLOUR_BYTES)).copy()
        return Fingerprint(hashes, colours, reply["quality"])

    def _start(self) -> None:
        """Starts a child without waiting for it."""
        limits = self.limits.model_dump_json()
        self.connection, theirs = Pipe()
        self.ready = False
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join([PACKAGE_ROOT, *filter(None, sys.path)]),  # our own modules, wherever Ray put them
            "OPENBLAS_NUM_THREADS": "1",  # the matrices are tiny, and every thread maps memory
        }
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "serve.vision.decoder_process", str(theirs.fileno()), str(self.memory_fd), limits],
                pass_fds=(theirs.fileno(), self.memory_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=environment,
            )

    def _await_ready(self) -> None:
        if self.ready:
            return
        try:
            self.ready = self.connection.poll(START_TIMEOUT_S) and self.connection.recv_bytes() == READY
        except (EOFError, OSError):
            self.ready = False
        if not self.ready:
            status = self._replace()
            raise RuntimeError(f"the decoder process does not start (status {status}); its error is on standard error")

    def _replace(self) -> int:
        """Puts a new child in the place of one that crashed or hangs; the old one's exit status."""
        self.process.kill()
        status = self._end()
        self._start()
        return status

    def _end(self) -> int:
        self.connection.close()  # a child that waits sees this and returns
        try:
            return self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
