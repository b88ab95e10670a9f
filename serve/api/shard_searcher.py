"""Searcher replicas: one shard group, memory-mapped; embeddings in, candidates out."""

# Letters: Q query crops, D embedding width.

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from serve.api.served import ServedRelease
from serve.index.release import Candidate, Filters, ShardGroup
from serve.index.search import search_crops

THREADS = 2  # searches at once in one replica; a search holds the GIL only outside FAISS


class ShardSearcher:
    """One deployment = one shard group; replicas of it are copies."""

    def __init__(self, served: ServedRelease, group: int) -> None:
        self.group = ShardGroup.open(served.folder, served.manifest, served.shard_groups[group])
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="searcher")

    async def search(
        self, embeddings_QD: np.ndarray, k: int, routes: list[list[str] | None], filters: Filters | None
    ) -> list[list[Candidate]]:
        """Per crop the best k distinct products of this group in the partitions of its route."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, search_crops, self.group, embeddings_QD, k, routes, filters)

    async def search_exactly(self, embeddings_QD: np.ndarray, k: int, filters: Filters | None) -> list[list[Candidate]]:
        """The same with every stored vector compared, in all partitions: what the index is held against while it serves."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, partial(self.group.search, embeddings_QD, k, None, filters, exact=True))
