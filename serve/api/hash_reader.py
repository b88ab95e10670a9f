"""The hash stage of the ingress: fingerprints from guarded processes, and the look-up; off the event loop."""

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor

from serve.api.served import ServedRelease
from serve.index.release import Filters, HashMatch, HashStage
from serve.vision.guarded import GuardedDecoder
from serve.vision.spec import DecodeLimits


class HashReader:
    """Is this photo one of ours? As many photos at once as there are guarded decoders; the others wait."""

    def __init__(self, served: ServedRelease, limits: DecodeLimits, num_decoders: int) -> None:
        self.stage = HashStage.open(served.folder, served.manifest)
        self.decoders = [GuardedDecoder(limits) for _ in range(num_decoders)]
        self.free: queue.SimpleQueue[GuardedDecoder] = queue.SimpleQueue()
        for decoder in self.decoders:
            self.free.put(decoder)
        self.threads = ThreadPoolExecutor(num_decoders, thread_name_prefix="hash")

    def close(self) -> None:
        """Ends the guarded processes."""
        self.threads.shutdown()
        for decoder in self.decoders:
            decoder.close()

    async def match(self, photo: bytes, filters: Filters | None) -> HashMatch | None:
        """The stored photo that `photo` is; None = go on with the vector stage. Raises ImageError."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._match, photo, filters)

    def _match(self, photo: bytes, filters: Filters | None) -> HashMatch | None:
        decoder = self.free.get()
        try:
            fingerprint = decoder.fingerprint(photo)
        finally:
            self.free.put(decoder)
        return self.stage.match(fingerprint, filters)
