"""What one query goes through, in order: hash stage, analysis, search, fusion. Every query path of the server is in this file.

`serve.index.search.search_photo` is the same cascade in one process, without waiting; both are made of the pure functions of
`serve.index`, so they answer alike. Here the two slow parts are asked over the network: the encoder, and the shard groups.
"""

# Letters: Q query crops, D embedding width.

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from serve.api.answers import Answers, Why, why_hash, why_looks, why_similar
from serve.api.guard import Query
from serve.api.hash_reader import HashReader
from serve.api.problems import Problem, image_problem
from serve.api.schemas import Box, EmbedAnswer, EmbeddedCrop, Explanation, SearchAnswer, ShardCount
from serve.api.served import ServedRelease
from serve.index.manifest import ReleaseError
from serve.index.release import Candidate, Filters, HashMatch, ProductStore, merge_candidates
from serve.index.search import CropAnswer, Result, crop_answers, fuse_crops, hash_answer, routes_of
from serve.settings import Settings
from serve.vision.bundle import CropFeatures

log = logging.getLogger(__name__)

Routes = Sequence[Sequence[str] | None]  # per crop the partitions to search; None = all
Lost = tuple[type[Exception], ...]  # what an ask raises when the process behind it is gone
T = TypeVar("T")


@dataclass(frozen=True)
class Refused:
    """A photo or a box that was not taken; unlike an exception it keeps its form on the way between processes."""

    code: str
    detail: str
    field: str = "image"


AskEncoder = Callable[[bytes, Box | None], Awaitable[list[CropFeatures] | Refused]]
AskShards = Callable[[np.ndarray, int, Routes, Filters | None], Awaitable[list[list[Candidate]]]]


@dataclass(frozen=True)
class Found:
    """Candidates of each crop, and how many shard groups they came from."""

    candidates: list[list[Candidate]]
    shards: ShardCount


class Searchers:
    """All shard groups as one: asked at the same time, merged; one that is lost is asked once more, then left out."""

    def __init__(self, groups: Sequence[AskShards], timeout_s: float, lost: Lost) -> None:
        self.groups, self.timeout_s, self.lost = groups, timeout_s, lost

    async def search(self, embeddings_QD: np.ndarray, k: int, routes: Routes, filters: Filters | None) -> Found:
        """The best k distinct products for each crop. Raises Problem 503 when no group answered."""
        asked = [ask_again(partial(ask, embeddings_QD, k, routes, filters), self.timeout_s, self.lost) for ask in self.groups]
        answered = [found for found in await asyncio.gather(*asked) if found is not None]
        if not answered:
            raise Problem(503, "no_shards", "no shard answered; try again", headers={"Retry-After": "1"})
        merged = [merge_candidates([found[q] for found in answered], k) for q in range(len(embeddings_QD))]
        return Found(merged, ShardCount(asked=len(self.groups), answered=len(answered)))


async def ask_again(ask: Callable[[], Awaitable[T]], timeout_s: float, lost: Lost) -> T | None:
    """`ask`, and once more when its process was lost on the way (a query changes nothing). None = no answer in time."""
    try:
        async with asyncio.timeout(timeout_s):
            try:
                return await ask()
            except lost:
                return await ask()
    except TimeoutError:
        log.warning("event=no_answer reason=timeout timeout_s=%g", timeout_s)
    except lost as error:
        log.warning("event=no_answer reason=%s", type(error).__name__)
    return None


class Laps:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.ms: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Everything since the last lap was `stage`."""
        now = time.perf_counter()
        self.ms[stage], self.last = round(1000 * (now - self.last), 3), now

    def total(self) -> dict[str, float]:
        """All laps, and their sum."""
        return {**self.ms, "total": round(1000 * (time.perf_counter() - self.started), 3)}


class Cascade:
    """One served release, open for queries."""

    def __init__(
        self, served: ServedRelease, settings: Settings, encoder: AskEncoder, groups: Sequence[AskShards], lost: Lost = ()
    ) -> None:
        self.manifest, self.config, self.limits = served.manifest, settings.serve, settings.decode
        self.products = ProductStore.open(served.folder, served.manifest)
        self.hashes = HashReader(served, settings.decode, settings.serve.num_decoders)
        self.answers = Answers(self.manifest, self.products, settings.serve.min_score)
        self.encoder, self.lost = encoder, lost
        self.searchers = Searchers(groups, self.config.shard_timeout_s, lost)
        self.threads = ThreadPoolExecutor(4, thread_name_prefix="products")  # disk reads, never on the event loop

    def close(self) -> None:
        """Ends the guarded decoders and the threads."""
        self.hashes.close()
        self.threads.shutdown(wait=False)

    async def in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """`call(*args)` without holding up other queries."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *args)

    async def search(self, query: Query) -> SearchAnswer:
        """The answer to one checked query. Raises Problem."""
        if query.product_id is not None:
            return await self.similar(query)
        assert query.image is not None
        laps = Laps()
        if query.box is None:  # a part of a photo has no hash in the catalog
            match = await self.hashes.match(query.image, query.filters)
            laps.lap("hash")
            if match is not None:
                return await self.exact(query, match, laps)
        return await self.looks(query, laps)

    async def exact(self, query: Query, match: HashMatch, laps: Laps) -> SearchAnswer:
        """The photo is one of ours: its products, then those nearest to its stored embedding. No network is run."""
        filters = without(query.filters, match.product_ids)
        found = await self.searchers.search(match.embedding[None], query.k, [None], filters)
        laps.lap("search")
        results = hash_answer(match, found.candidates[0], query.k)
        return await self.write("hash", results, (), why_hash(match), found, laps, query.explain and explain_hash(match))

    async def looks(self, query: Query, laps: Laps) -> SearchAnswer:
        """Items, embeddings, search in the likely partitions, fusion."""
        assert query.image is not None
        features = await self.encode(query.image, query.box)
        laps.lap("analyse")
        routes = routes_of(self.manifest, features, query.filters)
        found = await self.searchers.search(np.stack([crop.embedding for crop in features]), query.k, routes, query.filters)
        laps.lap("search")
        results = fuse_crops(found.candidates, query.k)
        crops = crop_answers(features, found.candidates, query.k)
        explain = Explanation(hash=None, partitions=routes, category_probs=[crop.category_probs for crop in features])
        return await self.write("vector", results, crops, why_looks, found, laps, query.explain and explain)

    async def encode(self, photo: bytes, box: Box | None) -> list[CropFeatures]:
        """Crops of a photo. Raises Problem: what the decoder refuses, 503 when no encoder answered."""
        features = await ask_again(partial(self.encoder, photo, box), self.config.request_timeout_s, self.lost)
        if features is None:
            raise Problem(503, "no_encoder", "no encoder answered; try again", headers={"Retry-After": "1"})
        if isinstance(features, Refused):
            raise image_problem(features.code, features.detail, features.field)
        return features

    async def embed(self, query: Query) -> EmbedAnswer:
        """The crops of a photo and their embeddings, as the catalog's were made."""
        assert query.image is not None
        features = await self.encode(query.image, query.box)
        crops = [
            EmbeddedCrop(
                box=found.crop.box,
                label=found.crop.label,
                score=found.crop.score,
                category=found.category,
                category_prob=found.category_prob,
                embedding=found.embedding.tolist(),
            )
            for found in features
        ]
        return EmbedAnswer(crops=crops, dim=self.manifest.bundle.dim, release=self.answers.release)

    async def similar(self, query: Query) -> SearchAnswer:
        """Products that look like a catalog product's first photo, without itself. Raises Problem 404."""
        laps = Laps()
        product_id = query.product_id
        assert product_id is not None
        embedding = await self.in_thread(self.products.embedding, product_id)
        if embedding is None:
            raise Problem(404, "unknown_product", f"release {self.manifest.release_id} has no such product", "product_id")
        laps.lap("product")
        found = await self.searchers.search(embedding[None], query.k, [None], without(query.filters, [product_id]))
        laps.lap("search")
        explain = Explanation(hash=None, partitions=[None], category_probs=[None])
        results = fuse_crops(found.candidates, query.k)
        return await self.write("vector", results, (), why_similar, found, laps, query.explain and explain)

    async def write(
        self,
        stage: Literal["hash", "vector"],
        results: Sequence[Result],
        crops: Sequence[CropAnswer],
        why: Why,
        found: Found,
        laps: Laps,
        explain: Explanation | Literal[False],
    ) -> SearchAnswer:
        """The answer on the wire, with its timings."""
        answer = await self.in_thread(self.answers.write, stage, results, crops, why, found.shards, explain or None)
        laps.lap("write")
        return answer.model_copy(update={"timings_ms": laps.total()})

    async def warm_up(self, photo: bytes) -> None:
        """One query through every process, so that no client pays for the first. Raises ReleaseError when a part is missing."""
        features = await self.encode(photo, None)
        await self.hashes.match(photo, None)
        found = await self.searchers.search(np.stack([crop.embedding for crop in features]), 1, [None] * len(features), None)
        if found.shards.answered < found.shards.asked:
            raise ReleaseError(f"{found.shards.answered} of {found.shards.asked} shard groups answer")


def without(filters: Filters | None, product_ids: Iterable[str]) -> Filters:
    """`filters`, and these products left out."""
    filters = filters or Filters()
    return replace(filters, without=filters.without | set(product_ids))


def explain_hash(match: HashMatch) -> Explanation:
    """How near the matched photo is."""
    near = {
        "image_id": match.image_id,
        "distance": match.distance,
        "colour_distance": match.colour_distance,
        "variant": match.variant,
    }
    return Explanation(hash=near, partitions=[None], category_probs=[None])
