"""Post-training quantisation: a torch module as a float32 ONNX file, and that as INT8, calibrated on photos.

One INT8 file (QDQ: each layer's inputs are quantised and dequantised in the graph) serves all engines: OpenVINO and ONNX Runtime
on the server, onnxruntime-web in a browser. Measured against NNCF's INT8, calibrated on the same photos: nearer to float32 (mean
cosine 0.997, not 0.994, on MobileNetV2; 0.9990, not 0.9970, on ViT-B/32) and as fast in OpenVINO or faster (MobileNetV2 3.3 ms
an image, not 5.9).

Letters: N images, S side of the network's input in pixels.
"""

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

    torch.backends.mha.set_fastpath_enabled(False)  # its fused attention cannot be exported
    axes = {name: {0: "batch"} for name in (INPUT_NAME, *outputs)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about itself, and about the shapes that are fixed on purpose
        torch.onnx.export(
            module.eval(), (torch.zeros(example_shape),), path, input_names=[INPUT_NAME], output_names=list(outputs),
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip


def quantize_onnx(source: Path, batches: Iterable[np.ndarray], target: Path) -> None:
    """Writes the float32 network `source` in INT8: weights by channel, layers' inputs in the range they have in `batches`.

    `batches`: (N, 3, S, S) float32 preprocessed photos, as the network will see them.
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
            op_types_to_quantize=TRANSFORMER_OPS if is_transformer else None,
        )  # fmt: skip
