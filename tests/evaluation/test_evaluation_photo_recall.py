"""The whole search on photos with known answers: a real bundle, a real release, in this process."""

from pathlib import Path

import pytest
from PIL import Image

from jobs.config import JobError
from jobs.evaluation.photo_recall import PhotoRecall, measure_photos, see_photos
from jobs.evaluation.queries import Query
from serve.index.release import Release
from serve.vision.bundle import Bundle
from serve.vision.spec import RuntimeConfig
from tests.api.tiny_release import RELEASE_ID, TinyRelease, encoded, make_release, picture


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    return make_release(tmp_path_factory.mktemp("tiny"))


def measure(tiny: TinyRelease, queries: list[Query]) -> PhotoRecall:
    """Figures of `queries` on the tiny release."""
    release = Release.open(tiny.settings.store.releases / RELEASE_ID)
    bundle = Bundle.load(tiny.settings.store.root / release.manifest.bundle.folder, RuntimeConfig())
    seen = see_photos(queries, bundle, tiny.settings.decode)
    return measure_photos(queries, seen, release, bundle, tiny.settings.decode).recall


def test_catalog_photos_and_others(tiny: TinyRelease, tmp_path: Path) -> None:
    seen = [Query(path, (product_id,)) for product_id, path in tiny.photos.items()]
    part = tmp_path / "part.jpg"
    part.write_bytes(encoded(Image.open(tiny.photos["p/03"]).crop((30, 30, 150, 150))))  # a crop has another hash
    figures = measure(tiny, [*seen, Query(part, ("p/03", "nobody"))])
    assert figures.photo_pairs == len(seen) + 2 and figures.photo_hash_stage_frac == pytest.approx(12 / 13, abs=1e-3)
    assert 12 / 14 - 1e-3 <= figures.photo_recall_at_1 <= figures.photo_recall_at_10 <= 13 / 14 + 1e-3


def test_unreadable_query_is_named(tiny: TinyRelease, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(encoded(picture(1))[:300])
    for path in (broken, tmp_path / "missing.jpg"):
        with pytest.raises(JobError, match=path.name):
            measure(tiny, [Query(path, ("p/01",))])
