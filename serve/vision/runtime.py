"""What runs a network: on the CPU OpenVINO or ONNX Runtime, in the precision that the bundle names; torch in bf16 on CUDA.

In float32 and bf16 a torch module is converted once per machine to OpenVINO's format and kept in `cache`: opening it again takes
0.3 s and never imports torch (measured: 1.0 s against 12.8 s from the start of the process to the first MobileNetV2 vector). In
int8 the bundle holds the network as an ONNX file (see quantize). A run is cut into batches (see fixed_batches), and each image's
result is the same in every batch.

A Network may be called from several threads; runs are serialised by a lock.
"""

import copy
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

from serve.vision.spec import BundleError, CpuRuntime, RuntimeConfig

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CACHE_VERSION = 2  # of what this file writes
CPU_BATCH = 8  # measured, MobileNetV2 on one thread: 5.6 ms an image alone, 6.6 in eights, 7.8 in 32 (the caches overflow)
INT8_BATCH = 16  # measured, ViT-B/32 on one thread: 12.9 ms an image in eights, 11.6 in 16, 14.1 in 32
CUDA_BATCH = 256  # bounds the memory of one run
MAX_BYTES_BY_BATCH = 32_000_000  # of the file; a larger network is compiled once, for any batch


class DeviceError(RuntimeError):
    """A device that was asked for and is not there."""


class Network(ABC):
    """Inference: one float32 array in, rows first; arrays out, rows first."""

    def __init__(self, *batches: int) -> None:
        """`batches`: how many rows are run at once, largest first; what is left is run in smaller ones, at last as it is."""
        self.batches = batches
        self.lock = threading.Lock()

    def run(self, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs for `inputs`, of at least one row, computed a batch at a time."""
        outputs, start = [], 0
        with self.lock:
            while left := len(inputs) - start:
                rows = next((batch for batch in self.batches if batch <= left), left)
                outputs.append(self.infer(inputs[start : start + rows]))
                start += rows
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
    cpu: CpuRuntime,
    folder: Path,
    half: bool = True,
) -> Network:
    """The module that `build` makes, ready to run; `build` is called only where its network is not in a file yet.

    `example_shape` of the input, of which the axes `dynamic` may vary (0 = the batch; without it images run one by one).
    `cache`: path of the converted network, without suffix. `cpu`: engine, precision and, in int8, the file in `folder`, the
    bundle's. `half`: compiled and in bf16 on CUDA. Raises DeviceError.
    """
    one_by_one = 0 not in dynamic
    if runtime.device != "cpu":
        return CudaNetwork(build(), runtime, half, one_by_one=one_by_one)
    if cpu.network is not None:
        return file_network(folder / cpu.network, cpu, runtime, one_by_one=one_by_one)
    cache = cache.with_name(f"{cache.name}-v{CACHE_VERSION}-openvino{openvino.__version__.split('-')[0]}")
    if not (cache / "network.xml").is_file():
        write_openvino(build(), example_shape, dynamic, cache)
    return file_network(cache / "network.xml", cpu, runtime, one_by_one=one_by_one)


def file_network(path: Path, cpu: CpuRuntime, runtime: RuntimeConfig, *, one_by_one: bool) -> Network:
    """A network file on the CPU, by the engine and in the precision of `cpu`. Raises BundleError, DeviceError."""
    if runtime.device != "cpu":
        raise DeviceError(f"{path.name} runs on device cpu only; runtime.device={runtime.device} was asked for")
    batch = 1 if one_by_one else CPU_BATCH if cpu.network is None else INT8_BATCH
    if cpu.engine == "onnxruntime":
        return OnnxRuntimeNetwork(path, runtime.threads, batch)
    return OpenVinoNetwork(path, "bf16" if cpu.precision.endswith("bf16") else "f32", runtime.threads, batch)


def converted(module: "torch.nn.Module", example_shape: tuple[int, ...], dynamic: tuple[int, ...]) -> openvino.Model:
    """A torch module as OpenVINO's model, in float32."""
    import torch

    from serve.vision.attention import write_out_attention

    shape = tuple(-1 if axis in dynamic else size for axis, size in enumerate(example_shape))
    module = write_out_attention(copy.deepcopy(module)).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about itself, and about the shapes that are fixed on purpose
        traced = torch.jit.trace(module, torch.zeros(example_shape), check_trace=False)  # type: ignore[no-untyped-call]
        return openvino.convert_model(traced, input=[shape])


def write_openvino(module: "torch.nn.Module", example_shape: tuple[int, ...], dynamic: tuple[int, ...], folder: Path) -> None:
    """Converts `module` and switches `folder` in with one rename; of two writers at once, the first wins."""
    model = converted(module, example_shape, dynamic)
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
    """A network file (OpenVINO's .xml or .onnx); `precision` "f32" or "bf16" of what is not quantised in the file."""

    def __init__(self, path: Path, precision: str, threads: int, batch: int) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": precision,  # the default depends on the CPU: another vector on another machine
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # else processes side by side are all pinned to the first core
        }
        core = openvino.Core()
        try:
            model = core.read_model(path)
            batches = fixed_batches(model, path, batch)
            self.any_batch = None if batches else core.compile_model(model, "CPU", settings).create_infer_request()
            self.by_batch = {}
            for rows in batches:
                model.reshape([rows, *model.input(0).partial_shape[1:]])
                self.by_batch[rows] = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise BundleError(f"{path}: OpenVINO cannot open it: {str(error).strip().splitlines()[-1]}") from error
        super().__init__(*(batches or (batch,)))

    def infer(self, inputs: np.ndarray) -> list[np.ndarray]:
        request = self.any_batch or self.by_batch[len(inputs)]
        results: Any = request.infer([inputs], share_inputs=True)
        return [np.array(value) for value in results.values()]


def fixed_batches(model: openvino.Model, path: Path, most: int) -> tuple[int, ...]:
    """The batches that a network is compiled for, largest first: `most` and its halves; none where it takes one of any size.

    A network for any batch is prepared anew whenever another one comes than the last. Measured, MobileNetV3-small at 176 px on
    one thread: batches of 5, 3, 7 and 4 in 16.4 instead of 21.6 ms, 8 and 1 in 5.7 instead of 10.0; for 63 instead of 14 MB, and
    0.3 instead of 0.1 s to open it.
    """
    rows, *others = model.input(0).partial_shape
    weights = path.with_suffix(".bin") if path.suffix == ".xml" else path
    is_small = weights.stat().st_size <= MAX_BYTES_BY_BATCH
    if not rows.is_dynamic or any(axis.is_dynamic for axis in others) or not is_small:
        return ()
    return tuple(most >> halvings for halvings in range(most.bit_length()))


class OnnxRuntimeNetwork(Network):
    """An ONNX file in ONNX Runtime: the portable engine."""

    def __init__(self, path: Path, threads: int, batch: int) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile
        except ModuleNotFoundError as error:
            raise BundleError(f"{path}: its bundle names the engine onnxruntime, which is not installed here") from error
        super().__init__(batch)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
            raise BundleError(f"{path}: ONNX Runtime cannot open it: {str(error).strip().splitlines()[-1]}") from error
        self.input_name = self.session.get_inputs()[0].name

    def infer(self, inputs: np.ndarray) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session.run(None, {self.input_name: inputs})
        return outputs


class CudaNetwork(Network):
    """A torch module on a CUDA device; `half` runs it in bf16 and, with `runtime.compile`, compiled."""

    def __init__(self, module: "torch.nn.Module", runtime: RuntimeConfig, half: bool, *, one_by_one: bool) -> None:
        import torch

        super().__init__(1 if one_by_one else CUDA_BATCH)
        self.device, self.dtype = torch.device(runtime.device), torch.bfloat16 if half else torch.float32
        num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (self.device.index or 0) >= num_devices:
            raise DeviceError(
                f"runtime.device={runtime.device}: there are {num_devices} CUDA devices here; set runtime.device=cpu"
            )
        module = module.eval().requires_grad_(False).to(self.device, self.dtype)
        self.module: Callable[..., Any] = torch.compile(module, dynamic=True) if half and runtime.compile else module

    def infer(self, inputs: np.ndarray) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            results = self.module(torch.from_numpy(inputs).to(self.device, self.dtype))
        return [value.float().cpu().numpy() for value in results]
