"""The hash stage of the ingress: a reduced decode in guarded processes, the fingerprint, the look-up; off the event loop."""

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor

from serve.api.served import ServedRelease
from serve.index.release import HashMatch, HashStage
from serve.vision.guarded import GuardedDecoder
from serve.vision.hash import HASH_DECODE_PX, fingerprint
from serve.vision.spec import DecodeLimits


class HashReader:
    """Is this photo one of ours? As many photos at once as there are guarded decoders; the others wait."""

    def __init__(self, served: ServedRelease, limits: DecodeLimits, num_decoders: int) -> None:
        self.stage = HashStage.open(served.folder, served.manifest)
        self.decoders: queue.SimpleQueue[GuardedDecoder] = queue.SimpleQueue()
        self.all_decoders = [GuardedDecoder(limits) for _ in range(num_decoders)]
        for decoder in self.all_decoders:
            self.decoders.put(decoder)
        self.threads = ThreadPoolExecutor(num_decoders, thread_name_prefix="hash")

    def close(self) -> None:
        """Ends the guarded processes."""
        self.threads.shutdown()
        for decoder in self.all_decoders:
            decoder.close()

    async def match(self, photo: bytes) -> HashMatch | None:
        """The stored photo that `photo` is; None = go on with the vector stage. Raises ImageError."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._match, photo)

    def _match(self, photo: bytes) -> HashMatch | None:
        decoder = self.decoders.get()
        try:
            pixels = decoder.decode(photo, at_least_px=HASH_DECODE_PX)
        finally:
            self.decoders.put(decoder)
        return self.stage.match(fingerprint(pixels))
