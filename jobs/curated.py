"""What the catalog's tables were made from last. The same again changes nothing, and needs no Spark to find that out.

<store.root>/curated.json    the feed's bytes, its settings, the rules, the version of `inserts`, the tables that came of it
"""

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from jobs import spark as rules
from jobs.config import Config
from jobs.reuse import read_generation
from jobs.tables import Tables, table_state
from serve.index.manifest import file_sha256, write_durably

CURATED = ("listings", "rejects", "products", "images")


def made_from(config: Config, inserts_version: int | None) -> dict[str, Any]:
    """Everything that the tables follow from; `feed` is None where it is not on a disk here."""
    uri = config.feed.uri
    feed = Path(unquote(urlparse(uri).path) if uri.startswith("file://") else uri)
    is_here = bool(uri) and ("://" not in uri or uri.startswith("file://")) and feed.exists()
    return {
        "feed": digest_of(feed) if is_here else None,
        "settings": config.feed.model_dump(mode="json"),
        "rules": digest_of(Path(rules.__path__[0])),
        "generation": read_generation(config.store),
        "inserts": inserts_version,
    }


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and bytes of every file of a folder, compiled code left out."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    listed = [f"{file.relative_to(path)} {file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def remember(config: Config, source: dict[str, Any], folder: str, result: dict[str, Any]) -> None:
    """From now on `source` has given these tables, relative photos taken from `folder`, and a run of it this result."""
    config.store.root.mkdir(parents=True, exist_ok=True)
    said = {"made_from": source, "folder": folder, "tables": tables_of(config), "result": result}
    write_durably(path_of(config), json.dumps(said).encode())


def result_of_same(config: Config, source: dict[str, Any]) -> dict[str, Any] | None:
    """What a run of `source` came to, where it was the last one and nobody touched the tables since; else None."""
    said = last_said(config)
    if source["feed"] is None or said.get("made_from") != source:
        return None
    result: dict[str, Any] = said["result"]
    return result


def judged_alike(config: Config, source: dict[str, Any], folder: str) -> bool:
    """Whether a row that stands in the tables would be judged today as it was then: only the feed and `inserts` may differ."""
    said, told = last_said(config), ("rules", "generation")
    if not said or said.get("folder") != folder or any(said["made_from"].get(name) != source[name] for name in told):
        return False
    then, now = ({**of["settings"], "uri": None} for of in (said["made_from"], source))
    return then == now


def last_said(config: Config) -> dict[str, Any]:
    """What `remember` wrote last; empty where there is nothing, or the tables are others by now."""
    if not path_of(config).is_file():
        return {}
    said: dict[str, Any] = json.loads(path_of(config).read_text())
    return said if said["tables"] == tables_of(config) else {}


def path_of(config: Config) -> Path:
    """The file that says so."""
    return config.store.root / "curated.json"


def tables_of(config: Config) -> dict[str, Any]:
    """The state of each table: one that was made anew, or put back to an older version, is another one."""
    tables = Tables(config.store.tables)
    return {name: table_state(tables, name) for name in CURATED}
