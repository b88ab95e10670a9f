"""Post-training quantisation: a torch module as INT8 files, calibrated on photos.

The ONNX file (QDQ: each layer's inputs are quantised and dequantised in the graph) serves all engines: OpenVINO and ONNX Runtime
on the server, onnxruntime-web in a browser; it is the nearer one to float32. NNCF's file is OpenVINO's own, and the faster one
for transformers, whose attention it quantises too (ViT-B/32 in batches: 12.7 ms an image against 19.0). jobs.quantize_bundle
measures both on the bundle at hand, tests/bench/bench_encoders.py on public networks.

Letters: N images, S side of the network's input in pixels.
"""

import contextlib
import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

INPUT_NAME = "images"
OPSET = 17  # of ONNX: the first with LayerNormalization as one node; onnxruntime-web runs it
# In a transformer all else stays in float32: sums and norms in INT8 took ViT-B/32 from cosine 0.999 to 0.93, and cost time.
TRANSFORMER_OPS = ("Conv", "Gemm", "MatMul")


def export_onnx(module: "torch.nn.Module", example_shape: tuple[int, ...], outputs: Sequence[str], path: Path) -> None:
    """Writes `module` in float32: input "images" of `example_shape`, of any batch, and one output a name of `outputs`."""
    import torch

    from serve.vision.attention import write_out_attention

    module = write_out_attention(copy.deepcopy(module)).eval()
    axes = {name: {0: "batch"} for name in (INPUT_NAME, *outputs)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about itself, and about the shapes that are fixed on purpose
        torch.onnx.export(
            module, (torch.zeros(example_shape),), path, input_names=[INPUT_NAME], output_names=list(outputs),
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip


def quantize_onnx(source: Path, batches: Iterable[np.ndarray], target: Path, ops: Sequence[str] | None = None) -> None:
    """Writes the float32 network `source` in INT8: weights by channel, layers' inputs in the range they have in `batches`.

    `batches`: (N, 3, S, S) float32 preprocessed photos, as the network will see them. `ops`: kinds of ONNX nodes that are
    quantised; none = all that can be, or TRANSFORMER_OPS.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Photos(CalibrationDataReader):  # type: ignore[misc]
        """The batches, one after the other."""

        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {input_name: batch}

    with tempfile.TemporaryDirectory() as temp:
        folded = Path(temp) / "folded.onnx"
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        graph = onnx.load(folded).graph
        input_name = graph.input[0].name
        is_transformer = any(node.op_type == "LayerNormalization" for node in graph.node)
        quantize_static(
            folded, target, Photos(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=ops or (TRANSFORMER_OPS if is_transformer else None),
        )  # fmt: skip


def quantize_openvino(
    module: "torch.nn.Module", example_shape: tuple[int, ...], batches: Sequence[np.ndarray], target: Path
) -> None:
    """Writes `module` in INT8 as OpenVINO's own `target` (.xml, with a .bin beside it), by NNCF: SmoothQuant for transformers."""
    import nncf
    import openvino

    from serve.vision.runtime import converted

    nncf.set_log_level(logging.ERROR)
    model = converted(module, example_shape, (0,))
    is_transformer = any("Attention" in type(layer).__name__ for layer in module.modules())
    with contextlib.redirect_stdout(sys.stderr):  # where its progress belongs
        quantised = nncf.quantize(
            model, nncf.Dataset(batches), preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        )  # fmt: skip
    openvino.save_model(quantised, target, compress_to_fp16=False)
