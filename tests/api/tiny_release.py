"""A real release of a dozen products, small enough to be made in seconds: photos, bundle, shards, manifest, settings."""

import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from serve.index.manifest import (
    BundleEntry,
    Counts,
    HashEntry,
    Manifest,
    PartitionEntry,
    PartitionSpec,
    ShardEntry,
    file_entry,
    write_manifest,
)
from serve.index.records import bucket_of
from serve.index.writer import write_shard
from serve.settings import Settings
from serve.vision.backbones import EmbeddingNet
from serve.vision.bundle import Bundle, assemble_bundle
from serve.vision.guarded import GuardedDecoder
from serve.vision.hash import HASH_KIND, HASH_VERSION
from serve.vision.image import image_id_of
from serve.vision.spec import BundleConfig, EncoderConfig, Preprocess
from tests.vision.small_text import make_text_part

RELEASE_ID = "rtiny"
NUM_PRODUCTS = 12
NUM_BUCKETS = 2
PARTITIONS = {"bags": "bags/totes", "shoes": "shoes/boots"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TinyRelease:
    """What was made, and where."""

    conf: Path
    settings: Settings
    photos: dict[str, Path]  # first photo of each product

    def photo(self, product_id: str) -> bytes:
        """Bytes of the product's photo."""
        return self.photos[product_id].read_bytes()


def picture(seed: int, size_px: int = 192) -> Image.Image:
    """Smooth coloured shapes on white, another for every seed."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(random.integers(0, 255, (5, 4, 3), dtype=np.uint8)).resize(
        (size_px, size_px), Image.Resampling.BICUBIC
    )
    picture = Image.new("RGB", (size_px, size_px + 32), "white")
    picture.paste(blobs.crop((10, 10, size_px - 10, size_px - 20)), (10, 24))
    return picture


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """`image` as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_bundle(folder: Path) -> Path:
    """A bundle with random weights: no detector, a head over the two categories, a text encoder."""
    torch.manual_seed(3)
    net = EmbeddingNet("mobilenet_v3_small", 16, len(PARTITIONS))
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # one pass in training mode leaves the statistics of data, so that vectors differ
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 64, 64))
    weights = folder / "net.safetensors"
    save_file(net.state_dict(), weights)
    encoder = EncoderConfig(
        kind="torchvision",
        arch="mobilenet_v3_small",
        weights=str(weights),
        embedding_dim=16,
        labels=tuple(PARTITIONS.values()),
        preprocess=Preprocess(size_px=64),
    )
    return assemble_bundle(
        BundleConfig(name="tiny", encoder=encoder, text=make_text_part(folder, 16)), folder / "store" / "bundles"
    )


def make_release(folder: Path, **serve: object) -> TinyRelease:
    """A store in `folder` with one release in it, and settings that serve it; `serve` are settings of that section."""
    conf = folder / "conf.yaml"
    sections = {
        "store": {"root": str(folder / "store"), "tables": str(folder / "store" / "tables")},
        "registry": {"uri": f"sqlite:///{folder}/store/mlflow.db"},
        "bundle": {"name": "tiny"},
        # Random towers give cosines of any sign; all of them are shown.
        "serve": {"default_k": 5, "max_k": 50, "num_searchers": 2, "min_score": -1.0, **serve},
    }
    conf.write_text(yaml.safe_dump(sections))
    settings = Settings.load(conf)
    bundle_folder = make_bundle(folder)
    bundle = Bundle.load(bundle_folder, settings.runtime)
    photos: dict[str, Path] = {}
    crops, products = [], []
    with GuardedDecoder(settings.decode) as decoder:
        for number in range(NUM_PRODUCTS):
            product_id, category = f"p/{number:02d}", list(PARTITIONS.values())[number % 2]
            path = photos[product_id] = folder / f"photo{number:02d}.jpg"
            path.write_bytes(encoded(picture(number), quality=90))
            pixels, fingerprint = decoder.decode_with_fingerprint(path.read_bytes())
            products.append(
                {"product_id": product_id, "title": f"Thing {number}", "category": category, "price": 10.0 + number}
                | {"currency": "EUR", "available": number % 3 > 0, "stock": number, "gender": None, "brand": "Tiny"}
                | {"color": None, "group_id": None, "popularity": None, "seller": None, "updated_at": None}
            )
            for crop, found in enumerate(bundle.analyse([pixels])[0]):
                x0, y0, x1, y1 = found.crop.box
                crops.append(
                    {
                        "product_id": product_id,
                        "position": 0,
                        "image_uri": path.as_uri(),
                        "image_id": image_id_of(path.read_bytes()),
                    }
                    | {"crop": crop, "x0": x0, "y0": y0, "x1": x1, "y1": y1, "embedding": found.embedding.astype("<f2").tobytes()}
                    | {"hash": fingerprint.hashes[0].tobytes(), "colour": fingerprint.colours[0].tobytes()}
                )
    release = folder / "store" / "releases" / RELEASE_ID
    partitions = tuple(
        write_partition(release, name, category, crops, products, bundle.dim) for name, category in PARTITIONS.items()
    )
    manifest = Manifest(
        release_id=RELEASE_ID,
        created_at="2026-01-01T00:00:00+00:00",
        code_version="0.1.0",
        tables={"products": 1, "features": 2},
        bundle=BundleEntry(name="tiny", digest=bundle.digest, folder=f"bundles/{bundle_folder.name}", dim=bundle.dim),
        hash=HashEntry(
            kind=HASH_KIND,
            version=HASH_VERSION,
            max_distance=24,
            max_colour_distance=12.0,
            min_quality=1.0,
            false_accept_frac=0.0,
            found_frac=1.0,
        ),
        route_threshold=0.99,
        num_buckets=NUM_BUCKETS,
        partition_depth=1,
        partitions=partitions,
        counts=Counts(products=NUM_PRODUCTS, images=NUM_PRODUCTS, crops=len(crops)),
        metrics={"recall_at_10": 1.0},
    )
    write_manifest(release, manifest)
    return TinyRelease(conf, settings, photos)


def write_partition(release: Path, name: str, category: str, crops: list[dict], products: list[dict], dim: int) -> PartitionEntry:  # type: ignore[type-arg]
    """The shards of one category."""
    shards = []
    for bucket in range(NUM_BUCKETS):
        own = [p for p in products if p["category"] == category and bucket_of(p["product_id"], NUM_BUCKETS) == bucket]
        ids = {p["product_id"] for p in own}
        rows = [crop for crop in crops if crop["product_id"] in ids]
        assert rows, "a shard without products: choose other product ids"
        path = f"{name}/{bucket}"
        folder = release / path
        folder.mkdir(parents=True)
        write_shard(folder, pa.Table.from_pylist(rows), pa.Table.from_pylist(own, schema=None), dim, None)
        files = tuple(file_entry(folder, file.name) for file in sorted(folder.iterdir()))
        shards.append(ShardEntry(path=path, bucket=bucket, num_rows=len(rows), num_products=len(own), files=files))
    return PartitionEntry(
        name=name, categories=(name,), spec=PartitionSpec(factory="Flat"), template_digest=None, shards=tuple(shards)
    )
