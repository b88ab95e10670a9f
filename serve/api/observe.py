"""What is written down of a request: an id, a log line, a count, a time. Never its content, its parameters or its key."""

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.logs import about_request, request_id_of
from serve.api.metrics import Metrics
from serve.api.problems import Problem

log = logging.getLogger(__name__)

QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds; counted, not logged


class Observe:
    """ASGI middleware, the outermost: names the request, and answers 500 for a fault without telling of its text."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 0
        request_id = request_id_of(Headers(scope=scope).get("x-request-id"))
        token = about_request.set({"request_id": request_id})

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception:
            log.exception("event=bug route=%s", route_of(scope))
            if status:
                raise  # half an answer is out: the connection has to break
            bug = Problem(500, "bug", "this is a fault of the server; its log has the details")
            await bug.response()(scope, receive, send_named)
        finally:
            self._write_down(scope, status, time.perf_counter() - started)
            about_request.reset(token)

    def _write_down(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope)
        self.metrics.responses.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if route not in QUIET:
            log.info("event=answered method=%s route=%s status=%d ms=%.1f", method_of(scope), route, status, 1000 * seconds)


def route_of(scope: Scope) -> str:
    """The pattern of the route, such as /v1/images/{image_id}; what a client put into the path is not in it."""
    return str(getattr(scope.get("route"), "path", None) or "other")


def method_of(scope: Scope) -> str:
    """GET, POST, PUT, DELETE, HEAD; anything else is `other`, as a client may send any word."""
    return scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE", "HEAD") else "other"
