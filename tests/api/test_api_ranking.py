"""What the shop declares, over HTTP: rules act on the whole list, `explain` adds up, looks are answered."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.api.cascade import Cascade
from serve.api.problems import Problem
from serve.api.queries import Query
from serve.api.schemas import SearchAnswer
from serve.api.served import ServedRelease
from serve.api.towers import AskEncoder
from serve.index.manifest import file_entry, read_manifest, write_manifest
from serve.ranking.candidates import Shopper
from serve.ranking.looks import LOOKS_FILE, write_looks
from serve.ranking.spec import RankingConfig
from tests.api.conftest import searchers
from tests.api.tiny_release import NUM_PRODUCTS, RELEASE_ID, TinyRelease, encoded, picture


def answered(served: ServedRelease, tiny: TinyRelease, encode: AskEncoder, query: Query, **ranking: Any) -> SearchAnswer:
    """The answer of a shop with these rules."""
    settings = tiny.settings.model_copy(update={"ranking": RankingConfig.model_validate(ranking)})
    cascade = Cascade(served, settings, encode, searchers(served, settings))
    try:
        return asyncio.run(cascade.search(query))
    finally:
        cascade.close()


def adds_up(answer: SearchAnswer) -> None:
    totals = []
    for result in answer.results:
        explain = result.explain
        assert explain is not None and explain.visual == result.score
        assert explain.total == pytest.approx(explain.visual + sum(explain.parts.values()))
        totals += [explain.total] if result.match == "similar" else []
    assert totals == sorted(totals, reverse=True)


def test_a_boost_lifts_from_the_whole_list_within_its_guard_rail(
    served: ServedRelease, tiny: TinyRelease, encode: AskEncoder
) -> None:
    query = Query(2, product_id="p/00", explain=True)
    boost = {"name": "shoes", "category": "shoes", "weight": 1.0}
    plain = answered(served, tiny, encode, replace(query, k=NUM_PRODUCTS))
    boosted = answered(served, tiny, encode, query, boosts=[boost], max_gap=2)
    assert [r.category for r in boosted.results] == ["shoes/boots"] * 2 and len(plain.results) == NUM_PRODUCTS - 1
    assert all(r.explain and r.explain.parts == {"boost:shoes": 1.0} for r in boosted.results)
    adds_up(boosted)
    railed = answered(served, tiny, encode, replace(query, k=NUM_PRODUCTS), boosts=[boost], max_gap=0)
    adds_up(railed)
    lifted = [r for r in railed.results if r.explain and "boost:shoes" in r.explain.parts and "guard_rail" not in r.explain.parts]
    assert all(r.score >= max(other.score for other in plain.results) for r in lifted)


def test_sold_out_is_hidden_or_comes_later(served: ServedRelease, tiny: TinyRelease, encode: AskEncoder) -> None:
    query = Query(NUM_PRODUCTS, product_id="p/01", explain=True)
    hidden = answered(served, tiny, encode, query, sold_out="hide")
    assert hidden.results and all(r.attributes.available for r in hidden.results)
    later = answered(served, tiny, encode, query, sold_out="demote", weights={"availability": 1.0}, max_gap=2)
    availability = [r.attributes.available for r in later.results]
    assert availability == sorted(availability, reverse=True) and False in availability
    adds_up(later)


def test_the_users_price_range_reorders_and_the_photos_own_product_stays_first(
    served: ServedRelease, tiny: TinyRelease, encode: AskEncoder
) -> None:
    query = Query(6, tiny.photo("p/03"), explain=True, shopper=Shopper(price_range=(20.0, 22.0)))
    answer = answered(served, tiny, encode, query, weights={"price": 1.0}, max_gap=2)
    assert answer.stage == "hash" and answer.results[0].product_id == "p/03" and answer.results[0].match == "exact"
    adds_up(answer)
    assert answer.results[1].attributes.price is not None and answer.results[1].attributes.price >= 20.0


def test_each_crop_is_ranked_as_well(served: ServedRelease, tiny: TinyRelease, encode: AskEncoder) -> None:
    boost = {"name": "b", "brand": "Tiny", "weight": 0.2}
    answer = answered(served, tiny, encode, Query(3, encoded(picture(777)), explain=True), boosts=[boost])
    assert all(r.explain and r.explain.parts["boost:b"] == 0.2 for r in answer.crops[0].results)


def test_the_users_gender_is_taken_in_every_form(api: str) -> None:
    for response in (
        httpx.post(f"{api}/v1/search", json={"product_id": "p/00", "gender": "women", "price_range": [10, 20]}),
        httpx.post(f"{api}/v1/search", files={"text": (None, "hat"), "gender": (None, "men"), "price_range": (None, "10,20")}),
    ):
        assert response.status_code == 200, response.text


def test_looks(tiny: TinyRelease, encode: AskEncoder, tmp_path: Path, api: str) -> None:
    missing = httpx.get(f"{api}/v1/products/p/00/look")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_looks")
    root = tmp_path / "store"
    shutil.copytree(tiny.settings.store.root, root)
    folder = root / "releases" / RELEASE_ID
    write_looks(folder / LOOKS_FILE, {"p/00": ["p/01", "p/02"], "p/03": ["p/05", "gone"]})
    write_manifest(folder, read_manifest(folder).model_copy(update={"models": (file_entry(folder, LOOKS_FILE),)}))
    place = tiny.settings.store.model_copy(update={"root": root, "tables": str(root / "tables")})
    settings = tiny.settings.model_copy(update={"store": place})
    served = ServedRelease.resolve(settings, RELEASE_ID)
    cascade = Cascade(served, settings, encode, searchers(served, settings))

    async def ask() -> None:
        look = await cascade.look("p/00")
        assert (look.of, [item.product_id for item in look.items]) == ("p/00", ["p/01", "p/02"])
        assert look.items[0].attributes.title == "Thing 1" and look.items[0].image_url
        lent = await cascade.look("p/07")
        assert lent.of in ("p/00", "p/03") and lent.items and "gone" not in {item.product_id for item in lent.items}
        answer = await cascade.search(Query(3, tiny.photo("p/03"), look=True))
        assert answer.look is not None and [item.product_id for item in answer.look.items] == ["p/05"]
        with pytest.raises(Problem):
            await cascade.look("nobody")

    asyncio.run(ask())
    cascade.close()
