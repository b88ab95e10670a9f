"""What lies in a bundle's folder, and the digest that names it: read without opening a network."""

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError

from serve.vision.spec import BundleConfig, BundleError

CONFIG_FILE = "bundle.json"
ADDRESS_CHARS = 16  # of the digest, in the folder's name


def read_config(folder: Path) -> BundleConfig:
    """The checked bundle.json of `folder`. Raises BundleError."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise BundleError(f"{folder}: no bundle: it has no {CONFIG_FILE}")
    try:
        config = BundleConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        raise BundleError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    if config.name is None or config.encoder is None or config.encoder.weights is None:
        raise BundleError(f"{path}: a bundle has a name and an encoder with weights")
    detector = config.detector
    if detector.kind != "none" and (detector.weights is None or not isinstance(detector.labels, tuple)):
        raise BundleError(f"{path}: a detector of kind {detector.kind} has weights and a list of labels")
    for name, part in (("encoder", config.encoder), ("detector", detector)):
        if part.kind == "transformers" and part.network_config is None:
            raise BundleError(f"{path}: {name}.network_config is missing: the model's config.json")
    text = config.text
    if text is not None and (text.weights is None or (text.kind != "open_clip" and text.tokenizer is None)):
        raise BundleError(f"{path}: a text encoder of kind {text.kind} has weights and, unless it is open_clip's, a tokenizer")
    if text is not None and text.kind != "transformer" and config.encoder.kind != text.kind:
        raise BundleError(f"{path}: text.kind={text.kind} needs an encoder of that kind, this one is {config.encoder.kind}")
    for name in files_of(config):
        if Path(name).name != name:
            raise BundleError(f"{path}: weights {name!r}: expected the name of a file in this folder")
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: the weights {name} that {CONFIG_FILE} names are missing")
    return config


def files_of(config: BundleConfig) -> list[str]:
    """Names of the files beside bundle.json that a bundle's config names: weights, the tokenizer, INT8 networks."""
    parts = (config.encoder, config.detector, config.text, config.categories, config.queries)
    names = [part.weights for part in parts if part is not None]
    names += [config.text.tokenizer] if config.text is not None else []
    names += [config.detector.runtime.network, config.detector.network_config]
    names += [config.encoder.network_config] if config.encoder is not None else []
    if config.encoder is not None:
        names += [config.encoder.runtime.network, config.encoder.browser.network if config.encoder.browser else None]
    names += [name.removesuffix(".xml") + ".bin" for name in names if name is not None and name.endswith(".xml")]
    return list(dict.fromkeys(name for name in names if name is not None))


def bundle_digest(folder: Path) -> str:
    """Hex SHA-256 over bundle.json and the files it names, with their names; other files do not count. Raises BundleError."""
    names = [CONFIG_FILE, *sorted(files_of(read_config(folder)))]
    digests = {name: file_digest(folder / name) for name in names}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_address(name: str) -> bool:
    """Whether a folder's name is the start of a digest."""
    return len(name) == ADDRESS_CHARS and all(char in "0123456789abcdef" for char in name)
