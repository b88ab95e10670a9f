"""What a finished training leaves behind: its part of a bundle folder, and its learning curve in MLflow."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from jobs.experiment import log_run
from serve.settings import RegistryConfig
from serve.vision.bundle_files import CONFIG_FILE
from serve.vision.spec import BundleConfig


def write_fragment(folder: Path, name: str, part: str, spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Puts `part` (detector, encoder, text, queries) into the bundle at `folder`: weights in fp16, and its entry in bundle.json.

    `spec` holds the fields of the part's own settings but `weights`. Each file is replaced in one step, bundle.json last;
    trainings that end at the same time wait for each other. Returns the weights file.
    """
    file = folder / f"{part}.safetensors"
    with bundle_entries(folder) as entries:
        entries |= {"name": name, part: {**spec, "weights": file.name}}
        BundleConfig.model_validate(entries)
        save_file({key: value.half().contiguous() for key, value in weights.items()}, file.with_suffix(".partial"))
        file.with_suffix(".partial").chmod(0o644)  # safetensors makes it the owner's alone
        file.with_suffix(".partial").replace(file)
    return file


def drop_fragment(folder: Path, part: str) -> None:
    """Takes `part` out of the bundle at `folder`, if it is there; its file stays, unnamed."""
    if (folder / CONFIG_FILE).is_file():
        with bundle_entries(folder) as entries:
            entries.pop(part, None)


@contextmanager
def bundle_entries(folder: Path) -> Iterator[dict[str, Any]]:
    """bundle.json of `folder`, to be changed by one training at a time; checked, and replaced in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / CONFIG_FILE
        entries = json.loads(path.read_text()) if path.is_file() else {}
        yield entries
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
