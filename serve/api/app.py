"""The Ray Serve application: which deployments, how many of each, and what each may take.

`build` is the import path of conf/serve.yaml: `serve.api.app:build`. Nothing happens at import.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve
from ray.serve import Application

from serve.api.ingress import Ingress
from serve.api.query_encoder import QueryEncoder
from serve.api.served import ServedRelease
from serve.api.shard_searcher import ShardSearcher
from serve.settings import Settings

# Logical CPUs: shares that let one of each fit on a single core beside Serve's own actors. They schedule, they do not limit.
INGRESS_CPUS, ENCODER_CPUS, SEARCHER_CPUS = 0.1, 0.3, 0.1


class BuildArgs(BaseModel):
    """`args` of the application in conf/serve.yaml."""

    model_config = ConfigDict(extra="forbid")

    conf: Path = Field(description="settings on every node, such as conf/cluster.yaml")
    set: list[str] = Field([], description="overrides, section.key=value")
    release: str | None = Field(None, description="serve this release id; none = the champion when the application is built")


def build(args: BuildArgs) -> Application:
    """The application for one release, resolved and verified now. Raises ConfigError, ReleaseError."""
    settings = Settings.load(args.conf, args.set)
    return assemble(ServedRelease.resolve(settings, args.release), settings)


def assemble(served: ServedRelease, settings: Settings) -> Application:
    """An ingress over one encoder deployment and serve.num_searchers searcher deployments, or instead of them."""
    config, release_id = settings.serve, served.manifest.release_id
    limits = {
        "max_ongoing_requests": config.max_ongoing_requests,
        "max_queued_requests": config.max_queued_requests,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1.0},
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_timeout_s": config.request_timeout_s + 1.0,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_constructor_retry_count": 3,
    }
    gpus = {"num_gpus": 1} if settings.runtime.device.startswith("cuda") else {}

    def deployment(cls: type, name: str, replicas: int, **resources: float) -> Any:
        options = {"ray_actor_options": resources, "num_replicas": replicas, "max_surge_percent": surge(replicas)}
        return ray_serve.deployment(cls, name=name, **options, **limits)

    encoder, own = None, {"num_cpus": INGRESS_CPUS + ENCODER_CPUS, **gpus}  # `own`: of the ingress
    if config.num_encoders:
        own = {"num_cpus": INGRESS_CPUS}
        encoder = deployment(QueryEncoder, "QueryEncoder", config.num_encoders, num_cpus=ENCODER_CPUS, **gpus).bind(
            settings, release_id
        )
    searchers = [
        deployment(ShardSearcher, f"ShardSearcher-{group}", config.searcher_replicas, num_cpus=SEARCHER_CPUS).bind(
            settings, release_id, group
        )
        for group in range(config.num_searchers)
    ]
    # The ingress itself turns away what is too much (serve.api.access), as problem JSON; Serve's own limit lies behind that.
    limits["max_ongoing_requests"] = 2 * (config.max_ongoing_requests + config.max_queued_requests)
    ingress = deployment(ray_serve.ingress()(Ingress), "Ingress", config.num_ingress, **own)
    return ingress.bind(served, settings, encoder, searchers)


def surge(num_replicas: int) -> int:
    """Percent of replicas started before old ones stop. With few, all: Serve's default stops first, which is an outage."""
    return 100 if num_replicas <= 2 else 25
