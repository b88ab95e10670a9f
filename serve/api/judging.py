"""The calls of the judging page: the next photo for a rater, the photo itself, and the grades that a rater gives.

Blind and shuffled: products of all releases and settings in the pool come in one list, in an order drawn for each rater. All
raters get the photos in the same order, so that soon two have judged the same ones and agreement can be told.
"""

import asyncio
import random
from datetime import UTC, datetime
from pathlib import Path

from deltalake import DeltaTable
from fastapi import FastAPI, Query
from fastapi.responses import FileResponse, Response
from starlette.requests import Request

from serve.api import guard
from serve.api.answers import photo_path
from serve.api.cascade import Cascade
from serve.api.durable import Records
from serve.api.host import Host
from serve.api.openapi import body_of, refusals
from serve.api.photos import read_photo
from serve.api.problems import Problem
from serve.api.schemas import RATER, JudgedItem, JudgingTask, JudgmentAnswer, JudgmentRequest
from serve.index.judging import PooledPhoto, read_pool
from serve.ranking.records import JUDGMENTS, JUDGMENTS_TABLE
from serve.settings import StoreConfig

PAGE = Path(__file__).parent.parent / "page" / "judge.html"
NO_STORE = {"Cache-Control": "no-store"}


class Judging:
    """The pool of photos, and who has judged what."""

    def __init__(self, store: StoreConfig) -> None:
        self.root = store.root
        self.records = Records(f"{store.tables.rstrip('/')}/{JUDGMENTS_TABLE}", JUDGMENTS)

    def pool(self) -> dict[str, PooledPhoto]:
        """As it is now."""
        return read_pool(self.root)

    def judged(self, rater: str) -> set[tuple[str, str]]:
        """(image_id, product_id) of every verdict of `rater`."""
        if not DeltaTable.is_deltatable(self.records.path):
            return set()
        rows = DeltaTable(self.records.path).to_pyarrow_table(columns=["query", "product_id"], filters=[("rater", "=", rater)])
        return set(zip(rows["query"].to_pylist(), rows["product_id"].to_pylist(), strict=True))

    def next(self, rater: str, cascade: Cascade) -> JudgingTask:
        """The first photo with a product that `rater` has not judged. Products that this release does not hold are left out."""
        judged, pool = self.judged(rater), self.pool()
        waiting: tuple[str, list[JudgedItem]] | None = None
        done = 0
        for photo in pool.values():
            open_ids = [product_id for product_id in photo.product_ids if (photo.image_id, product_id) not in judged]
            items = [item for product_id in open_ids if (item := judged_item(cascade, product_id)) is not None]
            if not items:
                done += 1
            elif waiting is None:
                random.Random(f"{rater}/{photo.image_id}").shuffle(items)
                waiting = (photo.image_id, items)
        if waiting is None:
            return JudgingTask(query=None, query_url=None, items=[], done=done, total=len(pool))
        image_id, items = waiting
        return JudgingTask(query=image_id, query_url=f"/v1/judgments/photos/{image_id}", items=items, done=done, total=len(pool))

    async def grade(self, asked: JudgmentRequest) -> int:
        """How many verdicts were stored. Raises Problem 422, 503."""
        photo = (await asyncio.to_thread(self.pool)).get(asked.query)
        if photo is None or not asked.grades.keys() <= set(photo.product_ids):
            raise Problem(422, "not_in_pool", "is not among what is to be judged", "query" if photo is None else "grades")
        head = {"query": asked.query, "rater": asked.rater, "at": datetime.now(UTC)}
        await self.records.add([head | {"product_id": name, "grade": grade} for name, grade in asked.grades.items()])
        return len(asked.grades)


def judged_item(cascade: Cascade, product_id: str) -> JudgedItem | None:
    """What a rater sees of a product; None where it is gone."""
    known = cascade.products.product(product_id)
    if known is None:
        return None
    return JudgedItem(product_id=product_id, title=known["title"], image_url=photo_path(known["image_id"], product_id))


def add_judging_routes(app: FastAPI, host: Host) -> None:
    """The page and its calls, on `app`."""
    config, judging = host.current.config, Judging(host.current.store)

    @app.get("/judge", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.get("/v1/judgments/next", response_model=JudgingTask, responses=refusals(422))
    async def next_task(rater: str = Query(min_length=1, max_length=40, pattern=RATER)) -> Response:
        """The next photo for this rater, with the products that were found for it."""
        with host.use() as cascade:
            task = await cascade.in_thread(judging.next, rater, cascade)
        return Response(task.model_dump_json(), media_type="application/json", headers=NO_STORE)

    @app.get("/v1/judgments/photos/{image_id}", response_class=Response, responses=refusals(404, 422))
    async def photo(image_id: str) -> Response:
        """A query photo of the pool."""
        pooled = (await asyncio.to_thread(judging.pool)).get(image_id)
        if pooled is None:
            raise Problem(404, "unknown_image", "no such photo is to be judged", "image_id")
        data, media_type = await asyncio.to_thread(read_photo, pooled.path.as_uri(), image_id, host.current.limits.max_bytes)
        return Response(data, media_type=media_type, headers=NO_STORE)

    @app.post(
        "/v1/judgments",
        response_model=JudgmentAnswer,
        responses=refusals(408, 413, 415, 422, 503),
        openapi_extra=body_of(JudgmentRequest),
    )
    async def judge(request: Request) -> Response:
        """Grades of one rater for one photo, durable when answered. Of one rater on one product the newest counts."""
        asked = await guard.read_json(request, config, JudgmentRequest)
        answer = JudgmentAnswer(stored=await judging.grade(asked))
        return Response(answer.model_dump_json(), media_type="application/json", headers=NO_STORE)
