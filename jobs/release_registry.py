"""Releases in MLflow: one run and one model version each, and the aliases that say which is served.

No model is logged (that would copy gigabytes and run pip): a version names a manifest, its digest and its folder.
"""

import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.building import WATERFALL_FILES
from jobs.config import Config
from jobs.experiment import experiment_id
from jobs.failpoint import failpoint
from serve.index.manifest import MANIFEST_NAME, Manifest, file_sha256, read_manifest
from serve.registry import CANDIDATE, CHAMPION, FOLDER_TAG, PREVIOUS, RELEASE_ID_TAG, SHA256_TAG, registered, registry_client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

PARAMS_AT_ONCE = 100  # MLflow takes no more in one call
MAX_PARAM_CHARS = 6_000  # nor longer ones
ROLLED_BACK_TAG = "rolled_back_at"  # the same input must not bring it back
RETIRED_TAG = "retired_at"  # its folder is deleted


class Registry:
    """The model registry, as far as releases need it."""

    def __init__(self, config: Config) -> None:
        self.config, self.model = config, config.registry.model
        self.client: MlflowClient = registry_client(config.registry)

    def version_of(self, release_id: str) -> "ModelVersion | None":
        """The version of a release; None when it is not registered."""
        found = self.client.search_model_versions(f"name = '{self.model}' and tags.{RELEASE_ID_TAG} = '{release_id}'")
        return found[0] if found else None

    def registered_version(self, folder: Path) -> "ModelVersion":
        """The version of the release in `folder`, registered where it is not yet, with the digest of its manifest as it is."""
        manifest, digest = read_manifest(folder), file_sha256(folder / MANIFEST_NAME)
        version = self.version_of(manifest.release_id)
        if version is None:
            return self.register(folder, manifest, digest)
        if RETIRED_TAG in version.tags:  # deleted once, built again from the same input
            self.tag(version.version, SHA256_TAG, digest)
            self.untag(version.version, RETIRED_TAG)
        return version

    def register(self, folder: Path, manifest: Manifest, digest: str) -> "ModelVersion":
        """A run with the settings, figures and manifest, and a version that points to it."""
        run_id, artifacts = self.log_run(folder, manifest)
        if not self.client.search_registered_models(filter_string=f"name = '{self.model}'"):
            self.client.create_registered_model(self.model, description="Releases of the visual search index.")
        tags = {
            RELEASE_ID_TAG: manifest.release_id,
            SHA256_TAG: digest,
            FOLDER_TAG: str(folder.relative_to(self.config.store.root)),
            **{f"table_{name}": str(version) for name, version in manifest.tables.items()},
        }
        return self.client.create_model_version(
            self.model, source=f"{artifacts}/release", run_id=run_id, tags=tags, description=summary(manifest)
        )

    def log_run(self, folder: Path, manifest: Manifest) -> tuple[str, str]:
        """A finished run: settings, versions, figures, the manifest and a summary. Returns its id and artifact URI."""
        from mlflow.entities import Metric, Param

        run = self.client.create_run(experiment_id(self.client, self.config.registry), run_name=manifest.release_id)
        run_id = run.info.run_id
        params = flat(self.config.told()) | {f"tables.{k}": v for k, v in manifest.tables.items()}
        params |= {"bundle.digest": manifest.bundle.digest, "bundle.name": manifest.bundle.name}
        figures = manifest.metrics | {f"num_{name}": num for name, num in manifest.counts.model_dump().items()}
        at_ms = int(time.time() * 1000)
        self.client.log_batch(run_id, metrics=[Metric(key, value, at_ms, 0) for key, value in figures.items()])
        for start in range(0, len(params), PARAMS_AT_ONCE):
            part = list(params.items())[start : start + PARAMS_AT_ONCE]
            self.client.log_batch(run_id, params=[Param(key, str(value)[:MAX_PARAM_CHARS]) for key, value in part])
        self.client.log_artifact(run_id, str(folder / MANIFEST_NAME), "release")
        self.client.log_text(run_id, summary(manifest), "release/summary.txt")
        for path in (folder / name for name in WATERFALL_FILES):
            if path.is_file():
                self.client.log_artifact(run_id, str(path), "release")
        self.client.set_terminated(run_id)
        return run_id, run.info.artifact_uri

    def promote(self, version: "ModelVersion") -> bool:
        """candidate, then champion; the old champion becomes previous. False where it is champion already."""
        champion = registered(self.config.registry, self.config.store, CHAMPION)
        changed = champion is None or champion.version != str(version.version)
        if changed:
            self.set_alias(CANDIDATE, version.version)
            if champion is not None:
                self.set_alias(PREVIOUS, champion.version)
            failpoint("publish:after_previous")
            self.set_alias(CHAMPION, version.version)
            failpoint("publish:after_champion")
        self.client.delete_registered_model_alias(self.model, CANDIDATE)
        return changed

    def set_alias(self, alias: str, version: Any) -> None:
        """`alias` names `version` from now on."""
        self.client.set_registered_model_alias(self.model, alias, str(version))
        log.info("alias=%s version=%s", alias, version)

    def tag(self, version: Any, key: str, value: str) -> None:
        """Sets a tag of a version."""
        self.client.set_model_version_tag(self.model, str(version), key, value)

    def untag(self, version: Any, key: str) -> None:
        """Removes a tag of a version, where it has it."""
        if key in self.client.get_model_version(self.model, str(version)).tags:
            self.client.delete_model_version_tag(self.model, str(version), key)

    def retire(self, release_id: str) -> None:
        """Marks the version of a deleted folder."""
        version = self.version_of(release_id)
        if version is not None:
            self.tag(version.version, RETIRED_TAG, now())


def summary(manifest: Manifest) -> str:
    """What a person wants to know about a release, in a few lines."""
    lines = [
        f"release {manifest.release_id} of {manifest.created_at}, code {manifest.code_version}",
        f"{manifest.counts.products} products, {manifest.counts.images} photos, {manifest.counts.crops} crops",
        f"bundle {manifest.bundle.name} {manifest.bundle.digest[:12]}, {manifest.bundle.dim} dimensions",
        "tables " + ", ".join(f"{name} v{version}" for name, version in sorted(manifest.tables.items())),
        *(f"{name} = {value:.4g}" for name, value in sorted(manifest.metrics.items())),
        *(
            f"partition {p.name}: {p.spec.factory}, nprobe {p.spec.nprobe}, {sum(s.num_rows for s in p.shards)} crops in "
            f"{len(p.shards)} shards"
            for p in manifest.partitions
        ),
    ]
    return "\n".join(lines) + "\n"


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.key: value`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": json.dumps(value)}
    return found


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
