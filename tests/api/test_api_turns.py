"""Photos in which nothing near is found are looked at in their other quarter turns, by serving and by the jobs alike."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serve.api.cascade import Cascade
from serve.api.problems import Problem
from serve.api.queries import Query
from serve.api.schemas import SearchAnswer
from serve.api.served import ServedRelease
from serve.api.towers import AskEncoder
from serve.index.release import Release
from serve.index.search import search_photo
from serve.vision.bundle import Bundle
from serve.vision.guarded import GuardedDecoder
from serve.vision.spec import TurnsConfig
from tests.api.conftest import searchers
from tests.api.tiny_release import TinyRelease, encoded, picture

ALWAYS = TurnsConfig(below=1.0, lead=0.0)


@pytest.fixture
def cascade(served: ServedRelease, tiny: TinyRelease, encode: AskEncoder) -> Any:
    """One whose bundle has every photo turned."""
    cascade = Cascade(served, tiny.settings, encode, searchers(served, tiny.settings))
    cascade.turns = ALWAYS
    yield cascade
    cascade.close()


def asked(cascade: Cascade, photo: bytes, **more: Any) -> SearchAnswer:
    return asyncio.run(cascade.search(Query(image=photo, k=6, explain=True, **more)))


def test_serving_and_the_jobs_turn_alike(cascade: Cascade, served: ServedRelease, tiny: TinyRelease) -> None:
    release, bundle = Release.open(served.folder), Bundle.load(served.bundle_folder, tiny.settings.runtime)
    bundle.config = bundle.config.model_copy(update={"turns": ALWAYS})
    degrees = set()
    with GuardedDecoder(tiny.settings.decode) as decoder:
        for seed in range(400, 412):
            photo = encoded(picture(seed))
            expected, answer = search_photo(photo, release, bundle, decoder, 6), asked(cascade, photo)
            assert [r.product_id for r in answer.results] == [r.product_id for r in expected.results]
            assert np.allclose([r.score for r in answer.results], [r.score for r in expected.results], atol=1e-6)
            assert [crop.box for crop in answer.crops] == [crop.crop.box for crop in expected.crops]
            assert answer.crops[0].box == (0, 0, 192, 224) and "turn" in answer.timings_ms and answer.explain is not None
            degrees.add(answer.explain.turned_deg)
    assert len(degrees) > 1 and degrees <= {0, 90, 180, 270}


def test_what_is_near_enough_is_not_turned(cascade: Cascade) -> None:
    photo = encoded(picture(400))
    cascade.turns = TurnsConfig(below=-1.0)
    assert "turn" not in asked(cascade, photo).timings_ms
    cascade.turns = None
    assert "turn" not in asked(cascade, photo).timings_ms
    cascade.turns = ALWAYS
    assert "turn" not in asked(cascade, photo, boxes=((20, 30, 120, 130),)).timings_ms, "the user said where to look"


def test_a_partial_answer_is_not_turned(served: ServedRelease, tiny: TinyRelease, encode: AskEncoder) -> None:
    """What is near may lie in the shards that did not answer, and each look would wait for them again."""

    async def gone(*_: Any) -> Any:
        raise ConnectionError

    groups = [*searchers(served, tiny.settings), gone]
    cascade = Cascade(served, tiny.settings, encode, groups, (ConnectionError,))
    cascade.turns = ALWAYS
    answer = asked(cascade, encoded(picture(400)))
    assert answer.partial and answer.results and "turn" not in answer.timings_ms
    cascade.close()


def test_no_time_for_turns_is_no_fault(served: ServedRelease, tiny: TinyRelease, encode: AskEncoder) -> None:
    async def busy(photo: bytes, crops: Any) -> Any:
        raise Problem(429, "overloaded", "too many queries are waiting; try again")

    cascade = Cascade(served, tiny.settings, replace(encode, turned=busy), searchers(served, tiny.settings))
    cascade.turns = ALWAYS
    answer = asked(cascade, encoded(picture(400)))
    assert len(answer.results) == 6 and answer.explain is not None and answer.explain.turned_deg == 0
    cascade.close()
