"""The decoder process: the same answers as in this process, and nothing that foreign bytes do reaches us."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.vision.guarded import GuardedDecoder
from serve.vision.hash import fingerprint_bytes
from serve.vision.image import ImageError, decode_image
from serve.vision.spec import DecodeLimits

LIMITS = DecodeLimits()
ROOT = Path(__file__).parents[2]
CODES = {
    "not_an_image", "unsupported_format", "truncated", "too_many_pixels", "too_small",
    "bad_aspect", "too_large", "metadata_too_large", "timeout", "decoder_crashed", "corrupt",
}  # fmt: skip


def encoded(kind: str = "JPEG", width: int = 200, height: int = 120, **options: object) -> bytes:
    cells = np.random.default_rng(width).integers(20, 236, (6, 8, 3), dtype=np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind, **options)
        return buffer.getvalue()


def wait_for_end(pid: int) -> None:
    process = Path("/proc") / str(pid)
    deadline = time.monotonic() + 20
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not process.exists()


@pytest.fixture(scope="module")
def decoder() -> Iterator[GuardedDecoder]:
    with GuardedDecoder(LIMITS) as guarded:
        yield guarded


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_answers_are_those_of_this_process(decoder: GuardedDecoder, kind: str) -> None:
    data = encoded(kind)
    here = fingerprint_bytes(data, LIMITS)
    pixels, both = decoder.decode_with_fingerprint(data)
    assert np.array_equal(pixels, decode_image(data, LIMITS))
    assert np.array_equal(decoder.decode(data, at_least_px=32), decode_image(data, LIMITS, at_least_px=32))
    for there in (both, decoder.fingerprint(data)):
        assert np.array_equal(there.hashes, here.hashes)
        assert np.array_equal(there.colours, here.colours)
        assert there.quality == here.quality


def test_pixels_outlive_the_next_image(decoder: GuardedDecoder) -> None:
    first = decoder.decode(encoded("PNG"))
    decoder.decode(encoded("PNG", 640, 480))
    assert np.array_equal(first, decode_image(encoded("PNG"), LIMITS))
    assert first.flags.writeable


def test_errors_keep_their_code(decoder: GuardedDecoder) -> None:
    process = decoder.process.pid
    for data, code in ((b"text", "not_an_image"), (encoded()[:500], "truncated"), (bytes(LIMITS.max_bytes + 1), "too_large")):
        with pytest.raises(ImageError) as caught:
            decoder.decode(data)
        assert caught.value.code == code
    assert decoder.process.pid == process


@pytest.mark.parametrize("fault", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_an_error_and_the_next_image_decodes(decoder: GuardedDecoder, fault: signal.Signals) -> None:
    decoder.decode(encoded())
    os.kill(decoder.process.pid, fault)
    decoder.process.wait()
    with pytest.raises(ImageError, match=f"decoder_crashed: the decoder ended with status -{fault.value}"):
        decoder.decode(encoded())
    assert decoder.decode(encoded()).shape == (120, 200, 3)


def test_a_hang_is_a_timeout_and_the_next_image_decodes() -> None:
    with GuardedDecoder(LIMITS.model_copy(update={"timeout_s": 0.5})) as guarded:
        guarded.decode(encoded())
        hung = guarded.process
        os.kill(hung.pid, signal.SIGSTOP)
        started = time.perf_counter()
        with pytest.raises(ImageError, match=r"timeout: not decoded after 0\.5 s"):
            guarded.decode(encoded())
        assert time.perf_counter() - started < 5
        assert hung.poll() == -signal.SIGKILL
        assert guarded.decode(encoded()).shape == (120, 200, 3)


def test_memory_is_limited() -> None:
    limits = LIMITS.model_copy(update={"max_memory_bytes": 60_000_000})
    with io.BytesIO() as buffer:
        Image.new("RGB", (6000, 5000)).save(buffer, "PNG", compress_level=1)
        large = buffer.getvalue()
    with GuardedDecoder(limits) as guarded:
        with pytest.raises(ImageError, match="too_large: decoding needs more memory"):
            guarded.decode(large)
        assert guarded.decode(encoded()).shape == (120, 200, 3)


def test_callers_wait_for_each_other(decoder: GuardedDecoder) -> None:
    images = [encoded("PNG", 100 + 10 * number) for number in range(8)]
    widths: dict[int, list[int]] = {}

    def decode(number: int) -> None:
        widths[number] = [decoder.decode(images[number]).shape[1] for _ in range(5)]

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert widths == {number: [100 + 10 * number] * 5 for number in range(8)}


def test_the_child_inherits_nothing_and_leaves_no_core(decoder: GuardedDecoder) -> None:
    decoder.decode(encoded())
    process = Path("/proc") / str(decoder.process.pid)
    names = {line.split(b"=")[0].decode() for line in (process / "environ").read_bytes().split(b"\0") if line}
    assert names <= {"PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONPATH", "OPENBLAS_NUM_THREADS"}
    limits = (process / "limits").read_text()
    assert "Max core file size        0                    0" in limits
    loaded = (process / "maps").read_text()
    assert "numpy" in loaded
    assert not any(name in loaded for name in ("torch", "faiss", "pyarrow", "pydantic"))
    assert len(list((process / "fd").iterdir())) == 6  # three standard ones, the socket, the memory and its map


def test_the_child_dies_with_its_parent() -> None:
    code = (
        "import os, signal\n"
        "from serve.vision.guarded import GuardedDecoder\n"
        "from serve.vision.spec import DecodeLimits\n"
        "guarded = GuardedDecoder(DecodeLimits())\n"
        "guarded._await_ready()\n"
        "print(guarded.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    wait_for_end(int(parent.stdout))


def test_it_works_in_a_ray_actor_and_dies_with_it(ray_local: None) -> None:
    import ray

    class Decoding:
        def __init__(self) -> None:
            self.decoder = GuardedDecoder(DecodeLimits())

        def width(self, data: bytes) -> tuple[int, int]:
            return self.decoder.decode(data).shape[1], self.decoder.process.pid

    actor = ray.remote(Decoding).options(num_cpus=0.1).remote()
    width, pid = ray.get(actor.width.remote(encoded()))
    assert width == 200
    ray.kill(actor)
    wait_for_end(pid)


def test_close_ends_the_child_and_can_be_repeated() -> None:
    guarded = GuardedDecoder(LIMITS)
    guarded.decode(encoded())
    guarded.close()
    guarded.close()
    assert guarded.process.returncode == 0


def test_2000_mutated_images_are_pixels_or_image_errors() -> None:
    """Seeded; bytes flipped, cut, doubled and overwritten in all four formats."""
    rng = np.random.default_rng(17)
    sources = [
        encoded("JPEG", 96, 64), encoded("JPEG", 97, 65, progressive=True), encoded("PNG", 96, 64), encoded("GIF", 96, 64),
        encoded("WEBP", 96, 64), encoded("WEBP", 95, 64, lossless=True),
    ]  # fmt: skip
    found: Counter[str] = Counter()
    with GuardedDecoder(LIMITS) as guarded:
        guarded.decode(sources[0])
        child = guarded.process.pid
        for number in range(2_000):
            data = bytearray(sources[number % len(sources)])
            for _ in range(rng.integers(1, 8)):
                at = int(rng.integers(0, len(data)))
                kind = rng.integers(0, 4)
                if kind == 0:
                    data[at] = int(rng.integers(0, 256))
                elif kind == 1:
                    data[at : at + 4] = rng.bytes(4)
                elif kind == 2:
                    del data[at : at + int(rng.integers(1, 20))]
                else:
                    data[at:at] = data[at : at + int(rng.integers(1, 40))]
            try:
                pixels, found_print = guarded.decode_with_fingerprint(bytes(data))
                assert pixels.ndim == 3
                assert 0 <= found_print.quality <= 100
                found["decoded"] += 1
            except ImageError as error:
                assert error.code in CODES
                found[error.code] += 1
        assert guarded.process.pid == child, found  # not one crash
    assert found["decoded"] > 100
    assert found["corrupt"] + found["truncated"] > 500
