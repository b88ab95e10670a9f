"""Bundles measured without an index, on a rendered shop: figures, report, MLflow; and what is wrong is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from jobs.config import Config, JobError
from jobs.evaluate_bundle import run
from tests.shop import NUM_PRODUCTS, render_shop

SHIPPED = "serve/bundles/generated-v1"


@pytest.fixture(scope="module")
def rendered_shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return render_shop(tmp_path_factory.mktemp("shop"))


def config_of(sections: dict[str, Any], **more: dict[str, Any]) -> Config:
    return Config.model_validate(sections | {name: sections.get(name, {}) | values for name, values in more.items()})


@pytest.mark.slow
def test_two_bundles_are_compared(rendered_shop: dict[str, Any], tmp_path: Path) -> None:
    """The second one is the first without its detector."""
    plain = tmp_path / "plain"
    shutil.copytree(SHIPPED, plain)
    spec = json.loads((Path(SHIPPED) / "bundle.json").read_text())
    (plain / "bundle.json").write_text(json.dumps(spec | {"detector": {"kind": "none"}}))
    bundles = {"shipped": SHIPPED, "whole photo": str(plain)}
    config = config_of(rendered_shop, evaluate_bundle={"bundles": bundles, "report": str(tmp_path / "report")})
    result = run(config)
    shipped, whole = result.figures["shipped"], result.figures["whole photo"]
    assert shipped["catalog_products"] == NUM_PRODUCTS and shipped["catalog_photos"] == 3 * NUM_PRODUCTS
    assert 0.4 < shipped["recall_at_5"] <= shipped["recall_at_10"] <= 1 and shipped["mean_average_precision"] > 0.3
    assert 0.2 < shipped["boxes_average_precision"] <= 1 and "boxes_average_precision" not in whole
    assert 0 <= shipped["category_ece"] <= 1
    assert shipped["domain.studio_recall_at_1"] >= shipped["recall_at_1"] > whole["recall_at_1"]
    assert whole["domain.studio_recall_at_1"] > whole["recall_at_1"]  # six scenes: the shipped one may know them all

    first, second = json.loads((tmp_path / "report/report.json").read_text())
    assert first["recall_at_1_change"] is None and -1 <= second["recall_at_1_change"]["mean"] < 0
    assert first["slices"].keys() == {"category", "box", "visibility"} and first["curves"].keys() == {"blur", "light"}
    assert len(first["curves"]["blur"]) == 5 and first["curves"]["blur"]["0.0"] == first["curves"]["light"]["1.0"]
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("<img") >= 2 + 2 * len(second["failures"][:3]) and "whole photo, worst failures" in page

    client = MlflowClient(config.registry.uri)
    experiment = client.get_experiment_by_name(config.registry.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    logged = {found.data.params["bundle"]: found for found in runs}
    assert logged["shipped"].data.metrics["recall_at_1"] == shipped["recall_at_1"]
    assert [point.value for point in client.get_metric_history(logged["shipped"].info.run_id, "curve.blur.level")] == [
        0,
        1,
        2,
        4,
        8,
    ]
    assert {file.path for file in client.list_artifacts(logged["shipped"].info.run_id)} == {"report.html", "report.json"}


@pytest.mark.slow
def test_the_catalog_is_sampled_and_an_unreadable_photo_left_out(rendered_shop: dict[str, Any], tmp_path: Path) -> None:
    queries = Path(rendered_shop["evaluate"]["queries"])
    row = json.loads(queries.read_text().splitlines()[0])
    (tmp_path / "one.jsonl").write_text(json.dumps(row | {"path": str(queries.parent / row["path"])}) + "\n")
    config = config_of(
        rendered_shop,
        evaluate={"queries": str(tmp_path / "one.jsonl")},
        evaluate_bundle={"max_images": 10, "curves": [], "report": str(tmp_path / "report")},
    )
    asked = row["product_ids"][0]
    photo = queries.parent / f"images/{asked}-1.jpg"
    kept = photo.read_bytes()
    photo.write_bytes(kept[:200])
    try:
        (figures,) = run(config).figures.values()
    finally:
        photo.write_bytes(kept)
    assert figures["catalog_photos"] == 3 * (10 // 3) - 1 and figures["asked"] == 1
    assert "What users do to photos" not in (tmp_path / "report/report.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"evaluate": {"queries": None}}, r"evaluate\.queries: missing"),
        ({"evaluate_bundle": {"curves": ["fog"]}}, r"evaluate_bundle\.curves=\['fog'\]: allowed are rotation"),
        ({"evaluate_bundle": {"bundles": {"a": "nowhere"}}}, "nowhere: no bundle"),
        ({"store": {"tables": "/nowhere"}}, r"no such table; run jobs\.curate_catalog first"),
    ],
)
def test_what_is_wrong_is_said(rendered_shop: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message) as caught:
        run(config_of(rendered_shop, **more))
    assert "\n" not in str(caught.value)


def test_queries_of_another_catalog_are_refused(rendered_shop: dict[str, Any], tmp_path: Path) -> None:
    queries = Path(rendered_shop["evaluate"]["queries"])
    row = json.loads(queries.read_text().splitlines()[0]) | {"product_ids": ["other"], "boxes": []}
    (tmp_path / "other.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(JobError, match=f"none of their 1 products is among the {NUM_PRODUCTS} of the catalog"):
        run(config_of(rendered_shop, evaluate={"queries": str(tmp_path / "other.jsonl")}))
