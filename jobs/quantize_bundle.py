"""Makes a bundle for this CPU: each network in the fastest precision that loses next to nothing, measured here and now.

Reads   the bundle of the settings; products, images (at one exact version each) and some of the photos they name;
        evaluate.queries (photos with known answers), where it is set
Writes  quantize_bundle.folder: the bundle with INT8 files calibrated on catalog photos, bundle.json with the chosen runtime of
        encoder and detector and what it lost; quantized.json: every candidate; the same as a run in MLflow
Engine  one process, one thread: OpenVINO and ONNX Runtime against torch eager

    python -m jobs.quantize_bundle --conf conf/local.yaml [--set evaluate.queries=photos.jsonl]

A candidate's speed is the geometric mean over batches of 1 and 32. Another CPU chooses differently: run it where it is served.
"""

import json
import logging
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.config import Config, JobError, run_job
from jobs.evaluation.photo_crops import PhotoCrops, read_crops
from jobs.evaluation.precisions import (
    ENCODER_ONNX,
    Choice,
    measure_detectors,
    measure_encoders,
    write_detector,
    write_encoders,
)
from jobs.experiment import log_run
from jobs.runs import configure_logging, pairs
from serve.vision.assemble import assemble_bundle
from serve.vision.bundle_files import CONFIG_FILE, files_of, read_config
from serve.vision.spec import BrowserNetwork, BundleConfig, BundleError, CpuRuntime, DetectorConfig, EncoderConfig, Fidelity

log = logging.getLogger("jobs.quantize_bundle")

BROWSER_RUNTIME = "onnxruntime int8"  # the engine that browsers have
DETAILS_FILE = "quantized.json"  # beside the bundle, no part of it: timings differ from run to run


@dataclass(frozen=True)
class QuantizeResult:
    """The chosen runtimes, and how many times as fast as torch eager they are at each batch size."""

    encoder: str
    encoder_speedup: dict[int, float] | None
    encoder_loss: float
    detector: str
    detector_speedup: dict[int, float] | None
    detector_loss: float
    folder: str


def run(config: Config) -> QuantizeResult:
    """Measures, chooses, writes. Raises JobError."""
    settings = config.quantize_bundle
    settings.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        source = assemble_bundle(config.bundle, config.store.bundles, config.registry.uri)
        spec = read_config(source)
        crops = read_crops(config, settings.max_images)
        with tempfile.TemporaryDirectory(prefix=".quantizing-", dir=settings.folder.parent) as temp:
            work = Path(temp)
            for name in files_of(spec):
                shutil.copyfile(source / name, work / name)
            assert spec.encoder is not None, "read_config has checked it"
            encoder, of_encoder = best_encoder(config, spec.encoder, work, crops)
            detector, of_detector = best_detector(config, spec.detector, work, crops)
            details = {"cpu": cpu_model(), "encoder": of_encoder.details(), "detector": of_detector and of_detector.details()}
            write_bundle(settings.folder, spec.model_copy(update={"encoder": encoder, "detector": detector}), work, details)
    except BundleError as error:
        raise JobError(str(error)) from error
    result = QuantizeResult(
        encoder=of_encoder.best.name,
        encoder_speedup=of_encoder.speedup,
        encoder_loss=round(of_encoder.best.loss, 4),
        detector=of_detector.best.name if of_detector else f"{spec.detector.kind}: as it was",
        detector_speedup=of_detector.speedup if of_detector else None,
        detector_loss=round(of_detector.best.loss, 4) if of_detector else 0.0,
        folder=str(settings.folder),
    )
    params = {"bundle": spec.name, "cpu": cpu_model(), "encoder": result.encoder, "detector": result.detector}
    log_run(config.registry, "quantize_bundle", params, metrics_of(of_encoder, of_detector), [settings.folder / DETAILS_FILE])
    log.info("quantize_bundle %s", pairs(asdict(result)))
    return result


def best_encoder(config: Config, spec: EncoderConfig, work: Path, crops: PhotoCrops) -> tuple[EncoderConfig, Choice]:
    """The encoder with its runtime and browser file."""
    settings, plain = config.quantize_bundle, spec.model_copy(update={"runtime": CpuRuntime(), "browser": None})
    write_encoders(plain, work, crops.catalog[: settings.calibration_photos])
    choice = measure_encoders(
        plain, work, work / "networks", crops.catalog, crops.queries, crops.products_N, crops.asked_Q,
        settings.seconds, settings.max_recall_loss,
    )  # fmt: skip
    browser = None
    if settings.browser:
        lost = next(one.runtime.lost for one in choice.candidates if one.name == BROWSER_RUNTIME)
        assert isinstance(lost, Fidelity)
        browser = BrowserNetwork(network=ENCODER_ONNX, lost=lost)
    return plain.model_copy(update={"runtime": made_here(choice.best.runtime), "browser": browser}), choice


def best_detector(config: Config, spec: DetectorConfig, work: Path, crops: PhotoCrops) -> tuple[DetectorConfig, Choice | None]:
    """The detector with its runtime. None where there is none, or a two-stage one, which stays as it is."""
    if spec.kind == "none" or spec.two_stage:
        return spec, None
    settings, plain = config.quantize_bundle, spec.model_copy(update={"runtime": CpuRuntime()})
    images = [*crops.photos, *crops.catalog][: settings.max_images]
    write_detector(plain, work, images[: settings.calibration_photos])
    choice = measure_detectors(plain, work, work / "networks", images, settings.seconds, settings.max_box_loss)
    return plain.model_copy(update={"runtime": made_here(choice.best.runtime)}), choice


def made_here(runtime: CpuRuntime) -> CpuRuntime:
    """`runtime` with the CPU that it was chosen on."""
    return runtime.model_copy(update={"made_on": cpu_model()})


def cpu_model() -> str:
    """As the kernel calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_bundle(folder: Path, spec: BundleConfig, work: Path, details: dict[str, Any]) -> None:
    """The bundle's files, DETAILS_FILE, and bundle.json last, each in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files_of(spec):
        (work / name).replace(folder / name)
    for name, text in ((DETAILS_FILE, json.dumps(details, indent=1)), (CONFIG_FILE, spec.model_dump_json(indent=1))):
        partial = folder / f"{name}.partial"
        partial.write_text(text + "\n")
        partial.replace(folder / name)


def metrics_of(encoder: Choice, detector: Choice | None) -> list[tuple[str, float, int]]:
    """Milliseconds and loss of every candidate, for MLflow."""
    found = []
    for part, choice in (("encoder", encoder), ("detector", detector)):
        for one in choice.candidates if choice else ():
            figures = {f"ms_batch_{batch}": ms for batch, ms in one.ms.items()} | {"loss": one.loss}
            found += [(f"{part}.{one.name}.{name}", value, 0) for name, value in figures.items()]
    return found


def main() -> None:
    """Command line."""
    configure_logging()
    run_job(__doc__ or "", run, prints_result=True)


if __name__ == "__main__":
    main()
