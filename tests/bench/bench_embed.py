"""embed_images against a bare loop: what Ray, the guarded decoder and the stage cost, and what two processes gain.

    python -m tests.bench.bench_embed --conf conf/local.yaml [--images 800] [--repeats 3] [--out FILE]

The bare loop reads, hashes, decodes and fingerprints each photo and runs the same bundle with the same threads and batches, in
one process, with no guard. Both are measured in turns; medians are kept. The start of Ray and of the actors is reported beside
the rates and is no part of them: the second block of a run begins with a photo that a local server holds back until the first
block has come out of the embedder, so nothing is decoded ahead of the clock.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from ray.data.extensions import ArrowTensorArray

from jobs.config import Config
from jobs.embed_images import stream
from jobs.raydata.actors import pixel_column
from jobs.raydata.pending import first_look
from jobs.raydata.session import start_ray, stop_ray
from jobs.raydata.staging import Plan, Stage
from jobs.runs import configure_logging
from jobs.tables import Tables
from serve.vision.bundle import Bundle, assemble_bundle, bundle_digest
from serve.vision.hash import fingerprint_bytes
from serve.vision.image import decode_image, image_id_of
from serve.vision.spec import BundleConfig, EncoderConfig
from tests.bench.record import record

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "serve" / "bundles" / "generated-v1"
NUM_BARE = 200  # images of one bare loop


def photos(folder: Path, num_images: int) -> list[Path]:
    """`num_images` JPEGs with different bytes: real photos where they are beside the project, over and over, else drawn ones."""
    sources = sorted((ROOT.parent / "shared" / "data" / "luma-catalog" / "images").rglob("*.jpg"))[:200]
    if not sources:
        rng = np.random.default_rng(3)
        for number in range(50):
            patches = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
            sources.append(folder / f"drawn-{number}.jpg")
            Image.fromarray(patches).resize((800, 1000)).save(sources[-1], quality=90)
    files = []
    for number in range(num_images):
        data = sources[number % len(sources)].read_bytes()
        comment = f"{number:08}".encode()
        files.append(folder / f"{number:06}.jpg")
        files[-1].write_bytes(data[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + data[2:])
    return files


def untrained_mobilenet(folder: Path) -> BundleConfig:
    """MobileNetV2 at 224 pixels, no detector: its weights are random, its speed is not."""
    import torch
    from safetensors.torch import save_file

    from serve.vision.backbones import EmbeddingNet

    torch.manual_seed(0)
    path = folder / "mobilenet_v2.safetensors"
    save_file(EmbeddingNet("mobilenet_v2", 128, 0).state_dict(), path)
    return BundleConfig(
        name="bench", encoder=EncoderConfig(kind="torchvision", arch="mobilenet_v2", weights=str(path), embedding_dim=128)
    )


def bare_rate(config: Config, bundle: Bundle, files: list[Path]) -> float:
    """Images a second of the bare loop."""
    start = time.perf_counter()
    for first in range(0, len(files), config.embed.batch_size):
        images = []
        for path in files[first : first + config.embed.batch_size]:
            data = path.read_bytes()
            image_id_of(data)
            images.append(decode_image(data, config.decode))
            fingerprint_bytes(data, config.decode)
        bundle.analyse(images)
    return len(files) / (time.perf_counter() - start)


@contextmanager
def held_back(path: Path, until: threading.Event) -> Iterator[str]:
    """The URL of a photo that is sent when `until` is set."""

    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            until.wait()
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Late)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/held.jpg"
    server.shutdown()
    server.server_close()


def release_after_first_part(stage: Stage, until: threading.Event, times: list[float]) -> None:
    """Sets `until` once the first block is staged; appends the time."""
    while not any((stage.folder / "rows").glob("part-*")):
        time.sleep(0.005)
    times.append(time.perf_counter())
    until.set()


def job_rates(config: Config, bundle_folder: Path, files: list[Path], folder: Path) -> dict[str, float]:
    """Images a second of all blocks but the first, from a standing start to the end; seconds to the first block."""
    until, first_block = threading.Event(), config.embed.block_rows
    with held_back(files[first_block], until) as url:
        uris = [path.as_uri() for path in files]
        uris[first_block] = url
        return streamed(config, bundle_folder, uris, folder, until)


def streamed(config: Config, bundle_folder: Path, uris: list[str], folder: Path, until: threading.Event) -> dict[str, float]:
    """One run of the job's stream."""
    pending = first_look(uris)
    run_id = f"bench-{time.time_ns()}"
    plan = Plan(run_id, str(folder / "tables"), 0, bundle_digest(bundle_folder), 1, len(uris))
    stage = Stage.create(folder / "staging", plan, pending, "image_uri")
    first_part: list[float] = []
    threading.Thread(target=release_after_first_part, args=(stage, until, first_part), daemon=True).start()
    start = time.perf_counter()
    stream(config, Tables(plan.tables), bundle_folder, stage)
    end = time.perf_counter()
    stage.finish()
    statuses = stage.rows.to_table(columns=["status"])["status"].to_pylist()
    assert statuses.count("embedded") == len(uris), "a photo of the benchmark was not embedded"
    stage.remove()
    return {
        "per_s": (len(uris) - config.embed.block_rows) / (end - first_part[0]),
        "per_s_with_start": len(uris) / (end - start),
        "first_block_s": first_part[0] - start,
    }


def compare(config: Config, bundle_folder: Path, files: list[Path], folder: Path, repeats: int) -> dict[str, float]:
    """Medians of the job and the bare loop, in turns."""
    bundle = Bundle.load(bundle_folder, config.runtime)
    bare_rate(config, bundle, files[:16])
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        bare = bare_rate(config, bundle, files[:NUM_BARE])
        runs.append({"bare_per_s": bare} | job_rates(config, bundle_folder, files, folder))
        runs[-1]["ratio"] = runs[-1]["per_s"] / bare
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def transfer_ms(files: list[Path], config: Config) -> dict[str, float]:
    """Milliseconds of CPU an image from one actor's pixels to the object store, by form of the column."""
    images = [decode_image(path.read_bytes(), config.decode) for path in files[: config.embed.batch_size]]
    forms: dict[str, Callable[[], Any]] = {
        "binary_one_copy": lambda: pixel_column(images),
        "bytes_objects": lambda: pa.array([image.tobytes() for image in images], pa.large_binary()),
        "ray_tensors": lambda: ArrowTensorArray.from_numpy(ragged(images)),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(23):
        for name, form in forms.items():
            start = time.process_time()
            ray.get(ray.put(pa.table({"pixels": form()})))
            times[name].append((time.process_time() - start) * 1000 / len(images))
    return {name: round(statistics.median(of_form[3:]), 3) for name, of_form in times.items()}  # the first ones warm the pages


def ragged(images: list[np.ndarray]) -> np.ndarray:
    """(N,) objects."""
    array = np.empty(len(images), object)
    array[:] = images
    return array


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, default=ROOT / "conf" / "local.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    configure_logging()
    # one decoder, so that one held photo holds them all; the wait for the embedder is not a timeout
    config = Config.load(
        args.conf, [*args.set, "embed.decode_actors=1", "embed.fetch_timeout_s=600", "feed.schemes=[file, http]"]
    )
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        files = photos(folder, args.images)
        start = time.perf_counter()
        start_ray(config.ray)
        figures: dict[str, Any] = {"images": len(files), "ray_start_s": round(time.perf_counter() - start, 1)}
        figures["photo_pixels"] = decode_image(files[0].read_bytes(), config.decode).size // 3
        figures["transfer_ms_per_image"] = transfer_ms(files, config)
        bundles = {"mobilenet_v2": untrained_mobilenet(folder)}
        if SHIPPED.is_dir():
            bundles["shipped"] = BundleConfig(path=str(SHIPPED))
        for name, bundle in bundles.items():
            bundle_folder = assemble_bundle(bundle, folder / "bundles")
            figures[name] = compare(config, bundle_folder, files, folder, args.repeats)
        stop_ray()
    figures["embed"] = config.embed.model_dump()
    figures["threads"] = config.runtime.threads
    path = record("embed", figures, ("ray", "openvino", "pyarrow", "pillow"), args.out)
    sys.stdout.write(f"{path}\n{figures}\n")


if __name__ == "__main__":
    main()
