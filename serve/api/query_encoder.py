"""Encoder replicas: query photos in, crops with embeddings out, several queries in one run of the networks."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from serve.api.batching import PATIENT_SIZE, Batcher
from serve.api.kept import Kept
from serve.api.logs import write_json_lines
from serve.api.schemas import Box
from serve.api.towers import Refused
from serve.index.manifest import BundleEntry, ReleaseError, read_manifest
from serve.registry import release_folder
from serve.settings import Settings
from serve.vision.bundle import Bundle, CropFeatures, TextError
from serve.vision.crop import MIN_DRAWN_PX, BoxError, Crop, crops_of_drawn
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError
from serve.vision.spec import RuntimeConfig
from serve.vision.turns import quarter_turned, turned_back

KEPT_TEXTS = 1_000
BATCHES_AHEAD = 2  # of decoded photos held at once: one in the networks, one that waits
Boxes = tuple[Box, ...]
Analysis = list[CropFeatures] | Refused


def decoded(decoder: GuardedDecoder, photo: bytes, boxes: Boxes) -> np.ndarray | Refused:
    """Its pixels, (H, W, 3) uint8, when it is a photo and the boxes lie in it."""
    try:
        pixels = decoder.decode(photo)
        crops_of_drawn(pixels.shape[1], pixels.shape[0], boxes)
    except ImageError as error:
        return Refused(error.code, error.detail)
    except BoxError:
        return Refused("outside", f"at least {MIN_DRAWN_PX} px of each side must lie in the photo", "box")
    return pixels


class PhotoEncoder:
    """A bundle; used by one thread at a time."""

    def __init__(self, folder: Path, digest: str, runtime: RuntimeConfig) -> None:
        """The bundle in `folder`, which must have that digest. Raises BundleError, DeviceError."""
        self.bundle = Bundle.load(folder, runtime, digest)
        self.of_text: Callable[[str], np.ndarray] = lru_cache(KEPT_TEXTS)(self._of_text)

    def analyse(self, photos: Sequence[tuple[np.ndarray, Boxes]]) -> list[list[CropFeatures]]:
        """For each decoded photo its crops: with boxes those parts alone, else the whole and its items."""
        found = self.bundle.analyse([pixels for pixels, _ in photos], [boxes or None for _, boxes in photos])
        return [crops[1 if boxes else 0 :] for crops, (_, boxes) in zip(found, photos, strict=True)]

    def embed_text(self, text: str) -> np.ndarray | Refused:
        """(D,) embedding of a text, kept for when it is asked again. Photos are never kept."""
        try:
            return self.of_text(text)
        except TextError as error:
            return Refused("empty", str(error), "text")

    def _of_text(self, text: str) -> np.ndarray:
        return np.asarray(self.bundle.encode_texts([text])[0])


class Encoders:
    """The bundles of the releases that are asked for; two releases of one bundle share it. One thread at a time encodes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bundles: dict[str, BundleEntry] = {}  # of each release
        self.kept = Kept(self._open)

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
        return PhotoEncoder(self.settings.store.root / folder, digest, self.settings.runtime)

    def analyse(self, asked: Sequence[tuple[str, np.ndarray, Boxes]]) -> list[list[CropFeatures]]:
        """See PhotoEncoder.analyse; each photo with the id of its release."""
        by_release: dict[str, list[int]] = {}
        for place, (release_id, _, _) in enumerate(asked):
            by_release.setdefault(release_id, []).append(place)
        answers: dict[int, list[CropFeatures]] = {}
        for release_id, places in by_release.items():
            found = self.of(release_id).analyse([asked[place][1:] for place in places])
            answers |= dict(zip(places, found, strict=True))
        return [answers[place] for place in range(len(asked))]

    def turned_crops(self, release_id: str, pixels: np.ndarray, crops: Sequence[Crop]) -> list[list[CropFeatures]]:
        """See Bundle.turned_crops."""
        return self.of(release_id).bundle.turned_crops(pixels, crops)

    def embed_text(self, release_id: str, text: str) -> np.ndarray | Refused:
        """See PhotoEncoder.embed_text."""
        return self.of(release_id).embed_text(text)


class QueryEncoder:
    """One replica = one process with the bundles loaded. The next photos are decoded while the networks run."""

    def __init__(self, settings: Settings, release_id: str) -> None:
        write_json_lines()
        self.encoders = Encoders(settings)
        with contextlib.suppress(ReleaseError):  # it may be cleared away by now; others are opened when they are asked for
            self.encoders.of(release_id)
        self.decoder = GuardedDecoder(settings.decode)
        self.decoding = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self.ahead = asyncio.Semaphore(BATCHES_AHEAD * settings.serve.batch_size)
        self.patient_ahead = asyncio.Semaphore(BATCHES_AHEAD * PATIENT_SIZE)  # of what may wait: it keeps no query from here
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self.photos = Batcher(self.encoders.analyse, settings.serve.batch_size, self.thread)

    async def analyse(self, release_id: str, photo: bytes, boxes: Boxes, may_wait: bool, quarters: int = 0) -> Analysis:
        """Crops of one photo; without boxes crop 0 is the whole photo. `may_wait`: others go first. `quarters`: turns after
        which they are found; their boxes are in the photo as it came.
        """
        await self._opened(release_id)
        async with self.patient_ahead if may_wait else self.ahead:
            pixels = await self._decoded(photo, boxes)
            if isinstance(pixels, Refused):
                return pixels
            found = await self.photos.ask((release_id, quarter_turned(pixels, quarters), boxes), may_wait=may_wait)
        return turned_back(found, quarters, pixels.shape[1], pixels.shape[0])

    async def turned_crops(self, release_id: str, photo: bytes, crops: tuple[Crop, ...]) -> list[list[CropFeatures]] | Refused:
        """Crops of one photo after each other quarter turn, the encoder alone."""
        await self._opened(release_id)
        async with self.ahead:
            pixels = await self._decoded(photo, ())
            if isinstance(pixels, Refused):
                return pixels
            call = partial(self.encoders.turned_crops, release_id, pixels, crops)
            return await asyncio.get_running_loop().run_in_executor(self.thread, call)

    async def _decoded(self, photo: bytes, boxes: Boxes) -> np.ndarray | Refused:
        return await asyncio.get_running_loop().run_in_executor(self.decoding, decoded, self.decoder, photo, boxes)

    async def embed_text(self, release_id: str, text: str) -> np.ndarray | Refused:
        """(D,) embedding of one text."""
        await self._opened(release_id)
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.encoders.embed_text, release_id, text)

    async def _opened(self, release_id: str) -> None:
        """Another bundle is loaded beside the encoder's own thread, which goes on with the queries of the release before."""
        if not self.encoders.is_open(release_id):
            await asyncio.to_thread(self.encoders.of, release_id)
