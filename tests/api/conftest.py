"""One tiny release a session, and the whole interface over it in this process: no Ray, everything else as it runs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from serve.api.cascade import Cascade
from serve.api.host import Host
from serve.api.metrics import Metrics
from serve.api.query_encoder import PhotoEncoder, decoded
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.api.shard_searcher import ShardSearcher
from serve.api.towers import AskEncoder, Refused
from serve.settings import Settings
from serve.vision.guarded import GuardedDecoder
from tests.api.live_app import live, until_there
from tests.api.tiny_release import RELEASE_ID, TinyRelease, make_release


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    """A release of twelve products in four shards."""
    return make_release(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def served(tiny: TinyRelease) -> ServedRelease:
    """The tiny release, verified."""
    return ServedRelease.resolve(tiny.settings, RELEASE_ID)


@pytest.fixture(scope="session")
def encode(served: ServedRelease, tiny: TinyRelease) -> AskEncoder:
    """The encoder of the tiny bundle, asked one photo or one text at a time."""
    digest = served.manifest.bundle.digest
    encoder, decoder = PhotoEncoder(served.bundle_folder, digest, tiny.settings.runtime), GuardedDecoder(tiny.settings.decode)

    def analysed(data: bytes, boxes: Any, quarters: int) -> Any:
        pixels = decoded(decoder, data, boxes)
        if isinstance(pixels, Refused):
            return pixels
        return encoder.bundle.analyse_turned(pixels, quarters) if quarters else encoder.analyse([(pixels, boxes)])[0]

    async def photo(data: bytes, boxes: Any, may_wait: bool, quarters: int) -> Any:
        return await asyncio.to_thread(analysed, data, boxes, quarters)

    async def text(words: str) -> Any:
        return await asyncio.to_thread(encoder.embed_text, words)

    async def turned(data: bytes, crops: Any) -> Any:
        pixels = decoded(decoder, data, ())
        return pixels if isinstance(pixels, Refused) else await asyncio.to_thread(encoder.bundle.turned_crops, pixels, crops)

    return AskEncoder(photo, text, turned)


def searchers(served: ServedRelease, settings: Settings) -> list[Callable[..., Awaitable[Any]]]:
    """Every shard group of a release, each in this process."""
    release_id = served.manifest.release_id
    return [partial(ShardSearcher(settings, release_id, g).search, release_id) for g in range(len(served.shard_groups))]


@pytest.fixture(scope="session")
def groups(served: ServedRelease, tiny: TinyRelease) -> list[Callable[..., Awaitable[Any]]]:
    """Both shard groups."""
    return searchers(served, tiny.settings)


@pytest.fixture(scope="session")
def api(served: ServedRelease, tiny: TinyRelease, encode: Any, groups: Any) -> Iterator[str]:
    """URL of the interface over the tiny release, ready."""
    with live(create_app(Host(Cascade(served, tiny.settings, encode, groups)), Metrics())) as url:
        until_there(url)
        yield url
