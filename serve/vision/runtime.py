"""What runs a network: OpenVINO in float32 on the CPU, torch on CUDA.

On the CPU a torch module is converted once per machine to OpenVINO's format and kept in `cache`: opening it again takes 0.2 s
and never imports torch (measured: 1.0 s against 12.8 s from the start of the process to the first MobileNetV2 vector). A run is
cut into runs of CPU_BATCH, and each image's result is the same in every batch.

A Network may be called from several threads; runs are serialised by a lock.
"""

import logging
import shutil
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino

from serve.vision.spec import BundleError, RuntimeConfig

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CACHE_VERSION = 1  # of what this file writes
CPU_BATCH = 8  # measured, MobileNetV2 on one thread: 5.6 ms an image alone, 6.6 in eights, 7.8 in 32 (the caches overflow)
CUDA_BATCH = 256  # bounds the memory of one run


class DeviceError(RuntimeError):
    """A device that was asked for and is not there."""


class Network(ABC):
    """Inference: one float32 array in, rows first; arrays out, rows first."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.lock = threading.Lock()

    def run(self, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs for `inputs`, of at least one row, computed `batch` rows at a time."""
        with self.lock:
            outputs = [self.infer(inputs[start : start + self.batch]) for start in range(0, len(inputs), self.batch)]
        return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))

    @abstractmethod
    def infer(self, inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of one batch."""


def torch_network(
    build: Callable[[], "torch.nn.Module"],
    example_shape: tuple[int, ...],
    dynamic: tuple[int, ...],
    cache: Path,
    runtime: RuntimeConfig,
    *,
    half: bool = True,
) -> Network:
    """The module that `build` makes, ready to run; `build` is called only where the conversion is not in `cache` yet.

    `example_shape` of the input, of which the axes `dynamic` may vary (0 = the batch; without it images run one by one).
    `cache`: path of the converted network, without suffix. `half`: bf16 on CUDA. Raises DeviceError.
    """
    if runtime.device != "cpu":
        return CudaNetwork(build(), runtime, half, one_by_one=0 not in dynamic)
    cache = cache.with_name(f"{cache.name}-v{CACHE_VERSION}-openvino{openvino.__version__.split('-')[0]}")
    if not (cache / "network.xml").is_file():
        write_openvino(build(), example_shape, dynamic, cache)
    return OpenVinoNetwork(cache / "network.xml", runtime, one_by_one=0 not in dynamic)


def write_openvino(module: "torch.nn.Module", example_shape: tuple[int, ...], dynamic: tuple[int, ...], folder: Path) -> None:
    """Converts `module` and switches `folder` in with one rename; of two writers at once, the first wins."""
    import torch

    shape = tuple(-1 if axis in dynamic else size for axis, size in enumerate(example_shape))
    torch.backends.mha.set_fastpath_enabled(False)  # its fused attention cannot be converted
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about itself, and about the shapes that are fixed on purpose
        traced = torch.jit.trace(module.eval(), torch.zeros(example_shape), check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, input=[shape])
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        openvino.save_model(model, staged / "network.xml", compress_to_fp16=False)
        staged.chmod(0o755)
        try:
            staged.rename(folder)
        except OSError:
            if not (folder / "network.xml").is_file():
                raise
        log.info("converted network=%s bytes=%d", folder.name, (folder / "network.bin").stat().st_size)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


class OpenVinoNetwork(Network):
    """A network file (OpenVINO's .xml or .onnx) on `runtime.threads` CPU threads, in float32."""

    def __init__(self, path: Path, runtime: RuntimeConfig, *, one_by_one: bool) -> None:
        super().__init__(1 if one_by_one else CPU_BATCH)
        if runtime.device != "cpu":
            raise DeviceError(f"{path.name} runs on device cpu only; runtime.device={runtime.device} was asked for")
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # the default is bf16 where the CPU has it: another vector on another machine
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": runtime.threads,
            "ENABLE_CPU_PINNING": False,  # else processes side by side are all pinned to the first core
        }
        try:
            self.request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise BundleError(f"{path}: OpenVINO cannot open it: {str(error).strip().splitlines()[-1]}") from error

    def infer(self, inputs: np.ndarray) -> list[np.ndarray]:
        results: Any = self.request.infer([inputs], share_inputs=True)
        return [np.array(value) for value in results.values()]


class CudaNetwork(Network):
    """A torch module on a CUDA device; `half` runs it in bf16."""

    def __init__(self, module: "torch.nn.Module", runtime: RuntimeConfig, half: bool, *, one_by_one: bool) -> None:
        import torch

        super().__init__(1 if one_by_one else CUDA_BATCH)
        self.device, self.dtype = torch.device(runtime.device), torch.bfloat16 if half else torch.float32
        num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (self.device.index or 0) >= num_devices:
            raise DeviceError(
                f"runtime.device={runtime.device}: there are {num_devices} CUDA devices here; set runtime.device=cpu"
            )
        self.module = module.eval().requires_grad_(False).to(self.device, self.dtype)

    def infer(self, inputs: np.ndarray) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            results = self.module(torch.from_numpy(inputs).to(self.device, self.dtype))
        return [value.float().cpu().numpy() for value in results]
