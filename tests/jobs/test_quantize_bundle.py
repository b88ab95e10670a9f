"""A bundle made for this CPU: it opens, says what it lost, and nothing is measured that is not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from jobs.config import Config, JobError
from jobs.evaluation.precisions import DETECTOR_RUNTIMES, ENCODER_RUNTIMES
from jobs.quantize_bundle import run
from serve.vision.bundle import Bundle
from serve.vision.bundle_files import files_of, read_config
from serve.vision.spec import BoxFidelity, Fidelity, RuntimeConfig
from tests.shop import render_shop

SMALL = {"calibration_photos": 8, "max_images": 12, "seconds": 0.01}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return render_shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.slow
def test_the_fastest_runtime_is_recorded_with_what_it_lost(shop: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "quantized/bundle"
    bounds = {"max_recall_loss": 1.0, "max_box_loss": 1.0}
    config = Config.model_validate(shop | {"quantize_bundle": {"folder": str(folder)} | SMALL | bounds})
    result = run(config)
    details = json.loads((folder / "quantized.json").read_text())
    assert details["encoder"]["candidates"].keys() == ENCODER_RUNTIMES.keys()
    assert details["detector"]["candidates"].keys() == DETECTOR_RUNTIMES.keys()
    assert result.encoder_speedup is not None and result.encoder_speedup[1] > 1, "eager torch is never the fastest"

    spec = read_config(folder)
    assert spec.encoder is not None and spec.encoder.browser is not None
    runtime = spec.encoder.runtime
    assert runtime.made_on and isinstance(runtime.lost, Fidelity) and runtime.lost.mean_cosine > 0.9
    assert runtime.lost.recall_at_1_change is not None
    assert spec.detector.runtime.lost is None or isinstance(spec.detector.runtime.lost, BoxFidelity)
    assert {path.name for path in folder.iterdir()} == {"bundle.json", "quantized.json", *files_of(spec)}
    bundle = Bundle.load(folder, RuntimeConfig())
    assert np.linalg.norm(bundle.analyse([np.full((90, 60, 3), 90, np.uint8)])[0][0].embedding) == pytest.approx(1, abs=1e-4)

    client = MlflowClient(config.registry.uri)
    experiment = client.get_experiment_by_name(config.registry.experiment)
    assert experiment is not None
    metrics = client.search_runs([experiment.experiment_id])[0].data.metrics
    assert metrics["encoder.openvino int8 nncf.ms_batch_1"] == details["encoder"]["candidates"]["openvino int8 nncf"]["ms"]["1"]


def test_without_tables_it_says_what_to_run(shop: dict[str, Any], tmp_path: Path) -> None:
    store = shop["store"] | {"tables": str(tmp_path / "none")}
    with pytest.raises(JobError, match=r"no such table; run jobs\.curate_catalog first"):
        run(Config.model_validate(shop | {"store": store, "quantize_bundle": {"folder": str(tmp_path / "out")} | SMALL}))
