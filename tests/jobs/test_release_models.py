"""Models beside the shards: written whole, switched in one step, copied into a release and verified there."""

from pathlib import Path

import pytest

from jobs.config import JobError
from jobs.release_models import copy_models, current_models, save_model
from serve.index.manifest import ReleaseError, verify_files
from serve.ranking.looks import LOOKS_FILE, Looks, write_looks
from serve.settings import StoreConfig


def test_a_model_goes_into_a_release_and_is_verified_there(tmp_path: Path) -> None:
    store = StoreConfig(root=tmp_path / "store", tables=str(tmp_path / "tables"))
    assert current_models(store) == {}
    first = save_model(store, "looks", lambda folder: write_looks(folder / LOOKS_FILE, {"a": ["b"]}))
    assert save_model(store, "looks", lambda folder: write_looks(folder / LOOKS_FILE, {"a": ["b"]})) == first
    assert current_models(store) == {"looks": first}
    release = tmp_path / "release"
    entries = copy_models(store, current_models(store), release)
    verify_files(release, entries)
    assert [entry.name for entry in entries] == ["models/looks/looks.arrow"]
    assert Looks(release / entries[0].name).of("a") == ["b"]
    (release / entries[0].name).write_bytes(b"")
    with pytest.raises(ReleaseError, match=r"looks\.arrow"):
        verify_files(release, entries)
    second = save_model(store, "looks", lambda folder: write_looks(folder / LOOKS_FILE, {"a": ["c"]}))
    assert second != first and current_models(store) == {"looks": second}
    (store.root / "models" / "looks" / second / LOOKS_FILE).unlink()
    (store.root / "models" / "looks" / second).rmdir()
    with pytest.raises(JobError, match="train looks again"):
        current_models(store)
