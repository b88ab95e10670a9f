"""Strict settings: the YAML of conf/, read once, typed, and wrong keys named.

One file holds the sections of both sides. `serve` reads the sections it needs and skips those of the
jobs by name; any other unknown key is an error that shows key, value and what is allowed.
"""

from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serve.index.spec import IndexConfig
from serve.ranking.spec import RankingConfig
from serve.vision.spec import BundleConfig, DecodeLimits, HashConfig, RuntimeConfig

Model = TypeVar("Model", bound=BaseModel)

# Sections of the same YAML that only jobs read (tests hold this against jobs.config).
JOB_SECTIONS = (
    "feed",
    "spark",
    "ray",
    "embed",
    "duplicates",
    "doctor",
    "evaluate",
    "gate",
    "evaluate_bundle",
    "quantize_bundle",
    "publish",
    "clean",
    "forget",
    "nightly",
    "render",
    "training",
    "train_encoder",
    "train_detector",
    "capacity",
    "train_looks",
    "train_ranker",
    "demo",
)


class ConfigError(ValueError):
    """A setting that is missing, unknown or out of range. The message is one line a user can act on."""


class Section(BaseModel):
    """One frozen section of the YAML; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class StoreConfig(Section):
    """Where everything lives. Tables may be an object store URI; files are memory-mapped, so they are a folder."""

    root: Path = Field(description="folder of releases, templates, bundles and staged work")
    tables: str = Field(description="folder or URI (s3://...) of the Delta tables")

    @field_validator("root")
    @classmethod
    def _absolute_root(cls, root: Path) -> Path:
        return root.absolute()

    @field_validator("tables")
    @classmethod
    def _absolute_tables(cls, tables: str) -> str:
        """Delta's catalog takes no relative paths."""
        return tables if "://" in tables else str(Path(tables).absolute())

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    @property
    def staging(self) -> Path:
        return self.root / "staging"


class RegistryConfig(Section):
    """The MLflow registry that says which release is champion."""

    uri: str = Field(description="MLflow tracking URI, such as sqlite:///store/mlflow.db")
    model: str = Field("visual-search", min_length=1, description="registered model name")
    experiment: str = Field("visual-search", min_length=1)
    artifacts: str | None = Field(None, description="artifact root of a new experiment; none = MLflow's own")


class ApiKey(Section):
    """A client that may ask; `python -m serve.api.access NAME` makes one."""

    name: str = Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9._\-]+$", description="stands in logs")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key, which itself is kept nowhere")
    rate_per_s: float | None = Field(None, gt=0, description="requests a second; none = no limit")


class ServeConfig(Section):
    """The endpoint: addresses, limits and replicas."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    haproxy: bool = Field(True, description="Ray Serve's HAProxy mode; its default proxy is 10x slower")
    num_ingress: int = Field(1, ge=1)
    num_encoders: int = Field(1, ge=0, description="encoder processes; 0 = every ingress encodes itself")
    num_searchers: int = Field(
        1, ge=0, description="shard groups, each a deployment of its own; 0 = every ingress searches all shards itself"
    )
    searcher_replicas: int = Field(1, ge=1)
    max_body_bytes: int = Field(10_000_000, ge=1_000)
    body_timeout_s: float = Field(5.0, gt=0)
    request_timeout_s: float = Field(10.0, gt=0)
    shard_timeout_s: float = Field(3.0, gt=0, description="a shard group that takes longer is left out: a partial answer")
    num_decoders: int = Field(2, ge=1, description="guarded decoders of one ingress: photos hashed at once")
    max_ongoing_requests: int = Field(32, ge=1)
    max_queued_requests: int = Field(64, ge=1)
    batch_size: int = Field(8, ge=1, description="query images encoded in one run at most; none is waited for")
    default_k: int = Field(10, ge=1)
    max_k: int = Field(100, ge=1)
    min_score: float = Field(0.0, ge=-1.0, le=1.0, description="below this the best result is no match")
    watch_s: float = Field(5.0, gt=0, description="how often the endpoint looks for another champion")
    changes: bool = Field(True, description="whether PUT and DELETE /v1/products are taken")
    tail_s: float = Field(0.5, gt=0, le=60, description="how often replicas look for changes that others took")
    text_weight: float = Field(0.5, ge=0, le=1, description="of the text in a query of photo and text")
    image_url: bool = Field(False, description="whether a query may name a public URL that the server fetches")
    image_url_timeout_s: float = Field(5.0, gt=0)
    api_keys: tuple[ApiKey, ...] = Field((), description="who may ask; none = everyone")
    hash_stage: bool = Field(True, description="whether known photos are answered by their hash; off to compare")
    turns: bool = Field(True, description="whether photos are looked at turned, where the bundle says when; off to save time")
    feedback: bool = Field(False, description="whether impressions are written and POST /v1/feedback is taken")
    feedback_per_min: float = Field(60.0, gt=0, description="calls of one client")
    client_header: str | None = Field(
        None, description="in which your own proxy says the client's address, such as x-forwarded-for; none = who connects"
    )
    judging: bool = Field(True, description="whether /judge shows what evaluate_search pooled and takes grades")
    probe_frac: float = Field(0.01, ge=0, le=1, description="share of vector answers searched again exactly, on the side")
    release: str | None = Field(None, description="serve this release id instead of the champion")


class Settings(Section):
    """Everything the serving side reads."""

    store: StoreConfig
    registry: RegistryConfig
    bundle: BundleConfig
    runtime: RuntimeConfig = RuntimeConfig()
    decode: DecodeLimits = DecodeLimits()
    hash: HashConfig = HashConfig()
    index: IndexConfig = IndexConfig()
    ranking: RankingConfig = RankingConfig()
    serve: ServeConfig = ServeConfig()

    @classmethod
    def load(cls, path: Path, overrides: list[str] | None = None) -> Self:
        """Read the YAML at `path`, apply `a.b=c` overrides, check. Raises ConfigError."""
        known = set(cls.model_fields)
        data = {k: v for k, v in read_yaml(path, overrides).items() if k in known or k not in JOB_SECTIONS}
        return parse(cls, data, path)


def read_yaml(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The YAML at `path` as a dict, with `section.key=value` overrides applied (values are YAML)."""
    if not path.is_file():
        raise ConfigError(f"--conf {path}: no such file; conf/local.yaml is the embedded default")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"--conf {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"--conf {path}: expected sections, found {type(data).__name__}")
    for override in overrides or []:
        key, equals, value = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set {override}: expected section.key=value")
        node = data
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: {part} is a value, not a section")
            node = child
        try:
            node[parts[-1]] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    return data


def parse(cls: type[Model], data: dict[str, Any], path: Path) -> Model:
    """`data` as `cls`; every problem in one ConfigError line each, with key, value and what is allowed."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                allowed = ", ".join(allowed_keys(cls, problem["loc"]))
                lines.append(f"{key}: unknown key (allowed here: {allowed})")
            elif problem["type"] == "missing":
                lines.append(f"{key}: missing; set it in the file or with --set {key}=VALUE")
            else:
                lines.append(f"{key}={problem['input']!r}: {problem['msg']}")
        raise ConfigError(f"{path}: " + "; ".join(lines)) from error


def allowed_keys(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names allowed where the last part of `location` was found."""
    model: Any = cls
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = next(
            (a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(a, "model_fields")), None
        )
    return sorted(getattr(model, "model_fields", {}))
