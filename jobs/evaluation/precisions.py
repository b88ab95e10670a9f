"""The runtimes that a bundle's networks may have on a CPU, each measured, and the choice between them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.evaluation.fidelity import Vectors, detector_fidelity, encoder_fidelity
from jobs.evaluation.latency import fastest_ms
from serve.vision.detector import OneStageDetector, build_detector, detector_module, input_of
from serve.vision.encoder import build_encoder, build_module, output_names
from serve.vision.preprocess import network_input
from serve.vision.quantize import export_onnx, quantize_onnx, quantize_openvino
from serve.vision.spec import BoxFidelity, CpuRuntime, DetectorConfig, EncoderConfig, Fidelity, Preprocess, RuntimeConfig

if TYPE_CHECKING:
    import torch

ONE_THREAD = RuntimeConfig(threads=1)
EAGER = "torch eager"
BATCHES = (1, 32)
CALIBRATED_AT_ONCE = 8  # photos
ENCODER_ONNX, ENCODER_XML, DETECTOR_ONNX = "encoder.int8.onnx", "encoder.int8.xml", "detector.int8.onnx"
ENCODER_RUNTIMES = {
    "openvino f32": CpuRuntime(),
    "openvino bf16": CpuRuntime(precision="bf16"),
    "openvino int8 qdq": CpuRuntime(precision="int8", network=ENCODER_ONNX),
    "openvino int8 nncf": CpuRuntime(precision="int8", network=ENCODER_XML),
    "openvino int8_bf16 nncf": CpuRuntime(precision="int8_bf16", network=ENCODER_XML),
    "onnxruntime int8": CpuRuntime(engine="onnxruntime", precision="int8", network=ENCODER_ONNX),
}
DETECTOR_RUNTIMES = {
    "openvino f32": CpuRuntime(),
    "openvino bf16": CpuRuntime(precision="bf16"),
    "openvino int8 qdq": CpuRuntime(precision="int8", network=DETECTOR_ONNX),
    "onnxruntime int8": CpuRuntime(engine="onnxruntime", precision="int8", network=DETECTOR_ONNX),
}


@dataclass(frozen=True)
class Measured:
    """A runtime, what it costs (CPU milliseconds an image, one thread, by batch size) and the share that it loses."""

    name: str
    runtime: CpuRuntime  # with what it lost
    ms: dict[int, float]
    loss: float

    @property
    def speed(self) -> float:
        """Images a second, the geometric mean over the batch sizes: single queries and nightly runs count alike."""
        return math.exp(-sum(math.log(value / 1000) for value in self.ms.values()) / len(self.ms))


@dataclass(frozen=True)
class Choice:
    """What was taken, among what, against torch eager (milliseconds an image by batch size; none where torch can't run it)."""

    best: Measured
    candidates: list[Measured]
    eager_ms: dict[int, float] | None

    @property
    def speedup(self) -> dict[int, float] | None:
        """Times as fast as torch eager, by batch size."""
        return self.eager_ms and {batch: round(self.eager_ms[batch] / ms, 2) for batch, ms in self.best.ms.items()}

    def details(self) -> dict[str, Any]:
        """Every candidate, for JSON."""
        return {
            "chosen": self.best.name,
            "speedup": self.speedup,
            "torch_eager_ms": self.eager_ms,
            "candidates": {
                one.name: {"ms": one.ms, "loss": round(one.loss, 4), "lost": one.runtime.lost and one.runtime.lost.model_dump()}
                for one in self.candidates
            },
        }


def choose(measured: list[Measured], eager_ms: dict[int, float] | None, max_loss: float) -> Choice:
    """The fastest one that loses at most `max_loss`; float32 loses nothing."""
    best = max((one for one in measured if one.loss <= max_loss), key=lambda one: one.speed)
    return Choice(best, measured, eager_ms)


def write_encoders(spec: EncoderConfig, folder: Path, crops: Sequence[np.ndarray]) -> None:
    """ENCODER_ONNX and ENCODER_XML in `folder`, which holds the encoder's weights, calibrated on (H, W, 3) uint8 `crops`."""
    module, size_px = build_module(spec, folder), spec.preprocess.size_px
    batches, shape = calibration_batches(crops, spec.preprocess), (2, 3, size_px, size_px)
    export_onnx(module, shape, output_names(spec), folder / "encoder.f32.onnx")
    quantize_onnx(folder / "encoder.f32.onnx", batches, folder / ENCODER_ONNX)
    quantize_openvino(module, shape, batches, folder / ENCODER_XML)


def write_detector(spec: DetectorConfig, folder: Path, images: Sequence[np.ndarray]) -> None:
    """DETECTOR_ONNX in `folder`, which holds the detector's weights; its boxes are worked out in float32."""
    assert spec.weights is not None
    preprocess, source = input_of(spec), folder / spec.weights
    if spec.kind != "onnx_yolox":
        source = folder / "detector.f32.onnx"
        export_onnx(detector_module(spec, folder), (2, 3, preprocess.size_px, preprocess.size_px), ("boxes", "scores"), source)
    quantize_onnx(source, calibration_batches(images, preprocess, spec.kind == "onnx_yolox"), folder / DETECTOR_ONNX, ("Conv",))


def calibration_batches(images: Sequence[np.ndarray], preprocess: Preprocess, one_by_one: bool = False) -> list[np.ndarray]:
    """The photos as the network sees them, (N, 3, S, S) float32 each."""
    step = 1 if one_by_one else CALIBRATED_AT_ONCE
    return [network_input(images[start : start + step], preprocess) for start in range(0, len(images), step)]


def measure_encoders(
    spec: EncoderConfig,
    folder: Path,
    cache: Path,
    catalog: Sequence[np.ndarray],
    queries: Sequence[np.ndarray],
    products_N: np.ndarray,
    asked_Q: np.ndarray,
    seconds: float,
    max_loss: float,
) -> Choice:
    """The runtime of the encoder in `folder`; crops are (H, W, 3) uint8. See Vectors, Fidelity for the rest."""
    encoders = {
        name: build_encoder(spec.model_copy(update={"runtime": runtime}), folder, ONE_THREAD, cache)
        for name, runtime in ENCODER_RUNTIMES.items()
    }
    vectors = {name: Vectors(encoder.encode(catalog)[0], encoder.encode(queries)[0]) for name, encoder in encoders.items()}
    exact = vectors["openvino f32"]
    lost = {name: encoder_fidelity(exact, other, products_N, asked_Q) for name, other in vectors.items()}
    runs: dict[str, Callable[[np.ndarray], object]] = {name: encoder.network.run for name, encoder in encoders.items()}
    ms = timed(
        runs | {EAGER: eager(build_module(spec, folder))}, network_input(catalog[: max(BATCHES)], spec.preprocess), seconds
    )
    measured = [
        Measured(name, with_loss(runtime, lost[name]), ms[name], recall_loss(lost[name]))
        for name, runtime in ENCODER_RUNTIMES.items()
    ]
    return choose(measured, ms[EAGER], max_loss)


def measure_detectors(
    spec: DetectorConfig, folder: Path, cache: Path, images: Sequence[np.ndarray], seconds: float, max_loss: float
) -> Choice:
    """The runtime of the one-stage detector in `folder`."""
    detectors: dict[str, OneStageDetector] = {}
    for name, runtime in DETECTOR_RUNTIMES.items():
        detector = build_detector(spec.model_copy(update={"runtime": runtime}), folder, ONE_THREAD, cache)
        assert isinstance(detector, OneStageDetector), "others are not measured"
        detectors[name] = detector
    found = {name: [detector.detect([image])[0] for image in images] for name, detector in detectors.items()}
    lost = {name: detector_fidelity(found["openvino f32"], other) for name, other in found.items()}
    runs: dict[str, Callable[[np.ndarray], object]] = {name: detector.network.run for name, detector in detectors.items()}
    if spec.kind != "onnx_yolox":
        runs[EAGER] = eager(detector_module(spec, folder))
    ms = timed(runs, network_input(images[: max(BATCHES)], input_of(spec)), seconds)
    measured = [
        Measured(name, with_loss(runtime, lost[name]), ms[name], max(1 - lost[name].found_frac, lost[name].extra_frac))
        for name, runtime in DETECTOR_RUNTIMES.items()
    ]
    return choose(measured, ms.get(EAGER), max_loss)


def timed(runs: dict[str, Callable[[np.ndarray], object]], inputs: np.ndarray, seconds: float) -> dict[str, dict[int, float]]:
    """Milliseconds an image of each run at each batch size; photos are repeated where there are too few."""
    by_batch = {batch: fastest_ms(runs, np.resize(inputs, (batch, *inputs.shape[1:])), seconds) for batch in BATCHES}
    return {name: {batch: ms[name] for batch, ms in by_batch.items()} for name in runs}


def eager(module: "torch.nn.Module") -> Callable[[np.ndarray], object]:
    """One run of a torch module on the CPU, in float32, as it is, on one thread."""
    import torch

    module = module.eval()

    def run(inputs: np.ndarray) -> object:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return module(torch.from_numpy(inputs))

    return run


def with_loss(runtime: CpuRuntime, lost: Fidelity | BoxFidelity) -> CpuRuntime:
    """`runtime`, which says what it lost; float32 is what the others are measured against, and says nothing."""
    return runtime if runtime == CpuRuntime() else runtime.model_copy(update={"lost": lost})


def recall_loss(lost: Fidelity) -> float:
    """Share of Recall@1; of nearest neighbours where no right products are known."""
    change = lost.recall_at_1_change
    return 1 - lost.same_neighbour_frac if change is None else max(0.0, -change)
