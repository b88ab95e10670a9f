"""What one query goes through, in order: hash stage, analysis, search, fusion. Every query path of the server is in this file.
Between search and fusion a photo in which nothing near was found may be looked at in its other quarter turns.

`serve.index.search.search_photo` is the same cascade in one process, without waiting; both are made of the pure functions of
`serve.index`, so they answer alike. Here the two slow parts are asked over the network: the encoder, and the shard groups.
"""

# Letters: Q query crops, D embedding width.

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from serve.api.ahead import Ahead
from serve.api.answers import Answers, Why, why_hash, why_near
from serve.api.catalog import Catalog
from serve.api.changes import Changes
from serve.api.feedback import SHUFFLED, Feedback
from serve.api.hash_reader import HashReader
from serve.api.laps import Laps
from serve.api.probe import RecallProbe
from serve.api.problems import Problem
from serve.api.queries import Query
from serve.api.remembered import Remembered
from serve.api.schemas import EmbedAnswer, EmbeddedCrop, Explanation, LookAnswer, SearchAnswer
from serve.api.searchers import AskShards, Found, Lost, Routes, Searchers
from serve.api.served import ServedRelease
from serve.api.towers import AskEncoder, Towers
from serve.index.inserts import Fresh
from serve.index.manifest import ReleaseError
from serve.index.release import Filters, HashMatch, ProductStore, merge_candidates
from serve.index.search import CropAnswer, Result, crop_answers, fuse_crops, hash_answer, nearness, routes_of
from serve.ranking.gather import Shelf
from serve.ranking.models import ReleaseModels
from serve.ranking.reranker import Reranker
from serve.settings import Settings
from serve.vision.bundle import CropFeatures
from serve.vision.bundle_files import read_config
from serve.vision.device import fits_browsers
from serve.vision.fusion import fuse_query
from serve.vision.turns import best_turn, glanced

T = TypeVar("T")
Analysed = Callable[[], Awaitable[list[CropFeatures]]]
LOOKED_AT = 10  # products like a new one, of which the first with a look lends it


@dataclass(frozen=True)
class Wanted:
    """What is looked for: Q vectors, where, and how the results will be explained."""

    embeddings_QD: np.ndarray
    routes: Routes
    why: Why
    filters: Filters | None
    crops: Sequence[CropFeatures] = ()  # of a photo; those of no photo have none
    quarters: int = 0  # turns after which the crops were found

    def fused(self, text_D: np.ndarray, weight: float, why: Why) -> "Wanted":
        """Each vector drawn towards a text, searched everywhere: words may ask for another category than the photo shows.

        Raises Problem 422 where the two cancel out.
        """
        try:
            fused_QD = np.stack([fuse_query(vector_D, text_D, weight) for vector_D in self.embeddings_QD])
        except ValueError as error:
            raise Problem(422, "invalid_field", str(error), "text") from None
        return replace(self, embeddings_QD=fused_QD, routes=[None] * len(fused_QD), why=why)


class Cascade:
    """One served release, open for queries."""

    def __init__(
        self, served: ServedRelease, settings: Settings, encoder: AskEncoder, groups: Sequence[AskShards], lost: Lost = ()
    ) -> None:
        self.manifest, self.config, self.limits = served.manifest, settings.serve, settings.decode
        self.bundle_folder, self.store = served.bundle_folder, settings.store
        self.fits_browsers = fits_browsers(served.bundle_folder)
        store = ProductStore.open(served.folder, served.manifest)
        self.hashes = HashReader(served, settings.decode, settings.serve.num_decoders)
        self.changes = Changes(served, settings.store, store, self.hashes.lay_over)
        self.products = Catalog(store, lambda: self.changes.fresh)
        self.photos_folder = settings.store.root / "photos"
        self.answers = Answers(self.manifest, self.products, settings.serve.min_score)
        self.towers = Towers(served, encoder, self.config.request_timeout_s, lost)
        self.models = ReleaseModels.open(served.folder, served.manifest, learned=settings.ranking.learned)
        self.feedback = Feedback(settings.store, self.config, settings.ranking.shuffled_frac) if self.config.feedback else None
        ranking = settings.ranking if Shelf(store).knows_hubness else settings.ranking.without_hubness()
        self.reranker = Reranker(ranking, self.models.ranker, keeps_features=self.config.feedback)
        self.crop_reranker = Reranker(ranking, self.models.ranker)  # nothing is learned from what one crop found
        self.searchers = Searchers(groups, self.config.shard_timeout_s, lost)
        self.remembered = Remembered()
        self.ahead = Ahead[list[CropFeatures]](self.config.num_encoders == 0)
        self.probe: RecallProbe | None = None
        self.turns = read_config(served.bundle_folder).turns if self.config.turns else None
        self.threads = ThreadPoolExecutor(4, thread_name_prefix="products")  # disk reads, never on the event loop

    def close(self) -> None:
        """Ends the guarded decoders and the threads."""
        self.hashes.close()
        self.threads.shutdown(wait=False)
        if self.feedback is not None:
            self.feedback.records.close()

    async def in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """`call(*args)` without holding up other queries."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *args)

    async def search(self, query: Query) -> SearchAnswer:
        """The answer to one checked query. Raises Problem."""
        laps = Laps()
        is_whole = query.image is not None and not query.boxes and query.text is None  # a part, or "this, but red", has no hash
        if not is_whole or not self.config.hash_stage:
            return await self.near(query, await self.wanted(query, laps), laps)
        assert query.image is not None
        with self.ahead.begun(partial(self.towers.photo, query.image, ())) as analysed:
            match = await self.hashes.match(query.image, query.filters)
            laps.lap("hash")
            if match is not None:
                return await self.exact(query, match, laps)
            return await self.near(query, await self.wanted(query, laps, analysed), laps)

    async def exact(self, query: Query, match: HashMatch, laps: Laps) -> SearchAnswer:
        """The photo is one of ours: its products, then those nearest to its stored embedding. No network is run."""
        query = replace(query, shopper=replace(query.shopper, photographs=False))  # it is asked as the shop's photo
        filters, fresh, depth = without(query.filters, match.product_ids), self.changes.fresh, self.depth(query)
        found = await self.remembered.find(
            (match.image_id, depth, filters), fresh, lambda: self.find(match.embedding[None], depth, [None], filters, fresh)
        )
        laps.lap("search")
        results = await self.ranked(self.reranker, query, hash_answer(match, found.candidates[0], depth), fresh)
        return await self.write(query, "hash", results, (), why_hash(match), found, laps, query.explain and explain_hash(match))

    async def wanted(self, query: Query, laps: Laps, analysed: Analysed | None = None) -> Wanted:
        """The vectors of a photo's crops, a product, an embedding or a text; a text beside one of them is mixed in.

        `analysed`: gives the photo's crops, where that may be under way already.
        """
        text_D = None if query.text is None else await self.towers.text(query.text)
        if text_D is not None:
            laps.lap("text")
        if query.image is not None:
            wanted = self.seen(query, await (analysed or partial(self.towers.photo, query.image, query.boxes))())
            laps.lap("analyse")
        elif query.product_id is not None:
            stored_D = await self.stored(query.product_id)
            laps.lap("product")
            wanted = Wanted(stored_D[None], [None], why_near("its first photo"), without(query.filters, [query.product_id]))
        elif query.embedding is not None:
            wanted = Wanted(self.given(query)[None], [None], why_near("your photo"), query.filters)
        else:
            assert text_D is not None, "check_query lets no query through that searches with nothing"
            return Wanted(text_D[None], [None], why_near("your words"), query.filters)
        if text_D is None:
            return wanted
        return wanted.fused(text_D, self.config.text_weight, why_near("your photo and words"))

    def seen(self, query: Query, crops: list[CropFeatures], quarters: int = 0) -> Wanted:
        """The vectors of a photo's crops, found after so many quarter turns."""
        embeddings_QD = np.stack([crop.embedding for crop in crops])
        routes = routes_of(self.manifest, crops, query.filters)
        return Wanted(embeddings_QD, routes, why_near("your photo"), query.filters, crops, quarters)

    async def turned(self, query: Query, wanted: Wanted, found: Found, depth: int, fresh: Fresh) -> tuple[Wanted, Found]:
        """What is seen and found in the photo's best quarter turn, which the crops seen so far choose; as it came, where no
        encoder has time for others.
        """
        assert query.image is not None and self.turns is not None
        try:
            glances = await self.towers.turned(query.image, tuple(glanced([crop.crop for crop in wanted.crops])))
            looks = [self.seen(query, crops) for crops in glances]
            embeddings_QD = np.concatenate([look.embeddings_QD for look in looks])
            routes = [route for look in looks for route in look.routes]
            candidates = iter((await self.find(embeddings_QD, depth, routes, wanted.filters, fresh)).candidates)
            scores = [nearness([next(candidates) for _ in look.routes]) for look in looks]
            quarters = best_turn([nearness(glanced(found.candidates)), *scores], self.turns.lead)
            if not quarters:
                return wanted, found
            wanted = self.seen(query, await self.towers.photo(query.image, (), quarters=quarters), quarters)
        except Problem:
            return wanted, found
        return wanted, await self.find(wanted.embeddings_QD, depth, wanted.routes, wanted.filters, fresh)

    def may_turn(self, query: Query, found: Found) -> bool:
        """Whether a photo is worth another look: a whole one, in which nothing near was found though every shard answered."""
        is_plain = query.image is not None and not query.boxes and query.text is None
        is_whole = found.shards.answered == found.shards.asked
        return self.turns is not None and is_plain and is_whole and nearness(glanced(found.candidates)) < self.turns.below

    async def near(self, query: Query, wanted: Wanted, laps: Laps) -> SearchAnswer:
        """Search in the likely partitions, fusion of what each vector found, and the order that the shop declares."""
        fresh, depth = self.changes.fresh, self.depth(query)
        found = await self.find(wanted.embeddings_QD, depth, wanted.routes, wanted.filters, fresh)
        laps.lap("search")
        if self.may_turn(query, found):
            wanted, found = await self.turned(query, wanted, found, depth, fresh)
            laps.lap("turn")
        if self.probe is not None:
            self.probe.consider(wanted.embeddings_QD[0], query.k, wanted.filters, found.candidates[0])
        results = await self.ranked(self.reranker, query, fuse_crops(found.candidates, depth), fresh)
        crops = [
            replace(crop, results=await self.ranked(self.crop_reranker, query, crop.results, fresh))
            for crop in (crop_answers(wanted.crops, found.candidates, depth) if wanted.crops else ())
        ]
        laps.lap("rank")
        probs = [crop.category_probs for crop in wanted.crops] or [None] * len(wanted.embeddings_QD)
        partitions = [None if route is None else list(route) for route in wanted.routes]
        explain = Explanation(hash=None, partitions=partitions, category_probs=probs, turned_deg=90 * wanted.quarters)
        return await self.write(query, "vector", results, crops, wanted.why, found, laps, query.explain and explain)

    async def find(self, embeddings_QD: np.ndarray, k: int, routes: Routes, filters: Filters | None, fresh: Fresh) -> Found:
        """Per vector the best k distinct products, of the release and of what came after it, which counts where both know one."""
        if not fresh.rows:
            return await self.searchers.search(embeddings_QD, k, routes, filters)
        found, added = await asyncio.gather(
            self.searchers.search(embeddings_QD, k, routes, filters), self.in_thread(fresh.search, embeddings_QD, k, filters)
        )
        kept = [[c for c in candidates if c.product_id not in fresh.rows] for candidates in found.candidates]
        return replace(found, candidates=[merge_candidates(both, k) for both in zip(kept, added, strict=True)])

    def depth(self, query: Query) -> int:
        """How many candidates the answer is chosen from."""
        return self.reranker.depth(query.shopper, query.k)

    async def ranked(self, reranker: Reranker, query: Query, results: tuple[Result, ...], fresh: Fresh) -> tuple[Result, ...]:
        """The best k of all candidates in the order that is shown; `fresh` as it was when they were found."""
        if not reranker.acts(query.shopper):
            return results[: query.k]
        shelf = Shelf(fresh.products, self.products.release)
        there = [result for result in results if shelf.holds(result)]
        return await self.in_thread(reranker.order, there, shelf, query.shopper, query.k)

    async def look(self, product_id: str) -> LookAnswer:
        """What goes with a product; one that came after the release has the look of its nearest. Raises Problem 404."""
        looks = self.models.looks
        if looks is None:
            raise Problem(404, "no_looks", f"release {self.manifest.release_id} has no looks", "product_id")
        embedding_D, of = await self.stored(product_id), product_id
        found = await self.in_thread(looks.of, product_id)
        if found is None:
            near = await self.find(embedding_D[None], LOOKED_AT, [None], without(None, [product_id]), self.changes.fresh)
            for candidate in near.candidates[0]:
                found, of = await self.in_thread(looks.of, candidate.product_id), candidate.product_id
                if found is not None:
                    break
        return await self.in_thread(self.answers.look, product_id, of, found or [])

    async def stored(self, product_id: str) -> np.ndarray:
        """(D,) embedding of a product's first photo. Raises Problem 404."""
        embedding = await self.in_thread(self.products.embedding, product_id)
        if embedding is None:
            raise Problem(404, "unknown_product", f"release {self.manifest.release_id} has no such product", "product_id")
        return embedding

    def given(self, query: Query) -> np.ndarray:
        """(D,) embedding made on the device. Raises Problem 422 for one that this release can't compare."""
        bundle = self.manifest.bundle
        assert query.embedding is not None
        if len(query.embedding) != bundle.dim:
            raise Problem(
                422, "invalid_field", f"has {len(query.embedding)} numbers, this release takes {bundle.dim}", "embedding"
            )
        if query.bundle_digest is not None and query.bundle_digest != bundle.digest:
            detail = f"is not {bundle.digest}, which made the vectors of release {self.manifest.release_id}"
            raise Problem(422, "other_bundle", detail, "bundle_digest")
        return np.asarray(query.embedding, np.float32)

    async def embed(self, query: Query) -> EmbedAnswer:
        """The crops of a photo and their embeddings, as the catalog's were made."""
        assert query.image is not None
        features = await self.towers.photo(query.image, query.boxes)
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

    async def write(
        self,
        query: Query,
        stage: Literal["hash", "vector"],
        results: Sequence[Result],
        crops: Sequence[CropAnswer],
        why: Why,
        found: Found,
        laps: Laps,
        explain: Explanation | Literal[False],
    ) -> SearchAnswer:
        """The answer on the wire, with its timings."""
        shuffled = self.feedback is not None and self.feedback.shuffles()
        if shuffled:
            results = drawn_by_lot(results)
        is_picture = query.text is None  # words are less like pictures than other pictures are
        call = partial(self.answers.write, stage, results, crops, why, found.shards, explain or None, is_picture=is_picture)
        answer = await self.in_thread(call)
        if self.feedback is not None:
            answer.query_id = self.feedback.shown(answer, results, shuffled)
        laps.lap("write")
        look = await self.look(answer.results[0].product_id) if query.look and answer.results and self.models.looks else None
        if query.look:
            laps.lap("look")
        return answer.model_copy(update={"timings_ms": laps.total(), "look": look})

    async def warm_up(self, photo: bytes) -> None:
        """One query through every process, so that no client pays for the first. Raises ReleaseError when a part is missing."""
        await asyncio.to_thread(self.changes.refresh)
        features = await self.towers.photo(photo, ())
        await self.hashes.match(photo, None)
        found = await self.searchers.search(np.stack([crop.embedding for crop in features]), 1, [None] * len(features), None)
        if found.shards.answered < found.shards.asked:
            raise ReleaseError(f"{found.shards.answered} of {found.shards.asked} shard groups answer")


def without(filters: Filters | None, product_ids: Iterable[str]) -> Filters:
    """`filters`, and these products left out."""
    filters = filters or Filters()
    return replace(filters, without=filters.without | set(product_ids))


def drawn_by_lot(results: Sequence[Result]) -> list[Result]:
    """The first SHUFFLED that are no exact match in any order: what is clicked there says how much position alone counts."""
    first = [result for result in results if result.match == "exact"]
    rest = [result for result in results if result.match != "exact"]
    return [*first, *random.sample(rest[:SHUFFLED], len(rest[:SHUFFLED])), *rest[SHUFFLED:]]


def explain_hash(match: HashMatch) -> Explanation:
    """How near the matched photo is."""
    near = {
        "image_id": match.image_id,
        "distance": match.distance,
        "colour_distance": match.colour_distance,
        "variant": match.variant,
    }
    return Explanation(hash=near, partitions=[None], category_probs=[None])
