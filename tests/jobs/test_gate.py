"""What the gate lets through, by itself and beside the champion; and that a worse release is shown, not served."""

import json
import re
from pathlib import Path

import pytest

from jobs import nightly
from jobs.config import Config, GateConfig, JobError
from jobs.evaluation.beside_champion import KnownAnswer, by_category, got_worse, recalls, replay
from jobs.evaluation.gate_report import write_gate_report
from jobs.evaluation.queries import Query, load_queries
from jobs.gate import Figure, judge
from jobs.run_records import read_rows
from jobs.tables import Tables
from serve.index.release import Release
from serve.registry import champion
from tests.parts import BuiltStore

GATE = GateConfig()


@pytest.mark.parametrize(
    ("name", "figure", "fault"),
    [
        ("recall_at_10", Figure(0.95, 0.95, 0.96), None),
        ("recall_at_10", Figure(0.89), r"is 0\.89, gate\.recall_at_10\.least is 0\.9: raise index\.refine_factor"),
        ("recall_at_10", Figure(0.92, 0.92, 0.99), r"is 0\.92, the champion's 0\.99, gate\.recall_at_10\.drop_frac"),
        ("photo_recall_at_10", Figure(0.5, 0.5, 0.6, noise=0.1), None),
        ("photo_recall_at_10", Figure(0.5, 0.5, 0.6, noise=0.01), r"gate\.photo_recall_at_10\.drop_frac"),
        ("photo_recall_at_10.apparel", Figure(0.4, 0.4, 0.8), r"of apparel .* gate\.category_recall_at_10\.drop_frac"),
        ("p99_ms", Figure(15.0, 15.0, 1.0), None),  # below `free`
        ("p99_ms", Figure(45.0, 45.0, 20.0), r"gate\.p99_ms\.rise_frac"),
        ("p99_ms", Figure(2000.0), r"gate\.p99_ms\.most"),
        ("bytes_per_crop", Figure(5000.0, 5000.0, 2000.0), r"gate\.bytes_per_crop\.rise_frac"),
        ("embedded_photos_frac", Figure(0.7, 0.7, 0.99), r"gate\.embedded_photos_frac\.drop_frac"),
        ("accepted_rows_frac", Figure(0.99, 0.99, 1.0), None),
        ("products", Figure(70, 70, 100), r"is 70, the champion's 100, gate\.products\.drop_frac"),
        ("products", Figure(70, 70, 80), None),
    ],
)
def test_bounds(name: str, figure: Figure, fault: str | None) -> None:
    [check] = judge(GATE, {name: figure})
    assert len(check.faults) == (fault is not None)
    assert fault is None or re.search(fault, check.faults[0]), check.faults


def answer(product_id: str, category: str, ours: str, theirs: str | None) -> KnownAnswer:
    """A photo of `product_id`; answers are letters, each a product."""
    return KnownAnswer(Query(Path("x.jpg"), (product_id,)), 0, category, tuple(ours), None if theirs is None else tuple(theirs))


def test_only_what_both_hold_is_compared() -> None:
    answers = [
        answer("a", "x/y", "abc", "ab"),
        answer("b", "x", "cb", "bc"),
        answer("c", "z", "ab", "cab"),
        answer("d", "z", "d", None),
    ]
    assert recalls(answers) == Figure(0.75, pytest.approx(2 / 3), 1.0, noise=pytest.approx(2 / 3))  # one moved, of three
    assert recalls(answers[3:]) == Figure(1.0)
    assert [found.product_id for found in got_worse(answers)] == ["c", "b"]
    assert {name: len(own) for name, own in by_category(answers, 1, 2).items()} == {"x": 2, "z": 2}


@pytest.mark.slow
def test_a_refused_release_is_recorded_and_shown(
    built_store: BuiltStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "gate"
    (tmp_path / "texts.txt").write_text("red boot\n\nstriped mug\n")
    settings = [
        "index.seed=99",
        f"gate.report={page}",
        f"gate.texts={tmp_path / 'texts.txt'}",
        "gate.bytes_per_crop={most: 1}",  # no index is so small, however good the bundle
    ]
    config = Config.load(built_store.conf, settings)
    served = champion(config.registry, config.store)
    with pytest.raises(JobError, match=r"gate\.bytes_per_crop\.most is 1.*not published, the champion stays") as refused:
        nightly.run(config)
    assert refused.value.exit_code == 3 and champion(config.registry, config.store) == served
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["outcome"], summary["exit_code"]) == ("refused", 3)
    row = read_rows(Tables(config.store.tables))[-1]
    assert (row["outcome"], row["run_id"]) == ("refused", summary["run_id"]) and row["release_id"] != served.name
    figures = json.loads((page / "report.json").read_text())["figures"]
    both = {"recall_at_10", "photo_recall_at_10", "p99_ms", "bytes_per_crop", "accepted_rows_frac", "products"}
    assert all(figures[name]["champion"] is not None for name in both - {"accepted_rows_frac"})
    assert figures["accepted_rows_frac"]["value"] < 1 and figures["same_results_frac"]["value"] == 1.0
    assert figures["same_text_results_frac"]["value"] == 1.0
    built = next(stage for stage in summary["stages"] if stage["name"] == "build_shards")["counts"]
    assert built["built"] == 0 and built["reused"] == built["shards"], "the same rows: every shard was linked"


def test_photos_that_got_worse_are_shown(built_store: BuiltStore, tmp_path: Path) -> None:
    config = built_store.config
    release = Release.open(champion(config.registry, config.store), verify=False)
    query = load_queries(built_store.queries, {}, 1, 0)[0]
    truth = query.product_ids[0]
    others = tuple(p for p in release.group.shards[0].shard.records.product_ids.to_pylist() if p != truth)[:5]
    worse = got_worse([KnownAnswer(query, 0, None, others, (truth, *others))])
    checks = judge(GATE, {"recall_at_10": Figure(0.5, 0.5, 0.9)})
    page = write_gate_report(tmp_path, release, release, checks, checks[0].faults, worse).read_text()
    assert "is refused" in page and "not found" in page and "rank 1" in page and page.count("data:image/jpeg;base64,") >= 9
    assert json.loads((tmp_path / "report.json").read_text())["worse"][0]["product_id"] == truth
    again = replay(release, release, 20, 1)
    assert again.same_results_frac == 1.0 and 0 < again.p99_ms < 1000 and again.champion_p99_ms is not None
