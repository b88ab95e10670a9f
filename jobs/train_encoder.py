"""Trains the encoder: metric learning on a shop's own catalog and its users' photos, or on generated ones.

Reads   training.source=catalog: tables products and images at one exact version each, `training.user_photos`;
        training.source=generated: nothing, the photos are drawn from `training.seed`.
Writes  `training.folder` (photos, once), `train_encoder.folder` (a checkpoint an epoch; the same command resumes),
        encoder.safetensors (and text.safetensors, tokenizer.json; of a shop's own photos queries.safetensors) with its entry in
        bundle.json in `train_encoder.bundle`,
        a run with the curve in MLflow.
Engine  Ray Train, one worker (`train_encoder.use_gpu`); Ray Data or Ray tasks for the photos.

    python -m jobs.train_encoder --conf conf/local.yaml [--set train_encoder.epochs=20 ...]

The figures are recall of the true product for held-out user photos against the catalog's photos. The weights of the last epoch,
averaged over the last steps, are kept: no epoch is chosen by the figures.
"""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jobs.config import Config, JobError, TrainEncoderConfig, run_job
from jobs.raydata.session import start_ray
from jobs.runs import configure_logging
from jobs.training.catalog import load_catalog, stage_catalog
from jobs.training.crops import USER, CropSet, TrainingSet
from jobs.training.encoder_task import EncoderTask, TextPart, build_net, embedded, fit_of, labels_of
from jobs.training.fragment import drop_fragment, log_curve, write_fragment, write_tokenizer
from jobs.training.generated import load_training, render_split, splits
from jobs.training.loop import plan_for, train
from jobs.training.losses import LOSSES
from jobs.training.texts import train_tokenizer
from serve.vision.queries import VECTORS

log = logging.getLogger(__name__)


MAX_QUERIES = 1024  # photos by users whose vectors go with the encoder


@dataclass(frozen=True)
class TrainEncoderResult:
    """What came out: the figures of the last epoch."""

    epochs: int
    loss: float
    figures: dict[str, float]
    file_bytes: int


def run(config: Config) -> TrainEncoderResult:
    """Photos, training, bundle parts, MLflow. Raises JobError."""
    settings = config.train_encoder
    if settings.loss not in LOSSES:
        raise JobError(f"train_encoder.loss={settings.loss!r}: allowed are {', '.join(LOSSES)}")
    fit_of(settings.preprocess)
    configure_logging()
    start_ray(config.ray)
    if config.training.source == "catalog":
        photos = stage_catalog(config)
        load = partial(load_catalog, photos, config.training.heldout_catalog)
    else:
        learn, held_out = splits(config.training)
        photos = render_split(learn, config.training.folder)
        render_split(held_out, config.training.folder)
        load = partial(load_training, learn, held_out, config.training.folder.resolve())
    labels, text = outputs_of(config, load())  # the photos are let go: the worker reads its own, which may be half of the memory
    plan = plan_for("encoder", settings, photos)
    trained = train(partial(EncoderTask, settings, load, text), plan)
    last = trained.history[-1]
    spec = {
        "kind": "torchvision",
        "arch": settings.arch,
        "embedding_dim": settings.embedding_dim,
        "tf_same_padding": settings.tf_same_padding,
        "spatial_transformer": settings.spatial_transformer,
        "pool_cells": settings.pool_cells,
        "labels": labels,
        "preprocess": settings.preprocess.model_dump(),
    }
    weights = part_of(trained.weights, "net")
    of_users = config.training.source == "catalog"  # photos of generated products are no sample of what a shop is asked
    queries_BD = embedded_queries(settings, load().learn, weights) if of_users else None
    drop_fragment(settings.bundle, "queries")  # of another encoder
    file = write_fragment(settings.bundle, settings.bundle_name, "encoder", spec, weights)
    if queries_BD is not None:
        write_fragment(settings.bundle, settings.bundle_name, "queries", {}, {VECTORS: queries_BD})
    if text is not None:
        write_tokenizer(settings.bundle, text.tokenizer)
        spec = text.spec.model_dump() | {"query_weight": last.get("text_query_weight", text.spec.query_weight)}
        write_fragment(settings.bundle, settings.bundle_name, "text", spec, part_of(trained.weights, "text"))
    log_curve(config.registry, "train_encoder", settings.model_dump(mode="json"), trained.history)
    figures = {name: value for name, value in last.items() if name not in ("epoch", "loss", "seconds")}
    result = TrainEncoderResult(len(trained.history), last["loss"], figures, file.stat().st_size)
    log.info("trained=encoder bundle=%s %s", settings.bundle, result)
    return result


def outputs_of(config: Config, crops: TrainingSet) -> tuple[tuple[str, ...], TextPart | None]:
    """What the photos and their texts decide of the network: its categories, and its text encoder."""
    return labels_of(crops.learn), text_part(config, crops)


def embedded_queries(settings: TrainEncoderConfig, crops: CropSet, weights: dict[str, Tensor]) -> Tensor | None:
    """(B, D) unit vectors of user photos that were learned from, by the trained network: what hubness is measured against."""
    users = np.flatnonzero(crops.domains_N == USER)
    if not users.size:
        return None
    rows = np.random.default_rng(settings.seed).permutation(users)[:MAX_QUERIES]
    net = build_net(settings, len(labels_of(crops)))
    net.load_state_dict(weights)
    return embedded(net.eval(), crops, rows, settings, torch.device("cpu"))[0]


def text_part(config: Config, crops: TrainingSet) -> TextPart | None:
    """The text encoder to train, its tokenizer made of the texts to learn from; None where none is asked for."""
    settings = config.train_encoder.text
    if not settings.weight:
        return None
    path = config.train_encoder.folder.resolve() / "tokenizer.json"
    try:
        texts = [text for product in crops.learn.products for text in product.texts]
        return TextPart(train_tokenizer(texts, settings, path), path)
    except ValueError as error:
        raise JobError(str(error)) from error


def part_of(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part of the trained network, without its name."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in weights.items() if key.startswith(f"{name}.")}


def main() -> None:
    run_job(__doc__, run)


if __name__ == "__main__":
    main()
