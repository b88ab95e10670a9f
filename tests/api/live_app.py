"""An ASGI app behind a real socket, in a thread of the test process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import uvicorn
from starlette.types import ASGIApp


def until_there(url: str, path: str = "/readyz") -> None:
    """Waits until `path` is no longer answered with 503."""
    while httpx.get(f"{url}{path}", timeout=30).status_code == 503:
        time.sleep(0.1)


@contextlib.contextmanager
def live(app: ASGIApp) -> Iterator[str]:
    """Serves `app` on a free port of this machine; yields its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the app did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()
