"""Headers by which Ray Serve lets every client change how its request is handled; they are dropped before Serve reads them.

Serve calls `middlewares` in its proxies and its replicas where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it (CALLBACK).
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

CALLBACK = f"{__name__}.middlewares"
# A time limit of the client's own or none at all; work that goes on when the client has hung up; which model, which replica.
DROPPED = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id", b"x-session-id")


class DropHeaders:
    """ASGI middleware: the request as if it had none of DROPPED. Serve reads `_` and `-` as the same in some of them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            dropped = {name.replace(b"_", b"-") for name in DROPPED}
            kept = [(name, value) for name, value in scope["headers"] if name.lower().replace(b"_", b"-") not in dropped]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve puts around everything it answers."""
    return [Middleware(DropHeaders)]
