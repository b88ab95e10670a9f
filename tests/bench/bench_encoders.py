"""Encoders on one CPU thread: every runtime that jobs.quantize_bundle may choose, side by side with torch eager fp32.

    python -m tests.bench.bench_encoders [--arch resnet50 ...] [--seconds 5] [--out FILE]

Random weights (speed does not depend on them), inputs of 224 px, milliseconds of CPU time an image in the least disturbed run.
What INT8 loses is measured with trained weights: MobileNetV2 of ImageNet on grocery photos beside the project, else left out.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from jobs.evaluation.precisions import BATCHES, ENCODER_RUNTIMES, Choice, measure_encoders, write_encoders
from serve.vision.backbones import EmbeddingNet
from serve.vision.image import decode_image
from serve.vision.preprocess import network_input
from serve.vision.spec import DecodeLimits, EncoderConfig, Preprocess
from tests.bench.record import RESULTS, record
from tests.parts import ROOT
from tests.photos import manifest_rows, mobilenet
from tests.vision.conftest import settle_norms

ARCHS = ("resnet50", "vit_b_32", "mobilenet_v2", "efficientnet_b0")
NUM_PHOTOS = 32
TARGETS = {"resnet50": {1: 7, 32: 7}, "vit_b_32": {1: 7, 32: 7}, "mobilenet_v2": {1: 3, 32: 7}, "efficientnet_b0": {1: 3, 32: 7}}


def photos(count: int) -> list[np.ndarray]:
    """Blots of colour, (224, 224, 3) uint8."""
    random = np.random.default_rng(5)
    return [np.kron(random.integers(0, 255, (14, 14, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(count)]


def speeds(arch: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Milliseconds and speed-up of every runtime."""
    torch.manual_seed(1)
    net, preprocess = EmbeddingNet(arch, None, 0), Preprocess(size_px=224, resize="squash")
    crops = photos(NUM_PHOTOS)
    settle_norms(net, lambda: net(torch.from_numpy(network_input(crops[:8], preprocess))))
    save_file(net.state_dict(), folder / "net.safetensors")
    spec = EncoderConfig(kind="torchvision", arch=arch, weights="net.safetensors", preprocess=preprocess)
    write_encoders(spec, folder, crops)
    nobody = np.empty(0, np.int64)
    choice = measure_encoders(spec, folder, folder / "networks", crops, [], np.arange(NUM_PHOTOS), nobody, seconds, 1.0)
    return figures_of(choice)


def figures_of(choice: Choice) -> dict[str, Any]:
    """What is kept: eager milliseconds, and each runtime's with its factor."""
    assert choice.eager_ms is not None
    return {
        "torch_eager_ms": choice.eager_ms,
        "runtimes": {
            one.name: {f"batch_{n}": {"ms": one.ms[n], "times": round(choice.eager_ms[n] / one.ms[n], 2)} for n in BATCHES}
            for one in choice.candidates
        },
    }


def losses(data: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """MobileNetV2 of ImageNet on all catalog photos and the val photos of grocery-store: speed, and what each runtime loses."""
    parts = mobilenet(data.parent / "weights")["encoder"]
    spec = EncoderConfig.model_validate(parts | {"weights": "net.safetensors"})
    (folder / "net.safetensors").write_bytes(Path(parts["weights"]).read_bytes())
    shop = data / "grocery-store"
    rows = manifest_rows(shop)
    catalog = [row for row in rows if row["domain"] == "catalog"]
    asked = [row for row in rows if row["split"] == "val"]
    number = {row["product_id"]: place for place, row in enumerate(catalog)}
    pixels = {row["path"]: decode_image((shop / row["path"]).read_bytes(), DecodeLimits()) for row in (*catalog, *asked)}
    crops, queries = ([pixels[row["path"]] for row in side] for side in (catalog, asked))
    write_encoders(spec, folder, crops)
    asked_Q = np.array([number[row["product_id"]] for row in asked])
    choice = measure_encoders(spec, folder, folder / "networks", crops, queries, np.arange(len(crops)), asked_Q, seconds, 0.01)
    return figures_of(choice) | {"chosen": choice.best.name, "candidates": choice.details()["candidates"]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored: the networks are public ones")
    parser.add_argument("--arch", nargs="+", default=ARCHS, choices=ARCHS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring, for each network and batch size")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    figures: dict[str, Any] = {"targets_times_eager": TARGETS}
    for arch in args.arch:
        with tempfile.TemporaryDirectory() as temp:
            figures[arch] = speeds(arch, args.seconds, Path(temp))
        for name in ENCODER_RUNTIMES:
            times = [figures[arch]["runtimes"][name][f"batch_{n}"]["times"] for n in BATCHES]
            sys.stdout.write(f"{arch:16s} {name:26s} {times[0]:6.2f}x {times[1]:6.2f}x\n")
            sys.stdout.flush()
    data = Path(os.environ.get("VS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if data.is_dir():
        with tempfile.TemporaryDirectory() as temp:
            figures["mobilenet_v2 of ImageNet, grocery-store"] = losses(data, Path(temp), args.seconds)
    path = record("encoders", figures, ("torch", "openvino", "onnxruntime", "nncf"), args.out or RESULTS / "encoders.json")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
