"""What a bundle is made of, as settings: light to import, no framework behind it."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BundleError(ValueError):
    """A bundle that cannot be made or opened: what was given, what is allowed, in one line."""


class Spec(BaseModel):
    """A frozen piece of configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DecodeLimits(Spec):
    """What an image may cost before it is decoded."""

    max_bytes: int = Field(20_000_000, ge=1_000)
    max_pixels: int = Field(40_000_000, ge=1_000)
    min_side_px: int = Field(16, ge=1)
    max_side_px: int = Field(12_000, ge=16)
    max_aspect: float = Field(50.0, ge=1.0)
    max_metadata_bytes: int = Field(1_000_000, ge=0, description="EXIF, XMP, ICC; a print profile alone has 560,000")
    timeout_s: float = Field(2.0, gt=0, description="wall clock of one decode in the guarded process")
    max_memory_bytes: int = Field(2_000_000_000, ge=100_000_000, description="what one decode may add to the guarded process")


class HashConfig(Spec):
    """Targets of the hash stage. Its thresholds are calibrated when a release is built, never set by hand."""

    max_distance: int = Field(31, ge=0, le=64, description="Hamming radius that is looked up, of 256 bits")
    target_false_accept: float = Field(0.001, gt=0, lt=1, description="share of foreign photos answered as exact")


class Preprocess(Spec):
    """From an RGB crop to the network's input. Travels with the bundle."""

    size_px: int = Field(224, ge=16, le=2048, description="side of the square input")
    resize: Literal["shorter_side_crop", "squash", "pad"] = "shorter_side_crop"
    resize_px: int | None = Field(None, description="shorter side before the centre crop; none = size_px * 8 / 7")
    pad_value: int = Field(255, ge=0, le=255)
    pad_at: Literal["centre", "top_left"] = Field("centre", description="pad: where the picture lies in the square")
    filter: Literal["bilinear", "bicubic"] = Field("bilinear", description="antialiased either way")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="of the channels in the order below")
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = Field(1 / 255, gt=0, description="pixels are multiplied by this before mean and std")
    channels: Literal["rgb", "bgr"] = "rgb"


class Fidelity(Spec):
    """What an encoder lost against itself in float32, measured on photos. Recall is given where the right products are known."""

    num_photos: int = Field(ge=1)
    mean_cosine: float = Field(ge=-1, le=1.001, description="of a photo's vector with its float32 vector")
    same_neighbour_frac: float = Field(ge=0, le=1, description="photos whose nearest other photo stayed the same")
    recall_at_1_change: float | None = Field(None, description="queries and catalog in this precision")
    mixed_recall_at_1_change: float | None = Field(None, description="queries in this precision, catalog in float32")


class BoxFidelity(Spec):
    """What a detector lost against itself in float32, measured on photos."""

    num_photos: int = Field(ge=1)
    num_boxes: int = Field(ge=0, description="found in float32")
    found_frac: float = Field(ge=0, le=1, description="of them found again, at IoU 0.5 and with their label")
    extra_frac: float = Field(ge=0, description="boxes that are not among them, over num_boxes")


class CpuRuntime(Spec):
    """What runs a network on the CPU, chosen when the bundle is made, for it moves the vectors. CUDA runs the weights in bf16.

    bf16 is computed in float32 where the CPU has none.
    """

    engine: Literal["openvino", "onnxruntime"] = "openvino"
    precision: Literal["f32", "bf16", "int8", "int8_bf16"] = Field("f32", description="int8_bf16: bf16 where the file isn't int8")
    network: str | None = Field(None, description="int8: the quantised .onnx or .xml (with its .bin) in the bundle's folder")
    made_on: str | None = Field(None, description="the CPU that the choice was measured on")
    lost: Fidelity | BoxFidelity | None = Field(None, description="as jobs.quantize_bundle measured it")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.precision.startswith("int8") != (self.network is not None):
            raise ValueError("precision int8 or int8_bf16 comes with the file `network`, no other does: see jobs.quantize_bundle")
        if self.engine == "onnxruntime" and self.precision != "int8":
            raise ValueError("engine onnxruntime runs int8 only; openvino runs f32, bf16, int8 and int8_bf16")
        if self.engine == "onnxruntime" and self.network is not None and not self.network.endswith(".onnx"):
            raise ValueError(f"engine onnxruntime runs .onnx files, not {self.network}")
        return self


class BrowserNetwork(Spec):
    """The network a browser runs: an ONNX file, (N, 3, S, S) float32 preprocessed `images` -> (N, D) unit `embeddings`."""

    network: str
    lost: Fidelity


class DetectorConfig(Spec):
    """A detector by name. `none` searches the whole photo only."""

    kind: Literal["none", "torchvision", "onnx_yolox", "transformers"] = "none"
    arch: str | None = Field(
        None,
        description="torchvision: ssdlite320_mobilenet_v3_large, fasterrcnn_resnet50_fpn, ..., fcos_mobilenet_v3_small (built "
        "of its parts); transformers: owner/name of a YOLOS, RT-DETRv2 or D-FINE",
    )
    network_config: str | None = Field(None, description="transformers: the model's config.json; a download brings it")
    weights: str | None = Field(None, description="file, or a tag of the library's own download ('download' = default)")
    labels: tuple[str, ...] | Path | None = Field(
        None, description="names in output order without the background, or a file of them, one a line; none = the download's own"
    )
    keep_labels: tuple[str, ...] | None = Field(None, description="labels that count as items; none = all")
    class_agnostic: bool = Field(
        False, description="every found thing is an `item`: for catalogs of other things than the labels"
    )
    min_score: float = Field(0.3, ge=0, le=1)
    nms_iou: float = Field(0.45, ge=0, le=1, description="boxes of one label that overlap more are one box")
    merge_iou: float = Field(0.7, ge=0, le=1, description="crops that overlap more are one crop, whatever their labels")
    max_items: int = Field(8, ge=0, le=100, description="most crops beside the whole image")
    min_side_frac: float = Field(
        0.05, ge=0, le=1, description="boxes with a side below this share of the image's shorter side are dropped"
    )
    pad_frac: float = Field(0.05, ge=0, le=1, description="context added around a box before it is cropped")
    preprocess: Preprocess | None = Field(None, description="none = what the architecture was trained with")
    runtime: CpuRuntime = CpuRuntime()

    @property
    def two_stage(self) -> bool:
        """Its network takes one photo of any size and gives final boxes."""
        return self.kind == "torchvision" and (self.arch or "").startswith("fasterrcnn")


class EncoderConfig(Spec):
    """An encoder by name."""

    kind: Literal["torchvision", "open_clip", "transformers"]
    arch: str = Field(
        description="torchvision: mobilenet_v2, resnet50, vit_b_16, ...; open_clip: ViT-B-32, ...; transformers: owner/name of a "
        "SigLIP (2, of a fixed resolution), such as google/siglip2-base-patch16-224"
    )
    network_config: str | None = Field(None, description="transformers: the model's config.json; a download brings it")
    weights: str | None = Field(None, description="file, or a tag of the library's own download ('download' = default)")
    embedding_dim: int | None = Field(None, ge=8, description="of the projection; none = the penultimate layer as it is")
    tf_same_padding: bool = Field(False, description="stride-2 convolutions pad right and bottom, as TensorFlow does")
    spatial_transformer: bool = Field(False, description="a learned turn, shift and zoom before the backbone")
    pool_cells: int = Field(1, ge=1, le=7, description="cells a side of the last map that count beside its mean; 1 = it alone")
    labels: tuple[str, ...] = Field((), description="categories of the head, in output order; () = no head")
    matryoshka_dims: tuple[int, ...] = Field(
        (), description="shorter widths that its vectors were trained for (arXiv:2205.13147)"
    )
    dim: int | None = Field(None, description="width that vectors are cut to, one of matryoshka_dims; none = all numbers")
    preprocess: Preprocess = Preprocess()
    runtime: CpuRuntime = CpuRuntime()
    browser: BrowserNetwork | None = None

    @model_validator(mode="after")
    def _trained_for(self) -> Self:
        if self.dim is not None and self.dim not in self.matryoshka_dims:
            known = ", ".join(map(str, self.matryoshka_dims)) or "none"
            raise ValueError(f"dim {self.dim}: this encoder was trained for these shorter widths: {known}")
        return self


class TextConfig(Spec):
    """A text encoder whose vectors lie in the space of the encoder's. The sizes are those of a `transformer`."""

    kind: Literal["transformer", "open_clip", "transformers"] = Field(description="transformer: trained here; others: as encoder")
    weights: str | None = Field(None, description="file; none: the encoder's download serves both sides")
    tokenizer: str | None = Field(None, description="transformer, transformers: file of the `tokenizers` library")
    vocabulary: int = Field(4096, ge=16, description="tokens that the tokenizer knows")
    max_tokens: int = Field(64, ge=4, le=512, description="what a longer text says behind them is not heard")
    width: int = Field(192, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    query_weight: float = Field(0.5, ge=0, le=1, description="of the text in a query of photo and text; measured in training")


class CategoryConfig(Spec):
    """Categories from labelled neighbours beside the encoder's head; all numbers are fitted by jobs.calibrate_categories."""

    weights: str = Field(description="file of the labelled vectors (serve.vision.categories)")
    labels: tuple[str, ...] = Field(min_length=1, description="categories that the vectors' rows mean")
    neighbours: int = Field(8, ge=1, description="nearest vectors that vote")
    vote_temperature: float = Field(0.07, gt=0, description="a neighbour weighs exp(cosine / this)")
    head_weight: float = Field(0.5, ge=0, le=1, description="of the head beside the vote")
    temperature: float = Field(1.0, gt=0, description="of the fused probabilities; above 1 = less sure")
    floor: float = Field(0.01, ge=0, lt=1, description="share that is spread over all categories alike")


class QueriesConfig(Spec):
    """Photos by users that the encoder learned from, as vectors: they tell which products come up whatever is asked."""

    weights: str = Field(description="file of their vectors (serve.vision.queries); written by jobs.train_encoder")


class TurnsConfig(Spec):
    """When a photo is looked at in its other quarter turns as well, and when one of them is believed."""

    below: float = Field(ge=-1, le=1, description="a photo to whose surest items the catalog comes less near is turned (cosine)")
    lead: float = Field(0.02, ge=0, description="by how much nearer it must come to the turned photo")


class BundleConfig(Spec):
    """Which bundle: a folder that holds one, or its parts named here."""

    path: str | None = Field(None, description="folder with bundle.json, or models:/NAME@ALIAS in MLflow")
    dim: int | None = Field(None, ge=8, description="shorter vectors, of a width that the bundle at `path` was trained for")
    name: str | None = Field(None, description="of a bundle assembled from the parts below")
    detector: DetectorConfig = DetectorConfig()
    encoder: EncoderConfig | None = None
    text: TextConfig | None = None
    categories: CategoryConfig | None = Field(None, description="none = the encoder's head alone, where it has one")
    queries: QueriesConfig | None = Field(None, description="none = the ranking rule `hubness` does nothing")
    turns: TurnsConfig | None = Field(None, description="none = photos are taken as they come")


class RuntimeConfig(Spec):
    """What the networks run on. A device that is asked for and is not there is an error."""

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(1, ge=1, description="CPU threads of one network run")
    compile: bool = Field(True, description="CUDA: torch.compile, which needs a C compiler and takes a minute at first")
