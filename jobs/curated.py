"""What the catalog's tables were made from last. The same again changes nothing, and needs no Spark to find that out.

<store.root>/curated.json    the feed's bytes, its settings, the rules, the version of `inserts`, the tables that came of it
"""

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from deltalake import DeltaTable

from jobs import spark as rules
from jobs.config import Config
from jobs.tables import Tables, table_version
from serve.index.manifest import file_sha256, write_durably

CURATED = ("listings", "rejects", "products", "images")


def made_from(config: Config, inserts_version: int | None) -> dict[str, Any] | None:
    """Everything that the tables follow from; None where the feed is not on a disk here."""
    uri = config.feed.uri
    feed = Path(unquote(urlparse(uri).path) if uri.startswith("file://") else uri)
    if not uri or ("://" in uri and not uri.startswith("file://")) or not feed.exists():
        return None
    return {
        "feed": digest_of(feed),
        "settings": config.feed.model_dump(mode="json"),
        "rules": digest_of(Path(rules.__path__[0])),
        "inserts": inserts_version,
    }


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and bytes of every file of a folder, compiled code left out."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    listed = [f"{file.relative_to(path)} {file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def remember(config: Config, source: dict[str, Any] | None, result: dict[str, Any]) -> None:
    """From now on `source` has given these tables, and a run of it this result."""
    if source is not None:
        config.store.root.mkdir(parents=True, exist_ok=True)
        said = {"made_from": source, "tables": tables_of(config), "result": result}
        write_durably(config.store.root / "curated.json", json.dumps(said).encode())


def result_of_same(config: Config, source: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a run of `source` came to, where it was the last one and nobody touched the tables since; else None."""
    path = config.store.root / "curated.json"
    if source is None or not path.is_file():
        return None
    said = json.loads(path.read_text())
    if said["made_from"] != source or said["tables"] != tables_of(config):
        return None
    result: dict[str, Any] = said["result"]
    return result


def tables_of(config: Config) -> dict[str, Any]:
    """Identity and version of each table: one that was made anew, or put back to an older version, is another one."""
    tables = Tables(config.store.tables)
    found = {name: table_version(tables, name) for name in CURATED}
    return {
        name: None if version is None else [DeltaTable(tables.path(name)).metadata().id, version]
        for name, version in found.items()
    }
