"""The feed of another night: prices changed, products withdrawn, new ones, other photos; and what a store then holds."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jobs import render_catalog
from jobs.config import Config
from jobs.tables import Tables, read_table
from serve.index.manifest import read_manifest
from serve.index.release import Release
from serve.registry import champion
from tests.parts import ROOT, write_conf

Row = dict[str, Any]
LONGEST_S = 600  # that a night of these few products may take


@dataclass(frozen=True)
class Change:
    """How many products another night touches."""

    priced: int = 10
    withdrawn: int = 10
    new: int = 10
    repictured: int = 5


def read_feed(feed: Path) -> list[Row]:
    """Rows with absolute image_uris."""
    rows = [json.loads(line) for line in feed.read_text().splitlines()]
    return [row | {"image_uris": [(feed.parent / uri).as_uri() for uri in row["image_uris"]]} for row in rows]


def write_feed(feed: Path, rows: list[Row]) -> Path:
    """JSONL."""
    feed.parent.mkdir(parents=True, exist_ok=True)
    feed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return feed


def another_night(rows: list[Row], folder: Path, change: Change, seed: int) -> list[Row]:
    """The feed one night later; new photos are mirrored, tinted old ones, written to `folder`."""
    draw = random.Random(seed)
    rows = draw.sample(rows, len(rows))  # in another order, too
    rows = rows[change.withdrawn :]
    for place in range(change.priced):
        rows[place] = rows[place] | {"price": round((rows[place].get("price") or 1.0) * 1.1 + 1, 2), "currency": "USD"}
    for place in range(change.priced, change.priced + change.repictured):
        uris = rows[place]["image_uris"]
        rows[place] = rows[place] | {"image_uris": [tinted(uris[0], folder, draw), *uris[1:]]}
    for number in range(change.new):
        model = rows[-1 - number]
        uris = [tinted(uri, folder, draw) for uri in model["image_uris"]]
        rows.append(model | {"product_id": f"night-{seed}-{number}", "title": f"New {model['title']}", "image_uris": uris})
    return rows


def tinted(uri: str, folder: Path, draw: random.Random) -> str:
    """Another photo of the same thing: mirrored, in another light; its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.open(uri.removeprefix("file://")).convert("RGB")
    light = [draw.uniform(0.6, 1.0) for _ in range(3)]
    pixels = np.asarray(ImageOps.mirror(picture), np.float32) * np.array(light, np.float32)
    buffer = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    path = folder / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.jpg"
    path.write_bytes(buffer.getvalue())
    return path.as_uri()


def render_few(folder: Path) -> Path:
    """A generated catalog of 24 products without bad rows; its feed."""
    render = {"folder": str(folder / "catalog"), "num_products": 24, "num_scenes": 0, "with_bad_rows": False}
    render_catalog.run(Config.load(write_conf(folder, {"render": render})))
    return folder / "catalog" / "feed.jsonl"


def conf_of(folder: Path, feed: Path, **sections: Any) -> Path:
    """Settings of a store of its own."""
    folder.mkdir(exist_ok=True)
    own = {"evaluate": {"num_queries": 20, "hash_photos": 20}, "ray": {"num_cpus": 2}, "embed": {"block_rows": 8}}
    return write_conf(folder, {"feed": {"uri": str(feed)}} | own | sections)


def start_night(conf: Path, *flags: str, **environment: str) -> "subprocess.Popen[str]":
    """A nightly run in a process group of its own, as a scheduler starts it."""
    command = [sys.executable, "-m", "jobs.nightly", "--conf", str(conf), *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    )


def lines_until(night: "subprocess.Popen[str]", words: str) -> list[str]:
    """What a run has said when it comes to a line with `words`, or to its end."""
    assert night.stderr is not None
    lines = []
    for line in night.stderr:
        lines.append(line)
        if words in line:
            break
    return lines


def sweep(process: "subprocess.Popen[str]") -> None:
    """Kills whatever the run started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def finish_night(conf: Path, *flags: str) -> None:
    """A run that nobody disturbs."""
    process = start_night(conf, *flags)
    out, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, errors[-3000:] + out[-1000:]


def refused_night(conf: Path, *flags: str) -> str:
    """A run that cannot be carried through: what it says, one line, as the last one of its errors and in its summary."""
    process = start_night(conf, *flags)
    out, errors = process.communicate(timeout=LONGEST_S)
    summary, last = json.loads(out.splitlines()[-1]), errors.splitlines()[-1]
    assert process.returncode == summary["exit_code"] == 1, errors[-3000:] + out[-1000:]
    assert last == f"error: {summary['message']}" and "Traceback" not in errors, errors[-3000:]
    message: str = summary["message"]
    return message


@dataclass(frozen=True)
class Held:
    """What a store holds, without its run ids and dates: two stores that were fed alike are equal."""

    products: list[Row]
    images: list[tuple[str, int, str]]
    photos: dict[str, tuple[str, str | None]]  # uri: status and image_id, of those in the feed
    vectors: dict[tuple[str, int], str]  # image_id and crop: SHA-256 of the vector, of those that the release names
    answers: dict[str, list[str]]  # product_id: products nearest to it


def held(config: Config) -> Held:
    """Reads tables and champion; asserts that nothing is doubled."""
    tables = Tables(config.store.tables)
    images = [(row["product_id"], row["position"], row["image_uri"]) for row in read_table(tables, "images").to_pylist()]
    wanted = {uri for _, _, uri in images}
    fetches = [row for row in read_table(tables, "fetches").to_pylist() if row["image_uri"] in wanted]
    assert len({row["image_uri"] for row in fetches}) == len(fetches) == len(wanted), "every photo was looked at once"
    features = read_table(tables, "features").to_pylist()
    assert len({(row["image_id"], row["bundle_digest"], row["crop"]) for row in features}) == len(features), "doubled vectors"
    live = {row["image_id"] for row in fetches if row["status"] == "embedded"}
    products = sorted(read_table(tables, "products").to_pylist(), key=lambda row: row["product_id"])
    release = Release.open(champion(config.registry, config.store))
    ids = [row["product_id"] for row in products if release.product(row["product_id"]) is not None]
    queries = np.stack([release.product_embedding(product_id) for product_id in ids])
    found = [[candidate.product_id for candidate in answer] for answer in release.search(queries, 10)]
    assert sum(entry.num_products for _, entry in read_manifest(release.folder).shards()) == len(ids)
    return Held(
        products=products,
        images=sorted(images),
        photos={row["image_uri"]: (row["status"], row["image_id"]) for row in fetches},
        vectors={
            (row["image_id"], row["crop"]): hashlib.sha256(row["embedding"]).hexdigest()
            for row in features
            if row["image_id"] in live
        },
        answers=dict(zip(ids, found, strict=True)),
    )
