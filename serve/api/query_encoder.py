"""Encoder replicas: query photos in, crops with embeddings out, several queries in one run of the networks."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from ray import serve as ray_serve

from serve.api.cascade import Refused
from serve.api.logs import write_json_lines
from serve.api.schemas import Box
from serve.api.served import ServedRelease
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
    """The bundle of a release behind a guarded decoder; used by one thread at a time."""

    def __init__(self, served: ServedRelease, runtime: RuntimeConfig, limits: DecodeLimits) -> None:
        self.bundle = Bundle.load(served.bundle_folder, runtime, served.manifest.bundle.digest)
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


class QueryEncoder:
    """One replica = one process with the bundle loaded."""

    def __init__(self, served: ServedRelease, settings: Settings) -> None:
        write_json_lines()
        self.encoder = PhotoEncoder(served, settings.runtime, settings.decode)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")  # the event loop only collects batches
        self._analyse.set_max_batch_size(settings.serve.batch_size)
        self._analyse.set_batch_wait_timeout_s(settings.serve.batch_wait_s)

    async def analyse(self, photo: bytes, boxes: Boxes) -> Analysis:
        """Crops of one photo; without boxes crop 0 is the whole photo."""
        analysis: Analysis = await self._analyse((photo, boxes))
        return analysis

    async def embed_text(self, text: str) -> np.ndarray | Refused:
        """(D,) embedding of one text."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.encoder.embed_text, text)

    @ray_serve.batch  # type: ignore[untyped-decorator]
    async def _analyse(self, photos: list[tuple[bytes, Boxes]]) -> list[Analysis]:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.encoder.analyse, photos)
