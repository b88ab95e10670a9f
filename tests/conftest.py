"""Parts that are slow to start, once a session: Spark with Delta, Ray; and where the development photos lie."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config import Config
from tests.parts import SPARK, BuiltStore, endpoint, write_conf

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other while another process has their core
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

ROOT = Path(__file__).parent.parent
ENGINES = {"spark", "ray_local"}
SERVERS = {"api", "page"}  # folders whose tests share endpoints


def pytest_itemcollected(item: pytest.Item) -> None:
    """In several processes (`-n`) tests that share what is slow to start stay in one; the others go anywhere."""
    if ENGINES.intersection(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.xdist_group("engines"))
    elif item.path.relative_to(ROOT / "tests").parts[0] in SERVERS:
        item.add_marker(pytest.mark.xdist_group("servers"))


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """One local Spark session with Delta."""
    from jobs.config import SparkConfig
    from jobs.spark.session import spark_session

    session = spark_session(SparkConfig.model_validate(SPARK), "tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray with two CPUs."""
    from jobs.config import RayConfig
    from jobs.raydata.session import start_ray, stop_ray

    start_ray(RayConfig(num_cpus=2))
    yield
    stop_ray()


@pytest.fixture(scope="session")
def built_store(tmp_path_factory: pytest.TempPathFactory, spark: object, ray_local: None) -> BuiltStore:
    """The whole path once, on a small generated catalog, in this process."""
    from jobs import nightly, render_catalog

    folder = tmp_path_factory.mktemp("built")
    rendered = folder / "rendered"
    sections = {
        "render": {"folder": str(rendered), "num_products": 40, "num_scenes": 8},
        "feed": {"uri": str(rendered / "feed.jsonl"), "max_reject_frac": 0.5},
        "evaluate": {"queries": str(rendered / "queries.jsonl"), "num_queries": 50},
    }
    conf = write_conf(folder, sections)
    config = Config.load(conf)
    render_catalog.run(config)
    nightly.run(config)
    return BuiltStore(conf, config, rendered / "feed.jsonl", rendered / "queries.jsonl")


@pytest.fixture(scope="session")
def served(built_store: BuiltStore) -> Iterator[str]:
    """The URL of an endpoint on the built store."""
    with endpoint(built_store.conf) as url:
        yield url


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development photos beside the project (or VS_SHARED_DATA); tests that need them skip without."""
    folder = Path(os.environ.get("VS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the development photos are not beside the project; name them with VS_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def shared_weights(shared_data: Path) -> Path:
    """The small public networks beside the development photos."""
    folder = shared_data.parent / "weights"
    if not folder.is_dir():
        pytest.skip("the public weights are not beside the development photos")
    return folder
