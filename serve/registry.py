"""Which release is served: the MLflow alias `champion`, resolved to one exact, unchanged release folder.

The registry holds a manifest's digest and its place, never shards. A release whose manifest differs from the digest that
was registered is refused.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serve.index.manifest import MANIFEST_NAME, ReleaseError, file_sha256
from serve.settings import RegistryConfig, StoreConfig

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
RELEASE_ID_TAG, SHA256_TAG, FOLDER_TAG = "release_id", "manifest_sha256", "release_folder"


RETRIES = "3"  # MLflow's own 7 keep a caller of a registry that is away for two minutes


class NoChampionError(ReleaseError):
    """Nothing was published yet."""


class RegistryAwayError(ReleaseError):
    """The registry does not answer."""


@dataclass(frozen=True)
class RegisteredRelease:
    """One registered model version."""

    version: str
    release_id: str
    folder: Path
    manifest_sha256: str


def registry_client(registry: RegistryConfig) -> "MlflowClient":
    """A client of `registry.uri`, telemetry off. Raises ReleaseError for MLflow's file store, which it has given up."""
    if registry.uri.startswith("file:") or "://" not in registry.uri:
        raise ReleaseError(
            f"registry.uri={registry.uri}: MLflow has no file store any more; use sqlite:///PATH or a server's URI"
        )
    if registry.uri.startswith("sqlite:///"):
        Path(registry.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every database migration
    return MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)


def registered(registry: RegistryConfig, store: StoreConfig, alias: str) -> RegisteredRelease | None:
    """The release that `alias` names; None when nothing has the alias. Raises RegistryAwayError."""
    client = registry_client(registry)
    from mlflow.exceptions import MlflowException

    try:
        return of_version(client.get_model_version_by_alias(registry.model, alias), store)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":  # MLflow's word for an alias that is not there, and for a bad name
            client.get_registered_model(registry.model)  # which raises for the name
        elif error.error_code != "RESOURCE_DOES_NOT_EXIST":
            said = "no connection" if "Max retries exceeded" in str(error) else str(error).splitlines()[0][:200]
            raise RegistryAwayError(
                f"registry.uri={registry.uri} does not answer ({said}): start it, or set registry.uri"
            ) from error
        return None


def of_version(version: "ModelVersion", store: StoreConfig) -> RegisteredRelease:
    """What a registered model version says. Raises ReleaseError when it is no release."""
    missing = [tag for tag in (RELEASE_ID_TAG, SHA256_TAG, FOLDER_TAG) if tag not in version.tags]
    if missing:
        raise ReleaseError(
            f"model {version.name} version {version.version} has no tags {missing}; was it published by this suite?"
        )
    folder = (store.root / version.tags[FOLDER_TAG]).resolve()
    if not folder.is_relative_to(store.releases.resolve()):
        raise ReleaseError(f"model {version.name} version {version.version}: {folder} is not inside {store.releases}")
    return RegisteredRelease(str(version.version), version.tags[RELEASE_ID_TAG], folder, version.tags[SHA256_TAG])


def champion(registry: RegistryConfig, store: StoreConfig) -> Path:
    """Folder of the champion release, its manifest checked against the registered digest.

    Raises NoChampionError when nothing is published, RegistryAwayError, ReleaseError when the folder is gone or its manifest was
    changed.
    """
    found = registered(registry, store, CHAMPION)
    if found is None:
        raise NoChampionError(
            f"no champion yet in {registry.uri}: run `python -m jobs.nightly --conf FILE --set feed.uri=PATH` first"
        )
    manifest = found.folder / MANIFEST_NAME
    if not manifest.is_file():
        raise ReleaseError(
            f"{manifest}: missing, yet the registry names it champion; is store.root right? "
            "`python -m jobs.publish_release --rollback` serves the previous release"
        )
    if file_sha256(manifest) != found.manifest_sha256:
        raise ReleaseError(
            f"{manifest}: its SHA-256 is not the registered one, the manifest was changed after it was published; "
            "`python -m jobs.publish_release --rollback` serves the previous release"
        )
    return found.folder


def release_ids(store: StoreConfig) -> list[str]:
    """Published releases, whatever the registry says."""
    return sorted(path.parent.name for path in store.releases.glob(f"[!.]*/{MANIFEST_NAME}"))


def release_folder(store: StoreConfig, release_id: str) -> Path:
    """Folder of the published release `release_id`. Raises ReleaseError that lists those there are."""
    if release_id not in (known := release_ids(store)):
        raise ReleaseError(f"release {release_id!r} is not in {store.releases}; there are: {', '.join(known) or 'none'}")
    return store.releases / release_id
