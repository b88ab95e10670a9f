"""Which version of `inserts` the catalog's tables hold: written by curate_catalog, named in the release by train_index."""

import json
from pathlib import Path

from serve.index.manifest import write_durably
from serve.settings import StoreConfig


def path_of(store: StoreConfig) -> Path:
    """The file that says so."""
    return store.root / "inserts_read.json"


def write_inserts_read(store: StoreConfig, version: int) -> None:
    """Every change up to `version` is in the tables now."""
    store.root.mkdir(parents=True, exist_ok=True)
    write_durably(path_of(store), json.dumps({"version": version}).encode())


def inserts_read(store: StoreConfig) -> int | None:
    """The version; None where nothing ever came over HTTP."""
    path = path_of(store)
    return int(json.loads(path.read_text())["version"]) if path.is_file() else None
