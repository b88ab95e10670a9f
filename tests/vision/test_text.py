"""Text encoders: a trained tokenizer and network from files, open_clip's text side, and what a bundle says without one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from serve.vision.assemble import assemble_bundle
from serve.vision.bundle import Bundle, BundleError, TextError
from serve.vision.fusion import fuse_query
from serve.vision.spec import BundleConfig, EncoderConfig, Preprocess, RuntimeConfig, TextConfig
from tests.vision.small_text import TEXTS, make_text_part

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def text_part(tmp_path_factory: pytest.TempPathFactory) -> TextConfig:
    """A transformer with random weights, and a tokenizer of a few words."""
    return make_text_part(tmp_path_factory.mktemp("text"), 16)


@pytest.fixture(scope="module")
def bundle(text_part: TextConfig, small_config: BundleConfig, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = small_config.model_copy(update={"text": text_part})
    return Bundle.load(assemble_bundle(config, tmp_path_factory.mktemp("bundles")), RuntimeConfig())


def test_texts_are_unit_vectors_of_the_photos_width_whatever_their_batch(bundle: Bundle) -> None:
    together = bundle.encode_texts(TEXTS)
    assert together.shape == (3, bundle.dim) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([bundle.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-5)  # padding changes nothing


def test_texts_are_what_torch_says(bundle: Bundle, text_part: TextConfig) -> None:
    from serve.vision.text import build_module, file_tokenizer

    folder = Path(text_part.weights or "").parent
    assert bundle.config.encoder is not None and bundle.config.text is not None
    module = build_module(
        text_part.model_copy(update={"weights": "words.safetensors"}), bundle.config.encoder, bundle.dim, folder
    )
    ids = file_tokenizer(folder / "words.json", text_part.max_tokens)(TEXTS)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(ids))[0].numpy()
    np.testing.assert_allclose(bundle.encode_texts(TEXTS), expected, atol=1e-5)


def test_an_empty_text_is_refused_and_unknown_words_are_not(bundle: Bundle) -> None:
    with pytest.raises(TextError, match="empty"):
        bundle.encode_texts(["  "])
    assert np.isfinite(bundle.encode_texts(["θάλασσα 海"])).all()


def test_a_bundle_without_text_says_so(small_config: BundleConfig, tmp_path: Path) -> None:
    bundle = Bundle.load(assemble_bundle(small_config, tmp_path), RuntimeConfig())
    assert not bundle.has_text
    with pytest.raises(BundleError, match="no text encoder"):
        bundle.encode_texts(["shoe"])


def test_the_tokenizer_is_part_of_the_digest(small_config: BundleConfig, text_part: TextConfig, tmp_path: Path) -> None:
    folder = assemble_bundle(small_config.model_copy(update={"text": text_part}), tmp_path)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    with pytest.raises(BundleError, match="a file was changed"):
        Bundle.load(folder, RuntimeConfig())


@pytest.mark.slow
def test_open_clip_reads_texts_with_the_other_side_of_its_weights(tmp_path: Path) -> None:
    import open_clip

    from serve.vision.open_clip_text import text_tensors

    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip", pretrained=None)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "photo.safetensors")
    save_file({key: value.contiguous() for key, value in text_tensors(model.state_dict()).items()}, tmp_path / "text.safetensors")
    config = BundleConfig(
        name="clip",
        encoder=EncoderConfig(
            kind="open_clip", arch="tiny-clip", weights=str(tmp_path / "photo.safetensors"), preprocess=Preprocess(size_px=64)
        ),
        text=TextConfig(kind="open_clip", weights=str(tmp_path / "text.safetensors")),
    )
    bundle = Bundle.load(assemble_bundle(config, tmp_path / "bundles"), RuntimeConfig())
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.get_tokenizer("tiny-clip")(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(bundle.encode_texts(TEXTS), expected, atol=1e-4)


def test_a_query_of_photo_and_text_lies_between_them() -> None:
    image, text = np.eye(4, dtype=np.float32)[:2]
    np.testing.assert_allclose(fuse_query(image, text, 0.5), [2**-0.5, 2**-0.5, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(fuse_query(image, text, 0.0), image)
    with pytest.raises(ValueError, match="opposite"):
        fuse_query(image, -image, 0.5)
    with pytest.raises(ValueError, match="weight=2"):
        fuse_query(image, text, 2)
