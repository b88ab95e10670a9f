"""INT8 networks: near to float32 on every engine, part of the bundle, and clear errors for what does not fit.

On the shipped encoder, for a random network's layers have wilder ranges than trained ones.
"""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from jobs.render.products import make_products
from jobs.render.studio import studio_photo
from serve.vision.bundle import Bundle, BundleConfig, assemble_bundle, bundle_digest
from serve.vision.bundle_files import read_config
from serve.vision.encoder import build_encoder, build_module, output_names
from serve.vision.preprocess import network_input
from serve.vision.quantize import export_onnx, quantize_onnx
from serve.vision.runtime import CPU_BATCH, DeviceError
from serve.vision.spec import BundleError, CpuRuntime, EncoderConfig, RuntimeConfig

CPU = RuntimeConfig()
INT8 = CpuRuntime(precision="int8", network="encoder.int8.onnx")


SHIPPED = Path(__file__).parents[2] / "serve" / "bundles" / "generated-v1"


def pictures(count: int) -> list[np.ndarray]:
    """Studio photos of generated products, the same every time: INT8 is calibrated on what is to be seen, as in a catalog."""
    return [studio_photo(product, 0, 160) for product in make_products(count, 3)]


def named(runtime: CpuRuntime | None = None) -> EncoderConfig:
    """The shipped encoder on another runtime."""
    encoder = read_config(SHIPPED).encoder
    assert encoder is not None
    return encoder.model_copy(update={"runtime": runtime or CpuRuntime(), "browser": None})


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped encoder's weights and an INT8 network of them."""
    folder, encoder = tmp_path_factory.mktemp("quantised"), named()
    assert encoder.weights is not None
    (folder / encoder.weights).write_bytes((SHIPPED / encoder.weights).read_bytes())
    inputs = network_input(pictures(32), encoder.preprocess)
    export_onnx(build_module(encoder, folder), (2, *inputs.shape[1:]), output_names(encoder), folder / "encoder.onnx")
    quantize_onnx(folder / "encoder.onnx", np.split(inputs, 4), folder / "encoder.int8.onnx")
    return folder


def cosines(folder: Path, runtime: CpuRuntime, cache: Path) -> np.ndarray:
    """Of photos that were not calibrated on, with their float32 vectors."""
    crops = pictures(48)[32:]
    exact = build_encoder(named(), folder, CPU, cache).encode(crops)[0]
    vectors, probabilities = build_encoder(named(runtime), folder, CPU, cache).encode(crops)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert probabilities is not None and probabilities.sum(axis=1) == pytest.approx(1, abs=0.02)
    near: np.ndarray = (exact * vectors).sum(axis=1)
    return near


@pytest.mark.parametrize(
    ("runtime", "floor"),
    [
        (CpuRuntime(precision="bf16"), 0.999),
        (INT8, 0.99),
        (INT8.model_copy(update={"engine": "onnxruntime"}), 0.99),
    ],
)
def test_every_runtime_is_near_to_float32(quantised: Path, tmp_path: Path, runtime: CpuRuntime, floor: float) -> None:
    near = cosines(quantised, runtime, tmp_path)
    assert floor < near.mean() < 1 - 1e-6  # and it is not float32 that ran


def test_int8_is_a_quarter_and_does_not_depend_on_the_batch(quantised: Path, tmp_path: Path) -> None:
    sizes = [(quantised / name).stat().st_size for name in ("encoder.onnx", "encoder.int8.onnx")]
    assert sizes[1] < 0.35 * sizes[0]
    encoder = build_encoder(named(INT8), quantised, CPU, tmp_path)
    crops = pictures(CPU_BATCH + 3)
    together = encoder.encode(crops)[0]
    assert np.abs(together - np.concatenate([encoder.encode([crop])[0] for crop in crops])).max() < 1e-5
    assert list(tmp_path.iterdir()) == []  # nothing is converted: the bundle holds the network


def test_the_network_is_part_of_the_bundle(quantised: Path, tmp_path: Path) -> None:
    config = BundleConfig(name="small", encoder=named(INT8))
    (quantised / "bundle.json").write_text(config.model_dump_json())
    folder = assemble_bundle(BundleConfig(path=str(quantised)), tmp_path / "store")
    assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "encoder.int8.onnx", "encoder.safetensors"]
    assert Bundle.load(folder, CPU).dim == 128
    before = bundle_digest(quantised)
    data = (quantised / "encoder.int8.onnx").read_bytes()
    (quantised / "encoder.int8.onnx").write_bytes(data + b"\0")
    assert bundle_digest(quantised) != before
    (quantised / "encoder.int8.onnx").unlink()
    with pytest.raises(BundleError, match=r"encoder\.int8\.onnx that bundle\.json names are missing"):
        bundle_digest(quantised)
    (quantised / "encoder.int8.onnx").write_bytes(data)


def test_parts_cannot_name_an_int8_network(small_config: BundleConfig, tmp_path: Path) -> None:
    assert small_config.encoder is not None
    int8 = small_config.encoder.model_copy(update={"runtime": INT8})
    with pytest.raises(BundleError, match=r"made by jobs\.quantize_bundle"):
        assemble_bundle(small_config.model_copy(update={"encoder": int8}), tmp_path)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_damaged_network_is_named(quantised: Path, tmp_path: Path, engine: str) -> None:
    for name, size in (("encoder.safetensors", None), ("encoder.int8.onnx", 1000)):
        (tmp_path / name).write_bytes((quantised / name).read_bytes()[:size])
    runtime = INT8.model_copy(update={"engine": engine})
    with pytest.raises(BundleError, match=r"encoder\.int8\.onnx: (OpenVINO|ONNX Runtime) cannot open it") as caught:
        build_encoder(named(runtime), tmp_path, CPU, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "int8"}, "comes with the file `network`"),
        ({"network": "encoder.int8.onnx"}, "comes with the file `network`"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "engine onnxruntime runs int8 only"),
    ],
)
def test_runtimes_that_cannot_be(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CpuRuntime.model_validate(fields)


def test_cuda_runs_the_weights(quantised: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"runtime.device=cuda:9.*set runtime.device=cpu"):
        build_encoder(named(INT8), quantised, RuntimeConfig(device="cuda:9"), tmp_path)
