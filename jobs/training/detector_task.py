"""What train_detector trains: a detector of torchvision's parts for one class, "item", on scenes with known boxes.

Letters: N scenes, S side of the input.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from jobs.config import JobError, TrainDetectorConfig
from jobs.evaluation.boxes import box_figures
from jobs.training.augmentation import scene_augmented
from jobs.training.generated import SceneSet, Split, load_scenes
from serve.vision.detection_nets import torchvision_detector

EVALUATE_BATCH = 16
BATCH_NORM_MOMENTUM = 0.1  # torchvision's 0.03 is for long training: its averages lag behind in a short one


class DetectorTask:
    """Training on one split, figures on another."""

    def __init__(self, config: TrainDetectorConfig, learn: Split, held_out: Split, photos: Path) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.scenes, self.held_out = load_scenes(learn, photos), load_scenes(held_out, photos)
        self.network = torchvision_detector(config.arch, 2).train()
        if config.start is not None:
            self.network.load_state_dict(load_file(config.start))
        if config.backbone is not None:
            load_backbone(self.network, config.backbone)
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = BATCH_NORM_MOMENTUM
        self.streets, self.plains = np.flatnonzero(self.scenes.streets_M), np.flatnonzero(~self.scenes.streets_M)
        self.num_plain = min(len(self.plains), round(config.plain_frac * len(self.streets)))
        self.num_steps = (len(self.streets) + self.num_plain) // config.batch_size

    def shipped(self) -> nn.Module:
        return self.network

    def kept(self) -> AbstractContextManager[None]:
        return nullcontext()

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": learning_rate}]

    def losses(self, epoch: int, device: torch.device) -> Iterator[Tensor]:
        """The sum of torchvision's losses, one batch after the other, at this epoch's input size."""
        size_px = self.config.input_px[min(epoch, len(self.config.input_px) - 1)]
        set_input(self.network, size_px)
        rng = np.random.default_rng([self.config.seed, epoch])
        order = rng.permutation(np.concatenate([self.streets, rng.choice(self.plains, self.num_plain, replace=False)]))
        torch_rng = torch.Generator().manual_seed(self.config.seed * 1_000 + epoch)
        for step in range(self.num_steps):
            scenes, boxes = tensors(
                self.scenes, order[step * self.config.batch_size : (step + 1) * self.config.batch_size], device
            )
            images, boxes = scene_augmented(scenes, boxes, size_px, torch_rng, self.config.augment)
            targets = [{"boxes": b * size_px, "labels": torch.ones(len(b), dtype=torch.int64, device=device)} for b in boxes]
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                parts = self.network(list(images), targets)
            yield sum((part.float() for part in parts.values()), torch.zeros((), device=device))

    @torch.inference_mode()
    def figures(self, device: torch.device) -> dict[str, float]:
        """Average precision and recall at IoU 0.5 over the held-out street scenes, at the input size that is shipped."""
        set_input(self.network, self.config.input_px[-1])
        streets = np.flatnonzero(self.held_out.streets_M)
        found, true = [], []
        for rows in np.array_split(streets, -(-len(streets) // EVALUATE_BATCH)):
            scenes, boxes = tensors(self.held_out, rows, device)
            for result, boxes_M4 in zip(self.network(list(scenes)), boxes, strict=True):
                found.append((result["scores"].cpu().numpy(), result["boxes"].cpu().numpy() / scenes.shape[-1]))
                true.append(boxes_M4.cpu().numpy())
        measured = box_figures(found, true)
        return {
            "average_precision": measured.average_precision,
            "recall": measured.recall,
            "precision": measured.precision,
            "num_boxes": float(measured.num_true),
        }


def load_backbone(network: nn.Module, encoder: Path) -> None:
    """The layers of a trained encoder become the detector's. Raises JobError where they are not those of its backbone."""
    prefix = "backbone.features."
    layers = {key.removeprefix(prefix): value for key, value in load_file(encoder).items() if key.startswith(prefix)}
    try:
        network.get_submodule("backbone.body").load_state_dict(layers)
    except (AttributeError, RuntimeError) as error:
        raise JobError(f"train_detector.backbone={encoder}: not an encoder with this detector's backbone") from error


def set_input(network: nn.Module, size_px: int) -> None:
    """The side that torchvision scales every image to. Anchors are shares of the image (SSD) or move with the stride (FCOS)."""
    network.get_submodule("transform").fixed_size = (size_px, size_px)  # type: ignore[assignment]


def tensors(scenes: SceneSet, rows: np.ndarray, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Scenes (N, 3, S, S) in 0..1 and their boxes (0..1)."""
    images = torch.from_numpy(scenes.scenes_MSS3[rows]).to(device).permute(0, 3, 1, 2).float() / 255
    return images, [torch.from_numpy(scenes.boxes[row]).to(device) for row in rows]
