"""Each rule shows its effect, knows its bounds, and is held by the guard rail."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.ranking.candidates import Shopper
from serve.ranking.rerank import GUARD_RAIL, acts, rerank
from serve.ranking.spec import RankingConfig
from serve.settings import ConfigError, parse
from tests.ranking.shelf import NOW, shelf


def config(**given: Any) -> RankingConfig:
    return RankingConfig.model_validate(given)


def order(
    rows: list[dict[str, Any]], rules: RankingConfig, k: int = 10, exact: tuple[int, ...] = (), **shopper: Any
) -> list[int]:
    return rerank(shelf(*rows, exact=exact), Shopper(now=NOW, **shopper), rules, k).order_M.tolist()


# One row for each rule: the settings, the shopper, the product that looks nearest, the one that the rule puts before it.
EFFECTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "availability": ({"sold_out": "demote", "weights": {"availability": 0.1}}, {}, {"available": False}, {"available": True}),
    "price": ({"weights": {"price": 0.1}}, {"price_range": (10.0, 20.0)}, {"price": 80.0}, {"price": 15.0}),
    "gender": ({"weights": {"gender": 0.1}}, {"gender": "women"}, {"gender": "men"}, {"gender": "unisex"}),
    "popularity": ({"weights": {"popularity": 0.1}}, {}, {"popularity": 1.0}, {"popularity": 500.0}),
    "recency": (
        {"weights": {"recency": 0.1}},
        {},
        {"updated_at": NOW - timedelta(days=300)},
        {"updated_at": NOW - timedelta(days=1)},
    ),
    "boost:acme": ({"boosts": [{"name": "acme", "brand": "Acme", "weight": 0.1}]}, {}, {"brand": "Other"}, {"brand": "Acme"}),
    "boost:spring": (
        {"boosts": [{"name": "spring", "category": "shoes", "weight": 0.1, "first_day": "03-01", "last_day": "05-31"}]},
        {},
        {"category": "shoeshine"},
        {"category": "shoes/sandals"},
    ),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_a_rule_lifts_its_product_past_one_that_looks_a_little_nearer(name: str) -> None:
    settings, shopper, nearest, favoured = EFFECTS[name]
    rows = [{"visual": 0.80} | nearest, {"visual": 0.75} | favoured]
    assert order(rows, config(weights={"price": 0, "gender": 0}), **shopper) == [0, 1]
    assert order(rows, config(**settings), **shopper) == [1, 0]
    ranking = rerank(shelf(*rows), Shopper(now=NOW, **shopper), config(**settings), 2)
    assert set(ranking.explained(0)) | set(ranking.explained(1)) == {name}


@pytest.mark.parametrize("name", EFFECTS)
def test_no_rule_lifts_what_looks_much_less_alike(name: str) -> None:
    """Against a third product that is nearest and that no rule has anything against."""
    settings, shopper, _, favoured = EFFECTS[name]
    strong = {"boosts": [b | {"weight": 1.0} for b in settings.get("boosts", [])]} | {
        "weights": dict.fromkeys(settings.get("weights", {}), 1.0)
    }
    rows = [{"visual": 0.80} | favoured, {"visual": 0.60}, {"visual": 0.59} | favoured]
    rules = config(**(settings | strong | {"max_gap": 0.15}))
    ranking = rerank(shelf(*rows), Shopper(now=NOW, **shopper), rules, 3)
    assert ranking.order_M[0] == 0
    assert (ranking.totals_N[1:] <= [0.60 + 1e-12, 0.59 + 1e-12]).all()
    if any(value > 0 for value in ranking.explained(2).values()):
        assert ranking.explained(2)[GUARD_RAIL] == pytest.approx(-sum(v for v in ranking.explained(2).values() if v > 0))


def test_sold_out_products_can_be_hidden_but_never_the_one_in_the_photo() -> None:
    rows = [{"visual": 1.0, "available": False}, {"visual": 0.9, "available": False}, {"visual": 0.8, "available": True}]
    assert order(rows, config(sold_out="hide"), exact=(0,)) == [0, 2]
    assert order(rows, config(), exact=(0,)) == [0, 1, 2]


def test_the_product_in_the_photo_stays_first_and_does_not_move_the_guard_rail() -> None:
    rules = config(boosts=[{"name": "acme", "brand": "Acme", "weight": 0.5}])
    rows = [{"visual": 0.6}, {"visual": 0.999}, {"visual": 0.55, "brand": "Acme"}]
    ranking = rerank(shelf(*rows, exact=(1,)), Shopper(now=NOW), rules, 3)
    assert ranking.order_M.tolist() == [1, 2, 0]
    assert ranking.explained(1) == {}


def test_a_product_without_price_is_neither_in_the_range_nor_far_outside() -> None:
    rules = config(weights={"price": 0.1})
    prices = [15.0, None, float("nan"), 1000.0]
    ranking = rerank(
        shelf(*({"visual": 0.5, "price": price} for price in prices)), Shopper(price_range=(10, 20), now=NOW), rules, 4
    )
    assert ranking.totals_N == pytest.approx([0.5, 0.45, 0.45, 0.4], abs=1e-3)


def test_a_price_in_another_currency_is_unknown() -> None:
    rules = config(weights={"price": 0.1})
    rows = [{"visual": 0.5, "price": 15.0, "currency": code} for code in ("EUR", "JPY", None)]
    ranking = rerank(shelf(*rows), Shopper(price_range=(10, 20), currency="EUR", now=NOW), rules, 3)
    assert ranking.totals_N == pytest.approx([0.5, 0.45, 0.5])


def test_a_season_may_run_over_the_new_year() -> None:
    rule = config(
        boosts=[{"name": "winter", "category": "coats", "weight": 0.1, "first_day": "11-15", "last_day": "02-10"}]
    ).boosts[0]
    assert [rule.is_on(day) for day in ("11-14", "11-15", "12-31", "01-01", "02-10", "02-11")] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("weights.price", {"weights": {"price": "dear"}}, "valid number"),
        ("weights.price", {"weights": {"price": float("nan")}}, "finite number"),
        ("weights.recency", {"weights": {"recency": float("inf")}}, "finite number"),
        ("weights.popularity", {"weights": {"popularity": -0.1}}, "greater than or equal to 0"),
        ("boosts.0.weight", {"boosts": [{"name": "a", "brand": "A", "weight": float("nan")}]}, "finite number"),
        ("boosts.0", {"boosts": [{"name": "a", "weight": 0.1}]}, "names no brand, seller or category"),
        ("boosts.0.first_day", {"boosts": [{"name": "a", "brand": "A", "weight": 0.1, "first_day": "02-30"}]}, "day"),
        ("", {"weights": {"availability": 0.1}}, "sold_out"),
        (
            "",
            {"boosts": [{"name": "a", "brand": "A", "weight": 0.1}, {"name": "b", "brand": "A", "weight": -0.1}]},
            "contradict each other",
        ),
        ("", {"boosts": [{"name": "a", "brand": "A", "weight": 0.1}, {"name": "a", "brand": "B", "weight": 0.1}]}, "one name"),
        ("weights.fame", {"weights": {"fame": 0.1}}, "unknown key"),
    ],
)
def test_rules_that_make_no_sense_are_refused_by_name(key: str, given: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse(RankingConfig, given, tmp_path / "conf.yaml")
    assert f"{key}" in str(refused.value)


def test_two_seasons_of_one_brand_may_differ_in_sign() -> None:
    spring = {"name": "a", "brand": "A", "weight": 0.1, "first_day": "03-01", "last_day": "05-31"}
    autumn = {"name": "b", "brand": "A", "weight": -0.1, "first_day": "09-01", "last_day": "11-30"}
    assert len(config(boosts=[spring, autumn]).boosts) == 2


def test_without_a_rule_or_a_word_from_the_shopper_nothing_acts() -> None:
    assert not acts(config(), Shopper())
    assert acts(config(), Shopper(gender="women")) and acts(config(), Shopper(price_range=(0, 9)))
    assert acts(config(sold_out="hide"), Shopper()) and acts(config(diversity={"variants": "once"}), Shopper())


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "visual": st.floats(-1, 1),
            "price": st.none() | st.floats(0, 1e6),
            "available": st.none() | st.booleans(),
            "gender": st.sampled_from([None, "men", "women", "unisex"]),
            "popularity": st.none() | st.floats(-5, 1e9),
            "brand": st.sampled_from([None, "A", "B"]),
        }
    ),
    max_size=30,
)


@given(rows=ROWS, max_gap=st.floats(0, 2))
def test_explanations_add_up_and_the_guard_rail_holds(rows: list[dict[str, Any]], max_gap: float) -> None:
    rules = config(
        max_gap=max_gap,
        sold_out="demote",
        weights={"availability": 0.3, "price": 0.3, "gender": 0.3, "popularity": 0.3, "recency": 0.3},
        boosts=[{"name": "a", "brand": "A", "weight": 1.0}, {"name": "b", "brand": "B", "weight": -0.5}],
    )
    candidates = shelf(*rows)
    ranking = rerank(candidates, Shopper("women", (5.0, 50.0), now=NOW), rules, len(rows))
    assert sorted(ranking.order_M) == list(range(len(rows)))
    for place in range(len(rows)):
        assert candidates.visual_N[place] + sum(ranking.explained(place).values()) == pytest.approx(ranking.totals_N[place])
        if candidates.visual_N.max() - candidates.visual_N[place] > max_gap:
            assert ranking.totals_N[place] <= candidates.visual_N[place] + 1e-9
    assert (np.diff(ranking.totals_N[ranking.order_M]) <= 1e-12).all()
