"""Texts beside photos: by hand, and through a real text encoder."""

from pathlib import Path

import numpy as np
import pytest

from jobs.evaluation.photo_recall import see_photos
from jobs.evaluation.queries import Query
from jobs.evaluation.scores import concatenated_scores, recall
from jobs.evaluation.shelf import Shelf, ShelfProduct
from jobs.evaluation.text_recall import text_figures
from serve.vision.assemble import assemble_bundle
from serve.vision.bundle import Bundle
from serve.vision.bundle_files import read_config
from serve.vision.spec import BundleConfig, DecodeLimits, EncoderConfig, RuntimeConfig
from tests.api.tiny_release import encoded, make_bundle, picture
from tests.vision.small_text import TEXTS, make_text_part


def test_recall_counts_better_ones() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4]])
    assert recall(scores, np.array([1, 2]), 1) == 0.5 and recall(scores, np.array([1, 0]), 2) == 0.5


def test_a_concatenated_product_is_the_weighted_sum_and_one_without_text_its_photo() -> None:
    photos = np.array([[1.0, 0.0]])
    texts = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    scores = concatenated_scores(np.array([[0.8, 0.6, 0.7]]), photos, texts, 0.25)
    assert scores[0] == pytest.approx([0.6, 0.7, 0.7])
    side_by_side = np.concatenate([np.sqrt(0.75) * np.array([0.6, 0.8]), np.sqrt(0.25) * texts[1]])
    query = np.concatenate([np.sqrt(0.75) * photos[0], np.sqrt(0.25) * photos[0]])
    assert side_by_side @ query == pytest.approx(scores[0, 1])


@pytest.mark.slow
def test_figures_of_a_bundle_with_a_text_encoder(tmp_path: Path) -> None:
    """Random weights: its own photo and title find a product whose photo lies in the catalog; no text, no figures."""
    plain = make_bundle(tmp_path)
    text = make_text_part(tmp_path, 16)
    encoder = read_config(plain).encoder
    assert encoder is not None
    spec = EncoderConfig.model_validate(encoder.model_dump() | {"weights": str(plain / str(encoder.weights))})
    bundle = Bundle.load(
        assemble_bundle(BundleConfig(name="told", encoder=spec, text=text), tmp_path / "bundles"), RuntimeConfig()
    )
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(picture(number)))
    queries = [Query(path, (f"p{number}",)) for number, path in enumerate(paths)]
    seen = see_photos(queries, bundle, DecodeLimits())
    products = tuple(ShelfProduct(f"p{number}", None, "", (), (TEXTS[number],)) for number in range(3))
    shelf = Shelf(products, seen.embeddings_QD, np.arange(3), np.arange(3), np.ones(3, bool), ("", "", ""))
    figures = text_figures(queries, ["a", "b", "c"], seen, shelf, bundle)
    assert figures["crop_recall_at_1"] == 1 and figures["text_recall_at_10"] == 1
    assert figures["photo_text_recall_at_1"] >= figures["title_recall_at_1"]
    silent = Shelf(
        tuple(ShelfProduct(p.product_id, None, "", ()) for p in products), shelf.vectors_ND, shelf.products_N, shelf.photos_N,
        shelf.is_whole_N, shelf.image_ids,
    )  # fmt: skip
    assert text_figures(queries, ["a", "b", "c"], seen, silent, bundle) == {}
