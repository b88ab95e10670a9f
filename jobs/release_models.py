"""Models that a release carries beside its shards: looks, the learned ranking.

    <store.root>/models/<name>/<digest>/    files of one trained model; the digest is of their bytes
    <store.root>/models/<name>/current      the digest that the next release takes

A training writes a new folder, then switches `current` in one step. train_index plans with what is current, publish_release
verifies what was planned.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from jobs.config import JobError
from serve.index.manifest import FileEntry, file_entry, file_sha256, write_durably
from serve.settings import StoreConfig

CURRENT = "current"


def save_model(store: StoreConfig, name: str, write: Callable[[Path], None]) -> str:
    """Makes what `write` puts into a folder the current model `name`; returns its digest. The same bytes change nothing."""
    root = store.root / "models" / name
    aside = root / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    digest = hashlib.sha256("".join(file_sha256(path) for path in sorted(aside.iterdir())).encode()).hexdigest()[:16]
    if (root / digest).is_dir():
        shutil.rmtree(aside)
    else:
        aside.rename(root / digest)
    write_durably(root / CURRENT, digest.encode())
    return digest


def current_models(store: StoreConfig) -> dict[str, str]:
    """Name and digest of every current model. Raises JobError where its folder is gone."""
    models = {path.parent.name: path.read_text() for path in sorted((store.root / "models").glob(f"*/{CURRENT}"))}
    for name, digest in models.items():
        if not (store.root / "models" / name / digest).is_dir():
            raise JobError(f"{store.root / 'models' / name / digest}: missing; train {name} again, or remove {CURRENT} beside it")
    return models


def current_folder(store: StoreConfig, name: str) -> Path | None:
    """Where the current model `name` lies; None where there is none."""
    root = store.root / "models" / name
    folder = root / (root / CURRENT).read_text() if (root / CURRENT).is_file() else None
    return folder if folder is not None and folder.is_dir() else None


def copy_models(store: StoreConfig, models: dict[str, str], release: Path) -> tuple[FileEntry, ...]:
    """Copies the files into `release`/models/<name>/; returns their entries, names relative to the release."""
    entries: list[FileEntry] = []
    for name, digest in models.items():
        target = release / "models" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(store.root / "models" / name / digest, target)
        entries += [file_entry(release, str(path.relative_to(release))) for path in sorted(target.iterdir())]
    return tuple(entries)
