"""P products x K photos a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.training.samplers import ProductSampler

NUM_PRODUCTS = 12
PRODUCTS = np.repeat(np.arange(NUM_PRODUCTS), 5)
DOMAINS = np.tile([0, 0, 0, 1, 2], NUM_PRODUCTS)
STYLES = PRODUCTS // 2  # products 2s and 2s + 1 are siblings


@settings(deadline=None, max_examples=30)
@given(num_products=st.integers(2, NUM_PRODUCTS), num_photos=st.integers(2, 9), seed=st.integers(0, 99))
def test_every_batch_is_p_products_with_k_photos_each(num_products: int, num_photos: int, seed: int) -> None:
    sampler = ProductSampler(PRODUCTS, DOMAINS, STYLES, num_products, num_photos)
    batches = list(sampler.batches(np.random.default_rng(seed)))
    assert len(batches) == len(sampler) == NUM_PRODUCTS // num_products
    seen: list[int] = []
    for rows in batches:
        products, counts = np.unique(PRODUCTS[rows], return_counts=True)
        assert len(products) == num_products
        assert set(counts) == {num_photos}
        assert all(len(set(PRODUCTS[group])) == 1 for group in rows.reshape(num_products, num_photos))
        seen += products.tolist()
    assert len(seen) == len(set(seen)), "one pass takes a product once"


def test_domains_take_turns() -> None:
    rows = ProductSampler(PRODUCTS, DOMAINS, STYLES, 4, 3).photos_of(5, np.random.default_rng(0))
    assert sorted(DOMAINS[rows]) == [0, 1, 2]


def test_siblings_share_a_batch() -> None:
    sampler = ProductSampler(PRODUCTS, DOMAINS, STYLES, 4, 2)
    for rows in sampler.batches(np.random.default_rng(3)):
        assert len(np.unique(STYLES[rows])) == 2


def test_same_seed_same_batches() -> None:
    sampler = ProductSampler(PRODUCTS, DOMAINS, STYLES, 4, 4)
    first, second = (np.concatenate(list(sampler.batches(np.random.default_rng(7)))) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_too_few_products() -> None:
    with pytest.raises(ValueError, match="batch_products=13: the training set has 12 products"):
        ProductSampler(PRODUCTS, DOMAINS, STYLES, 13, 2)
