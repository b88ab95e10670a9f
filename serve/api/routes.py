"""The HTTP interface: paths, status codes and state. What a query does is in `serve.api.cascade`."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from deltalake.exceptions import DeltaError
from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from PIL import Image
from prometheus_client.metrics_core import Metric
from starlette.staticfiles import StaticFiles

from serve.api import guard, metrics, openapi, problems, queries
from serve.api.access import Access, Room
from serve.api.cascade import Cascade
from serve.api.device import device_router
from serve.api.host import Host
from serve.api.judging import add_judging_routes
from serve.api.logs import about_request
from serve.api.metrics import Metrics
from serve.api.observe import Observe
from serve.api.openapi import refusals
from serve.api.photos import read_photo
from serve.api.problems import Problem
from serve.api.product_routes import add_product_routes
from serve.api.schemas import (
    EmbedAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    Health,
    Limits,
    LookAnswer,
    Offers,
    PartitionSummary,
    Ready,
    Refusal,
    ReleaseAnswer,
    SearchAnswer,
)
from serve.api.url_photos import UrlPhotos

log = logging.getLogger(__name__)
T = TypeVar("T")
AllReplicas = Callable[[], Awaitable[list[list[Metric]]]]

PAGE = Path(__file__).parent.parent / "page"
RETRY = {"Retry-After": "1"}
NO_STORE = {"Cache-Control": "no-store"}
UNCHANGING = {"Cache-Control": "public, max-age=86400, immutable"}  # an image_id is the digest of its bytes


class Readiness:
    """Why queries are not answered yet; none = they are."""

    def __init__(self) -> None:
        self.reason: str | None = "starting: the parts of the release are being loaded"

    async def warm_up(self, cascade: Cascade) -> None:
        """One query through every part, tried until it is answered."""
        while self.reason is not None:
            try:
                await cascade.warm_up(warm_up_photo())
                self.reason = None
                log.info("event=ready release=%s", cascade.manifest.release_id)
            except Exception as error:
                self.reason = f"starting: the warm-up query failed ({type(error).__name__})"
                log.exception("event=warm_up_failed")
                await asyncio.sleep(1.0)


def warm_up_photo() -> bytes:
    """A JPEG that no catalog has."""
    ramp = np.tile(np.linspace(0, 255, 256, dtype=np.uint8), (256, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ramp, ramp.T, np.full_like(ramp, 128)], axis=-1)).save(buffer, "JPEG")
    return buffer.getvalue()


async def follow(host: Host) -> None:
    """Takes in what other replicas store, as long as this one lives."""
    while True:
        with host.use() as cascade:
            await asyncio.sleep(cascade.config.tail_s)
            try:
                await asyncio.to_thread(cascade.changes.refresh)
            except (OSError, DeltaError) as error:
                log.warning("event=inserts_not_read error=%s", type(error).__name__)


def create_app(host: Host, counted: Metrics, all_replicas: AllReplicas | None = None) -> FastAPI:
    """The whole interface over the release that `host` holds. `all_replicas` asks every ingress replica for its metrics."""
    config = host.current.config
    photos = UrlPhotos(config.max_body_bytes, config.image_url_timeout_s)
    readiness, room = Readiness(), Room(config.max_ongoing_requests, config.max_queued_requests, counted)
    host.tell(counted.serves)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = (readiness.warm_up(host.current), follow(host), host.follow(warm_up_photo()))
        running = [asyncio.create_task(task) for task in tasks]
        yield
        for task in running:
            task.cancel()
        host.current.close()

    app = FastAPI(title="visual-search", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    # The last one added is the first that a request meets.
    app.add_middleware(Access, keys=config.api_keys, num_ingress=config.num_ingress, room=room, metrics=counted)
    app.add_middleware(guard.SecurityHeaders)
    app.add_middleware(Observe, metrics=counted)
    problems.install(app)
    openapi.describe(app)

    async def in_time(ask: Callable[[Cascade], Awaitable[T]]) -> T:
        """What one release says to `ask` within the server's own limit, whatever timeout headers a client sends."""
        if readiness.reason is not None:
            raise Problem(503, "not_ready", readiness.reason, headers=RETRY)
        try:
            with host.use() as cascade:
                async with asyncio.timeout(config.request_timeout_s), room.place():
                    result = await ask(cascade)
        except TimeoutError:
            raise Problem(503, "too_slow", f"no answer within {config.request_timeout_s:g} s", headers=RETRY) from None
        if isinstance(result, SearchAnswer):
            counted.answered(result)
            about_request.get({}).update(release=result.release.id, stage=result.stage)
        return result

    @app.post(
        "/v1/search",
        response_model=SearchAnswer,
        responses=refusals(404, 408, 413, 415, 422, 429, 503),
        openapi_extra=openapi.search_body(),
    )
    async def search(request: Request) -> Response:
        """Search with a photo or a product: multipart/form-data, JSON, or the bytes of the photo as image/*."""
        query = await guard.read_query(request, config, photos)
        answer = await in_time(lambda cascade: cascade.search(query))
        return Response(answer.model_dump_json(), media_type="application/json", headers=NO_STORE)

    @app.post(
        "/v1/embed",
        response_model=EmbedAnswer,
        responses=refusals(408, 413, 415, 422, 429, 503),
        openapi_extra=openapi.search_body(),
    )
    async def embed(request: Request) -> Response:
        """The crops of a photo and their embeddings, made exactly as the catalog's; nothing is searched."""
        query = await guard.read_query(request, config, photos)
        if query.image is None:
            raise Problem(422, "no_query", "needs a photo", "image")
        answer = await in_time(lambda cascade: cascade.embed(query))
        return Response(answer.model_dump_json(), media_type="application/json", headers=NO_STORE)

    @app.get("/v1/products/{product_id:path}/similar", response_model=SearchAnswer, responses=refusals(404, 422, 429, 503))
    async def similar(product_id: str, k: Annotated[int | None, Query(description="how many products")] = None) -> Response:
        """Products that look like this one."""
        query = queries.Query(queries.check_k(k, config), product_id=product_id)
        answer = await in_time(lambda cascade: cascade.search(query))
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.get("/v1/products/{product_id:path}/look", response_model=LookAnswer, responses=refusals(404, 422, 429, 503))
    async def look(product_id: str) -> Response:
        """What goes with this product, where the release has looks."""
        answer = await in_time(lambda cascade: cascade.look(product_id))
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post(
        "/v1/feedback",
        response_model=FeedbackAnswer,
        responses=refusals(404, 408, 413, 415, 422, 429, 503),
        openapi_extra=openapi.body_of(FeedbackRequest),
    )
    async def feedback(request: Request) -> Response:
        """Clicks and purchases, for the `query_id` of an answer; durable when answered, counted once."""
        asked = await guard.read_json(request, config, FeedbackRequest)
        with host.use() as cascade:
            if cascade.feedback is None:
                raise Problem(404, "not_offered", "this server takes none (serve.feedback)", "feedback")
            stored, repeated = await cascade.feedback.said(request, asked)
        answer = FeedbackAnswer(stored=stored, repeated=repeated)
        return Response(answer.model_dump_json(), media_type="application/json", headers=NO_STORE)

    if config.changes:
        add_product_routes(app, config, in_time)
    if config.judging:
        add_judging_routes(app, host)

    @app.get("/v1/images/{image_id}", response_class=Response, responses=image_responses() | refusals(404, 422))
    async def photo(image_id: str, product: Annotated[str, Query(description="product_id of the photo")]) -> Response:
        """A catalog photo of this release: the `image_url` of a result. One on an https host is a redirect there."""
        with host.use() as cascade:
            uri = await cascade.in_thread(cascade.products.photo_uri, product, image_id)
            if uri is None:
                detail = f"release {cascade.manifest.release_id} has no such photo of this product"
                raise Problem(404, "unknown_image", detail, "image_id")
            if uri.startswith(("https://", "http://")):
                return RedirectResponse(uri, 307)
            data, media_type = await cascade.in_thread(read_photo, uri, image_id, cascade.limits.max_bytes)
        return Response(data, media_type=media_type, headers=UNCHANGING)

    app.include_router(device_router(lambda: (host.current.bundle_folder, host.current.manifest.bundle)))

    @app.get("/v1/release")
    async def release() -> ReleaseAnswer:
        """What is served, exactly: release, bundle and table versions, sizes, measured figures, limits."""
        return release_answer(host.current, host.refused)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {metrics.CONTENT_TYPE: {}}}})
    async def prometheus() -> Response:
        """Counts and times of all ingress replicas, for Prometheus."""
        replicas = [counted.snapshot()] if all_replicas is None else await all_replicas()
        return Response(metrics.exposition(replicas), media_type=metrics.CONTENT_TYPE, headers=NO_STORE)

    @app.get("/healthz")
    async def healthz() -> Health:
        """This process is alive."""
        return Health()

    @app.get("/readyz", response_model=Ready, responses=refusals(503))
    async def readyz() -> Response:
        """Queries are answered: a warm-up query went through every part."""
        if readiness.reason is not None:
            raise Problem(503, "not_ready", readiness.reason, headers=RETRY)
        return JSONResponse(Ready(release=host.current.manifest.release_id).model_dump(), headers=NO_STORE)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")

    app.mount("/page", StaticFiles(directory=PAGE))
    return app


def image_responses() -> dict[int | str, dict[str, object]]:
    """OpenAPI of a photo."""
    kinds = ("image/jpeg", "image/png", "image/webp", "image/gif")
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {"description": "The photo", "content": dict.fromkeys(kinds, binary)},
        307: {"description": "Where the photo is"},
    }


def release_answer(cascade: Cascade, refused: tuple[str, str] | None) -> ReleaseAnswer:
    """The manifest, in short, and what was not let in its place."""
    manifest, config = cascade.manifest, cascade.config
    return ReleaseAnswer(
        release=cascade.answers.release,
        refused=Refusal(release=refused[0], reason=refused[1]) if refused else None,
        format_version=manifest.format_version,
        tables=manifest.tables,
        hash=manifest.hash.model_dump(),
        partitions=[
            PartitionSummary(
                name=partition.name,
                factory=partition.spec.factory,
                nprobe=partition.spec.nprobe,
                num_shards=len(partition.shards),
                num_rows=sum(shard.num_rows for shard in partition.shards),
                num_products=sum(shard.num_products for shard in partition.shards),
            )
            for partition in manifest.partitions
        ],
        counts=manifest.counts.model_dump(),
        metrics=manifest.metrics,
        limits=Limits(
            default_k=config.default_k,
            max_k=config.max_k,
            max_body_bytes=config.max_body_bytes,
            max_pixels=cascade.limits.max_pixels,
        ),
        offers=Offers(
            text=cascade.towers.served.has_text,
            image_url=config.image_url,
            device=cascade.fits_browsers,
            feedback=cascade.feedback is not None,
        ),
    )
