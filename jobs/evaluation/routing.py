"""How few partitions may be searched: the threshold of the predicted probability, chosen from photos with known answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.index.manifest import Manifest
from serve.index.search import partition_of, partition_probs, route

SLACK = 1e-4  # sums of probabilities are rounded


@dataclass(frozen=True)
class Routing:
    """The chosen threshold, and what it was measured to do."""

    threshold: float
    loss_frac: float  # of the answers: their partition is not searched
    searched_frac: float  # of the rows of the release that a query looks at, on average


def choose_threshold(
    manifest: Manifest,
    asked: Sequence[tuple[str | None, Sequence[Mapping[str, float] | None]]],
    max_loss_frac: float,
    threshold: float | None = None,
) -> Routing:
    """The smallest threshold that loses at most `max_loss_frac` of the answers (above 1: never passed); or what `threshold` does.

    `asked`: for each answer its product's category and the predictions of the crops that may find it.
    """
    needed = np.sort([min((before(manifest, category, probs) for probs in crops), default=0.0) for category, crops in asked])
    num_lost = int(max_loss_frac * len(needed))
    if threshold is None:
        threshold = round(float(needed[-1 - num_lost]) + SLACK, 6) if num_lost < len(needed) else SLACK
    chosen = manifest.model_copy(update={"route_threshold": threshold})
    routes = [route(chosen, probs) for _, crops in asked for probs in crops]
    return Routing(
        threshold=threshold,
        loss_frac=float(np.mean(needed >= threshold)) if len(needed) else 0.0,
        searched_frac=float(np.mean([searched(manifest, names) for names in routes])) if routes else 1.0,
    )


def before(manifest: Manifest, category: str | None, probs: Mapping[str, float] | None) -> float:
    """Probability of the partitions that are searched before the one that holds `category`; 0 where all are searched anyway."""
    if not probs or len(manifest.partitions) == 1:
        return 0.0
    own = partition_of(manifest, category)
    passed = 0.0
    for name, prob in partition_probs(manifest, probs):
        if name == own:
            return passed
        passed += prob
    return passed  # none of its probability is on the right one: only searching all of them finds it


def searched(manifest: Manifest, names: Sequence[str] | None) -> float:
    """Share of the release's rows in these partitions; none = all."""
    rows = {p.name: sum(shard.num_rows for shard in p.shards) for p in manifest.partitions}
    return sum(rows[name] for name in names) / max(sum(rows.values()), 1) if names is not None else 1.0
