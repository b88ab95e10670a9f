"""Trains the detector: FCOS (or SSDlite) for one class, "item", on generated street scenes and products on plain ground.

Reads   nothing: the photos are generated from `training.seed` (other products than the rendered catalog's).
Writes  `training.folder` (photos, once), `train_detector.folder` (a checkpoint an epoch; the same command resumes),
        detector.safetensors and its entry in bundle.json in `train_detector.bundle`, a run with the curve in MLflow.
Engine  Ray Train, one worker (`train_detector.use_gpu`), Ray tasks for the photos.
Run     python -m jobs.train_detector --conf conf/local.yaml [--set train_detector.epochs=12]

The figures are average precision and recall at IoU 0.5 over held-out street scenes (`training.heldout_seed`). The weights
of the last epoch are kept: no epoch is chosen by the figures.
"""

import logging
from dataclasses import dataclass
from functools import partial

from jobs.config import Config, JobError, run_job
from jobs.raydata.session import start_ray
from jobs.runs import configure_logging
from jobs.training.detector_task import DetectorTask
from jobs.training.fragment import log_curve, write_fragment
from jobs.training.generated import render_split, splits
from jobs.training.loop import plan_for, train
from serve.vision.detection_nets import FCOS_SMALL, torchvision_detector

log = logging.getLogger(__name__)

ARCHS = (FCOS_SMALL, "ssdlite320_mobilenet_v3_large")


@dataclass(frozen=True)
class TrainDetectorResult:
    """What came out."""

    epochs: int
    loss: float
    average_precision: float
    recall: float
    precision: float
    file_bytes: int


def run(config: Config) -> TrainDetectorResult:
    """Photos, training, bundle part, MLflow. Raises JobError."""
    settings = config.train_detector
    if settings.arch not in ARCHS:
        raise JobError(f"train_detector.arch={settings.arch!r}: allowed are {', '.join(ARCHS)}")
    configure_logging()
    start_ray(config.ray)
    learn, held_out = splits(config.training)
    photos = render_split(learn, config.training.folder)
    render_split(held_out, config.training.folder)
    plan = plan_for("detector", settings, photos)
    build = partial(DetectorTask, settings, learn, held_out, config.training.folder.resolve())
    trained = train(build, plan)
    transform = torchvision_detector(settings.arch, 2).get_submodule("transform")
    spec = {
        "kind": "torchvision",
        "arch": settings.arch,
        "labels": ("item",),
        "preprocess": {
            "size_px": settings.input_px[-1],
            "resize": "squash",
            "mean": transform.image_mean,
            "std": transform.image_std,
        },
    }
    file = write_fragment(settings.bundle, settings.bundle_name, "detector", spec, trained.weights)
    log_curve(config.registry, "train_detector", settings.model_dump(mode="json"), trained.history)
    last = trained.history[-1]
    result = TrainDetectorResult(
        epochs=len(trained.history),
        loss=last["loss"],
        average_precision=last["average_precision"],
        recall=last["recall"],
        precision=last["precision"],
        file_bytes=file.stat().st_size,
    )
    log.info("trained=detector bundle=%s %s", settings.bundle, result)
    return result


def main() -> None:
    run_job(__doc__, run)


if __name__ == "__main__":
    main()
