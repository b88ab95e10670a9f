"""A bundle: the versioned folder that turns pixels into boxes, categories and embeddings.

Folder: bundle.json (a BundleConfig, file names relative to the folder) and the weights it names. `Bundle.analyse` is the one
function that both embed_images and the query encoder call. `python -m serve.vision.bundle --conf conf/local.yaml` assembles the
bundle that the settings name, opens it and prints what it is.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from serve.vision.assemble import assemble_bundle
from serve.vision.bundle_files import ADDRESS_CHARS, bundle_digest, files_of, is_address, read_config
from serve.vision.categories import build_predictor
from serve.vision.crop import Crop, crops_of, crops_of_drawn, cut
from serve.vision.detector import build_detector
from serve.vision.encoder import build_encoder
from serve.vision.runtime import DeviceError
from serve.vision.spec import BundleConfig, BundleError, RuntimeConfig
from serve.vision.text import TextError, build_text_encoder
from serve.vision.turns import QUARTERS, quarter_turned, turned_back

__all__ = ["Bundle", "BundleError", "CropFeatures", "TextError", "assemble_bundle", "bundle_digest"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CropFeatures:
    """A crop with its unit embedding (dim,) float32 and, where the bundle knows categories, its own."""

    crop: Crop
    category: str | None
    category_prob: float | None
    category_probs: dict[str, float] | None
    embedding: np.ndarray


class Bundle:
    """An open bundle. One instance a process; calls from several threads are safe and run one after the other."""

    def __init__(self, folder: Path, config: BundleConfig, digest: str, runtime: RuntimeConfig) -> None:
        assert config.name is not None and config.encoder is not None, "read_config has checked it"
        self.cache = cache = folder.parent / ".networks" / digest[:ADDRESS_CHARS]  # of converted networks
        self.name, self.digest, self.config = config.name, digest, config
        self.encoder = build_encoder(config.encoder, folder, runtime, cache)
        self.detector = build_detector(config.detector, folder, runtime, cache)
        self.dim = self.encoder.dim
        self.categories = build_predictor(config.categories, folder, self.encoder.labels, self.dim)
        self.labels = self.categories.labels
        self.text = build_text_encoder(config.text, config.encoder, self.dim, folder, runtime, cache)

    @property
    def has_text(self) -> bool:
        """Whether texts can be embedded."""
        return self.text is not None

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dim) float32 unit embeddings in the space of the photos.

        Raises BundleError where the bundle has no text encoder, TextError for an empty text.
        """
        if self.text is None:
            raise BundleError(f"bundle {self.name} has no text encoder; choose one with a `text` part")
        return self.text.encode(texts)

    @classmethod
    def load(cls, folder: Path, runtime: RuntimeConfig, digest: str | None = None) -> Self:
        """Opens `folder`; its digest must be `digest`, if given, and what a content-addressed folder's name says.

        Raises BundleError, and DeviceError when `runtime.device` is not there.
        """
        config, found = read_config(folder), bundle_digest(folder)
        expected = digest or (folder.name if is_address(folder.name) else found)
        if not found.startswith(expected):
            raise BundleError(
                f"{folder}: digest {found[:ADDRESS_CHARS]}, expected {expected[:ADDRESS_CHARS]}: a file was changed"
            )
        bundle = cls(folder, config, found, runtime)
        log.info("opened bundle=%s digest=%s dim=%d device=%s", bundle.name, found[:ADDRESS_CHARS], bundle.dim, runtime.device)
        return bundle

    def analyse(
        self, images: Sequence[np.ndarray], boxes: Sequence[Sequence[Sequence[float]] | None] | None = None
    ) -> list[list[CropFeatures]]:
        """Detect, crop, encode: for each (H, W, 3) uint8 RGB image its crops, crop 0 (the whole) first.

        `boxes`: for each image the boxes a user drew, in its pixels, in place of detection; None = detect. Raises BoxError.
        """
        drawn = boxes if boxes is not None else [None] * len(images)
        detected = iter(self.detector.detect([image for image, own in zip(images, drawn, strict=True) if own is None]))
        crops = [
            crops_of(image.shape[1], image.shape[0], next(detected), self.config.detector)
            if own is None
            else crops_of_drawn(image.shape[1], image.shape[0], own)
            for image, own in zip(images, drawn, strict=True)
        ]
        parts = [cut(image, crop) for image, of_image in zip(images, crops, strict=True) for crop in of_image]
        features = iter(self._features(parts, [crop for of_image in crops for crop in of_image]))
        return [[next(features) for _ in of_image] for of_image in crops]

    def analyse_turned(self, image: np.ndarray, quarters: int) -> list[CropFeatures]:
        """The crops that are found after so many quarter turns, their boxes in the (H, W, 3) image as it is."""
        height, width = image.shape[:2]
        return turned_back(self.analyse([quarter_turned(image, quarters)])[0], quarters, width, height)

    def turned_crops(self, image: np.ndarray, crops: Sequence[Crop]) -> list[list[CropFeatures]]:
        """These crops of an (H, W, 3) image after each of turns.QUARTERS: nothing is detected, the encoder alone is run."""
        features = iter(self._features([cut(image, crop) for crop in crops], crops, QUARTERS))
        return [[next(features) for _ in crops] for _ in QUARTERS]

    def _features(self, parts: Sequence[np.ndarray], crops: Sequence[Crop], quarters: Sequence[int] = (0,)) -> list[CropFeatures]:
        """Of the pixels of each crop; of all crops after each of so many quarter turns."""
        embeddings, of_head = self.encoder.encode(parts, quarters)
        probabilities = self.categories.predict(embeddings, of_head)
        return [
            self._crop_features(crops[row % len(crops)], embedding, None if probabilities is None else probabilities[row])
            for row, embedding in enumerate(embeddings)
        ]

    def _crop_features(self, crop: Crop, embedding: np.ndarray, probabilities_C: np.ndarray | None) -> CropFeatures:
        if probabilities_C is None:
            return CropFeatures(crop, None, None, None, embedding)
        best = int(probabilities_C.argmax())
        probs = dict(zip(self.labels, probabilities_C.tolist(), strict=True))
        return CropFeatures(crop, self.labels[best], float(probabilities_C[best]), probs, embedding)


def main() -> None:
    """Prints the bundle that the settings name."""
    from serve.settings import ConfigError, Settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/local.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="overrides one setting; repeatable")
    args = parser.parse_args()
    try:
        settings = Settings.load(args.conf, args.set)
        folder = assemble_bundle(settings.bundle, settings.store.bundles, settings.registry.uri)
        bundle = Bundle.load(folder, settings.runtime)
    except (ConfigError, BundleError, DeviceError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sizes = {name: (folder / name).stat().st_size for name in files_of(bundle.config)}
    lines = {
        "name": bundle.name,
        "digest": bundle.digest,
        "folder": folder,
        "dim": bundle.dim,
        "labels": ", ".join(bundle.labels) or "none",
        "detector": bundle.config.detector.kind,
        "text": bundle.config.text.kind if bundle.config.text else "none",
        **{f"{name}_bytes": size for name, size in sizes.items()},
    }
    sys.stdout.write("".join(f"{key}: {value}\n" for key, value in lines.items()))


if __name__ == "__main__":
    main()
