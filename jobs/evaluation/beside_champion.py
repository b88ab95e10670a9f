"""A release beside the champion, on the same questions: known answers of photos, and products asked for their like.

Letters: Q queries, D width.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.config import JobError
from jobs.evaluation.queries import Query
from jobs.evaluation.waterfall import Pair
from jobs.gate import Figure
from serve.index.release import Release
from serve.vision.bundle import Bundle

K = 10
DEVIATIONS = 2  # of a sign test: answers that were lost and won as by the toss of a coin lie within so many in 95 % of all nights
ROUNDS = 3  # a slow query's fastest of so many: what a neighbour on the machine takes is not the index's
SLOW_FRAC = 0.1  # of the queries, which the 99th percentile is among
SPARE = 4  # times the products that are asked for: some of those drawn are new


@dataclass(frozen=True)
class KnownAnswer:
    """A product that a photo asks for, and what the release and the champion answered; none = it does not hold the product."""

    query: Query
    number: int
    category: str | None
    ours: tuple[str, ...]
    champion: tuple[str, ...] | None

    @property
    def product_id(self) -> str:
        return self.query.product_ids[self.number]

    @property
    def found(self) -> bool:
        return self.product_id in self.ours[:K]

    def ranks(self) -> tuple[int, int]:
        """Place of the product in our answer and in the champion's, 0 = first, K = not among them."""
        ours, theirs = (answer[:K] for answer in (self.ours, self.champion or ()))
        ours_at, champion_at = (answer.index(self.product_id) if self.product_id in answer else K for answer in (ours, theirs))
        return ours_at, champion_at


def known_answers(
    queries: Sequence[Query], pairs: Sequence[Pair], release: Release, champion: Release | None, champion_pairs: Sequence[Pair]
) -> list[KnownAnswer]:
    """Every product asked for that the release holds; `pairs` of both are in the order of `measure_photos`."""
    asked = [(query, number) for query in queries for number in range(len(query.product_ids))]
    found = []
    for place, ((query, number), pair) in enumerate(zip(asked, pairs, strict=True)):
        product = release.product(pair.product_id)
        if product is not None:
            both = champion is not None and champion.product(pair.product_id) is not None
            theirs = champion_pairs[place].ranked if both else None
            found.append(KnownAnswer(query, number, product["category"], pair.ranked, theirs))
    return found


def recalls(answers: Sequence[KnownAnswer]) -> Figure:
    """Share found; and of those that the champion holds too, ours, the champion's, and what chance may move."""
    value = float(np.mean([answer.found for answer in answers]))
    both = [answer for answer in answers if answer.champion is not None]
    if not both:
        return Figure(value)
    ours, theirs = (np.array([rank < K for rank in ranks]) for ranks in zip(*(answer.ranks() for answer in both), strict=True))
    noise = DEVIATIONS * float(np.sqrt((ours != theirs).sum())) / len(both)
    return Figure(value, float(ours.mean()), float(theirs.mean()), noise)


def by_category(answers: Sequence[KnownAnswer], depth: int, least: int) -> dict[str, list[KnownAnswer]]:
    """Answers by the first `depth` levels of the product's category, of which there are at least `least`."""
    found: defaultdict[str, list[KnownAnswer]] = defaultdict(list)
    for answer in answers:
        if answer.category:
            found["/".join(answer.category.split("/")[:depth])].append(answer)
    return {name: own for name, own in sorted(found.items()) if len(own) >= least}


def got_worse(answers: Sequence[KnownAnswer]) -> list[KnownAnswer]:
    """Those that the champion ranks higher, the largest fall first."""
    worse = [(ours - theirs, answer) for answer in answers if answer.champion is not None for ours, theirs in [answer.ranks()]]
    return [answer for fall, answer in sorted(worse, key=lambda item: (-item[0], item[1].product_id)) if fall > 0]


@dataclass(frozen=True)
class Replay:
    """What asking for the like of the same products gave."""

    p99_ms: float
    champion_p99_ms: float | None
    same_results_frac: float | None  # of the champion's K nearest, among those that the release has as well


def replay(release: Release, champion: Release | None, num: int, seed: int) -> Replay:
    """Asks both for the nearest products of a seeded sample of `num` products, one at a time, in turn."""
    drawn = sample_products(release, SPARE * num, seed)
    known = drawn if champion is None else [product_id for product_id in drawn if champion.product(product_id) is not None]
    asked = sorted((known or drawn)[:num])
    ours, our_ms = ask(release, asked)
    if champion is None or champion.product(asked[0]) is None:
        return Replay(p99(our_ms), None, None)
    theirs, champion_ms = ask(champion, asked)
    return Replay(p99(our_ms), p99(champion_ms), same_results(ours, theirs, release))


def sample_products(release: Release, num: int, seed: int) -> list[str]:
    """Ids of a seeded sample of the products of all shards, in random order."""
    records = [opened.shard.records for opened in release.group.shards]
    starts = np.cumsum([0, *(of_shard.num_products for of_shard in records)])
    chosen = np.random.default_rng(seed).choice(starts[-1], min(num, starts[-1]), replace=False)
    places = np.searchsorted(starts, chosen, side="right") - 1
    return [records[place].product_id(int(product - starts[place])) for place, product in zip(places, chosen, strict=True)]


def replay_texts(path: Path, release: Release, bundle: Bundle, champion: Release, champion_bundle: Bundle) -> float | None:
    """Share of the champion's K products for each text that are among ours; of products that the release has as well.

    None where one of the bundles reads no texts. Raises JobError where the file holds none.
    """
    if not (bundle.has_text and champion_bundle.has_text):
        return None
    try:
        texts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"gate.texts={path}: {error}") from error
    if not texts:
        raise JobError(f"gate.texts={path}: holds no text; one query a line")
    ours, theirs = (
        [[candidate.product_id for candidate in found] for found in asked.search(reader.encode_texts(texts), K)]
        for asked, reader in ((release, bundle), (champion, champion_bundle))
    )
    return same_results(ours, theirs, release)


def same_results(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]], release: Release) -> float | None:
    """Mean share of the champion's products, those that the release has as well, that are among ours."""
    kept = [[p for p in answer if release.product(p) is not None] for answer in theirs]
    same = [len(set(new) & set(old)) / len(old) for new, old in zip(ours, kept, strict=True) if old]
    return round(float(np.mean(same)), 4) if same else None


def ask(release: Release, product_ids: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
    """The K products nearest to each, and the milliseconds (Q,) of its search: the slowest tenth's is their fastest of some."""
    embeddings = [release.product_embedding(product_id) for product_id in product_ids]
    fastest_Q = np.full(len(product_ids), np.inf)

    def search(place: int) -> list[str]:
        query_D = embeddings[place]
        assert query_D is not None
        start = time.perf_counter()
        [found] = release.search(query_D[None], K)
        fastest_Q[place] = min(fastest_Q[place], 1000 * (time.perf_counter() - start))
        return [candidate.product_id for candidate in found]

    answers = [search(place) for place in range(len(product_ids))]
    for place in np.argsort(-fastest_Q)[: math.ceil(SLOW_FRAC * len(product_ids))].repeat(ROUNDS - 1):
        search(int(place))
    return answers, fastest_Q


def p99(milliseconds_Q: np.ndarray) -> float:
    """The 99th percentile."""
    return round(float(np.percentile(milliseconds_Q, 99)), 3)
