"""Encoder replicas: query photos in, crops with embeddings out, several queries in one run of the networks."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ray import serve as ray_serve

from serve.api.cascade import Refused
from serve.api.schemas import Box
from serve.api.served import ServedRelease
from serve.settings import Settings
from serve.vision.bundle import Bundle, CropFeatures
from serve.vision.guarded import GuardedDecoder
from serve.vision.image import ImageError
from serve.vision.spec import DecodeLimits, RuntimeConfig

Analysis = list[CropFeatures] | Refused


class PhotoEncoder:
    """The bundle of a release behind a guarded decoder; used by one thread at a time."""

    def __init__(self, served: ServedRelease, runtime: RuntimeConfig, limits: DecodeLimits) -> None:
        self.bundle = Bundle.load(served.bundle_folder, runtime)
        self.decoder = GuardedDecoder(limits)

    def analyse(self, photos: Sequence[tuple[bytes, Box | None]]) -> list[Analysis]:
        """For each photo its crops, or why it was refused: a bad photo spoils no other query of its batch."""
        pixels = [self._decode(data) for data, _ in photos]
        taken = [i for i, image in enumerate(pixels) if not isinstance(image, Refused)]
        boxes = [[box] if box else None for _, box in photos]
        features = iter(self.bundle.analyse([pixels[i] for i in taken], [boxes[i] for i in taken]) if taken else [])
        return [image if isinstance(image, Refused) else next(features) for image in pixels]

    def _decode(self, data: bytes):
        try:
            return self.decoder.decode(data)
        except ImageError as error:
            return Refused(error.code, error.detail)


@ray_serve.deployment
class QueryEncoder:
    """One replica = one process with the bundle loaded."""

    def __init__(self, served: ServedRelease, settings: Settings) -> None:
        self.encoder = PhotoEncoder(served, settings.runtime, settings.decode)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")  # the event loop only collects batches
        self._analyse.set_max_batch_size(settings.serve.batch_size)
        self._analyse.set_batch_wait_timeout_s(settings.serve.batch_wait_s)

    async def analyse(self, photo: bytes, box: Box | None) -> Analysis:
        """Crops of one photo; crop 0 is the whole photo."""
        return await self._analyse((photo, box))

    @ray_serve.batch
    async def _analyse(self, photos: list[tuple[bytes, Box | None]]) -> list[Analysis]:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.encoder.analyse, photos)
