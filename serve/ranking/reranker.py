"""Re-ranking of search results: gathers what the catalog says about them, and puts them into the order that is shown."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from serve.index.release import ProductStore
from serve.index.search import Result
from serve.ranking.candidates import COLUMNS, SCHEMA, Candidates, Shopper
from serve.ranking.ranker import Ranker
from serve.ranking.rerank import acts, rerank
from serve.ranking.spec import RankingConfig
from serve.vision.hash import COLOUR_BYTES, HASH_BYTES


class Reranker:
    """The declared rules of a shop over the products of one release."""

    def __init__(self, products: ProductStore, config: RankingConfig, ranker: Ranker | None = None) -> None:
        """`ranker`: the learned ranking of the release, which is used where the shop wants it."""
        self.products, self.config = products, config
        self.ranker = ranker if config.learned else None

    def depth(self, shopper: Shopper, k: int) -> int:
        """How many candidates the best k are chosen from."""
        return max(k, self.config.depth) if acts(self.config, shopper, self.ranker) else k

    def order(self, results: Sequence[Result], shopper: Shopper, k: int) -> tuple[Result, ...]:
        """The best k of `results`, each with its `parts`."""
        if not acts(self.config, shopper, self.ranker):
            return tuple(results[:k])
        candidates = self.candidates(results)
        ranking = rerank(candidates, shopper, self.config, k, self.ranker)
        return tuple(results[i]._replace(parts=tuple(ranking.explained(i).items())) for i in ranking.order_M.tolist())

    def candidates(self, results: Sequence[Result]) -> Candidates:
        """Results as columns, in their order."""
        placed = [i for i, result in enumerate(results) if result.place is not None]
        places = [place for result in results if (place := result.place) is not None]
        others = [i for i, result in enumerate(results) if result.place is None]
        table = self.products.columns(places, COLUMNS)
        if others:
            rows = [self.products.product(results[i].product_id) or {} for i in others]
            known = pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], schema=SCHEMA)
            both = pa.concat_tables([table, known.select(COLUMNS).cast(table.schema)])
            table = both.take(pa.array(np.argsort([*placed, *others])))
        visual_N = np.fromiter((result.score for result in results), np.float64, len(results))
        exact_N = np.fromiter((result.match == "exact" for result in results), bool, len(results))
        if self.config.diversity.near_duplicates == "all":
            return Candidates(visual_N, exact_N, table)
        hashes_N32, colours_N48 = np.empty((len(results), HASH_BYTES), np.uint8), np.zeros((len(results), COLOUR_BYTES), np.uint8)
        hashes_N32[placed], colours_N48[placed] = self.products.pictures(places)
        for i in others:  # a picture of its own: some 128 bits from every other
            hashes_N32[i] = np.frombuffer(hashlib.sha256(results[i].product_id.encode()).digest(), np.uint8)
        return Candidates(visual_N, exact_N, table, hashes_N32, colours_N48)
