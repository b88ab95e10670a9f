"""Ingress replicas: HTTP in and out, and the cascade between; the encoder and the searchers are asked by handle."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve.api.cascade import AskEncoder, Cascade
from serve.api.problems import overloaded
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.settings import Settings


def asked(handle: DeploymentHandle, method: str) -> Callable[..., Awaitable[Any]]:
    """`method` of a deployment as a coroutine function; a full queue there is a Problem 429 here."""

    async def ask(*args: Any) -> Any:
        try:
            return await getattr(handle, method).remote(*args)
        except BackPressureError:
            raise overloaded("too many queries are waiting; try again") from None

    return ask


class Ingress:
    """One replica = one event loop with its own guarded decoders; hash tables and products are memory-mapped, so shared."""

    def __init__(
        self, served: ServedRelease, settings: Settings, encoder: DeploymentHandle, searchers: list[DeploymentHandle]
    ) -> None:
        groups = [asked(searcher, "search") for searcher in searchers]
        towers = AskEncoder(photo=asked(encoder, "analyse"), text=asked(encoder, "embed_text"))
        self.cascade = Cascade(served, settings, towers, groups, lost=(RayActorError,))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve when the replica starts."""
        return create_app(self.cascade)
