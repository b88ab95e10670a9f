"""What train_encoder trains: an EmbeddingNet on P x K batches of products, with its loss and category head.

Letters: N crops, T side of a tile, S side of the input, D embedding dimensions, C categories.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from jobs.config import TrainEncoderConfig
from jobs.training.augmentation import crop_augmented, letterbox, padded
from jobs.training.losses import AttributeLoss, build_loss
from jobs.training.photos import STREET, CropSet, Split, load_crops
from jobs.training.samplers import ProductSampler
from serve.vision.backbones import EmbeddingNet
from serve.vision.spec import Preprocess

EVALUATE_BATCH = 64


class EncoderTask:
    """Training on one split, figures on another."""

    def __init__(self, config: TrainEncoderConfig, learn: Split, held_out: Split, photos: Path, labels: tuple[str, ...]) -> None:
        self.config, self.labels = config, labels
        torch.manual_seed(config.seed)
        self.crops, self.held_out = load_crops(learn, photos), load_crops(held_out, photos)
        styles = np.array([product.group_id for product in self.crops.products])
        self.sampler = ProductSampler(
            self.crops.products_N, self.crops.domains_N, styles[self.crops.products_N], config.batch_products, config.batch_images
        )
        self.categories = torch.tensor([labels.index(product.category) for product in self.crops.products])
        net = EmbeddingNet(config.arch, config.embedding_dim, len(labels))
        if config.start is not None:
            net.load_state_dict(load_file(config.start))
        self.network = nn.ModuleDict({
            "net": net,
            "loss": build_loss(config.loss, len(self.crops.products), net.dim),
            "attributes": AttributeLoss(self.crops.products, net.dim),
        })  # fmt: skip
        self.num_steps = config.passes * len(self.sampler)

    def shipped(self) -> nn.Module:
        return self.network["net"]

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The network at `learning_rate`; the loss's proxies, where it has some, faster."""
        trunk = [*self.network["net"].parameters(), *self.network["attributes"].parameters()]
        groups: list[dict[str, Any]] = [{"params": trunk, "lr": learning_rate}]
        if proxies := list(self.network["loss"].parameters()):
            groups.append({"params": proxies, "lr": self.config.loss_learning_rate, "weight_decay": 0.0})
        return groups

    def losses(self, epoch: int, device: torch.device) -> Iterator[Tensor]:
        """Metric loss + `category_weight` x category + `attribute_weight` x attributes, one batch after the other."""
        size_px = self.config.input_px[min(epoch, len(self.config.input_px) - 1)]
        rng = np.random.default_rng([self.config.seed, epoch])
        torch_rng = torch.Generator().manual_seed(self.config.seed * 1_000 + epoch)
        for _ in range(self.config.passes):
            for rows in self.sampler.batches(rng):
                tiles_N3TT, boxes_N4 = tensors(self.crops, rows, device)
                images = crop_augmented(tiles_N3TT, boxes_N4, size_px, torch_rng)
                products_N = torch.from_numpy(self.crops.products_N[rows])
                with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                    unit_ND, logits_NC = self.network["net"](normalized(images))
                loss = self.network["loss"](unit_ND.float(), products_N.to(device))
                category = functional.cross_entropy(logits_NC.float(), self.categories[products_N].to(device))
                attributes = self.network["attributes"](unit_ND.float(), products_N)
                yield loss + self.config.category_weight * category + self.config.attribute_weight * attributes

    def figures(self, device: torch.device) -> dict[str, float]:
        """Recall@1 and @5 of the true product, and category accuracy, from the true boxes of held-out street scenes.

        A query's score for a product is its best cosine over the product's shop photos and plain crops, as in an index
        that holds crop 0 and the detected crop of each photo.
        """
        unit_ND, logits_NC = embed(self.shipped(), self.held_out, self.config.input_px[-1], device)
        products_N = torch.from_numpy(self.held_out.products_N)
        street = torch.from_numpy(self.held_out.domains_N == STREET)
        scores = unit_ND[street] @ unit_ND[~street].T
        shown = products_N[~street]
        best = torch.stack([scores[:, shown == row].amax(1) for row in range(len(self.held_out.products))], 1)
        true = products_N[street]
        rank = (best > best.gather(1, true[:, None])).sum(1)
        true_category = torch.tensor([self.labels.index(self.held_out.products[row].category) for row in true.tolist()])
        return {
            "recall_at_1": float((rank < 1).float().mean()),
            "recall_at_5": float((rank < 5).float().mean()),
            "category_accuracy": float((logits_NC[street].argmax(1) == true_category).float().mean()),
            "num_queries": float(street.sum()),
        }


@torch.inference_mode()
def embed(net: nn.Module, crops: CropSet, size_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit embeddings (N, D) and category logits (N, C) of all crops, as they are, on the CPU."""
    parts = []
    for rows in np.array_split(np.arange(len(crops.tiles_NTT3)), -(-len(crops.tiles_NTT3) // EVALUATE_BATCH)):
        tiles_N3TT, boxes_N4 = tensors(crops, rows, device)
        parts.append([part.cpu() for part in net(normalized(letterbox(tiles_N3TT, padded(boxes_N4), size_px)))])
    return torch.cat([unit for unit, _ in parts]), torch.cat([logits for _, logits in parts])


def tensors(crops: CropSet, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tiles (N, 3, T, T) in 0..1 and boxes (N, 4) of some rows."""
    tiles = torch.from_numpy(crops.tiles_NTT3[rows]).to(device).permute(0, 3, 1, 2).float() / 255
    return tiles, torch.from_numpy(crops.boxes_N4[rows]).to(device)


def normalized(images_N3SS: Tensor) -> Tensor:
    """Images in 0..1 as the encoder's Preprocess gives them to the network."""
    mean, std = (
        torch.tensor(values, device=images_N3SS.device).view(3, 1, 1) for values in (Preprocess().mean, Preprocess().std)
    )
    return ((images_N3SS - mean) / std).contiguous(memory_format=torch.channels_last)
