"""Catalog photos as re-uploads bring them, for the calibration of the hash exit."""

from dataclasses import dataclass

import numpy as np

from jobs.raydata.fetch import FetchError, FetchRules
from jobs.raydata.polite import PoliteFetcher
from serve.index.hash_exit import HashExit, Probe, calibrate, distortions
from serve.index.hash_table import HashTable
from serve.index.shard import Shard
from serve.vision.hash import fingerprint_bytes
from serve.vision.image import ImageError
from serve.vision.spec import DecodeLimits, HashConfig

CATALOG_PHOTOS = 50_000  # that the probes are compared with: enough for the tail, and minutes less than millions


@dataclass(frozen=True)
class CatalogSample:
    """Photos of the release: hashes (M, 32), colours (M, 48), owners, URIs; the first `num_probes` are probed."""

    hashes: np.ndarray
    colours: np.ndarray
    product_ids: list[str]
    uris: list[str]
    num_probes: int


def sample_catalog(shards: list[Shard], num_probes: int, seed: int) -> CatalogSample:
    """A seeded sample of the photos of all shards, in random order."""
    places = [(s, image) for s, shard in enumerate(shards) for image in range(shard.records.images.num_rows)]
    order = np.random.default_rng(seed).permutation(len(places))[:CATALOG_PHOTOS]
    chosen = [(shards[s], image) for s, image in (places[i] for i in order)]
    return CatalogSample(
        hashes=np.stack([shard.hashes_M32[image] for shard, image in chosen]),
        colours=np.stack([shard.colours_M48[image] for shard, image in chosen]),
        product_ids=[shard.records.product_id(int(shard.records.product_of_image[image])) for shard, image in chosen],
        uris=[shard.records.image_uri(image) for shard, image in chosen],
        num_probes=min(num_probes, len(chosen)),
    )


def probe_photos(photos: list[tuple[int, str]], rules: FetchRules, limits: DecodeLimits) -> list[Probe]:
    """Every distortion of each photo (its row, its URI) that can still be fetched and read."""
    probes = []
    with PoliteFetcher(rules) as fetcher:
        for row, uri in photos:
            try:
                data = fetcher.fetch(uri)
                probes += [Probe(row, name, fingerprint_bytes(seen, limits)) for name, seen in distortions(data, limits)]
            except (FetchError, ImageError):
                continue  # gone or changed since it was embedded: nothing to compare with; the caller counts
    return probes


def calibrate_exit(sample: CatalogSample, probes: list[Probe], config: HashConfig) -> HashExit:
    """The exit rule for this catalog."""
    return calibrate(
        sample.hashes,
        sample.colours,
        sample.product_ids,
        probes,
        max_distance=config.max_distance,
        target_false_accept=config.target_false_accept,
        lookup=HashTable(sample.hashes).lookup,
    )
