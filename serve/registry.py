"""Which release is served: the MLflow alias `champion`, resolved to one exact, unchanged release folder.

The registry holds a manifest's digest and its place, never shards. A release whose manifest differs from the digest that
was registered is refused.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serve.index.manifest import MANIFEST_NAME, ReleaseError, file_sha256
from serve.settings import RegistryConfig, StoreConfig

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"


class NoChampionError(ReleaseError):
    """Nothing was published yet."""


@dataclass(frozen=True)
class RegisteredRelease:
    """One registered model version."""

    version: str
    release_id: str
    folder: Path
    manifest_sha256: str


def registry_client(registry: RegistryConfig) -> "MlflowClient":
    """A client of `registry.uri`, telemetry off. Raises ReleaseError for MLflow's deprecated file store."""
    raise NotImplementedError


def registered(registry: RegistryConfig, store: StoreConfig, alias: str) -> RegisteredRelease | None:
    """The release that `alias` names; None when nobody has the alias."""
    raise NotImplementedError


def champion(registry: RegistryConfig, store: StoreConfig) -> Path:
    """Folder of the champion release, its manifest checked against the registered digest.

    Raises NoChampionError when nothing is published, ReleaseError when the folder is gone or its manifest was changed.
    """
    raise NotImplementedError


def release_folder(store: StoreConfig, release_id: str) -> Path:
    """Folder of the published release `release_id`. Raises ReleaseError that lists those there are."""
    raise NotImplementedError
