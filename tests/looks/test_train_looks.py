"""The job on a built store: looks of its products, judged by what the rules allow; the same again trains nothing."""

import json

from jobs import train_looks
from jobs.looks.models import ORDER
from jobs.release_models import current_folder
from serve.ranking.looks import LOOKS_FILE, Looks
from tests.parts import BuiltStore


def test_looks_are_trained_once_for_the_same_links(built_store: BuiltStore) -> None:
    partners = (built_store.feed.parent / "partners.jsonl",)  # of so few products hardly any makes an outfit
    files = {"links": partners, "judged_by": partners}
    looks = built_store.config.train_looks.model_copy(update={**files, "folds": 2, "epochs": 2})
    config = built_store.config.model_copy(update={"train_looks": looks})
    result = train_looks.run(config)
    assert (result.products, result.empty_looks < result.products // 2) == (40, True) and result.links > 40
    folder = current_folder(config.store, "looks")
    assert folder is not None and folder.name == result.digest
    report = json.loads((folder / "report.json").read_text())
    assert set(report["models"]) == set(ORDER) and 0 < report["trained_on_all_links"]["recall_at_10"] <= 1
    assert any(Looks(folder / LOOKS_FILE).of(f"gen-{number:05d}") for number in range(40))
    written = (folder / "report.json").stat().st_mtime_ns
    assert train_looks.run(config) == result and (folder / "report.json").stat().st_mtime_ns == written
    other = config.model_copy(update={"train_looks": looks.model_copy(update={"look_size": 2})})
    assert train_looks.run(other).digest != result.digest
    (config.store.root / "models" / "looks" / "current").unlink()  # the store is shared: other tests know it without looks
