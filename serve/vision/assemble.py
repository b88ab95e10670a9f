"""Makes a bundle of what the settings name: a folder, a model in MLflow, or parts, downloaded where they say so.

The result lies under its own digest in the store, so the same parts give the same folder, and a changed part another one.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from serve.vision.bundle_files import ADDRESS_CHARS, CONFIG_FILE, bundle_digest, files_of, read_config
from serve.vision.categories import PROTOTYPES_FILE
from serve.vision.encoder import open_clip_model
from serve.vision.queries import QUERIES_FILE
from serve.vision.spec import (
    BundleConfig,
    BundleError,
    CategoryConfig,
    DetectorConfig,
    EncoderConfig,
    QueriesConfig,
    TextConfig,
)

if TYPE_CHECKING:
    import torch

LibraryPart = TypeVar("LibraryPart", EncoderConfig, DetectorConfig)
FilePart = TypeVar("FilePart", CategoryConfig, QueriesConfig)
Content = TypeVar("Content")
log = logging.getLogger(__name__)


def assemble_bundle(config: BundleConfig, bundles_folder: Path, registry_uri: str | None = None) -> Path:
    """The folder bundles_folder/<digest> that holds the bundle of `config`, made if it is not there yet. Raises BundleError.

    `config.path`: a folder with bundle.json, or models:/NAME@ALIAS in the MLflow at `registry_uri`; without it, `config.name`,
    `config.encoder` and `config.detector` name the parts.
    """
    bundles_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".assembling-", dir=bundles_folder) as temp:
        staged = Path(temp) / "bundle"
        staged.mkdir()
        if config.path is None:
            write_parts(config, staged, bundles_folder / ".downloads")
        else:
            source = (
                from_registry(config.path, Path(temp), registry_uri) if config.path.startswith("models:") else Path(config.path)
            )
            for name in (CONFIG_FILE, *files_of(read_config(source))):
                shutil.copyfile(source / name, staged / name)
            if config.dim is not None:
                shorten(staged, config.dim)
        digest = bundle_digest(staged)
        folder = bundles_folder / digest[:ADDRESS_CHARS]
        if folder.exists():
            if bundle_digest(folder) != digest:
                raise BundleError(f"{folder}: a file was changed; remove the folder, it is made again")
            return folder
        staged.rename(folder)
    log.info("assembled bundle=%s folder=%s", read_config(folder).name, folder)
    return folder


def shorten(folder: Path, dim: int) -> None:
    """Has the bundle in `folder` cut its vectors to `dim` numbers. Raises BundleError where it was not trained for that."""
    spec = json.loads((folder / CONFIG_FILE).read_text())
    spec["encoder"]["dim"] = dim
    try:
        shorter = BundleConfig.model_validate(spec)
    except ValidationError as error:
        raise BundleError(f"bundle.dim={dim}: {error.errors()[0]['msg']}") from error
    (folder / CONFIG_FILE).write_text(shorter.model_dump_json(indent=1) + "\n")


def from_registry(uri: str, scratch: Path, registry_uri: str | None) -> Path:
    """The downloaded bundle of an MLflow model version. Raises BundleError."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        found = download_artifacts(artifact_uri=uri, dst_path=str(scratch), tracking_uri=registry_uri, registry_uri=registry_uri)
    except (MlflowException, OSError) as error:
        raise BundleError(f"bundle.path={uri}: MLflow cannot give it: {str(error).splitlines()[0]}") from error
    return Path(found)


def write_parts(config: BundleConfig, folder: Path, downloads: Path) -> None:
    """Writes the bundle of named parts into the empty `folder`. Raises BundleError."""
    if config.encoder is None:
        raise BundleError("bundle: neither bundle.path nor bundle.encoder is set; name a folder or an encoder")
    if config.name is None:
        raise BundleError("bundle.name is missing: a bundle of parts needs a name")
    if config.encoder.runtime.network or config.encoder.browser or config.detector.runtime.network:
        raise BundleError("bundle: INT8 networks are made by jobs.quantize_bundle; name the folder that it wrote in bundle.path")
    encoder = encoder_part(config.encoder, folder, downloads)
    resolved = BundleConfig(
        name=config.name,
        detector=detector_part(config.detector, folder, downloads),
        encoder=encoder,
        text=text_part(config.text, config.encoder, folder, downloads),
        categories=file_part(config.categories, folder, PROTOTYPES_FILE),
        queries=file_part(config.queries, folder, QUERIES_FILE),
        turns=config.turns,
    )
    (folder / CONFIG_FILE).write_text(resolved.model_dump_json(indent=1) + "\n")


def encoder_part(config: EncoderConfig, folder: Path, downloads: Path) -> EncoderConfig:
    """`config` with its weights in `folder`."""
    if config.weights is None:
        raise BundleError("bundle.encoder.weights is missing: name a file, or a tag of the library's own download")
    if config.kind == "transformers":
        return library_part(config, "vision_model", folder, downloads, "encoder")
    if is_file(config.weights):
        copy_weights(Path(config.weights), folder / "encoder.safetensors")
    else:
        key = f"{config.kind}-{config.arch}-{config.weights}"
        fetch(lambda: published_encoder(config), downloads / f"{key}.safetensors", folder / "encoder.safetensors")
    return config.model_copy(update={"weights": "encoder.safetensors"})


def detector_part(config: DetectorConfig, folder: Path, downloads: Path) -> DetectorConfig:
    """`config` with its weights in `folder` and its labels named."""
    if config.kind == "none":
        return config
    if config.weights is None:
        raise BundleError("bundle.detector.weights is missing: name a file, or a tag of the library's own download")
    labels = config.labels
    if isinstance(labels, Path):
        if not labels.is_file():
            raise BundleError(f"bundle.detector.labels={labels}: no such file")
        labels = tuple(line.strip() for line in labels.read_text().splitlines() if line.strip())
    if config.kind == "transformers":
        resolved = library_part(config, "detector", folder, downloads, "detector")
        assert resolved.network_config is not None, "library_part has set it"
        return resolved.model_copy(update={"labels": labels or published_names(folder / resolved.network_config)})
    name = "detector.onnx" if config.kind == "onnx_yolox" else "detector.safetensors"
    if is_file(config.weights):
        copy_weights(Path(config.weights), folder / name)
    elif config.kind == "onnx_yolox" or config.arch is None:
        raise BundleError(f"bundle.detector.weights={config.weights}: a {config.kind} detector without arch needs a file")
    else:
        from serve.vision.detection_nets import downloaded_detector, published_labels

        arch, tag = config.arch, config.weights
        labels = labels or published_labels(arch, tag)
        fetch(lambda: downloaded_detector(arch, tag), downloads / f"{arch}-{tag}.safetensors", folder / name)
    if not labels:
        raise BundleError("bundle.detector.labels is missing: the names of the detector's outputs, without the background")
    return config.model_copy(update={"weights": name, "labels": labels})


def published_names(network_config: Path) -> tuple[str, ...]:
    """Labels as a config.json of the transformers library has them. Raises BundleError."""
    from serve.vision.transformers_nets import labels_of

    return labels_of(network_config)


def library_part(config: LibraryPart, side: str, folder: Path, downloads: Path, name: str) -> LibraryPart:
    """A part of kind transformers: weights and config.json from files, or downloaded. `side` as `downloaded` has it."""
    from serve.vision.transformers_nets import downloaded

    weights, described = f"{name}.safetensors", f"{name}.config.json"
    assert config.weights is not None and config.arch is not None, "checked by the caller"
    if is_file(config.weights):
        if config.network_config is None or not Path(config.network_config).is_file():
            raise BundleError(f"bundle.{name}.network_config={config.network_config}: name the config.json of these weights")
        copy_weights(Path(config.weights), folder / weights)
        shutil.copyfile(config.network_config, folder / described)
    else:
        arch = config.arch
        kept = downloads / f"transformers-{arch.replace('/', '--')}-{side}.safetensors"
        fetch(lambda: downloaded(arch, side)[1], kept, folder / weights)
        fetch_text(lambda: downloaded(arch, side)[0], kept.with_suffix(".json"), folder / described)
    return config.model_copy(update={"weights": weights, "network_config": described})


def text_part(config: TextConfig | None, encoder: EncoderConfig, folder: Path, downloads: Path) -> TextConfig | None:
    """`config` with its weights and tokenizer in `folder`."""
    if config is None:
        return None
    name = "text.safetensors"
    if config.weights is not None:
        copy_weights(Path(config.weights), folder / name)
    elif config.kind == "open_clip" and encoder.weights is not None and not is_file(encoder.weights):
        key = f"open_clip-{encoder.arch}-{encoder.weights}-text"
        fetch(lambda: published_text_encoder(encoder), downloads / f"{key}.safetensors", folder / name)
    elif config.kind == "transformers" and encoder.weights is not None and not is_file(encoder.weights):
        from serve.vision.transformers_nets import downloaded, downloaded_tokenizer

        kept = downloads / f"transformers-{encoder.arch.replace('/', '--')}-text_model.safetensors"
        fetch(lambda: downloaded(encoder.arch, "text_model")[1], kept, folder / name)
        if config.tokenizer is None:
            fetch_text(lambda: downloaded_tokenizer(encoder.arch), kept.with_suffix(".json"), folder / "tokenizer.json")
            return config.model_copy(update={"weights": name, "tokenizer": "tokenizer.json"})
    else:
        raise BundleError("bundle.text.weights is missing: name a file")
    if config.tokenizer is None:
        return config.model_copy(update={"weights": name})
    if not Path(config.tokenizer).is_file():
        raise BundleError(f"bundle.text.tokenizer={config.tokenizer}: no such file")
    shutil.copyfile(config.tokenizer, folder / "tokenizer.json")
    return config.model_copy(update={"weights": name, "tokenizer": "tokenizer.json"})


def file_part(config: FilePart | None, folder: Path, name: str) -> FilePart | None:
    """`config` with its file in `folder`, under this name."""
    if config is None:
        return None
    copy_weights(Path(config.weights), folder / name)
    return config.model_copy(update={"weights": name})


def is_file(weights: str) -> bool:
    """Whether `weights` means a file, for a tag has no suffix and no folder."""
    return Path(weights).suffix in (".safetensors", ".onnx") or os.sep in weights


def copy_weights(source: Path, target: Path) -> None:
    """Copies a weights file. Raises BundleError when it is missing or of another kind."""
    if source.suffix != target.suffix:
        raise BundleError(f"{source}: expected a {target.suffix} file")
    if not source.is_file():
        raise BundleError(f"{source}: no such weights file")
    shutil.copyfile(source, target)


def fetch(download: "Callable[[], dict[str, torch.Tensor]]", kept: Path, target: Path) -> None:
    """Copies the tensors kept from an earlier time, or downloads and keeps them, so that a tag means one file for good."""
    from safetensors.torch import save_file

    def write(tensors: "dict[str, torch.Tensor]", path: Path) -> None:
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path)

    keep(download, write, kept, target)


def fetch_text(download: Callable[[], str], kept: Path, target: Path) -> None:
    """The same of a text."""
    keep(download, lambda text, path: path.write_text(text), kept, target)


def keep(download: Callable[[], Content], write: Callable[[Content, Path], object], kept: Path, target: Path) -> None:
    """Copies `kept` to `target`; it is downloaded and written first where it is not there yet. Raises BundleError."""
    if not kept.is_file():
        try:
            content = download()
        except (OSError, RuntimeError) as error:
            raise BundleError(f"{kept.stem}: cannot be downloaded: {str(error).splitlines()[0]}") from error
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.partial")
        write(content, partial)
        partial.rename(kept)
    shutil.copyfile(kept, target)


def published_encoder(config: EncoderConfig) -> "dict[str, torch.Tensor]":
    """The published weights of an encoder: torchvision's whole network, or the image side of open_clip's. Raises BundleError."""
    assert config.weights is not None
    if config.kind == "open_clip":
        state = open_clip_model(config.arch, config.weights).state_dict()
        return {key: tensor for key, tensor in state.items() if key.startswith("visual.")}

    from serve.vision.backbones import classifier_of, published_weights

    classifier_of(config.arch)
    return dict(published_weights(config.arch, config.weights).get_state_dict(progress=False))


def published_text_encoder(encoder: EncoderConfig) -> "dict[str, torch.Tensor]":
    """The published weights of the text side of open_clip's model. Raises BundleError."""
    from serve.vision.open_clip_text import text_tensors

    return text_tensors(open_clip_model(encoder.arch, encoder.weights).state_dict())
