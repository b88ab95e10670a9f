"""What a bundle finds, on vectors made by hand: ranks, siblings, slices, the change between two bundles, the gap of domains."""

from pathlib import Path

import numpy as np
import pytest

from jobs.evaluation.bundle_recall import Asked, ask, recall_change, recall_figures, slices
from jobs.evaluation.domains import domain_gap, studio_recall_at_1
from jobs.evaluation.photo_recall import SeenPhotos
from jobs.evaluation.queries import Query
from jobs.evaluation.shelf import Shelf, ShelfProduct
from serve.vision.bundle import CropFeatures
from serve.vision.crop import Crop


def unit(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def shelf_of(vectors: np.ndarray, owners: list[int], styles: list[str]) -> Shelf:
    """One whole photo a row."""
    products = tuple(ShelfProduct(f"p{row}", f"hats/{style}", style, ()) for row, style in enumerate(styles))
    num = len(vectors)
    return Shelf(
        products, unit(vectors), np.array(owners), np.arange(num), np.ones(num, bool), tuple(f"image{i}" for i in range(num))
    )


def seen_of(photos: list[list[tuple[tuple[float, float, float, float], np.ndarray]]]) -> SeenPhotos:
    """Photos by their crops (box, vector), the whole first; the last one is where the product was drawn."""
    seen = SeenPhotos([], [], [])
    for crops in photos:
        first = len(seen.features)
        seen.features.extend(
            CropFeatures(Crop(box, None, 1.0), "hats/a", 0.8, {"hats/a": 0.8}, unit(vector)) for box, vector in crops
        )
        seen.found.append(list(range(first, len(seen.features))))
        seen.drawn.append([len(seen.features) - 1] if len(crops) > 1 else [])
    return seen


def asked_at(rank: int, number: int) -> Asked:
    query = Query(Path(f"{number}.jpg"), ("p",), domain="user" if number % 2 else "studio", occluded_frac_N=(0.2 * number,))
    return Asked(query, 0, "hats/a", rank, 1 / (rank + 1), 1.0, 0.1, ((0, 0.9),), None, None, 0.04 if number % 2 else 0.5)


EYE = np.eye(4)
WHOLE, PART = (0.0, 0.0, 100.0, 100.0), (10.0, 10.0, 50.0, 50.0)


def test_ranks_gains_and_margins_by_hand() -> None:
    shelf = shelf_of(np.stack([EYE[0], EYE[1], EYE[2]]), [0, 1, 2], ["a", "a", "b"])
    seen = seen_of([[(WHOLE, EYE[1] + 0.5 * EYE[0])], [(WHOLE, EYE[2]), (PART, EYE[0])]])
    queries = [Query(Path("a"), ("p0", "unknown")), Query(Path("b"), ("p0",), ((12, 10, 50, 50),))]
    first, second = ask(queries, ["x", "y"], seen, seen.embeddings_QD, shelf)
    assert (first.rank, second.rank) == (1, 0), "the crop at the known box answers alone"
    assert first.precision == 1.0, "its sibling before it is right too"
    assert first.gain == pytest.approx((0.5 / 1 + 1 / np.log2(3)) / (1 / 1 + 0.5 / np.log2(3)))
    assert first.margin == pytest.approx(-0.5 / np.sqrt(1.25), abs=1e-6)
    assert first.size is None and second.size == "5 to 20 %"
    assert [row for row, _ in first.nearest] == [1, 0, 2]


def test_the_catalogs_own_copy_of_a_query_does_not_count() -> None:
    shelf = shelf_of(np.stack([EYE[0], EYE[1], EYE[2]]), [0, 0, 1], ["a", "b"])
    seen = seen_of([[(WHOLE, EYE[0])]])
    (other,) = ask([Query(Path("a"), ("p0",))], ["image0"], seen, seen.embeddings_QD, shelf)
    assert other.nearest[0][1] == pytest.approx(0, abs=1e-6)
    assert ask([Query(Path("a"), ("p1",))], ["image2"], seen, seen.embeddings_QD, shelf) == []


def test_slices_and_change() -> None:
    asked = [asked_at(rank, number) for number, rank in enumerate([0, 3, 0, 20])]
    figures = recall_figures(asked)
    assert [figures[f"recall_at_{k}"] for k in (1, 5, 10)] == [0.5, 0.75, 0.75] and figures["asked"] == 4
    parts = slices(asked)
    assert parts["domain"]["studio"]["recall_at_1"] == 1 and parts["domain"]["user"]["recall_at_1"] == 0
    assert list(parts["box"]) == ["below 5 % of the photo", "above 20 %"] and parts["category"]["hats/a"]["asked"] == 4
    assert {name: part["asked"] for name, part in parts["visibility"].items()} == {"clear": 1, "partly": 1, "hidden": 2}
    worse = [asked_at(1, number) for number in range(4)]
    change = recall_change(asked, worse, 0)
    assert change.mean == -0.5 and change.low < -0.5 < change.high <= 0 and change.num == 4
    assert recall_change(asked, asked, 0).low == recall_change(asked, asked, 0).high == 0


def test_centring_closes_a_gap_that_is_a_common_shift() -> None:
    random = np.random.default_rng(2)
    things, shift = random.normal(size=(40, 16)), 6 * random.normal(size=16)
    shelf = shelf_of(np.concatenate([things, things + 0.05]), list(range(40)) * 2, [str(row) for row in range(40)])
    order = np.argsort(shelf.products_N, kind="stable")
    shelf = Shelf(
        shelf.products, shelf.vectors_ND[order], shelf.products_N[order], np.arange(80), shelf.is_whole_N, shelf.image_ids
    )
    queries = [Query(Path(f"{row}"), (f"p{row}",)) for row in range(40)]
    taken = things + 0.2 * random.normal(size=things.shape)
    near = domain_gap(queries, [""] * 40, seen_of([[(WHOLE, row)] for row in taken]), shelf)
    far = domain_gap(queries, [""] * 40, seen_of([[(WHOLE, row)] for row in taken + shift]), shelf)
    assert studio_recall_at_1(shelf) == near.studio_recall_at_1 == 1.0
    assert near.user_recall_at_1 == 1.0 and near.closed_frac is None
    assert far.user_recall_at_1 < 0.5 < far.centred_recall_at_1 and far.closed_frac is not None and far.closed_frac > 0.5
    assert far.centroid_distance > 2 * near.centroid_distance and far.shift_frac > 0.4 > near.shift_frac
