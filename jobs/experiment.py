"""Runs in MLflow's experiment of the settings: what a job was given, what it measured, what it drew."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.settings import RegistryConfig

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def experiment_id(client: "MlflowClient", registry: RegistryConfig) -> str:
    """The experiment of the settings, made where it is not there."""
    found = client.get_experiment_by_name(registry.experiment)
    if found is not None:
        return str(found.experiment_id)
    artifacts = registry.artifacts
    location = Path(artifacts).resolve().as_uri() if artifacts and "://" not in artifacts else artifacts
    return str(client.create_experiment(registry.experiment, artifact_location=location))


def log_run(
    registry: RegistryConfig,
    run_name: str,
    params: Mapping[str, Any],
    metrics: Iterable[tuple[str, float, int]],
    artifacts: Sequence[Path] = (),
) -> str:
    """One finished run with `params`, `metrics` (name, value, step) and files; returns its id."""
    from mlflow import MlflowClient

    client = MlflowClient(registry.uri)
    run_id: str = client.create_run(experiment_id(client, registry), run_name=run_name).info.run_id
    for key, value in params.items():
        client.log_param(run_id, key, value)
    for key, value, step in metrics:
        client.log_metric(run_id, key, value, step=step)
    for path in artifacts:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)
    return run_id
