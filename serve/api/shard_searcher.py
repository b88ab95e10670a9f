"""Searcher replicas: one shard group of each release that is asked for, memory-mapped; embeddings in, candidates out."""

# Letters: Q query crops, D embedding width.

import asyncio
import atexit
import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from deltalake.exceptions import DeltaError

from serve.api.inserts import Inserts
from serve.api.kept import Kept
from serve.api.served import shard_groups
from serve.index.manifest import ReleaseError, read_manifest
from serve.index.release import Candidate, Filters, ShardGroup
from serve.index.search import search_crops
from serve.registry import release_folder
from serve.settings import Settings

log = logging.getLogger(__name__)
THREADS = 2  # searches at once in one replica; a search holds the GIL only outside FAISS


class LiveGroup:
    """A shard group without what was changed or deleted after its release: that is answered by the ingress alone."""

    def __init__(self, settings: Settings, release_id: str, number: int) -> None:
        """The ingress has verified the release before it asks for it. Raises ReleaseError."""
        folder = release_folder(settings.store, release_id)
        manifest = read_manifest(folder)
        groups = shard_groups(manifest, settings.serve.num_searchers)
        self.shards = ShardGroup.open(folder, manifest, groups[number] if number < len(groups) else ())
        self.inserts = Inserts(settings.store, manifest)
        self.hide_changed()

    def hide_changed(self) -> None:
        """Reads the table on. Called from one thread at a time."""
        self.shards.delete({row["product_id"] for row in self.inserts.read_new()})


class ShardSearcher:
    """One deployment = one shard group; replicas of it are copies."""

    def __init__(self, settings: Settings, release_id: str, group: int) -> None:
        self.groups = Kept(lambda other: LiveGroup(settings, other, group))
        with contextlib.suppress(ReleaseError):  # it may be cleared away by now; others are opened when they are asked for
            self.groups.get(release_id)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="searcher")
        self.ended = threading.Event()
        self.following = threading.Thread(target=self.follow, args=(settings.serve.tail_s,), name="inserts", daemon=True)
        self.following.start()
        atexit.register(self.close)  # a thread that reads a file while the interpreter ends crashes it

    def close(self) -> None:
        """From now on changes are not taken in."""
        self.ended.set()
        self.following.join()

    def follow(self, tail_s: float) -> None:
        """Takes in what was changed, until `close`."""
        while not self.ended.wait(tail_s):
            for group in self.groups.all():
                try:
                    group.hide_changed()
                except (OSError, DeltaError) as error:
                    log.warning("event=inserts_not_read error=%s", type(error).__name__)

    async def search(
        self, release_id: str, embeddings_QD: np.ndarray, k: int, routes: list[list[str] | None], filters: Filters | None
    ) -> list[list[Candidate]]:
        """Per crop the best k distinct products of this group of the release, in the partitions of its route."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, self._search, release_id, embeddings_QD, k, routes, filters)

    async def search_exactly(
        self, release_id: str, embeddings_QD: np.ndarray, k: int, filters: Filters | None
    ) -> list[list[Candidate]]:
        """The same with every stored vector compared, in all partitions: what the index is held against while it serves."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, self._search_exactly, release_id, embeddings_QD, k, filters)

    def _search(
        self, release_id: str, embeddings_QD: np.ndarray, k: int, routes: list[list[str] | None], filters: Filters | None
    ) -> list[list[Candidate]]:
        return search_crops(self.groups.get(release_id).shards, embeddings_QD, k, routes, filters)

    def _search_exactly(
        self, release_id: str, embeddings_QD: np.ndarray, k: int, filters: Filters | None
    ) -> list[list[Candidate]]:
        return self.groups.get(release_id).shards.search(embeddings_QD, k, None, filters, exact=True)
