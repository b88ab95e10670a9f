"""Encoder replicas: query photos in, crops with embeddings out, several queries in one run of the networks."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from serve.api.batching import Batcher
from serve.api.kept import Kept
from serve.api.logs import write_json_lines
from serve.api.schemas import Box
from serve.api.towers import Refused
from serve.index.manifest import BundleEntry, read_manifest
from serve.registry import release_folder
from serve.settings import Settings
from serve.vision.bundle import Bundle, CropFeatures, TextError
from serve.vision.crop import MIN_DRAWN_PX, BoxError, crops_of_drawn
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError
from serve.vision.spec import DecodeLimits, RuntimeConfig

KEPT_TEXTS = 1_000
Boxes = tuple[Box, ...]
Analysis = list[CropFeatures] | Refused


class PhotoEncoder:
    """A bundle behind a guarded decoder; used by one thread at a time."""

    def __init__(self, folder: Path, digest: str, runtime: RuntimeConfig, limits: DecodeLimits) -> None:
        """The bundle in `folder`, which must have that digest. Raises BundleError, DeviceError."""
        self.bundle = Bundle.load(folder, runtime, digest)
        self.decoder = GuardedDecoder(limits)
        self.of_text: Callable[[str], np.ndarray] = lru_cache(KEPT_TEXTS)(self._of_text)

    def analyse(self, photos: Sequence[tuple[bytes, Boxes]]) -> list[Analysis]:
        """For each photo its crops, or why it was refused: a bad photo spoils no other query of its batch.

        With boxes the crops are those parts alone; without, crop 0 is the whole photo and the others its items.
        """
        decoded = [self._decode(data, boxes) for data, boxes in photos]
        taken = [(pixels, boxes) for pixels, (_, boxes) in zip(decoded, photos, strict=True) if not isinstance(pixels, Refused)]
        found = iter(self.bundle.analyse([p for p, _ in taken], [boxes or None for _, boxes in taken]) if taken else [])
        return [
            pixels if isinstance(pixels, Refused) else next(found)[1 if boxes else 0 :]
            for pixels, (_, boxes) in zip(decoded, photos, strict=True)
        ]

    def embed_text(self, text: str) -> np.ndarray | Refused:
        """(D,) embedding of a text, kept for when it is asked again. Photos are never kept."""
        try:
            return self.of_text(text)
        except TextError as error:
            return Refused("empty", str(error), "text")

    def _of_text(self, text: str) -> np.ndarray:
        return np.asarray(self.bundle.encode_texts([text])[0])

    def _decode(self, data: bytes, boxes: Boxes) -> np.ndarray | Refused:
        """Pixels, when they are a photo and the boxes lie in it."""
        try:
            pixels = self.decoder.decode(data)
            crops_of_drawn(pixels.shape[1], pixels.shape[0], boxes)
        except ImageError as error:
            return Refused(error.code, error.detail)
        except BoxError:
            return Refused("outside", f"at least {MIN_DRAWN_PX} px of each side must lie in the photo", "box")
        return pixels


class Encoders:
    """The bundles of the releases that are asked for; two releases of one bundle share it. One thread at a time encodes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bundles: dict[str, BundleEntry] = {}  # of each release
        self.kept = Kept(self._open, lambda encoder: encoder.decoder.close())

    def of(self, release_id: str) -> PhotoEncoder:
        """Its encoder. Raises ReleaseError, BundleError."""
        if release_id not in self.bundles:
            self.bundles[release_id] = read_manifest(release_folder(self.settings.store, release_id)).bundle
        return self.kept.get(self._key(release_id))

    def is_open(self, release_id: str) -> bool:
        """Whether `of` costs nothing."""
        return release_id in self.bundles and self._key(release_id) in self.kept

    def _key(self, release_id: str) -> str:
        bundle = self.bundles[release_id]
        return f"{bundle.digest} {bundle.folder}"

    def _open(self, key: str) -> PhotoEncoder:
        digest, folder = key.split(" ", 1)
        return PhotoEncoder(self.settings.store.root / folder, digest, self.settings.runtime, self.settings.decode)

    def analyse(self, asked: Sequence[tuple[str, bytes, Boxes]]) -> list[Analysis]:
        """See PhotoEncoder.analyse; each photo with the id of its release."""
        by_release: dict[str, list[int]] = {}
        for place, (release_id, _, _) in enumerate(asked):
            by_release.setdefault(release_id, []).append(place)
        answers: dict[int, Analysis] = {}
        for release_id, places in by_release.items():
            found = self.of(release_id).analyse([asked[place][1:] for place in places])
            answers |= dict(zip(places, found, strict=True))
        return [answers[place] for place in range(len(asked))]

    def embed_text(self, release_id: str, text: str) -> np.ndarray | Refused:
        """See PhotoEncoder.embed_text."""
        return self.of(release_id).embed_text(text)


class QueryEncoder:
    """One replica = one process with the bundles loaded."""

    def __init__(self, settings: Settings, release_id: str) -> None:
        write_json_lines()
        self.encoders = Encoders(settings)
        self.encoders.of(release_id)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self.photos = Batcher(self.encoders.analyse, settings.serve.batch_size, self.thread)

    async def analyse(self, release_id: str, photo: bytes, boxes: Boxes) -> Analysis:
        """Crops of one photo; without boxes crop 0 is the whole photo."""
        await self._opened(release_id)
        return await self.photos.ask((release_id, photo, boxes))

    async def embed_text(self, release_id: str, text: str) -> np.ndarray | Refused:
        """(D,) embedding of one text."""
        await self._opened(release_id)
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.encoders.embed_text, release_id, text)

    async def _opened(self, release_id: str) -> None:
        """Another bundle is loaded beside the encoder's own thread, which goes on with the queries of the release before."""
        if not self.encoders.is_open(release_id):
            await asyncio.to_thread(self.encoders.of, release_id)
