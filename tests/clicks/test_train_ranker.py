"""jobs.train_ranker on a feedback table as serving writes it: what counts, what is refused, what is published."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from jobs import train_ranker
from jobs.clicks.sessions import Sessions, sessions_of
from jobs.config import Config, JobError
from jobs.evaluation.click_simulator import make_world, simulate
from jobs.release_models import current_models
from serve.ranking.ranker import FEATURES, RANKER_FILE, Ranker
from serve.ranking.records import FEEDBACK
from tests.parts import write_conf

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.load(write_conf(tmp_path, {"train_ranker": {"min_clicks": 20, "threads": 1}}))


def impression(query: str, position: int, product: str) -> dict[str, Any]:
    features = [float(position)] * len(FEATURES)
    row = {"query_id": query, "kind": "impression", "product_id": product, "position": position, "features": features}
    return row | {"shuffled": False, "client": "", "at": AT}


def event(query: str, product: str, kind: str = "click", client: str = "c") -> dict[str, Any]:
    return {"query_id": query, "kind": kind, "product_id": product, "client": client, "at": AT}


def write(config: Config, rows: list[dict[str, Any]]) -> None:
    write_deltalake(f"{config.store.tables}/feedback", pa.Table.from_pylist(rows, schema=FEEDBACK))


def rows_of(sessions: Sessions) -> list[dict[str, Any]]:
    """The table that such sessions would have left."""
    rows = []
    for s, (features, gains) in enumerate(zip(sessions.features_SLF, sessions.gains_SL, strict=True)):
        for position, (feature, gain) in enumerate(zip(features.tolist(), gains, strict=True)):
            shown = impression(f"q{s:06d}", position, f"p{position}")
            rows.append(shown | {"features": feature, "shuffled": bool(sessions.shuffled_S[s])})
            rows += [event(f"q{s:06d}", f"p{position}", client=f"c{s}")] if gain else []
    return rows


def test_an_event_counts_once_and_only_on_what_was_shown() -> None:
    rows = [impression("q", i, f"p{i}") for i in range(3)]
    rows += [
        event("q", "p1"),
        event("q", "p1"),
        event("q", "never shown"),
        event("other query", "p1"),
        event("q", "p2", "purchase"),
    ]
    sessions = sessions_of(pa.Table.from_pylist(rows, schema=FEEDBACK), purchase_gain=3.0, max_clicks_per_client=9)
    assert sessions.gains_SL.tolist() == [[0.0, 1.0, 3.0]]


def test_one_client_can_not_teach_alone() -> None:
    rows = [impression(f"q{q}", i, f"p{i}") for q in range(6) for i in range(2)]
    rows += [event(f"q{q}", "p1", client="poison" if q < 5 else "other") for q in range(6)]
    sessions = sessions_of(pa.Table.from_pylist(rows, schema=FEEDBACK), purchase_gain=3.0, max_clicks_per_client=2)
    assert sessions.gains_SL[:, 1].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def test_without_feedback_nothing_happens(config: Config) -> None:
    assert asdict(train_ranker.run(config)) == {"sessions": 0, "clicks": 0, "replay_gain": None, "digest": ""}


def test_no_clicks_too_few_or_all_on_position_1_teach_nothing(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "jobs")
    shown = [impression(f"q{q}", i, f"p{i}") for q in range(30) for i in range(3)]
    write(config, shown)
    assert train_ranker.run(config).digest == "" and "0 clicks" in caplog.text
    write_deltalake(
        f"{config.store.tables}/feedback",
        pa.Table.from_pylist([event(f"q{q}", "p0", client=str(q)) for q in range(30)], schema=FEEDBACK),
        mode="append",
    )
    assert train_ranker.run(config).digest == "" and "every click is on position 1" in caplog.text
    assert current_models(config.store) == {}


@pytest.fixture(scope="module")
def logged() -> list[dict[str, Any]]:
    world = make_world(200, 8, seed=5).repeated(6)
    return rows_of(simulate(world, world.visual_SL, 1.0, shuffled_frac=0.3, seed=6))


def test_a_better_ranking_is_published_and_learned_again_it_is_the_same(config: Config, logged: list[dict[str, Any]]) -> None:
    write(config, logged)
    first = train_ranker.run(config)
    assert first.replay_gain is not None and first.replay_gain > 0
    folder = config.store.root / "models" / "ranker" / first.digest
    ranker = Ranker.open(folder / RANKER_FILE)
    sold_out = np.zeros((2, len(FEATURES)), np.float32)
    sold_out[:, FEATURES.index("visual")] = 0.8
    sold_out[1, FEATURES.index("sold_out")] = 1
    assert ranker.scores(sold_out)[0] > ranker.scores(sold_out)[1]
    assert train_ranker.run(config).digest == first.digest and current_models(config.store) == {"ranker": first.digest}


def test_a_ranking_that_earns_no_more_is_refused(config: Config) -> None:
    """Clicks that have nothing to do with the products."""
    world = make_world(200, 8, seed=5).repeated(6)
    sessions = simulate(world, world.visual_SL, 1.0, shuffled_frac=0.3, seed=6)
    noise = np.random.default_rng(0).random(sessions.shown_SL.shape) < 0.3 / np.arange(1, 9)
    write(config, rows_of(Sessions(sessions.features_SLF, noise.astype(float), sessions.shown_SL, sessions.shuffled_S)))
    with pytest.raises(JobError, match="not switched on") as refused:
        train_ranker.run(config)
    assert refused.value.exit_code == 3 and current_models(config.store) == {}
