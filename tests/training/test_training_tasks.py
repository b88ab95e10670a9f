"""Both networks learn a tiny set in a few steps, and what they leave behind opens as a bundle."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from jobs.config import JobError, TrainDetectorConfig, TrainEncoderConfig, TrainTextConfig
from jobs.render.catalog import CATEGORIES
from jobs.train_encoder import embedded_queries
from jobs.training.crops import USER
from jobs.training.detector_task import DetectorTask
from jobs.training.encoder_task import EncoderTask, TextPart, embedded
from jobs.training.fragment import drop_fragment, log_curve, write_fragment, write_tokenizer
from jobs.training.generated import Split, load_training
from jobs.training.loop import Task
from jobs.training.texts import train_tokenizer
from serve.settings import RegistryConfig
from serve.vision.assemble import assemble_bundle
from serve.vision.bundle import Bundle
from serve.vision.bundle_files import read_config
from serve.vision.queries import VECTORS, load_queries
from serve.vision.spec import BundleConfig, RuntimeConfig

CPU = torch.device("cpu")
CATEGORY_PATHS = {spec.path for spec in CATEGORIES}


def encoder_task(split: Split, photos: Path, **settings: object) -> EncoderTask:
    config = TrainEncoderConfig.model_validate(
        {"input_px": [48], "embedding_dim": 32, "batch_products": 4, "batch_images": 4, **settings}
    )
    return EncoderTask(config, partial(load_training, split, split, photos))


def net_of(task: EncoderTask) -> dict[str, torch.Tensor]:
    """The encoder's own weights."""
    return dict(task.network["net"].state_dict())


def detector_task(split: Split, photos: Path, **settings: object) -> DetectorTask:
    config = TrainDetectorConfig.model_validate({"input_px": [96], "batch_size": 4, "plain_frac": 1.0, **settings})
    return DetectorTask(config, split, split, photos)


def values_of_steps(task: Task, num: int, learning_rate: float) -> list[float]:
    """Losses of `num` Adam steps."""
    optimizer = torch.optim.Adam(task.groups(learning_rate))
    values: list[float] = []
    epoch = 0
    while len(values) < num:
        for loss in task.losses(epoch, CPU):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            values.append(float(loss.detach()))
        epoch += 1
    return values


@pytest.mark.parametrize("loss", ["supervised_contrastive", "arcface"])
def test_encoder_loss_falls(tiny_split: Split, tiny_photos: Path, loss: str) -> None:
    values = values_of_steps(encoder_task(tiny_split, tiny_photos, loss=loss), 16, 3e-3)
    assert np.mean(values[-4:]) < 0.9 * np.mean(values[:4])


@pytest.mark.parametrize("arch", ["fcos_mobilenet_v3_small", "ssdlite320_mobilenet_v3_large"])
def test_detector_loss_falls(tiny_split: Split, tiny_photos: Path, arch: str) -> None:
    values = values_of_steps(detector_task(tiny_split, tiny_photos, arch=arch), 12, 2e-3)
    assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3])


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "cosface", "sampler": "photos", "batch_images": 2, "generated_query_frac": 0.5, "catalog_pull": 4.0},
        {"loss": "triplet_hard", "adaptation": "adversarial", "spatial_transformer": True, "catalog_pull": 1.0},
        {"loss": "multi_similarity", "adaptation": "moments", "preprocess": {"size_px": 48, "resize": "squash"}},
    ],
)
def test_every_switch_gives_a_finite_loss_that_moves_the_network(
    tiny_split: Split, tiny_photos: Path, settings: dict[str, object]
) -> None:
    task = encoder_task(tiny_split, tiny_photos, **settings)
    before = task.network["net"].projection.weight.detach().clone()
    assert np.isfinite(values_of_steps(task, 2, 1e-3)).all()
    assert not torch.equal(before, task.network["net"].projection.weight)


@pytest.mark.slow
def test_text_is_learned_beside_photos_and_opens_in_the_bundle(tiny_split: Split, tiny_photos: Path, tmp_path: Path) -> None:
    load = partial(load_training, tiny_split, tiny_split, tiny_photos)
    config = TrainTextConfig(weight=1.0, vocabulary=200, max_tokens=24, width=32, heads=2, learning_rate=3e-3, drop_frac=0.0)
    texts = [text for product in load().learn.products for text in product.texts]
    spec = train_tokenizer(texts, config, tmp_path / "tokenizer.json")
    settings = {"input_px": [48], "embedding_dim": 32, "batch_products": 4, "text": config.model_dump()}
    task = EncoderTask(TrainEncoderConfig.model_validate(settings), load, TextPart(spec, tmp_path / "tokenizer.json"))
    values_of_steps(task, 12, 1e-3)
    task.network.eval()
    figures = task.figures(CPU)
    assert figures["text_recall_at_10"] == 1.0, "8 products: all are among the first ten"
    assert figures["photo_and_title_recall_at_1"] >= max(figures["photo_only_recall_at_1"], figures["title_only_recall_at_1"])
    assert figures["concatenated_recall_at_1"] >= figures["photo_only_recall_at_1"], "the weight 0 is among those tried"
    assert "attended_recall_at_1" not in figures, "nobody asked for it"

    folder = tmp_path / "bundle"
    seen = {"kind": "torchvision", "arch": "mobilenet_v3_small", "embedding_dim": 32, "labels": task.labels,
            "preprocess": {"size_px": 48, "resize": "pad"}}  # fmt: skip
    write_tokenizer(folder, tmp_path / "tokenizer.json")
    write_fragment(folder, "tiny", "encoder", seen, net_of(task))
    assert task.text is not None
    write_fragment(folder, "tiny", "text", spec.model_dump(), task.text.net.state_dict())
    bundle = Bundle.load(folder, RuntimeConfig())
    expected = task.text.embed(["a red hat"], CPU).numpy()
    np.testing.assert_allclose(bundle.encode_texts(["a red hat"]), expected, atol=5e-3)  # weights are kept in fp16


def test_photos_learned_from_go_with_the_encoder(tiny_split: Split, tiny_photos: Path, tmp_path: Path) -> None:
    """Their vectors are what the bundle makes of such photos, whole or shortened, and leave with a training without any."""
    task = encoder_task(tiny_split, tiny_photos)
    users = np.flatnonzero(task.crops.domains_N == USER)
    found = embedded_queries(task.config, task.crops, task.network["net"].state_dict())
    assert found is not None and found.shape == (len(users), task.config.embedding_dim)
    seen = task.network.eval()["net"], task.crops, users, task.config, CPU
    assert sorted(found[:, 0].tolist()) == pytest.approx(sorted(embedded(*seen)[0][:, 0].tolist()), abs=1e-5)
    folder, fields = tmp_path / "made", {"kind": "torchvision", "arch": task.config.arch}
    write_fragment(folder, "tiny", "encoder", fields | {"embedding_dim": task.config.embedding_dim}, net_of(task))
    write_fragment(folder, "tiny", "queries", {}, {VECTORS: found})
    bundle = assemble_bundle(BundleConfig(path=str(folder)), tmp_path / "bundles")
    queries_BD = load_queries(bundle, read_config(bundle), 8)
    assert queries_BD is not None and queries_BD.shape == (len(users), 8)
    np.testing.assert_allclose(np.linalg.norm(queries_BD, axis=1), 1, atol=1e-5)
    drop_fragment(folder, "queries")
    assert load_queries(folder, read_config(folder), 8) is None
    without = task.crops.part(np.flatnonzero(task.crops.domains_N != USER))
    assert embedded_queries(task.config, without, {}) is None


def test_a_catalog_without_texts_or_with_other_weights_says_what_to_do(
    tiny_split: Split, tiny_photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no product has a title .*set it to 0"):
        train_tokenizer([" "], TrainTextConfig(weight=1.0), tmp_path / "tokenizer.json")
    other = tmp_path / "other.safetensors"
    save_file({"backbone.some.weight": torch.zeros(1)}, other)
    with pytest.raises(JobError, match=r"not the weights of mobilenet_v3_small.*set train_encoder\.arch"):
        encoder_task(tiny_split, tiny_photos, start=other)
    with pytest.raises(JobError, match=r"batch_products=40: the training set has 8 products.*set smaller"):
        encoder_task(tiny_split, tiny_photos, batch_products=40)
    photos = load_training(tiny_split, tiny_split, tiny_photos)
    catalog = replace(photos, learn=photos.learn.part(np.flatnonzero(photos.learn.domains_N != USER)))
    with pytest.raises(JobError, match=r"catalog_pull=4: no photos by users.*set train_encoder\.generated_query_frac"):
        EncoderTask(TrainEncoderConfig(catalog_pull=4, batch_products=4), lambda: catalog)


def test_training_goes_on_from_its_own_weights_and_from_a_plain_backbone(
    tiny_split: Split, tiny_photos: Path, tmp_path: Path
) -> None:
    first = encoder_task(tiny_split, tiny_photos)
    save_file(net_of(first), tmp_path / "own.safetensors")
    again = encoder_task(tiny_split, tiny_photos, start=tmp_path / "own.safetensors", seed=99)
    torch.testing.assert_close(again.network["net"].projection.weight, first.network["net"].projection.weight)
    plain = torchvision.models.mobilenet_v3_small(weights=None)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    started = encoder_task(tiny_split, tiny_photos, start=tmp_path / "plain.safetensors", frozen_layers=2, frozen_norms=True)
    values_of_steps(started, 2, 1e-2)
    features = started.network["net"].backbone.features
    torch.testing.assert_close(features[0][0].weight, plain.features[0][0].weight)
    torch.testing.assert_close(features[0][1].running_mean, plain.features[0][1].running_mean)
    assert not torch.equal(features[-1][0].weight, plain.features[-1][0].weight)


def test_cells_begin_without_a_say_and_learn(tiny_split: Split, tiny_photos: Path, tmp_path: Path) -> None:
    first = encoder_task(tiny_split, tiny_photos)
    save_file(net_of(first), tmp_path / "own.safetensors")
    task = encoder_task(tiny_split, tiny_photos, start=tmp_path / "own.safetensors", pool_cells=2)
    for each in (first, task):
        each.network.eval()
    torch.testing.assert_close(task.embed(task.crops, CPU)[0], first.embed(first.crops, CPU)[0])
    task.network.train()
    values_of_steps(task, 2, 1e-3)
    width = first.network["net"].projection.in_features
    assert task.network["net"].projection.weight[:, width:].abs().max() > 0
    save_file(net_of(task), tmp_path / "halves.safetensors")
    thirds = encoder_task(tiny_split, tiny_photos, start=tmp_path / "halves.safetensors", pool_cells=3)
    fresh = thirds.network["net"].projection.weight[:, :width]  # other cells: a projection of its own
    assert not torch.equal(fresh, task.network["net"].projection.weight[:, :width])
    with pytest.raises(JobError, match=r"train_encoder\.arch 'vit_b_32' with pool_cells=2"):
        encoder_task(tiny_split, tiny_photos, arch="vit_b_32", pool_cells=2)


def test_the_projection_of_a_plain_backbone_keeps_the_angles_between_the_photos_features(
    tiny_split: Split, tiny_photos: Path, tmp_path: Path
) -> None:
    """There are more directions than photos, so nothing of what tells the photos apart is lost."""
    torch.manual_seed(0)
    plain = torchvision.models.mobilenet_v3_small(weights=None)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    task = encoder_task(tiny_split, tiny_photos, start=tmp_path / "plain.safetensors", embedding_dim=500)
    assert len(task.crops.tiles_NTT3) < 500 and task.network["net"].training
    task.network.eval()
    net = task.network["net"]
    weight = net.projection.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(500), atol=1e-4, rtol=0)
    unit_ND = task.embed(task.crops, CPU)[0]
    net.projection, net.head = None, None
    full_NF = task.embed(task.crops, CPU)[0]
    torch.testing.assert_close(unit_ND @ unit_ND.T, full_NF @ full_NF.T, atol=0.02, rtol=0)  # bf16


@pytest.mark.parametrize(("loss", "rows"), [("cosface", False), ("proxy_anchor", True), ("triplet", None)])
def test_proxies_begin_at_their_products_catalog_photos(
    tiny_split: Split, tiny_photos: Path, tmp_path: Path, loss: str, rows: bool | None
) -> None:
    save_file(net_of(encoder_task(tiny_split, tiny_photos)), tmp_path / "own.safetensors")
    task = encoder_task(tiny_split, tiny_photos, start=tmp_path / "own.safetensors", loss=loss)
    parameters = list(task.network["loss"].parameters())
    if rows is None:
        assert not parameters
        return
    proxies_PD = torch.nn.functional.normalize(parameters[0].detach() if rows else parameters[0].detach().T)
    task.network.eval()
    unit_ND = task.embed(task.crops, CPU)[0]
    for product, proxy_D in enumerate(proxies_PD):
        shown = (task.crops.products_N == product) & (task.crops.domains_N != USER)
        mean_D = torch.nn.functional.normalize(unit_ND[torch.from_numpy(shown)].mean(0), dim=0)
        assert float(mean_D @ proxy_D) > 0.98


def test_kept_weights_are_between_the_start_and_the_trained_ones(tiny_split: Split, tiny_photos: Path, tmp_path: Path) -> None:
    save_file(net_of(encoder_task(tiny_split, tiny_photos)), tmp_path / "own.safetensors")
    task = encoder_task(tiny_split, tiny_photos, start=tmp_path / "own.safetensors", start_frac=0.25)
    begun = {key: value.clone() for key, value in net_of(task).items()}
    values_of_steps(task, 2, 1e-2)
    trained = {key: value.clone() for key, value in net_of(task).items()}
    key = "projection.weight"
    with task.kept():
        torch.testing.assert_close(net_of(task)[key], 0.75 * trained[key] + 0.25 * begun[key])
        torch.testing.assert_close(net_of(task)["head.weight"], trained["head.weight"])
    assert all(torch.equal(value, trained[key]) for key, value in net_of(task).items())
    with pytest.raises(JobError, match=r"start_frac=0\.25: there is no train_encoder\.start"):
        encoder_task(tiny_split, tiny_photos, start_frac=0.25)


def test_an_epoch_is_the_same_whenever_it_is_run(tiny_split: Split, tiny_photos: Path) -> None:
    tasks = [encoder_task(tiny_split, tiny_photos) for _ in range(2)]
    first, second = ([float(loss.detach()) for loss in task.losses(3, CPU)] for task in tasks)
    assert first == second


def test_figures_are_shares(tiny_split: Split, tiny_photos: Path) -> None:
    for task in (encoder_task(tiny_split, tiny_photos), detector_task(tiny_split, tiny_photos)):
        task.network.eval()
        figures = task.figures(CPU)
        assert all(0 <= value <= 1 for name, value in figures.items() if not name.startswith("num_"))
        assert any(value >= tiny_split.num_scenes for name, value in figures.items() if name.startswith("num_"))


def test_a_detector_starts_from_the_layers_of_an_encoder(tiny_split: Split, tiny_photos: Path, tmp_path: Path) -> None:
    encoder = net_of(encoder_task(tiny_split, tiny_photos))
    save_file(encoder, tmp_path / "encoder.safetensors")
    begun = detector_task(tiny_split, tiny_photos, backbone=tmp_path / "encoder.safetensors").network.state_dict()
    assert torch.equal(begun["backbone.body.12.0.weight"], encoder["backbone.features.12.0.weight"])
    save_file({"backbone.features.0.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for arch, file in (("fcos_mobilenet_v3_small", "other"), ("ssdlite320_mobilenet_v3_large", "encoder")):
        with pytest.raises(JobError, match=rf"backbone=.*{file}\.safetensors: not an encoder with this detector's backbone"):
            detector_task(tiny_split, tiny_photos, arch=arch, backbone=tmp_path / f"{file}.safetensors")


@pytest.mark.slow
def test_fragments_open_as_a_bundle(tiny_split: Split, tiny_photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    detector, encoder = detector_task(tiny_split, tiny_photos), encoder_task(tiny_split, tiny_photos)
    preprocess = {"size_px": 96, "resize": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    found = {"kind": "torchvision", "arch": "fcos_mobilenet_v3_small", "labels": ("item",), "preprocess": preprocess}
    write_fragment(folder, "tiny", "detector", found, detector.shipped().state_dict())
    seen = {"kind": "torchvision", "arch": "mobilenet_v3_small", "embedding_dim": 32, "labels": encoder.labels,
            "preprocess": {"size_px": 48, "resize": "pad"}}  # fmt: skip
    write_fragment(folder, "tiny", "encoder", seen, net_of(encoder))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15_000_000
    assert set(json.loads((folder / "bundle.json").read_text())) == {"name", "detector", "encoder"}
    assert (folder / "encoder.safetensors").stat().st_mode & 0o044, "others may read it"

    bundle = Bundle.load(folder, RuntimeConfig())
    assert (bundle.name, bundle.dim, tuple(bundle.labels)) == ("tiny", 32, encoder.labels)
    (features,) = bundle.analyse([np.full((120, 90, 3), 128, np.uint8)])
    assert features[0].category in CATEGORY_PATHS
    np.testing.assert_allclose(np.linalg.norm(features[0].embedding), 1, atol=1e-3)


def test_curve_is_logged(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    registry = RegistryConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "artifacts"))
    history = [{"epoch": 1.0, "loss": 3.0}, {"epoch": 2.0, "loss": 2.0}]
    run_id = log_curve(registry, "train_encoder", {"epochs": 2}, history)
    client = MlflowClient(registry.uri)
    assert [metric.value for metric in client.get_metric_history(run_id, "loss")] == [3.0, 2.0]
    assert client.get_run(run_id).data.params["epochs"] == "2"
