"""Real photos beside the project: settings of a store that holds them, and how a catalog photo comes back to a shop."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image


def mobilenet(weights: Path) -> dict[str, Any]:
    """The bundle section: nearly the whole photo (240 px cut to 224), through ImageNet's MobileNetV2 as it was published."""
    return {
        "name": "mobilenet-v2-imagenet",
        "encoder": {
            "kind": "torchvision",
            "arch": "mobilenet_v2",
            "weights": str(weights / "mobilenet_v2_imagenet_fp16.safetensors"),
            "tf_same_padding": True,
            "preprocess": {"size_px": 224, "resize_px": 240, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        },
    }


def grocery_sections(data: Path, weights: Path) -> dict[str, Any]:
    """The 81 catalog photos of grocery-store; its 296 val photos are the queries."""
    manifest = str(data / "grocery-store" / "manifest.jsonl")
    return {
        "bundle": mobilenet(weights),
        "feed": {"uri": manifest, "columns": {"image_uri": "path", "category": "category_path"}, "where": {"domain": "catalog"}},
        "evaluate": {"queries": manifest, "queries_where": {"split": "val"}, "num_queries": 81},
    }


def luma_sections(data: Path, weights: Path) -> dict[str, Any]:
    """The 547 photos of luma-catalog."""
    return {
        "bundle": mobilenet(weights),
        "feed": {
            "uri": str(data / "luma-catalog" / "manifest.jsonl"),
            "columns": {"image_uri": "path", "category": "category_path"},
            "defaults": {"currency": "USD"},
        },
    }


def luma_products(data: Path) -> list[dict[str, Any]]:
    """Its 354 products with all their photos, a row each; photos as URIs."""
    products: dict[str, dict[str, Any]] = {}
    folder = data / "luma-catalog"
    for row in manifest_rows(folder):
        own = {name: row[name] for name in ("product_id", "group_id", "title", "description", "color", "price")}
        product = products.setdefault(
            row["product_id"], own | {"category": row["category_path"], "currency": "USD", "image_uris": []}
        )
        product["image_uris"].append((folder / row["path"]).absolute().as_uri())
    return list(products.values())


def manifest_rows(folder: Path, step: int = 1) -> list[dict[str, Any]]:
    """Every `step`-th row of a data set's manifest."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()][::step]


def re_uploads(photo: Path) -> dict[str, bytes]:
    """The photo as it comes back to a shop: compressed again, smaller, mirrored, turned."""
    picture = Image.open(photo).convert("RGB")
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    turns = {"90": Image.Transpose.ROTATE_90, "180": Image.Transpose.ROTATE_180, "270": Image.Transpose.ROTATE_270}
    versions = {"jpeg60": picture, "half": half, "mirror": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    versions |= {f"turn{name}": picture.transpose(turn) for name, turn in turns.items()}
    encoded = {}
    for name, version in versions.items():
        buffer = io.BytesIO()
        version.save(buffer, "JPEG", quality=60 if name == "jpeg60" else 90)
        encoded[name] = buffer.getvalue()
    return encoded
