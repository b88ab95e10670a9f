"""Re-ranking of search results: the declared rules of a shop, or the learned ranking of the release, over what was found."""

from collections.abc import Sequence

from serve.index.search import Result
from serve.ranking.candidates import Shopper
from serve.ranking.gather import Shelf
from serve.ranking.ranker import Ranker, ranking_features
from serve.ranking.rerank import acts, rerank
from serve.ranking.spec import RankingConfig


class Reranker:
    """Puts results into the order that is shown."""

    def __init__(self, config: RankingConfig, ranker: Ranker | None = None, *, keeps_features: bool = False) -> None:
        """`ranker`: takes the place of the weights. `keeps_features`: results carry what a ranking could be learned from."""
        self.config, self.ranker, self.keeps_features = config, ranker, keeps_features

    def acts(self, shopper: Shopper) -> bool:
        """Whether the whole list must be looked at for this shopper."""
        return self.keeps_features or acts(self.config, shopper, self.ranker)

    def depth(self, shopper: Shopper, k: int) -> int:
        """How many candidates the best k are chosen from."""
        return max(k, self.config.depth) if self.acts(shopper) else k

    def order(self, results: Sequence[Result], shelf: Shelf, shopper: Shopper, k: int) -> tuple[Result, ...]:
        """The best k of `results`, each with its `parts`."""
        if not self.acts(shopper) or not results:
            return tuple(results[:k])
        candidates = shelf.candidates(results, pictures=self.config.diversity.near_duplicates == "once")
        ranking = rerank(candidates, shopper, self.config, k, self.ranker)
        ordered = [results[i]._replace(parts=tuple(ranking.explained(i).items())) for i in ranking.order_M.tolist()]
        if self.keeps_features:
            features_NF = ranking_features(candidates, shopper, self.config)[ranking.order_M]
            ordered = [r._replace(features=tuple(row)) for r, row in zip(ordered, features_NF.tolist(), strict=True)]
        return tuple(ordered)
