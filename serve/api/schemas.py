"""What goes over the wire: the query as JSON, the answer, and the small answers about state."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serve.vision.spec import Preprocess

Box = tuple[float, float, float, float]
UNIT_TOLERANCE = 0.01  # of a unit vector that went through fp16 or JSON with few digits

MAX_BOXES = 20
RATER = r"^[A-Za-z0-9._\-]+$"


class FilterFields(BaseModel):
    """Which products may be answered. Strings compare exactly."""

    model_config = ConfigDict(extra="forbid")

    price_min: float | None = Field(None, ge=0, allow_inf_nan=False)
    price_max: float | None = Field(None, ge=0, allow_inf_nan=False)
    gender: str | None = Field(None, max_length=100)
    brand: str | None = Field(None, max_length=200)
    available: bool | None = None


class SearchRequest(BaseModel):
    """One query: a photo, a product, or an embedding made on the device; a text alone or beside one of them."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"product_id": "MH01", "k": 5, "filters": {"price_max": 60}}]},
    )

    image_base64: str | None = Field(None, description="the photo (JPEG, PNG, WebP, GIF), base64 without a data: prefix")
    image_url: str | None = Field(
        None, min_length=1, max_length=2000, description="http(s) address of the photo, where this server fetches any"
    )
    product_id: str | None = Field(None, min_length=1, max_length=500, description="search with this product's first photo")
    embedding: list[float] | None = Field(
        None, min_length=1, max_length=8192, description="unit vector of the photo, made by the release's bundle on the device"
    )
    bundle_digest: str | None = Field(
        None, max_length=64, description="of the bundle that made `embedding`; another than the release's is refused"
    )
    text: str | None = Field(
        None, min_length=1, max_length=1000, description="what is wanted; beside a photo: what should differ"
    )
    k: int | None = Field(None, ge=1, description="how many products; the server's default and most are in /v1/release")
    category: str | None = Field(None, min_length=1, max_length=500, description="only this category or below it: apparel/shoes")
    box: Box | None = Field(None, description="x0, y0, x1, y1 in pixels of the upright photo: search this part only")
    boxes: list[Box] | None = Field(
        None, min_length=1, max_length=MAX_BOXES, description="several such parts, each a crop of the answer"
    )
    filters: FilterFields | None = None
    gender: str | None = Field(None, max_length=100, description="of the user: what is made for another comes later")
    price_range: tuple[float, float] | None = Field(
        None, description="lowest and highest price the user has in mind: what lies outside comes later"
    )
    look: bool = Field(False, description="adds `look`: what goes with the first result")
    explain: bool = Field(False, description="adds `explain`: how the answer and each result came about")

    @field_validator("box", "boxes")
    @classmethod
    def _boxes_in_order(cls, value: Box | list[Box] | None) -> Box | list[Box] | None:
        for x0, y0, x1, y1 in value if isinstance(value, list) else [value] if value else []:
            if not (-1e6 < x0 < x1 < 1e6 and -1e6 < y0 < y1 < 1e6):
                raise ValueError("must be x0, y0, x1, y1 in pixels, with x0 < x1 and y0 < y1")
        return value

    @field_validator("price_range")
    @classmethod
    def _range_in_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1] < math.inf:
            raise ValueError("must be two prices from 0 on, the lower first")
        return value

    @field_validator("embedding")
    @classmethod
    def _unit_length(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not abs(math.hypot(*value) - 1.0) <= UNIT_TOLERANCE:  # NaN and inf are no lengths either
            raise ValueError("must be finite numbers of length 1")
        return value


class Attributes(BaseModel):
    """What the catalog says about a product."""

    title: str = Field(examples=["Chaz Kangeroo Hoodie"])
    price: float | None = Field(None, examples=[52.0])
    currency: str | None = Field(None, examples=["USD"])
    available: bool = True
    stock: int | None = None
    brand: str | None = None
    gender: str | None = None
    color: str | None = None
    group_id: str | None = Field(None, description="joins the variants of one style")
    popularity: float | None = None


class ResultExplanation(BaseModel):
    """How a result came to its place: visual + parts = total, by which it is ordered; only with `explain`."""

    visual: float = Field(description="cosine of the embeddings, as in `score`")
    parts: dict[str, float] = Field(description="what each rule of the shop added to it or took from it")
    total: float
    stage: Literal["hash", "vector"] = Field(description="hash = the photo itself was recognised")
    shard: str = Field(description="where the product lies in the release", examples=["shards/p000-b000"])


class ResultAnswer(BaseModel):
    """One product."""

    product_id: str = Field(examples=["MH01"])
    score: float = Field(description="cosine of the embeddings; just under 1 for an exact match", examples=[0.83])
    match: Literal["exact", "similar"] = Field(description="exact = a photo of this product is the query photo")
    category: str | None = Field(examples=["apparel/hoodies"])
    image_uri: str = Field(description="where the catalog keeps the photo that matched")
    image_url: str | None = Field(None, description="where this server shows it", examples=["/v1/images/6f...?product=MH01"])
    attributes: Attributes
    crop: int = Field(description="number in `crops` of the query crop that found it", examples=[0])
    image_crop: int = Field(description="number of the stored crop that was found, 0 = the whole photo", examples=[0])
    image_box: Box | None = Field(None, description="that crop's box, pixels of the stored upright photo")
    why: str = Field(examples=["looks like your photo: cosine 0.83"])
    explain: ResultExplanation | None = None


class PhotoCrop(BaseModel):
    """A part of the query photo; crop 0 is the whole photo, or the box that was asked for."""

    box: Box = Field(description="x0, y0, x1, y1 in pixels of the upright upload", examples=[[12.0, 8.0, 212.0, 300.0]])
    label: str | None = Field(description="of the detector; none for the whole photo")
    score: float = Field(description="of the detector; 1 for the whole photo")
    category: str | None
    category_prob: float | None


class FoundCrop(PhotoCrop):
    """An item of the query photo, and its own results."""

    results: list[ResultAnswer]


class EmbeddedCrop(PhotoCrop):
    """An item of the query photo, and its vector."""

    embedding: list[float] = Field(description="unit length; the cosine of two is their dot product")


class ReleaseRef(BaseModel):
    """Exactly what answered."""

    id: str = Field(examples=["r0123456789ab"])
    created_at: str
    code_version: str
    bundle: str = Field(examples=["generated-v1"])
    bundle_digest: str


class ShardCount(BaseModel):
    """Shards that were asked, and those that answered."""

    asked: int
    answered: int


class Explanation(BaseModel):
    """How the answer came about; only with `explain`."""

    hash: dict[str, float | int | str] | None = Field(description="distance, colour_distance, variant, image_id of the match")
    partitions: list[list[str] | None] = Field(description="per crop, the partitions searched; null = all")
    category_probs: list[dict[str, float] | None]
    turned_deg: int = Field(0, description="degrees anticlockwise that the photo was turned by before its items were found")


class LookItem(BaseModel):
    """One product of a look."""

    product_id: str
    category: str | None
    image_uri: str
    image_url: str | None
    attributes: Attributes


class LookAnswer(BaseModel):
    """What goes with a product, best first."""

    product_id: str
    of: str = Field(description="whose look it is: another than `product_id` where that came after the release")
    items: list[LookItem]
    release: ReleaseRef


class SearchAnswer(BaseModel):
    """The best k distinct products over the whole query, and what was found for each crop."""

    results: list[ResultAnswer]
    crops: list[FoundCrop]
    stage: Literal["hash", "vector"] = Field(description="hash = the photo is one of ours, no network was run")
    release: ReleaseRef
    timings_ms: dict[str, float] = Field(examples=[{"hash": 3.1, "analyse": 14.2, "search": 2.2, "total": 21.0}])
    partial: bool = Field(description="true = a shard did not answer, so products may be missing")
    shards: ShardCount
    no_match: bool = Field(description="true = nothing is good enough; results are what comes nearest")
    explain: Explanation | None = None
    look: LookAnswer | None = Field(None, description="of the first result, where the release has looks")
    query_id: str | None = Field(None, description="goes back with feedback on this answer, where this server takes any")


class FeedbackEvent(BaseModel):
    """Something done with one product of an answer."""

    model_config = ConfigDict(extra="forbid")

    query_id: str = Field(min_length=1, max_length=100, pattern=r"^[0-9a-f]+\.[0-9a-f]+\.[0-9a-f]+$", description="of the answer")
    product_id: str = Field(min_length=1, max_length=500)
    kind: Literal["click", "purchase"]


class FeedbackRequest(BaseModel):
    """What was done with answers. Sent twice, it counts once."""

    model_config = ConfigDict(extra="forbid")

    events: list[FeedbackEvent] = Field(min_length=1, max_length=50)
    client: str | None = Field(
        None, min_length=1, max_length=200, description="the shop's name for the shopper's session; counts with an API key alone"
    )


class FeedbackAnswer(BaseModel):
    """Events that are stored now, and those that had been before."""

    stored: int
    repeated: int


class JudgedItem(BaseModel):
    """One product to be judged beside a query photo. Which release or setting found it is not said."""

    product_id: str
    title: str | None
    image_url: str | None


class JudgingTask(BaseModel):
    """One query photo and the products that any release or setting found for it, in an order drawn for this rater."""

    query: str | None = Field(description="image_id of the photo; none = this rater has judged everything")
    query_url: str | None
    items: list[JudgedItem]
    done: int = Field(description="photos this rater has judged")
    total: int


class JudgmentRequest(BaseModel):
    """The grades of one rater for one photo: 0 wrong, 1 similar, 2 very similar, 3 same item."""

    model_config = ConfigDict(extra="forbid")

    rater: str = Field(min_length=1, max_length=40, pattern=RATER)
    query: str = Field(pattern=r"^[0-9a-f]{64}$")
    grades: dict[str, Annotated[int, Field(ge=0, le=3)]] = Field(min_length=1, max_length=200)


class JudgmentAnswer(BaseModel):
    """Verdicts that are stored now."""

    stored: int


class EmbedAnswer(BaseModel):
    """The vectors of a photo, made exactly as those of the catalog."""

    crops: list[EmbeddedCrop]
    dim: int
    release: ReleaseRef


class Health(BaseModel):
    """This process is alive."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Queries are answered."""

    status: Literal["ready"] = "ready"
    release: str


class Limits(BaseModel):
    """What a query may ask."""

    default_k: int
    max_k: int
    max_body_bytes: int
    max_pixels: int


class Offers(BaseModel):
    """Which queries this server answers beside photos and products."""

    text: bool = Field(description="texts: the bundle has a text encoder")
    image_url: bool = Field(description="addresses of photos: serve.image_url")
    device: bool = Field(description="embeddings made in the browser: /v1/device names the network")
    feedback: bool = Field(description="POST /v1/feedback: serve.feedback")


class DeviceAnswer(BaseModel):
    """The encoder for a browser: an ONNX network and what its input is made of."""

    bundle_digest: str = Field(description="goes back with each embedding")
    network_url: str = Field(examples=["/v1/device/encoder.onnx?bundle=0123abcd"])
    num_bytes: int
    preprocess: Preprocess = Field(description="from an RGB crop to the input (1, 3, size_px, size_px) float32")
    dim: int


class PartitionSummary(BaseModel):
    """One partition of the index."""

    name: str
    factory: str
    nprobe: int
    num_shards: int
    num_rows: int
    num_products: int


class Refusal(BaseModel):
    """A champion that did not pass its checks; the release before it goes on."""

    release: str
    reason: str


class ReleaseAnswer(BaseModel):
    """The release that is served: exact versions, sizes, measured figures, and the limits of this server."""

    release: ReleaseRef
    refused: Refusal | None = None
    format_version: int
    tables: dict[str, int]
    hash: dict[str, Any]
    partitions: list[PartitionSummary]
    counts: dict[str, int]
    metrics: dict[str, float]
    limits: Limits
    offers: Offers
