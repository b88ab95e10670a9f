"""The Ray Serve application: which deployments, how many of each, and what each may take.

`build` is the import path of conf/serve.yaml: `serve.api.app:build`. Nothing happens at import.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
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
    """One encoder deployment, one searcher deployment a shard group, one ingress over them."""
    config = settings.serve
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
    encoder = QueryEncoder.options(
        num_replicas=config.num_encoders, ray_actor_options={"num_cpus": ENCODER_CPUS, **gpus}, **surge(config.num_encoders), **limits
    ).bind(served, settings)
    searchers = [
        ShardSearcher.options(
            name=f"ShardSearcher-{group}",
            num_replicas=config.searcher_replicas,
            ray_actor_options={"num_cpus": SEARCHER_CPUS},
            **surge(config.searcher_replicas),
            **limits,
        ).bind(served, group)
        for group in range(len(served.shard_groups))
    ]
    return Ingress.options(
        num_replicas=config.num_ingress, ray_actor_options={"num_cpus": INGRESS_CPUS}, **surge(config.num_ingress), **limits
    ).bind(served, settings, encoder, searchers)


def surge(num_replicas: int) -> dict[str, int]:
    """Few replicas: the new one starts before the old one stops (Serve's default stops the old one first: an outage)."""
    return {"max_surge_percent": 100 if num_replicas <= 2 else 25}
