"""Trains the encoder: metric learning on generated shop photos and street crops, with a category head.

Reads   nothing: the photos are generated from `training.seed` (other products than the rendered catalog's).
Writes  `training.folder` (photos, once), `train_encoder.folder` (a checkpoint an epoch; the same command resumes),
        encoder.safetensors and its entry in bundle.json in `train_encoder.bundle`, a run with the curve in MLflow.
Engine  Ray Train, one worker (`train_encoder.use_gpu`), Ray tasks for the photos.
Run     python -m jobs.train_encoder --conf conf/local.yaml [--set train_encoder.epochs=20]

The figures are recall@1 and @5 of the true product for crops of held-out scenes (`training.heldout_seed`) against the
shop photos of held-out products. The weights of the last epoch are kept: no epoch is chosen by the figures.
"""

import logging
from dataclasses import dataclass
from functools import partial

from jobs.config import Config, JobError, run_job
from jobs.raydata.session import start_ray
from jobs.render.catalog import CATEGORIES
from jobs.runs import configure_logging
from jobs.training.encoder_task import EncoderTask
from jobs.training.fragment import log_curve, write_fragment
from jobs.training.loop import plan_for, train
from jobs.training.losses import LOSSES
from jobs.training.photos import render_split, splits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainEncoderResult:
    """What came out."""

    epochs: int
    loss: float
    recall_at_1: float
    recall_at_5: float
    category_accuracy: float
    file_bytes: int


def run(config: Config) -> TrainEncoderResult:
    """Photos, training, bundle part, MLflow. Raises JobError."""
    settings = config.train_encoder
    if settings.loss not in LOSSES:
        raise JobError(f"train_encoder.loss={settings.loss!r}: allowed are {', '.join(LOSSES)}")
    configure_logging()
    start_ray(config.ray)
    learn, held_out = splits(config.training)
    photos = render_split(learn, config.training.folder)
    render_split(held_out, config.training.folder)
    labels = tuple(spec.path for spec in CATEGORIES)
    plan = plan_for("encoder", settings, photos)
    build = partial(EncoderTask, settings, learn, held_out, config.training.folder.resolve(), labels)
    trained = train(build, plan)
    spec = {
        "kind": "torchvision",
        "arch": settings.arch,
        "embedding_dim": settings.embedding_dim,
        "labels": labels,
        "preprocess": {"size_px": settings.input_px[-1], "resize": "pad", "pad_value": 255},
    }
    file = write_fragment(settings.bundle, settings.bundle_name, "encoder", spec, trained.weights)
    log_curve(config.registry, "train_encoder", settings.model_dump(mode="json"), trained.history)
    last = trained.history[-1]
    result = TrainEncoderResult(
        epochs=len(trained.history),
        loss=last["loss"],
        recall_at_1=last["recall_at_1"],
        recall_at_5=last["recall_at_5"],
        category_accuracy=last["category_accuracy"],
        file_bytes=file.stat().st_size,
    )
    log.info("trained=encoder bundle=%s %s", settings.bundle, result)
    return result


def main() -> None:
    run_job(__doc__, run)


if __name__ == "__main__":
    main()
