"""Networks of the transformers library, small and random: the bundle gives what the library gives, without a download."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from serve.vision.assemble import assemble_bundle
from serve.vision.bundle import Bundle, BundleError
from serve.vision.bundle_files import read_config
from serve.vision.detector import ITEM, build_detector, detector_module
from serve.vision.preprocess import network_input
from serve.vision.spec import BundleConfig, DetectorConfig, EncoderConfig, Preprocess, RuntimeConfig, TextConfig
from tests.vision.conftest import photos, settle_norms
from tests.vision.small_text import TEXTS, make_text_part

CPU = RuntimeConfig()
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
RESNET = {
    "model_type": "rt_detr_resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
HYBRID = {
    "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "encoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "d_model": 32, "num_queries": 12, "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 32, "decoder_layers": 2,
    "decoder_attention_heads": 2, "decoder_n_points": 2, "num_labels": 3,
}  # fmt: skip
HGNET = {
    "model_type": "hgnet_v2", "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 1, 1], "embedding_size": 8,
    "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 24], "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 24, 32], "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [2, 2, 2, 2],
    "stage_kernel_size": [3, 3, 3, 3], "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, False, False], "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip


def siglip_parts(folder: Path) -> BundleConfig:
    """A tiny SigLIP in files, both sides."""
    torch.manual_seed(2)
    text = make_text_part(folder, 32)
    described = transformers.SiglipConfig(
        text_config=TOWER | {"vocab_size": 100, "max_position_embeddings": 8},
        vision_config=TOWER | {"image_size": 64, "patch_size": 16},
    )
    model = transformers.SiglipModel(described).eval()
    (folder / "config.json").write_text(described.to_json_string(use_diff=False))
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "siglip.safetensors")
    sides = {"vision_model": "image.safetensors", "text_model": "words.safetensors"}
    for side, name in sides.items():
        save_file({k: t.contiguous() for k, t in model.state_dict().items() if k.startswith(side)}, folder / name)
    return BundleConfig(
        name="tiny-siglip",
        encoder=EncoderConfig(
            kind="transformers", arch="tiny/siglip", weights=str(folder / "image.safetensors"),
            network_config=str(folder / "config.json"), preprocess=Preprocess(size_px=64, resize="squash"),
            matryoshka_dims=(8, 16),
        ),
        text=TextConfig(kind="transformers", weights=str(folder / "words.safetensors"), tokenizer=text.tokenizer, max_tokens=8),
    )  # fmt: skip


def siglip_vectors(folder: Path, crops: list[np.ndarray], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the library's own model says, as unit vectors."""
    from safetensors.torch import load_file

    model = transformers.SiglipModel(transformers.SiglipConfig.from_json_file(folder / "config.json")).eval()
    model.load_state_dict(load_file(folder / "siglip.safetensors"))
    inputs = torch.from_numpy(network_input(crops, Preprocess(size_px=64, resize="squash")))
    with torch.inference_mode():
        found = model(input_ids=torch.from_numpy(ids).long(), pixel_values=inputs)
    return found.image_embeds.numpy(), found.text_embeds.numpy()


@pytest.mark.slow
def test_siglip_gives_the_librarys_vectors_and_shorter_ones(tmp_path: Path) -> None:
    parts = siglip_parts(tmp_path)
    folder = assemble_bundle(parts, tmp_path / "bundles")
    bundle = Bundle.load(folder, CPU)
    crops = photos(5)
    ids = bundle.text.tokenize(TEXTS)  # type: ignore[union-attr]
    assert ids.shape == (3, 8), "all texts have the length that it was trained with"
    images, texts = siglip_vectors(tmp_path, crops, ids)
    np.testing.assert_allclose(bundle.encoder.encode(crops)[0], images, atol=2e-5)
    np.testing.assert_allclose(bundle.encode_texts(TEXTS), texts, atol=2e-5)

    shorter = Bundle.load(assemble_bundle(BundleConfig(path=str(folder), dim=8), tmp_path / "bundles"), CPU)
    assert shorter.dim == 8 and shorter.digest != bundle.digest
    cut = images[:, :8] / np.linalg.norm(images[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(shorter.encoder.encode(crops)[0], cut, atol=5e-5)
    assert shorter.encode_texts(TEXTS).shape == (3, 8)
    with pytest.raises(BundleError, match=r"bundle\.dim=9: .*trained for these shorter widths: 8, 16"):
        assemble_bundle(BundleConfig(path=str(folder), dim=9), tmp_path / "bundles")


DETECTORS: dict[str, dict[str, Any]] = {
    "yolos": {"image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 12, "num_labels": 3} | TOWER,
    "rt_detr_v2": {"backbone_config": RESNET} | HYBRID,
    "d_fine": {"backbone_config": HGNET} | HYBRID,
}


@pytest.fixture(scope="module", params=list(DETECTORS))
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetectorConfig]:
    """A tiny detector in files, its norms as after training."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    torch.manual_seed(4)
    described = transformers.AutoConfig.for_model(kind, **DETECTORS[kind])
    described.use_pretrained_backbone = False
    model = transformers.AutoModelForObjectDetection.from_config(described)
    preprocess = Preprocess(size_px=64, resize="squash")
    settle_norms(model, lambda: model(pixel_values=torch.from_numpy(network_input(photos(8), preprocess))))
    save_file({key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}, folder / "net.safetensors")
    (folder / "net.json").write_text(described.to_json_string(use_diff=False))
    config = DetectorConfig(
        kind="transformers", arch=f"tiny/{kind}", weights="net.safetensors", network_config="net.json", preprocess=preprocess,
        labels=("shoe", "bag", "hat"), min_score=0.0, min_side_frac=0, nms_iou=1.0,
    )  # fmt: skip
    return folder, config


@pytest.mark.slow
def test_a_detector_gives_the_librarys_boxes(detector: tuple[Path, DetectorConfig]) -> None:
    """As near as float32 can: the bound is how far torch's own float32 lies from float64, times ten."""
    folder, config = detector
    built = build_detector(config, folder, CPU, folder / "converted")
    inputs = network_input(photos(3), config.preprocess or Preprocess())
    boxes, scores = built.network.run(inputs)  # type: ignore[attr-defined]
    module = detector_module(config, folder).eval()
    with torch.inference_mode():
        single = [output.numpy() for output in module(torch.from_numpy(inputs))]
        double = [output.numpy() for output in module.double()(torch.from_numpy(inputs).double())]
    assert boxes.shape == (3, 12, 4) and scores.shape == (3, 12, 3) and scores.min() >= 0 and scores.max() <= 1
    for ours, exact, rounded in ((boxes, double[0], single[0]), (scores, double[1], single[1])):
        assert np.abs(ours - exact).max() <= 10 * np.abs(rounded - exact).max() + 1e-5


@pytest.mark.slow
def test_whatever_is_found_is_an_item(detector: tuple[Path, DetectorConfig]) -> None:
    folder, config = detector
    (image,) = photos(1)
    named = build_detector(config, folder, CPU, folder / "converted").detect([image])[0]
    assert set(named.labels) <= {"shoe", "bag", "hat"} and len(named.labels) > 1
    agnostic = config.model_copy(update={"class_agnostic": True, "nms_iou": 0.9})
    found = build_detector(agnostic, folder, CPU, folder / "converted").detect([image])[0]
    assert set(found.labels) == {ITEM} and len(found.labels) <= 12, "one box for the three labels of a query"
    assert found.scores[0] == named.scores[0] and (np.diff(found.scores) <= 0).all()


def test_a_bundle_names_labels_and_whats_missing(detector: tuple[Path, DetectorConfig], tmp_path: Path) -> None:
    folder, config = detector
    parts = siglip_parts(tmp_path)
    files = {"weights": str(folder / "net.safetensors"), "network_config": str(folder / "net.json"), "labels": None}
    whole = assemble_bundle(parts.model_copy(update={"detector": config.model_copy(update=files)}), tmp_path / "bundles")
    assert read_config(whole).detector.labels == ("LABEL_0", "LABEL_1", "LABEL_2"), "as its config.json has them"
    assert {"detector.config.json", "encoder.config.json", "tokenizer.json"} <= {path.name for path in whole.iterdir()}
    wrong = json.loads((folder / "net.json").read_text()) | {"model_type": "bert"}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    for named, message in (
        (None, r"bundle\.detector\.network_config=None: name the config\.json"),
        (str(tmp_path / "wrong.json"), "model_type 'bert'; allowed: yolos, rt_detr_v2, d_fine"),
    ):
        other = config.model_copy(update=files | {"network_config": named})
        with pytest.raises(BundleError, match=message):
            assemble_bundle(parts.model_copy(update={"detector": other}), tmp_path / "bundles")


@pytest.mark.slow
def test_a_download_is_kept(tmp_path: Path) -> None:
    """google/siglip2-base-patch16-224 is 1.5 GB: only the smallest detector is fetched here."""
    config = DetectorConfig(kind="transformers", arch="hustvl/yolos-tiny", weights="download")
    parts = siglip_parts(tmp_path).model_copy(update={"detector": config})
    try:
        folder = assemble_bundle(parts, tmp_path / "bundles")
    except BundleError as error:
        pytest.skip(f"no way to the model hub from here: {error}")
    assert (tmp_path / "bundles/.downloads/transformers-hustvl--yolos-tiny-detector.json").is_file()
    assert "person" in (Bundle.load(folder, CPU).config.detector.labels or ())
