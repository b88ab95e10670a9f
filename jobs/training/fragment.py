"""What a finished training leaves behind: its part of a bundle folder, and its learning curve in MLflow."""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from jobs.experiment import log_run
from serve.settings import RegistryConfig
from serve.vision.spec import BundleConfig


def write_fragment(folder: Path, name: str, part: str, spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Puts `part` (detector, encoder, text, queries) into the bundle at `folder`: weights in fp16, and its entry in bundle.json.

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


def drop_fragment(folder: Path, part: str) -> None:
    """Takes `part` out of the bundle at `folder`, if it is there; its file stays, unnamed."""
    path = folder / "bundle.json"
    entries = json.loads(path.read_text())
    if entries.pop(part, None) is not None:
        partial = path.with_suffix(".partial")
        partial.write_text(BundleConfig.model_validate(entries).model_dump_json(indent=2, exclude_defaults=True) + "\n")
        partial.replace(path)


def write_tokenizer(folder: Path, source: Path) -> None:
    """Puts a tokenizer into the bundle at `folder`, in one step; its entry is in the text part's."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{source.name}.partial"
    partial.write_bytes(source.read_bytes())
    partial.replace(folder / source.name)


def log_curve(registry: RegistryConfig, run_name: str, settings: Mapping[str, Any], history: list[dict[str, float]]) -> str:
    """One MLflow run with the settings and each epoch's figures; returns its id."""
    metrics = [(key, value, int(entry["epoch"])) for entry in history for key, value in entry.items()]
    return log_run(registry, run_name, settings, metrics)
