"""What a finished training leaves behind: its part of a bundle folder, and its learning curve in MLflow."""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from serve.settings import RegistryConfig
from serve.vision.spec import BundleConfig


def write_fragment(folder: Path, name: str, part: str, spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Puts `part` ("detector", "encoder" or "text") into the bundle at `folder`: weights in fp16, and its entry in bundle.json.

    `spec` holds the fields of the part's own settings but `weights`. Each file is replaced in one step, bundle.json last;
    trainings that end at the same time wait for each other. Returns the weights file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{part}.safetensors"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "bundle.json"
        entries = json.loads(path.read_text()) if path.is_file() else {}
        entries |= {"name": name, part: {**spec, "weights": file.name}}
        bundle = BundleConfig.model_validate(entries)
        save_file({key: value.half().contiguous() for key, value in weights.items()}, file.with_suffix(".partial"))
        file.with_suffix(".partial").chmod(0o644)  # safetensors makes it the owner's alone
        file.with_suffix(".partial").replace(file)
        partial = path.with_suffix(".partial")
        partial.write_text(bundle.model_dump_json(indent=2, exclude_defaults=True) + "\n")
        partial.replace(path)
    return file


def write_tokenizer(folder: Path, source: Path) -> None:
    """Puts a tokenizer into the bundle at `folder`, in one step; its entry is in the text part's."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{source.name}.partial"
    partial.write_bytes(source.read_bytes())
    partial.replace(folder / source.name)


def log_curve(registry: RegistryConfig, run_name: str, settings: Mapping[str, Any], history: list[dict[str, float]]) -> str:
    """One MLflow run with the settings and each epoch's figures; returns its id."""
    from mlflow import MlflowClient

    client = MlflowClient(registry.uri)
    found = client.get_experiment_by_name(registry.experiment)
    experiment = found.experiment_id if found else client.create_experiment(registry.experiment, registry.artifacts)
    run_id: str = client.create_run(experiment, run_name=run_name).info.run_id
    for key, value in settings.items():
        client.log_param(run_id, key, value)
    for entry in history:
        for key, value in entry.items():
            client.log_metric(run_id, key, value, step=int(entry["epoch"]))
    client.set_terminated(run_id)
    return run_id
