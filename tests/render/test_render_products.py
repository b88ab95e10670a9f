"""Products: seeded, prefix-stable, told apart by the eye, described in words."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jobs.render.catalog import CATEGORIES, GLYPHS, PATTERNS
from jobs.render.paint import glyph
from jobs.render.products import RenderedProduct, make_products
from jobs.render.studio import studio_photo


@pytest.fixture(scope="module")
def products() -> list[RenderedProduct]:
    return make_products(1200, 7)


def test_first_products_do_not_depend_on_the_number(products: list[RenderedProduct]) -> None:
    assert make_products(50, 7) == products[:50]
    assert make_products(50, 8) != products[:50]


def test_no_two_look_the_same(products: list[RenderedProduct]) -> None:
    assert len({product.looks() for product in products}) == len(products)
    assert len({product.product_id for product in products}) == len(products)


def test_about_a_quarter_have_a_sibling_in_another_colour(products: list[RenderedProduct]) -> None:
    sizes = Counter(product.group_id for product in products)
    share = sum(sizes[product.group_id] > 1 for product in products) / len(products)
    assert 0.2 < share < 0.32
    styles: dict[str, RenderedProduct] = {}
    for product in products:
        style = styles.setdefault(product.group_id, product)
        assert (product.category, product.shape, product.pattern, product.logo, product.brand) == (
            style.category, style.shape, style.pattern, style.logo, style.brand,
        )  # fmt: skip


def test_all_categories_patterns_and_groups_occur(products: list[RenderedProduct]) -> None:
    assert {product.category for product in products} == {spec.path for spec in CATEGORIES}
    assert {product.pattern for product in products} == set(PATTERNS)
    assert len({product.category.split("/")[0] for product in products}) >= 4


def test_words_say_what_is_seen(products: list[RenderedProduct]) -> None:
    for product in products[:300]:
        assert product.color in product.title and product.spec.noun in product.title
        assert product.accent_colour in product.description
        assert product.logo is None or f"{product.logo} logo" in product.description
        assert product.price > 0 and product.available == (product.stock > 0) and 0 <= product.popularity <= 1


def test_every_pair_of_front_photos_differs(products: list[RenderedProduct]) -> None:
    """At 64 px, the closest pair of 250 differs by more than 25 levels somewhere."""
    photos = [np.asarray(Image.fromarray(studio_photo(product, 0, 96)).resize((64, 64)), np.int16) for product in products[:250]]
    by_category: dict[str, list[np.ndarray]] = {}
    for product, photo in zip(products, photos, strict=False):
        for other in by_category.get(product.category, []):
            assert np.abs(photo - other).max() > 25
        by_category.setdefault(product.category, []).append(photo)


def test_one_shape_word_changes_the_picture(products: list[RenderedProduct]) -> None:
    """Every level of every shape parameter draws another silhouette or another inside."""
    for spec in CATEGORIES:
        base = next(product for product in products if product.category == spec.path)
        base = replace(
            base, shape=tuple((name, next(iter(levels))) for name, levels in spec.shape.items()), logo=None, pattern="plain"
        )
        first = studio_photo(base, 0, 96).astype(np.int16)
        for name, levels in spec.shape.items():
            for word in list(levels)[1:]:
                changed = replace(base, shape=tuple((n, word if n == name else w) for n, w in base.shape))
                share = (np.abs(studio_photo(changed, 0, 96) - first).max(axis=2) > 20).mean()
                assert share > 0.002, (spec.leaf, name, word)


def test_logos_are_drawn_inside_their_circle() -> None:
    for name in GLYPHS:
        assert np.abs(glyph(name)[0]).max() < 1.3
