"""Ingress replicas: HTTP in and out, and the cascade between; the encoder and the searchers are asked by handle.

On one machine the ingress may encode and search by itself (serve.num_encoders 0, serve.num_searchers 0): on two cores, asking a
searcher takes 5 ms of an answer, and asking an encoder 7.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import FastAPI
from prometheus_client.metrics_core import Metric
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve.api.cascade import Cascade
from serve.api.host import Host
from serve.api.logs import write_json_lines
from serve.api.metrics import Metrics
from serve.api.probe import RecallProbe
from serve.api.problems import overloaded
from serve.api.query_encoder import QueryEncoder
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.api.shard_searcher import ShardSearcher
from serve.api.towers import AskEncoder
from serve.settings import Settings


def asked(part: DeploymentHandle | QueryEncoder | ShardSearcher, method: str, release_id: str) -> Callable[..., Awaitable[Any]]:
    """`method` of a part for one release as a coroutine function; a full queue of a deployment is a Problem 429 here."""
    if isinstance(part, QueryEncoder | ShardSearcher):
        return partial(getattr(part, method), release_id)

    async def ask(*args: Any) -> Any:
        try:
            return await getattr(part, method).remote(release_id, *args)
        except BackPressureError:
            raise overloaded("too many queries are waiting; try again") from None

    return ask


class Ingress:
    """One replica = one event loop with its own guarded decoders; hash tables and products are memory-mapped, so shared."""

    def __init__(
        self, served: ServedRelease, settings: Settings, encoder: DeploymentHandle | None, searchers: list[DeploymentHandle]
    ) -> None:
        """Without an encoder or searchers this process is that itself."""
        write_json_lines()
        self.settings = settings
        served = ServedRelease.of_now(served, settings)
        self.encoder = encoder or QueryEncoder(settings, served.manifest.release_id)
        self.searchers = searchers or [ShardSearcher(settings, served.manifest.release_id, 0)]
        self.counted = Metrics()
        cascade = self.open_cascade(served)
        self.host = Host(cascade) if served.pinned else Host(cascade, self.open_cascade, settings)

    def open_cascade(self, served: ServedRelease) -> Cascade:
        """A release over the deployments, which open their parts of it when they are asked first."""
        release_id = served.manifest.release_id
        searchers = self.searchers[: len(served.shard_groups)]
        groups = [asked(searcher, "search", release_id) for searcher in searchers]
        towers = AskEncoder(*(asked(self.encoder, method, release_id) for method in ("analyse", "embed_text", "turned_crops")))
        cascade = Cascade(served, self.settings, towers, groups, lost=(RayActorError,))
        exact = [asked(searcher, "search_exactly", release_id) for searcher in searchers]
        cascade.probe = RecallProbe(exact, self.settings.serve.probe_frac, self.counted)
        return cascade

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve when the replica starts."""
        return create_app(self.host, self.counted, every_replica)

    def metrics(self) -> list[Metric]:
        """Of this replica alone."""
        return self.counted.snapshot()


async def every_replica() -> list[list[Metric]]:
    """The metrics of all ingress replicas."""
    context = ray_serve.get_replica_context()
    handle = ray_serve.get_deployment_handle(context.deployment, context.app_name)
    replicas: list[list[Metric]] = await handle.broadcast("metrics").results_async()
    return replicas
