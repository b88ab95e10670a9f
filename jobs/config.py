"""Settings of the jobs: the sections beside those that serving reads, and the flags every job has."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from jobs.trouble import explained
from serve.settings import ConfigError, Section, Settings, parse, read_yaml
from serve.vision.spec import BundleConfig, Preprocess

WRONG_SETTINGS_EXIT_CODE = 2  # argparse's own, too
HostName = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9]([a-z0-9.:_-]*[a-z0-9])?$")]  # no scheme, no port, lower case
StartFile = Annotated[Path, AfterValidator(Path.absolute)]  # Ray's workers run in a folder of their own


class FeedConfig(Section):
    """The catalog feed and how its columns are called."""

    uri: str = Field("", description="file, folder or URI; set it with --set feed.uri=PATH")
    format: Literal["auto", "jsonl", "csv", "parquet", "delta"] = "auto"
    columns: dict[str, str] = Field({}, description="ours: theirs, where names differ")
    defaults: dict[str, Any] = Field({}, description="values of columns that the feed leaves out")
    where: dict[str, str] = Field({}, description="theirs: value; only such rows belong to the feed")
    max_reject_frac: float = Field(0.05, ge=0, le=1, description="more bad rows than this: nothing is changed")
    max_withdrawn_frac: float = Field(0.5, ge=0, le=1, description="a feed that drops more of the catalog is refused")
    schemes: tuple[str, ...] = ("file", "https", "s3", "gs")
    hosts: tuple[HostName, ...] = Field(
        (), description="that http(s) photos may come from, redirects too; *.shop.example = all below it; none = all"
    )
    buckets: tuple[str, ...] = Field((), description="that s3:// and gs:// photos may come from; none = all")
    part_from_rows: int = Field(
        50_000, ge=0, description="catalogs of so many rows and more: only products that a changed row names are judged again"
    )
    refetch_days: float | None = Field(
        None, gt=0, description="photos looked at longer ago are asked for again: has this one changed? none = never"
    )


class SparkConfig(Section):
    """The Spark session."""

    master: str = "local[2]"
    driver_memory: str = "2g"
    shuffle_partitions: int = Field(4, ge=1)
    jars_folder: Path | None = Field(None, description="folder with Delta's jars; none = Maven Central at first start")
    log_file: Path | None = Field(None, description="file for what the JVM itself prints; none = dropped")
    settings: dict[str, str] = Field({}, description="more Spark settings, as they are")


class RayConfig(Section):
    """The Ray cluster: none = one started for this run."""

    address: str | None = None
    num_cpus: int | None = Field(None, ge=1)
    object_store_bytes: int | None = Field(None, ge=80_000_000)


class EmbedConfig(Section):
    """Actor pools of embed_images."""

    decode_actors: int = Field(1, ge=1)
    decode_cpus: float = Field(0.5, gt=0)
    decode_blocks: int = Field(
        2, ge=1, description="in the hands of one actor: one waits for its last photos, the next is fetched"
    )
    embed_actors: int = Field(1, ge=1)
    embed_cpus: float = Field(1.0, gt=0)
    embed_gpus: float = Field(0.0, ge=0)
    batch_size: int = Field(32, ge=1)
    block_rows: int = Field(64, ge=1, description="images a block: what a kill may cost")
    round_images: int = Field(1_000_000, ge=1, description="images a commit; bounds the driver's memory, about 1 kB each")
    fetch_threads: int = Field(8, ge=1, description="of each decode actor, as all fetch_* here")
    fetch_per_host: int = Field(4, ge=1, description="connections to one host")
    fetch_interval_s: float = Field(0.0, ge=0, description="between two requests to one host")
    fetch_timeout_s: float = Field(20.0, gt=0, description="of one request")
    fetch_attempts: int = Field(3, ge=1, le=10, description="requests for one photo, where the fault may pass")
    fetch_total_s: float = Field(60.0, gt=0, description="for one photo from its first request on; longest Retry-After obeyed")
    fetch_host_failures: int = Field(
        8, ge=1, description="photos in a row that a host does not give before it is given up for the run"
    )
    fetch_user_agent: str = Field("visual-search/0.1", pattern=r"^[ -~]+$", description="name an address of yours here")
    max_restarts: int = Field(3, ge=0, description="of one actor; a crash must not loop")


class DuplicatesConfig(Section):
    """Near-duplicate groups."""

    max_distance: int = Field(31, ge=0, le=31, description="of 256 bits; pairs up to here are found, all of them")
    min_quality: float = Field(10.0, ge=0, le=100, description="flatter pictures have no telling hash and stay out")


class DoctorConfig(Section):
    """catalog_doctor: what counts as a fault of the catalog, and how many are shown."""

    examples: int = Field(12, ge=0, le=200, description="worst examples of each fault shown with pictures")
    min_category_prob: float = Field(0.9, ge=0, le=1, description="less certain predictions accuse no category of the feed")
    max_named_frac: float = Field(
        0.03, ge=0, le=1, description="share of a photo in the colour that its product names; more: the colour is there"
    )
    colour_photos: int = Field(300, ge=0, description="products whose photos are read, where a signature lacks the named colour")
    min_sibling_cosine: float = Field(0.99, ge=-1, le=1, description="siblings nearer than this are told apart by nothing")
    report: Path = Field(Path("store/reports/doctor"), description="folder of the report page")


class EvaluateConfig(Section):
    """Queries with known answers."""

    num_queries: int = Field(500, ge=1, description="index against exact search: sampled crops")
    hash_photos: int = Field(200, ge=1, description="catalog photos that the hash exit is calibrated on")
    queries: Path | None = Field(None, description="JSONL with path and product_id (or product_ids) of photos")
    queries_where: dict[str, str] = Field({}, description="column: value; only such rows are queries")
    max_queries: int = Field(300, ge=1)
    max_false_match_frac: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="share of photos of what no partition holds that may get a match",
    )
    max_lost_match_frac: float = Field(
        0.02, ge=0, lt=1, description="share of right first results that may be called no match; comes before the other"
    )
    url: str = Field("http://127.0.0.1:8000", description="evaluate_search: the endpoint that is asked")
    report: Path = Field(Path("store/reports/search"), description="evaluate_search: folder of its report page")
    report_queries: int = Field(24, ge=0, description="evaluate_search: queries shown with pictures, misses first")
    pool: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._\-]+$",
        description="evaluate_search: its name among what people judge; none = the release",
    )
    distortion: str = Field("none", description="evaluate_search: what is done to each photo first, such as light=0.25")
    seed: int = 17


class Floor(Section):
    """What a figure must not fall below."""

    least: float = Field(description="by itself")
    drop_frac: float | None = Field(
        None, ge=0, description="beside the champion: share of its figure that may be lost; none = any"
    )


class Ceiling(Section):
    """What a figure must not pass."""

    most: float = Field(description="by itself")
    rise_frac: float | None = Field(
        None, ge=0, description="beside the champion: share of its figure that may be added; none = any"
    )
    free: float = Field(0.0, description="up to here nothing is compared with the champion")


class GateConfig(Section):
    """What a release must reach to be published, by itself and beside the champion."""

    recall_at_10: Floor = Field(Floor(least=0.9, drop_frac=0.03), description="index against exact search")
    photo_recall_at_10: Floor = Field(Floor(least=0.0, drop_frac=0.05), description="whole search, on evaluate.queries")
    category_recall_at_10: Floor = Field(Floor(least=0.0, drop_frac=0.15), description="the same, of each category")
    category_answers: int = Field(20, ge=1, description="known answers that a category needs to be judged by itself")
    category_depth: int = Field(1, ge=1, description="levels of the path that name such a category")
    p99_ms: Ceiling = Field(Ceiling(most=1000.0, rise_frac=1.0, free=20.0), description="99th percentile of a query's search")
    bytes_per_crop: Ceiling = Field(Ceiling(most=20_000.0, rise_frac=0.25, free=1_000.0), description="size of the index")
    accepted_rows_frac: Floor = Field(Floor(least=0.0, drop_frac=0.05), description="good rows of the feed")
    embedded_photos_frac: Floor = Field(Floor(least=0.5, drop_frac=0.05), description="photos that can be searched")
    products: Floor = Field(Floor(least=1, drop_frac=0.2), description="products that can be searched")
    same_results_frac: Floor = Field(Floor(least=0.0), description="of the champion's nearest products; 1 = nothing moved")
    texts: Path | None = Field(None, description="text queries of shoppers, one a line: asked of the release and the champion")
    same_text_results_frac: Floor = Field(Floor(least=0.0), description="of the champion's products for those texts")
    budgets: dict[str, float] = Field(
        {"hash_exit": 0.02, "routing": 0.02, "coarse_list": 0.03, "codes": 0.03, "refine": 0.01},
        description="share of the known answers that a stage of the waterfall may lose",
    )
    report: Path = Field(Path("store/reports/gate"), description="folder of the page of the newest release that was judged")
    report_queries: int = Field(12, ge=0, description="photos shown whose answer got worse")


class EvaluateBundleConfig(Section):
    """evaluate_bundle: what is measured beside recall. Its photos are those of evaluate.queries."""

    bundles: dict[str, str] = Field(
        {}, description="name: folder or models:/NAME@ALIAS, compared with the first one; none = the bundle of the settings"
    )
    max_images: int = Field(5000, ge=1, description="catalog photos searched: those of the products asked for, and a sample")
    curves: tuple[str, ...] = Field(
        ("rotation", "occlusion", "gamma", "blur", "jpeg"), description="recall against these; see jobs.evaluation.robustness"
    )
    curve_queries: int = Field(100, ge=1, description="photos that each point of a curve is measured on")
    failures: int = Field(12, ge=0, description="worst failures of each bundle shown with pictures")
    report: Path = Field(Path("store/reports/bundle"), description="folder of the report page")


class QuantizeBundleConfig(Section):
    """quantize_bundle: the bundle of the settings in every precision, on catalog photos and those of evaluate.queries."""

    folder: Path = Field(Path("store/quantized/bundle"), description="where the bundle with its chosen runtimes is written")
    calibration_photos: int = Field(128, ge=1, description="catalog photos that ranges of INT8 are taken from")
    max_images: int = Field(500, ge=2, description="catalog photos that losses are measured on")
    max_recall_loss: float = Field(
        0.01, ge=0, le=1, description="of Recall@1 that the encoder may lose; without queries: of nearest neighbours"
    )
    max_box_loss: float = Field(0.05, ge=0, le=1, description="share of boxes that the detector may lose, and may add")
    seconds: float = Field(5.0, gt=0, description="of measuring, for each network and batch size")
    browser: bool = Field(True, description="adds the INT8 file that browsers run, whatever it loses")


class PublishConfig(Section):
    """Registry and retention."""

    keep: int = Field(5, ge=2, description="releases kept besides champion and previous")
    pinned: tuple[str, ...] = Field((), description="ids of releases that are kept whatever their age")


class CleanConfig(Section):
    """clean_store."""

    min_age_hours: float = Field(168.0, ge=0, description="younger files stay: somebody may be about to name them")


class ForgetConfig(Section):
    """forget_product."""

    product_ids: tuple[str, ...] = Field((), description="whose every trace is removed")


class NightlyConfig(Section):
    """The nightly run: its lease, and who is told."""

    heartbeat_s: float = Field(10.0, gt=0, description="how often a run says that it lives")
    lease_s: float = Field(120.0, gt=0, description="a run of another machine that is silent for so long counts as killed")
    webhook: str | None = Field(
        None, pattern=r"^https?://\S+$", description="gets the JSON summary of a run that failed or was refused, by POST"
    )
    webhook_timeout_s: float = Field(10.0, gt=0)
    status_runs: int = Field(10, ge=1, description="runs that --status shows")
    next_bundle: BundleConfig | None = Field(
        None, description="bundle that is to take over: embedded beside the old one, published when complete and not worse"
    )
    next_images: int | None = Field(
        None, ge=1, description="photos a night that are embedded with next_bundle, of popular products first; none = all"
    )
    as_of: AwareDatetime | None = Field(
        None, description="builds the release of the last good run before this moment again, from the tables as they were then"
    )

    @model_validator(mode="after")
    def _beats_within_lease(self) -> Self:
        if self.heartbeat_s * 3 > self.lease_s:
            raise ValueError(f"heartbeat_s={self.heartbeat_s:g} must be at most a third of lease_s={self.lease_s:g}")
        return self


class RenderConfig(Section):
    """The generated catalog."""

    folder: Path = Path("store/rendered")
    num_products: int = Field(240, ge=8)
    num_scenes: int = Field(60, ge=0)
    image_px: int = Field(320, ge=64, le=1024)
    scene_px: int = Field(480, ge=128, le=2048)
    with_bad_rows: bool = Field(True, description="adds declared faults: bad rows, broken and doubled files")
    num_workers: int = Field(2, ge=1, description="processes that draw")
    seed: int = Field(7, ge=0)


class TrainingConfig(Section):
    """What the trainings learn from: the curated catalog, with photos by its users where there are some, or generated photos."""

    source: Literal["catalog", "generated"] = Field(
        "generated", description="catalog: the tables products and images; generated: drawn from `seed` (train_detector: always)"
    )
    folder: Path = Path("store/training/photos")
    tile_px: int = Field(160, ge=32, le=512, description="side of a kept crop with its context")
    seed: int = 1001
    user_photos: Path | None = Field(
        None, description="catalog: JSONL with path, product_id (or product_ids with boxes in pixels) of photos by users"
    )
    user_where: dict[str, str] = Field({}, description="column: value; only such rows are user photos")
    heldout_where: dict[str, str] = Field({}, description="column: value; such user photos are what figures are measured on")
    heldout_styles_frac: float = Field(0.0, ge=0, lt=1, description="catalog: share of styles (group_id) not trained on at all")
    heldout_catalog: bool = Field(
        False, description="the catalog photos of styles left out are learned from: nobody has photographed these products yet"
    )
    num_products: int = Field(2400, ge=8)
    num_scenes: int = Field(4000, ge=8)
    scene_px: int = Field(400, ge=128, le=2048)
    part_products: int = Field(40, ge=4, description="products rendered by one task")
    heldout_seed: int = Field(7, description="products that the figures are measured on")
    heldout_products: int = Field(240, ge=8)
    heldout_scenes: int = Field(150, ge=4)


class AugmentConfig(Section):
    """What is done to a crop before the encoder learns from it. 0 (min_area_frac: 1) switches a step off."""

    rotation_deg: float = Field(15.0, ge=0, le=180, description="largest turn to either side")
    quarter_turn_frac: float = Field(0.0, ge=0, le=1, description="share of crops turned by 90, 180 or 270 degrees")
    mirror_frac: float = Field(0.0, ge=0, le=1)
    jitter_frac: float = Field(0.08, ge=0, le=0.5, description="how far an edge of a box moves, in sides of the box")
    min_area_frac: float = Field(1.0, gt=0, le=1, description="smallest part of a box that is shown")
    relight: float = Field(1.0, ge=0, le=3, description="strength of brightness, contrast, saturation and white balance")
    dark_frac: float = Field(0.0, ge=0, le=1, description="share of crops in 0.2 to 0.6 of the light")
    erase_frac: float = Field(0.25, ge=0, le=1, description="share of crops with a hidden rectangle")
    erase_max_area: float = Field(0.15, ge=0.02, le=0.9, description="largest such rectangle, in areas of the crop")
    blur_frac: float = Field(0.3, ge=0, le=1)
    noise_frac: float = Field(0.0, ge=0, le=1)
    jpeg_frac: float = Field(0.3, ge=0, le=1)


class TrainTextConfig(Section):
    """The text encoder that is trained with the photos. `weight` 0 = none."""

    weight: float = Field(0.0, ge=0, description="of the contrastive loss between photos and texts")
    vocabulary: int = Field(4096, ge=64)
    max_tokens: int = Field(64, ge=4, le=512)
    width: int = Field(192, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    temperature: float = Field(0.07, gt=0, description="of the contrastive loss; CLIP starts with 0.07 (arXiv:2103.00020)")
    drop_frac: float = Field(0.1, ge=0, lt=1, description="share of a text's words that are left out")
    fusion_weight: float = Field(
        0.0, ge=0, description="of the loss of products made of photo and words by attention, which are measured, not shipped"
    )

    @model_validator(mode="after")
    def _fuses_words_that_there_are(self) -> Self:
        if self.fusion_weight and not self.weight:
            raise ValueError(f"fusion_weight={self.fusion_weight:g} needs a text encoder: set weight, or 0 here")
        return self


class TrainEncoderConfig(Section):
    """Metric learning."""

    arch: str = "mobilenet_v3_small"
    embedding_dim: int = Field(128, ge=8)
    tf_same_padding: bool = Field(False, description="stride-2 convolutions pad right and bottom, as TensorFlow does")
    spatial_transformer: bool = Field(False, description="a learned turn, shift and zoom before the backbone (arXiv:1506.02025)")
    pool_cells: int = Field(
        1, ge=1, le=7, description="cells a side of the last map that count beside its mean (arXiv:1406.4729); 1 = its mean alone"
    )
    input_px: tuple[int, ...] = Field((*[96] * 10, 128), min_length=1, description="input side by epoch; the last one stays")
    preprocess: Preprocess = Field(
        Preprocess(size_px=128, resize="pad"), description="of the bundle; figures are measured with it; resize: pad or squash"
    )
    start: StartFile | None = Field(None, description="weights to start from: of a bundle or of a plain backbone; none = random")
    start_frac: float = Field(
        0.0, ge=0, lt=1, description="share of the start's weights in those that are kept (arXiv:2109.01903); needs `start`"
    )
    frozen_layers: int = Field(0, ge=0, description="first layers of the backbone that keep the weights of `start`")
    frozen_norms: bool = Field(False, description="batch norms keep their statistics, as folded ones must")
    loss: str = Field("supervised_contrastive", description="a name of jobs.training.losses.LOSSES")
    spare_new_products: bool = Field(
        False,
        description="cosface: user photos are not pushed away from products that no user photo shows, else none would find them",
    )
    new_product_margin: float = Field(
        0.0, ge=0, le=1, description="spare_new_products: cosine by which a query generated of a new product is to prefer it"
    )
    category_weight: float = Field(0.2, ge=0, description="of the category head's cross-entropy in the loss")
    attribute_weight: float = Field(1.0, ge=0, description="of the cross-entropy of what a photo shows; 0 = not used")
    adaptation: Literal["none", "adversarial", "moments"] = Field(
        "none",
        description="draws catalog and user photos together: domain critic (arXiv:1505.07818) or MMD (arXiv:1502.02791)",
    )
    adaptation_weight: float = Field(0.1, ge=0)
    catalog_pull: float = Field(
        0.0, ge=0, description="weight of drawing catalog photos, as they are, to the mean query of their product; 0 = not done"
    )
    generated_query_frac: float = Field(
        0.0, ge=0, le=1, description="share of catalog photos that are cut out and put on busy ground, as a user would see them"
    )
    text: TrainTextConfig = TrainTextConfig()
    augment: AugmentConfig = AugmentConfig()
    epochs: int = Field(14, ge=1)
    passes: int = Field(1, ge=1, description="times an epoch draws K photos of every product (sampler products)")
    sampler: Literal["products", "photos"] = Field(
        "products", description="products: P x K; photos: every user photo once an epoch, for losses with a proxy a product"
    )
    batch_products: int = Field(16, ge=2, description="P of P x K sampling")
    batch_images: int = Field(4, ge=2, description="K of P x K sampling")
    shop_frac: float = Field(0.125, ge=0, lt=1, description="share of catalog photos in a batch (sampler photos)")
    user_ground_frac: float = Field(
        0.0, ge=0, le=1, description="share of generated queries on user photos of other products instead of made-up ground"
    )
    learning_rate: float = Field(3e-3, gt=0)
    loss_learning_rate: float = Field(1e-2, gt=0, description="of the loss's own proxies, where it has some")
    average: float = Field(0.99, ge=0, lt=1, description="decay a step of the averaged weights that are kept; 0 = the last ones")
    threads: int = Field(2, ge=1)
    use_gpu: bool = False
    seed: int = 11
    folder: Path = Path("store/training/encoder")
    bundle: Path = Field(Path("store/training/bundle"), description="folder whose encoder the finished training replaces")
    bundle_name: str = Field("generated-v1", min_length=1)

    @model_validator(mode="after")
    def _width_of_whole_heads(self) -> Self:
        if self.text.fusion_weight and self.embedding_dim % self.text.heads:
            raise ValueError(
                f"embedding_dim={self.embedding_dim}: text.fusion_weight needs a multiple of heads={self.text.heads}"
            )
        return self


class SceneAugmentConfig(Section):
    """What is done to a scene before the detector learns from it, beside windows, mirroring and other light. 0 = not done."""

    rotation_deg: float = Field(0.0, ge=0, le=180, description="largest turn to either side")
    quarter_turn_frac: float = Field(0.0, ge=0, le=1, description="share of scenes turned by 90, 180 or 270 degrees")
    min_visible_frac: float = Field(0.4, ge=0, le=1, description="items with less of their box in the window are not asked for")
    hidden_frac: float = Field(0.0, ge=0, le=1, description="share of items of which 10 to 40 % are covered")
    dark_frac: float = Field(0.0, ge=0, le=1, description="share of scenes with little light")
    mosaic_frac: float = Field(0.0, ge=0, le=1, description="share of scenes made of four, each half as wide: small items")


class TrainDetectorConfig(Section):
    """A class-agnostic item detector on the training scenes."""

    arch: str = Field("fcos_mobilenet_v3_small", description="that, or ssdlite320_mobilenet_v3_large")
    input_px: tuple[int, ...] = Field(
        (160, 160, 160, 192, 192, 224), min_length=1, description="input side by epoch; the last one stays, and is shipped"
    )
    plain_frac: float = Field(0.25, ge=0, description="products on plain ground for each street scene of an epoch")
    start: StartFile | None = Field(None, description="weights to start from, of a bundle; none = random")
    backbone: StartFile | None = Field(None, description="fcos: an encoder's weights, whose layers it starts from; none = random")
    augment: SceneAugmentConfig = SceneAugmentConfig()
    epochs: int = Field(6, ge=1)
    batch_size: int = Field(16, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    average: float = Field(0.99, ge=0, lt=1, description="decay a step of the averaged weights that are kept; 0 = the last ones")
    threads: int = Field(2, ge=1)
    use_gpu: bool = False
    seed: int = 13
    folder: Path = Path("store/training/detector")
    bundle: Path = Field(Path("store/training/bundle"), description="folder whose detector the finished training replaces")
    bundle_name: str = Field("generated-v1", min_length=1)


class CapacityConfig(Section):
    """plan_capacity: how many photos, on what machines, for how many queries."""

    num_images: tuple[int, ...] = Field((1_000_000, 100_000_000, 2_000_000_000, 10_000_000_000), min_length=1)
    rows_per_shard: int = Field(20_000_000, ge=1)
    calibration_rows: int = Field(100_000, ge=5_000, description="of the small index that this machine is measured with")
    gpus: int = Field(8, ge=1)
    images_per_gpu_s: float = Field(900.0, gt=0, description="photos that one GPU decodes and embeds; measure yours")
    gpu_price_per_hour: float = Field(2.5, ge=0, description="in any currency")
    night_hours: float = Field(8.0, gt=0)
    node_cores: int = Field(32, ge=1)
    node_ram_bytes: int = Field(256_000_000_000, ge=1)
    node_disk_bytes: int = Field(7_500_000_000_000, ge=1)
    node_price_per_hour: float = Field(2.0, ge=0)
    target_qps: float = Field(200.0, gt=0)
    target_ms: float = Field(50.0, gt=0, description="of the searches of one query on a node")
    report: Path = Path("store/reports/capacity")


class TrainLooksConfig(Section):
    """Shop the look: which links are learned from, and how."""

    links: tuple[Path, ...] = Field((), description="JSONL of sets or of the feed's links, see jobs.looks.graph; none = no looks")
    types: tuple[str, ...] = Field((), description="types of the feed's links that make a look; none = all")
    judged_by: tuple[Path, ...] = Field(
        (), description="JSONL as links: everything that goes with some products; none = the links that were held out"
    )
    by_group: bool = Field(False, description="links are between styles (group_id) instead of products")
    model: Literal["auto", "popularity", "cooccurrence", "nearest", "mlp", "graph"] = Field(
        "auto", description="auto: the simplest that is not measurably worse than the best"
    )
    folds: int = Field(5, ge=2, description="parts of the products; each is held out once")
    look_size: int = Field(6, ge=1, le=50, description="products of one look, each of another kind")
    hidden: int = Field(64, ge=4)
    fanout: int = Field(10, ge=1, description="neighbours drawn of each product")
    epochs: int = Field(20, ge=1)
    batch_edges: int = Field(256, ge=1)
    negatives: int = Field(128, ge=2, description="targets a batch is held against, half of them of the same kinds")
    content_only_frac: float = Field(0.5, ge=0, le=1, description="products trained as if they were new")
    dropout: float = Field(0.2, ge=0, lt=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    threads: int = Field(2, ge=1)
    seed: int = 19


class TrainRankerConfig(Section):
    """Learned ranking from `feedback`."""

    min_clicks: int = Field(500, ge=1, description="fewer: nothing is learned yet")
    purchase_gain: float = Field(3.0, ge=1, description="clicks that a purchase is worth")
    max_clicks_per_client: int = Field(50, ge=1, description="sessions of one client that count")
    propensity_exponent: float = Field(
        1.0, ge=0, le=3, description="position p is looked at with 1 / p ** exponent; measured where ranking.shuffled_frac > 0"
    )
    min_propensity: float = Field(0.03, gt=0, le=1, description="bounds what one click can weigh")
    test_frac: float = Field(0.2, gt=0, lt=1, description="sessions kept for the replay")
    trees: int = Field(40, ge=1)
    leaves: int = Field(15, ge=2)
    min_rows_in_leaf: int = Field(50, ge=1)
    learning_rate: float = Field(0.15, gt=0)
    threads: int = Field(2, ge=1)
    seed: int = 23


class DemoConfig(Section):
    """`make demo`."""

    folder: Path = Path("store/demo")
    port: int = Field(8321, ge=1, le=65535)


class Config(Settings):
    """Everything the jobs read."""

    feed: FeedConfig = FeedConfig()
    spark: SparkConfig = SparkConfig()
    ray: RayConfig = RayConfig()
    embed: EmbedConfig = EmbedConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    doctor: DoctorConfig = DoctorConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    evaluate_bundle: EvaluateBundleConfig = EvaluateBundleConfig()
    quantize_bundle: QuantizeBundleConfig = QuantizeBundleConfig()
    publish: PublishConfig = PublishConfig()
    clean: CleanConfig = CleanConfig()
    forget: ForgetConfig = ForgetConfig()
    nightly: NightlyConfig = NightlyConfig()
    render: RenderConfig = RenderConfig()
    training: TrainingConfig = TrainingConfig()
    train_encoder: TrainEncoderConfig = TrainEncoderConfig()
    train_detector: TrainDetectorConfig = TrainDetectorConfig()
    capacity: CapacityConfig = CapacityConfig()
    train_looks: TrainLooksConfig = TrainLooksConfig()
    train_ranker: TrainRankerConfig = TrainRankerConfig()
    demo: DemoConfig = DemoConfig()

    def told(self) -> dict[str, Any]:
        """What is recorded of a run: every setting but for a URL that may be a secret, and ids that are to be forgotten."""
        return self.model_dump(mode="json", exclude={"nightly": {"webhook"}, "forget": True})

    @classmethod
    def load(cls, path: Path, overrides: list[str] | None = None) -> Self:
        """Read the YAML at `path`, apply `a.b=c` overrides, check. Raises ConfigError."""
        return parse(cls, read_yaml(path, overrides), path)


class JobError(RuntimeError):
    """A job that cannot finish, in one line: what was given, what is allowed, what to do.

    `exit_code` is the process's: 1 in general, 3 where a gate refused, 4 where another run is on (2: wrong settings).
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_job(doc: str, run: Callable[..., object], *, flags: dict[str, str] | None = None, prints_result: bool = False) -> None:
    """The `main` of every job: `--conf`, `--set`, `--print-config` and the job's own on/off `flags` (name: help).

    Calls `run(config, **flags)`; `prints_result` writes the dataclass that it returns as JSON. A JobError or ConfigError ends
    the process with one line and its exit code.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/local.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="overrides one setting; repeatable")
    parser.add_argument("--print-config", action="store_true", help="prints the settings as they are read, and ends")
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    args = parser.parse_args()
    try:
        config = Config.load(args.conf, args.set)
        if args.print_config:
            sys.stdout.write(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            return
        result = run(config, **{name: getattr(args, name) for name in flags or {}})
        if prints_result:
            assert is_dataclass(result) and not isinstance(result, type)
            sys.stdout.write(json.dumps(asdict(result), indent=2) + "\n")
    except (JobError, ConfigError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code if isinstance(error, JobError) else WRONG_SETTINGS_EXIT_CODE)
    except Exception as error:
        if (told := explained(error, config.store.root, config.registry.uri)) is None:
            raise
        sys.stderr.write(f"error: {told}\n")
        sys.exit(1)
