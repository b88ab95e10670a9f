"""The look graph, its models and the looks they make, on products whose rule is known: kinds differ, colours match."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import JobError, TrainLooksConfig
from jobs.looks.compose import LookComposer
from jobs.looks.content import Content, unit
from jobs.looks.graph import LookGraph, read_links
from jobs.looks.measure import ORDER, TRAIN, average_ranks, choose, cross_validate, fold_of, link_scores
from serve.index.manifest import ReleaseError
from serve.ranking.looks import Looks, write_looks

KINDS, COLOURS, EACH = 4, 5, 6  # EACH products of every kind in every colour
CONFIG = TrainLooksConfig(epochs=60, hidden=32, batch_edges=32, negatives=64, learning_rate=1e-2, dropout=0, threads=1, folds=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def content() -> Content:
    kinds, colours = (np.repeat(np.arange(n), m) for n, m in ((KINDS, COLOURS * EACH), (KINDS * COLOURS, EACH)))
    colours %= COLOURS
    features = np.concatenate([np.eye(KINDS)[kinds], np.eye(COLOURS)[colours]], axis=1).astype(np.float32)
    ids = tuple(f"p{i:03d}" for i in range(len(kinds)))
    return Content(ids, tuple((i,) for i in ids), tuple(f"kind{k}" for k in kinds), features, unit(features))


def goes(content: Content, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rule."""
    kinds, colours = (content.features_NF[:, cut].argmax(axis=1) for cut in (slice(0, KINDS), slice(KINDS, None)))
    return np.asarray((kinds[a] != kinds[b]) & (colours[a] == colours[b]))


@pytest.fixture(scope="module")
def graph(content: Content) -> LookGraph:
    """A tenth of what the rule allows, both ways."""
    a, b = np.triu_indices(content.num_nodes, 1)
    kept = goes(content, a, b) & (np.random.default_rng(0).random(len(a)) < 0.1)
    return LookGraph.of_edges(content.num_nodes, np.concatenate([np.c_[a, b][kept], np.c_[b, a][kept]]))


@pytest.mark.parametrize("name", ["mlp", "graph"])
def test_a_rule_is_learned_for_products_never_seen(name: str, content: Content, graph: LookGraph) -> None:
    held_out = fold_of(content, CONFIG) == 0
    model = TRAIN[name](content, graph.without_nodes(held_out), CONFIG)
    sources = np.flatnonzero(held_out)
    best = np.argsort(-model.scores(sources), axis=1)[:, :10]
    assert goes(content, sources[:, None], best).mean() > 0.9


def test_held_out_products_are_judged_by_the_whole_rule_where_it_is_known(content: Content, graph: LookGraph) -> None:
    """Links are a tenth of what fits; a model that learned the rule is wrong by them, and right by the rule."""
    a, b = np.meshgrid(*2 * [np.arange(content.num_nodes)], indexing="ij")
    fits = LookGraph.of_edges(content.num_nodes, np.argwhere(goes(content, a, b)))
    config = CONFIG.model_copy(update={"folds": 2})
    by_links, by_rule = (cross_validate(content, graph, config, truth)["mlp"].recall_at_10 for truth in (None, fits))
    assert by_rule > 0.9 > 0.6 > by_links


def test_every_model_is_measured_on_the_same_held_out_products(content: Content, graph: LookGraph) -> None:
    measured = cross_validate(content, graph, CONFIG.model_copy(update={"epochs": 8}))
    assert len({len(score.auc_B) for score in measured.values()}) == 1
    assert measured["graph"].auc > max(measured[name].auc for name in ("popularity", "nearest"))
    same = dict.fromkeys(ORDER, measured["graph"])
    assert choose(same, 0) == "popularity"  # of equals the simplest
    assert choose(same | dict.fromkeys(ORDER[:3], measured["popularity"]), 0) == "mlp"


def test_a_look_has_each_kind_once_and_only_kinds_that_met(content: Content, graph: LookGraph) -> None:
    apart = graph.without_nodes(np.array([kind == "kind3" for kind in content.kinds]))  # nothing is linked with kind 3
    for links in (graph, apart):
        model = TRAIN["cooccurrence"](content, links, CONFIG)
        for source, look in enumerate(LookComposer(content, links, 6).looks(model, content.num_nodes)):
            kinds = [content.kinds[target] for target in look]
            assert len(set(kinds)) == len(kinds) and content.kinds[source] not in kinds
            if links is apart:
                assert "kind3" not in kinds and (look == []) == (content.kinds[source] == "kind3")


def test_isolated_products_and_an_empty_graph_are_no_trouble(content: Content) -> None:
    empty = LookGraph.of_edges(content.num_nodes, np.empty((0, 2)))
    lonely = LookGraph.of_edges(content.num_nodes, np.array([[0, 40]]))
    for links in (empty, lonely):
        for name in ORDER:
            assert np.isfinite(TRAIN[name](content, links, CONFIG).scores(np.arange(3))).all()


@pytest.mark.parametrize("steps", range(1, 12))
def test_any_number_of_steps_trains(content: Content, steps: int) -> None:
    config = CONFIG.model_copy(update={"epochs": steps, "batch_edges": 1})
    model = TRAIN["mlp"](content, LookGraph.of_edges(content.num_nodes, np.array([[0, 40]])), config)
    assert np.isfinite(model.scores(np.arange(3))).all()


def test_scores_by_hand() -> None:
    scores = np.array([9.0, 0.1, 0.9, 0.5, 0.5])  # of source 0, which is linked to 2 and 3
    assert link_scores(scores, 0, np.array([2, 3])) == (1.0, pytest.approx((2 + 1 + 0.5 + 0) / 4 + 0.0, abs=0.13))
    assert link_scores(np.zeros(41), 0, np.array([1])) == (pytest.approx(10 / 40), 0.5)
    assert average_ranks(np.array([3.0, 1.0, 3.0])).tolist() == [1.5, 0.0, 1.5]


@given(edges=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6))), seed=st.integers(0, 9))
def test_the_graph_holds_each_link_once_and_draws_only_neighbours(edges: list[tuple[int, int]], seed: int) -> None:
    graph = LookGraph.of_edges(7, np.array(edges, np.int64).reshape(-1, 2))
    truth = {(a, b) for a, b in edges if a != b}
    assert set(zip(graph.sources_E.tolist(), graph.targets_E.tolist(), strict=True)) == truth and graph.num_edges == len(truth)
    everything = np.arange(7)
    assert {(a, b) for a in range(7) for b in range(7) if graph.holds(np.array(a), np.array(b))} == truth
    drawn = graph.neighbours().sample(everything, 4, np.random.default_rng(seed))
    assert all((int(node), int(end)) in truth for node in everything for end in drawn[node] if end >= 0)
    assert all((drawn[node] >= 0).all() == bool(len(graph.neighbours().of_node(node))) for node in everything)
    assert sorted(graph.reversed_neighbours().ends) == sorted(a for a, _ in truth)


def test_links_of_both_forms_are_read(tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    rows = [
        {"product_ids": ["a", "b", "gone"]},
        {"type": "upsell", "product_id": "a", "linked": ["c"]},
        {"type": "related", "group_id": "b", "linked": ["c", "b"]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    nodes = {"a": 0, "b": 1, "c": 2}
    graph = read_links([path], nodes, 3, ["related"])
    assert list(zip(graph.sources_E.tolist(), graph.targets_E.tolist(), strict=True)) == [(0, 1), (1, 0), (1, 2)]
    assert read_links([path], nodes, 3, []).num_edges == 4
    path.write_text('{"product_id": "a"}')
    with pytest.raises(JobError, match=r"links.jsonl, line 1"):
        read_links([path], nodes, 3, [])


def test_looks_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "looks.arrow"
    write_looks(path, {"ü": ["a"], "a": ["b", "ü"], "b": []})
    looks = Looks(path)
    assert (looks.of("a"), looks.of("b"), looks.of("ü"), looks.of("c"), looks.of("zz")) == (["b", "ü"], [], ["a"], None, None)
    path.write_bytes(b"nonsense")
    with pytest.raises(ReleaseError, match="train them again"):
        Looks(path)
