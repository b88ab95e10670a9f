"""embed_images on real files, a real HTTP server and a real (small, untrained) bundle; killed, and carried through."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from deltalake import DeltaTable, write_deltalake
from PIL import Image

from jobs import embed_images
from jobs.config import Config, JobError
from jobs.failpoint import EXIT_CODE
from jobs.raydata.outcomes import EmbedResult
from jobs.tables import Tables, read_table, table_version
from serve.vision.bundle import Bundle, assemble_bundle, bundle_digest
from serve.vision.hash import fingerprint_bytes
from serve.vision.image import decode_image
from tests.damage import entry
from tests.parts import ROOT, write_conf

Embedded = tuple[Config, EmbedResult, dict[str, str]]  # settings, result, URI -> expected reason
LABELS = ["apparel", "home", "toys"]
POISONED_BYTES = 130_000_000  # that a decoder comes to only with the one large photo


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an untrained MobileNetV3 with a head, seeded."""
    import torch
    from safetensors.torch import save_file

    from serve.vision.backbones import EmbeddingNet

    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_file(EmbeddingNet("mobilenet_v3_small", 16, len(LABELS)).state_dict(), path)
    return path


def photo(seed: int, width: int = 60, height: int = 48) -> bytes:
    """A JPEG of coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(patches).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def settings(folder: Path, weights: Path) -> Path:
    """A store of its own, blocks of four images."""
    encoder = {"kind": "torchvision", "arch": "mobilenet_v3_small", "weights": str(weights), "embedding_dim": 16}
    encoder |= {"labels": LABELS, "preprocess": {"size_px": 32}}
    sections = {
        "bundle": {"name": "untrained", "encoder": encoder},
        "feed": {"schemes": ["file", "http"]},
        "decode": {"max_bytes": 200_000},
        "ray": {"num_cpus": 2},
        "embed": {"block_rows": 4, "batch_size": 4, "fetch_timeout_s": 1.0, "fetch_attempts": 1},
    }
    return write_conf(folder, sections)


def write_images(config: Config, uris: list[str]) -> None:
    """The next version of `images`, one product a URI."""
    columns = {"product_id": [f"p{i}" for i in range(len(uris))], "position": pa.array([0] * len(uris), pa.int32())}
    path = Tables(config.store.tables).path("images")
    write_deltalake(path, pa.table(columns | {"image_uri": uris}), mode="overwrite")


def rows_of(config: Config, name: str) -> list[dict[str, Any]]:
    return read_table(Tables(config.store.tables), name).to_pylist()  # type: ignore[no-any-return]


def versions(config: Config) -> tuple[int | None, int | None]:
    tables = Tables(config.store.tables)
    return table_version(tables, "features"), table_version(tables, "fetches")


def vectors(config: Config) -> dict[tuple[str, int], bytes]:
    """(image_id, crop) -> embedding bytes, each there once."""
    rows = rows_of(config, "features")
    found = {(row["image_id"], row["crop"]): row["embedding"] for row in rows}
    assert len(found) == len(rows)
    return found


def outcomes(config: Config) -> set[tuple[str, ...]]:
    """What became of each URI."""
    return {(row["image_uri"], row["image_id"], row["status"]) for row in rows_of(config, "fetches")}


class Slow(SimpleHTTPRequestHandler):
    """Files of a folder; those called slow* are never sent."""

    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            time.sleep(2)  # twice what the job waits
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def write_faults(folder: Path, url: str) -> dict[str, str]:
    """URI -> expected reason, for every kind of image that is none."""
    files = {
        "truncated.jpg": (photo(90)[:-300], "truncated"),
        "text.jpg": (b"this is not a picture", "not_an_image"),
        "empty.jpg": (b"", "empty"),
        "large.jpg": (b"\xff\xd8" + bytes(200_001), "too_large"),
    }
    bomb = BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    files["bomb.png"] = (bomb.getvalue(), "too_many_pixels")
    small = BytesIO()
    Image.new("RGB", (5, 5)).save(small, "PNG")
    files["small.png"] = (small.getvalue(), "too_small")
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    reasons = {(folder / name).as_uri(): reason for name, (_, reason) in files.items()}
    reasons |= {f"{url}/slow.jpg": "timeout", f"{url}/missing.jpg": "fetch_failed", "ftp://host/a.jpg": "bad_scheme"}
    return reasons | {(folder / "missing.jpg").as_uri(): "fetch_failed"}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, weights: Path, ray_local: None) -> Iterator[Embedded]:
    """Ten photos under thirteen URIs (one by HTTP), and every fault, embedded once."""
    folder = tmp_path_factory.mktemp("embedded")
    config = Config.load(settings(folder, weights))
    photos = folder / "photos"
    photos.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=str(photos)))
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for number in range(10):
        (photos / f"photo {number}.jpg").write_bytes(photo(number))
    uris = [(photos / f"photo {number}.jpg").as_uri() for number in range(10)]
    for number in (0, 5):
        shutil.copy(photos / f"photo {number}.jpg", photos / f"same {number}.jpg")
        uris.append((photos / f"same {number}.jpg").as_uri())
    uris.append(f"{url}/photo%207.jpg")
    reasons = write_faults(photos, url)
    write_images(config, [*uris, *reasons, uris[0]])  # two products share one photo
    result = embed_images.run(config)
    yield config, result, reasons
    server.shutdown()
    server.server_close()


def test_every_image_is_accounted_for(embedded: Embedded) -> None:
    config, result, reasons = embedded
    assert (result.images_in, result.embedded, result.duplicates, result.rejected) == (23, 10, 3, 10)
    rows = rows_of(config, "fetches")
    assert Counter(row["status"] for row in rows) == {"embedded": 13, "rejected": 10}
    assert {row["image_uri"]: row["reason"] for row in rows if row["status"] == "rejected"} == reasons
    assert all(row["reason"] is None for row in rows if row["status"] == "embedded")
    digests = {hashlib.sha256(photo(number)).hexdigest() for number in range(10)}
    assert {row["image_id"] for row in rows if row["status"] == "embedded"} == digests
    assert set(vectors(config)) == {(image_id, 0) for image_id in digests}


def test_features_are_what_the_kernel_gives(embedded: Embedded) -> None:
    config, _, _ = embedded
    folder = assemble_bundle(config.bundle, config.store.bundles)
    bundle = Bundle.load(folder, config.runtime)
    stored = {row["image_id"]: row for row in rows_of(config, "features")}
    for number in range(10):
        data = photo(number)
        (crop,) = bundle.analyse([decode_image(data, config.decode)])[0]
        row = stored[hashlib.sha256(data).hexdigest()]
        assert row["embedding"] == crop.embedding.astype("<f2").tobytes() and len(row["embedding"]) == 2 * bundle.dim
        assert (row["x0"], row["y0"], row["x1"], row["y1"]) == crop.crop.box == (0, 0, row["width"], row["height"])
        assert (row["category"], row["category_prob"]) == (crop.category, pytest.approx(crop.category_prob))
        seen = fingerprint_bytes(data, config.decode)
        assert (row["hash"], row["colour"]) == (seen.hashes[0].tobytes(), seen.colours[0].tobytes())
        assert row["hash_quality"] == pytest.approx(seen.quality) and row["bundle_digest"] == bundle_digest(folder)


def test_again_changes_nothing(embedded: Embedded) -> None:
    """Only the failures that may pass are tried again; failing alike they are no news."""
    config, _, reasons = embedded
    before = versions(config)
    result = embed_images.run(config)
    transient = [reason for reason in reasons.values() if reason in ("timeout", "fetch_failed")]
    assert (result.images_in, result.rejected) == (len(transient), len(transient)) == (3, 3)
    assert versions(config) == before


def test_a_file_that_turns_up_is_embedded(embedded: Embedded) -> None:
    config, _, reasons = embedded
    uri = next(uri for uri, reason in reasons.items() if uri.startswith("file") and reason == "fetch_failed")
    missing = Path(uri.removeprefix("file://"))
    missing.write_bytes(photo(1000))
    num_rows = len(rows_of(config, "fetches"))
    assert embed_images.run(config).embedded == 1
    rows = rows_of(config, "fetches")
    assert len(rows) == num_rows and {row["status"] for row in rows if row["image_uri"] == missing.as_uri()} == {"embedded"}
    assert (hashlib.sha256(photo(1000)).hexdigest(), 0) in vectors(config)


@pytest.mark.parametrize(
    "lost", ["features", "a commit", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fetches", "both"))]
)
def test_what_was_put_back_or_made_anew_is_made_good(tmp_path: Path, weights: Path, ray_local: None, lost: str) -> None:
    """A table is gone, or its newest version is: no photo is missing afterwards, and none is there twice."""
    config, tables = Config.load(settings(tmp_path, weights)), Tables(str(tmp_path / "store" / "tables"))
    photos = [tmp_path / f"{number}.jpg" for number in range(6)]
    for number, path in enumerate(photos):
        path.write_bytes(photo(number % 5))
    uris = [path.as_uri() for path in photos]
    write_images(config, uris[:3])
    embed_images.run(config)
    write_images(config, uris)
    embed_images.run(config)
    before, seen = vectors(config), outcomes(config)
    if lost == "a commit":
        entry(Path(tables.path("features")), 2).unlink()
        assert len(vectors(config)) == 3 and embed_images.count_pending(config) == 2
    for name in ("features", "fetches"):
        if lost in (name, "both"):
            shutil.rmtree(tables.path(name))
    result = embed_images.run(config)
    assert result.embedded == {"features": 5, "fetches": 0, "both": 5, "a commit": 2}[lost]
    assert vectors(config) == before and outcomes(config) == seen and len(before) == 5
    assert embed_images.run(config) == EmbedResult()


def test_a_poison_photo_is_set_aside_and_the_others_are_embedded(tmp_path: Path, weights: Path, ray_local: None) -> None:
    """The process that decodes it is killed by SIGSEGV, each time it tries; a monitor knows it by its memory."""
    config = Config.load(settings(tmp_path, weights), ["decode.timeout_s=30"])
    large = BytesIO()
    Image.new("RGB", (6000, 6000), "navy").save(large, "PNG")
    photos = {f"{number}.jpg": photo(number) for number in range(8)} | {"poison.png": large.getvalue()}
    for name, data in photos.items():
        (tmp_path / name).write_bytes(data)
    write_images(config, [(tmp_path / name).as_uri() for name in photos])
    crashes: list[int] = []
    done = Event()

    def poison() -> None:
        while not done.wait(0.005):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "serve.vision.decoder_process" in process.cmdline() and process.memory_info().rss > POISONED_BYTES:
                        process.send_signal(signal.SIGSEGV)
                        crashes.append(process.pid)

    monitor = Thread(target=poison)
    monitor.start()
    try:
        result = embed_images.run(config)
    finally:
        done.set()
        monitor.join()
    assert (result.embedded, result.rejected) == (8, 1) and 1 <= len(set(crashes)) <= 3
    rejected = {row["image_uri"]: row["reason"] for row in rows_of(config, "fetches") if row["status"] == "rejected"}
    assert rejected == {(tmp_path / "poison.png").as_uri(): "decoder_crashed"}
    assert embed_images.run(config) == EmbedResult()  # it is not tried again


class Dated(SimpleHTTPRequestHandler):
    """Files of a folder with Last-Modified; what was answered."""

    answers: ClassVar[list[tuple[str, int]]] = []

    def log_request(self, code: object = "-", size: object = "-") -> None:
        self.answers.append((self.path, int(code)))  # type: ignore[call-overload]

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.mark.slow
def test_photos_that_changed_behind_their_uri(tmp_path: Path, weights: Path, ray_local: None) -> None:
    """Asked for again: one has other bytes, one is away, one is no picture now, two are the same; the table is one of old."""
    photos, tables = tmp_path / "photos", Tables(str(tmp_path / "store" / "tables"))
    photos.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Dated, directory=str(photos)))
    Thread(target=server.serve_forever, daemon=True).start()
    config = Config.load(settings(tmp_path, weights))
    again = Config.load(settings(tmp_path, weights), ["feed.refetch_days=1e-9"])
    for number in range(5):
        (photos / f"{number}.jpg").write_bytes(photo(number))
    changed, away, broken, same = (f"http://127.0.0.1:{server.server_port}/{number}.jpg" for number in range(4))
    local = (photos / "4.jpg").as_uri()
    write_images(config, [changed, away, broken, same, local])
    assert embed_images.run(config).embedded == 5
    old = read_table(tables, "fetches").drop_columns(["etag", "last_modified", "fetched_at"])
    write_deltalake(tables.path("fetches"), old, mode="overwrite", schema_mode="overwrite")
    first = {uri: image_id for uri, image_id, _ in outcomes(config)}

    (photos / "0.jpg").write_bytes(photo(100))
    (photos / "1.jpg").unlink()
    (photos / "2.jpg").write_bytes(b"we are moving house")
    result = embed_images.run(again)
    assert (result.images_in, result.embedded, result.rejected, result.unchanged) == (5, 1, 0, 4)
    other = hashlib.sha256(photo(100)).hexdigest()
    assert {uri: image_id for uri, image_id, _ in outcomes(config)} == first | {changed: other}
    assert (other, 0) in vectors(config) and {status for *_, status in outcomes(config)} == {"embedded"}
    assert {row["image_uri"] for row in rows_of(config, "checks")} == {broken, same, local}

    before = versions(config)
    Dated.answers.clear()
    result = embed_images.run(again)
    assert (result.images_in, result.unchanged) == (5, 5) and versions(config) == before
    assert sorted(Dated.answers) == [("/0.jpg", 304), ("/1.jpg", 404), ("/2.jpg", 304), ("/3.jpg", 304)]
    assert len(rows_of(config, "checks")) == 4
    (photos / "1.jpg").write_bytes(photo(1))
    assert embed_images.run(config) == EmbedResult()  # nothing is asked for again unless the settings say so
    server.shutdown()
    server.server_close()


def start(conf: Path, *overrides: str, **environment: str) -> "subprocess.Popen[str]":
    """The job in a process group of its own, as a scheduler starts it."""
    command = [sys.executable, "-m", "jobs.embed_images", "--conf", str(conf), *(f"--set={each}" for each in overrides)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.drill
def test_killed_twice_equals_uninterrupted(tmp_path: Path, weights: Path, ray_local: None) -> None:
    """kill -9 of the whole process group while it streams, then a crash between the two commits, then a run that ends."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(120):
        (photos / f"{number:03}.jpg").write_bytes(photo(number // 2, 400, 300))  # each photo under two URIs
    uris = [path.as_uri() for path in sorted(photos.iterdir())]
    uris = uris[::2] + uris[1::2]
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    config, conf = Config.load(settings(whole, weights), ["embed.round_images=70"]), settings(killed, weights)
    interrupted = Config.load(conf)
    write_images(config, uris)
    write_images(interrupted, uris)

    process = start(conf)
    rows = interrupted.store.staging / "embed_images"
    deadline = time.monotonic() + 300
    while not list(rows.glob("*/rows/part-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    parts = {path.name for path in rows.glob("*/rows/part-*")}
    assert 0 < len(parts) < 30 and versions(interrupted) == (None, None)

    address = ray.get_runtime_context().gcs_address  # a running cluster, as `ray job submit` names it to its entrypoint
    process = start(conf, RAY_ADDRESS=address, VS_FAILPOINT="embed:after_features")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == EXIT_CODE and "resumed" in errors, errors
    assert {path.name for path in rows.glob("*/rows/part-*")} > parts  # nothing that was finished was done again
    assert versions(interrupted) == (1, 0)

    result = embed_images.run(interrupted)
    assert (result.images_in, result.embedded, result.duplicates, result.rejected) == (120, 60, 60, 0)
    assert versions(interrupted) == (1, 1) and not list(rows.glob("*/plan.json"))
    assert embed_images.run(interrupted) == EmbedResult()

    uninterrupted = embed_images.run(config)  # in two rounds
    assert (uninterrupted.embedded, uninterrupted.duplicates) == (60, 60)
    assert vectors(config) == vectors(interrupted)
    assert outcomes(config) == outcomes(interrupted)


@pytest.mark.drill
def test_killed_between_what_changed_and_what_did_not(tmp_path: Path, weights: Path, ray_local: None) -> None:
    """Photos asked for again: the run dies when `fetches` says which changed and `checks` not yet which did not."""
    photos, conf, again = tmp_path / "photos", settings(tmp_path, weights), "feed.refetch_days=1e-9"
    photos.mkdir()
    for number in range(6):
        (photos / f"{number}.jpg").write_bytes(photo(number))
    uris = [(photos / f"{number}.jpg").as_uri() for number in range(6)]
    config = Config.load(conf)
    write_images(config, uris)
    embed_images.run(config)
    (photos / "0.jpg").write_bytes(photo(100))
    process = start(conf, again, VS_FAILPOINT="embed:after_fetches", RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == EXIT_CODE, errors
    checks = Tables(config.store.tables).path("checks")
    assert not DeltaTable.is_deltatable(checks) or not rows_of(config, "checks")
    before = versions(config)

    result = embed_images.run(Config.load(conf, [again]))
    assert (result.images_in, result.embedded, result.unchanged) == (6, 1, 5) and versions(config) == before
    assert sorted(row["image_uri"] for row in rows_of(config, "checks")) == uris[1:]
    assert (hashlib.sha256(photo(100)).hexdigest(), 0) in vectors(config)


def test_wrong_input_is_one_line(tmp_path: Path, weights: Path) -> None:
    config = Config.load(settings(tmp_path, weights))
    with pytest.raises(JobError, match=r"run jobs\.curate_catalog first"):
        embed_images.run(config)
    with pytest.raises(JobError, match=r"nowhere\.safetensors"):
        embed_images.run(Config.load(settings(tmp_path, tmp_path / "nowhere.safetensors")))
