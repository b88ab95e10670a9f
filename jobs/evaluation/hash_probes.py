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
    """Photos of the release: hashes (M, 32), colours (M, 48), a number for the product of each; URIs of the first, to probe."""

    hashes: np.ndarray
    colours: np.ndarray
    owners: np.ndarray
    uris: list[str]


def sample_catalog(shards: list[Shard], num_probes: int, seed: int) -> CatalogSample:
    """A seeded sample of the photos of all shards, in random order."""
    sizes_S = np.array([shard.records.images.num_rows for shard in shards])
    num = min(int(sizes_S.sum()), CATALOG_PHOTOS)
    places_M = np.random.default_rng(seed).choice(sizes_S.sum(), num, replace=False)
    shards_M = np.searchsorted(sizes_S.cumsum(), places_M, side="right")
    images_M = places_M - (sizes_S.cumsum() - sizes_S)[shards_M]
    hashes, colours, owners = np.empty((num, 32), np.uint8), np.empty((num, 48), np.uint8), np.empty((num, 2), np.int64)
    for place, shard in enumerate(shards):
        mine = shards_M == place
        images = images_M[mine]
        hashes[mine], colours[mine] = shard.hashes_M32[images], shard.colours_M48[images]
        owners[mine] = np.stack([np.full(len(images), place), shard.records.product_of_image[images]], axis=1)
    probed = zip(shards_M[:num_probes], images_M[:num_probes], strict=True)
    return CatalogSample(
        hashes=hashes,
        colours=colours,
        owners=np.unique(owners, axis=0, return_inverse=True)[1].ravel(),
        uris=[shards[place].records.image_uri(image) for place, image in probed],
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
        sample.owners,
        probes,
        max_distance=config.max_distance,
        target_false_accept=config.target_false_accept,
        lookup=HashTable(sample.hashes).lookup,
    )
