"""The hash stage of the ingress: fingerprints from guarded processes, and the look-up; off the event loop."""

import asyncio
import queue
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from serve.api.served import ServedRelease
from serve.index.inserts import Fresh
from serve.index.release import Filters, HashMatch, HashStage
from serve.vision.guarded import GuardedDecoder
from serve.vision.hash import Fingerprint
from serve.vision.spec import DecodeLimits


class HashReader:
    """Is this photo one of ours? As many photos at once as there are guarded decoders; the others wait."""

    def __init__(self, served: ServedRelease, limits: DecodeLimits, num_decoders: int) -> None:
        self.release = HashStage.open(served.folder, served.manifest)
        self.stage = self.release
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

    def lay_over(self, fresh: Fresh, changed: Collection[str]) -> None:
        """From now on photos of what came after the release are known, and those of what it changed are as it says.

        `changed`: products of it that were not told before.
        """
        self.release.delete(changed)
        self.stage = self.release.beside(fresh.shards)

    async def fingerprint(self, photo: bytes) -> Fingerprint:
        """Of `photo`, from a guarded process. Raises ImageError."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._fingerprint, photo)

    async def match(self, photo: bytes, filters: Filters | None) -> HashMatch | None:
        """The stored photo that `photo` is; None = go on with the vector stage. Raises ImageError."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._match, photo, filters)

    def _match(self, photo: bytes, filters: Filters | None) -> HashMatch | None:
        return self.stage.match(self._fingerprint(photo), filters)

    def _fingerprint(self, photo: bytes) -> Fingerprint:
        decoder = self.free.get()
        try:
            return decoder.fingerprint(photo)
        finally:
            self.free.put(decoder)
