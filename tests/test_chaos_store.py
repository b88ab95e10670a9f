"""Faults around the nightly run: full and read-only disks, a registry that is away, other writers, wrong clocks, damaged tables.

Each is said in one line and leaves the champion what it was; once it is over, the next night makes what a run makes that nobody
disturbed. `make chaos-nightly`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from jobs import nightly
from jobs.building import finished_folders
from jobs.config import Config, JobError
from jobs.gate import GATE_EXIT_CODE
from jobs.run_records import read_rows
from jobs.tables import TABLE_NAMES, Tables, read_table, table_state
from serve.index.manifest import read_manifest
from serve.index.release import Release
from serve.registry import champion
from tests.damage import DAMAGES, LOG
from tests.nights import (
    LONGEST_S,
    Change,
    Held,
    another_night,
    conf_of,
    finish_night,
    held,
    lines_until,
    read_feed,
    refused_night,
    render_few,
    start_night,
    write_feed,
)
from tests.parts import ROOT, RegistryServer, free_port, run_module

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("spark", "ray_local")]

SIZES_MB = (1, 4, 24, 28, 34)  # of a disk that fills up in one stage after the other
DAY_S = 86_400
NIGHT = Change(priced=4, withdrawn=3, new=3, repictured=2)


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feed of a generated catalog."""
    return render_few(tmp_path_factory.mktemp("rendered"))


@pytest.fixture(scope="module")
def undisturbed(feed: Path, tmp_path_factory: pytest.TempPathFactory) -> Held:
    """What comes of it where nothing is wrong."""
    config = Config.load(conf_of(tmp_path_factory.mktemp("undisturbed"), feed))
    nightly.run(config)
    return held(config)


def privileges() -> list[str]:
    """The command before one that mounts a disk of its own, seen by nobody else. Skips where that is not allowed."""
    command = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    try:
        subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine does not let a test mount a disk of its own (unshare --mount)")
    return command


DISKS = """
set -u
mount -t tmpfs -o size=1m none {store}
night() {{ {python} -m jobs.nightly --conf {conf} >{logs}/$1.out 2>{logs}/$1.err; echo $? >{logs}/$1.code; }}
for size in {sizes}; do mount -o remount,size=${{size}}m {store}; night $size; ls {store}/releases >{logs}/$size.ls 2>&1; done
mount -o remount,size=400m {store}; night enough
mount -o remount,ro {store}; night read-only
mount -o remount,rw {store}; night again
cp -a {store} {kept}
"""


def test_a_disk_that_is_full_and_one_that_cannot_be_written(feed: Path, undisturbed: Held, tmp_path: Path) -> None:
    conf, store, logs, kept = conf_of(tmp_path, feed), tmp_path / "store", tmp_path / "logs", tmp_path / "kept"
    store.mkdir()
    logs.mkdir()
    sizes = " ".join(map(str, SIZES_MB))
    script = DISKS.format(store=store, python=sys.executable, conf=conf, logs=logs, sizes=sizes, kept=kept)
    subprocess.run([*privileges(), "sh", "-c", script], cwd=ROOT, check=True, timeout=3 * LONGEST_S)

    def told(name: object) -> tuple[int, dict[str, object], str]:
        out, errors = ((logs / f"{name}.{kind}").read_text() for kind in ("out", "err"))
        return int((logs / f"{name}.code").read_text()), json.loads(out.splitlines()[-1]), errors

    stages = set()
    for size in SIZES_MB:
        code, summary, errors = told(size)
        if code == 0:  # it had enough already
            continue
        assert (code, summary["exit_code"], summary["outcome"]) == (1, 1, "failed"), f"{size} MB: {errors[-2000:]}"
        last = errors.splitlines()[-1]
        assert last.startswith("error: no space left (store.root") and "Traceback" not in errors, f"{size} MB: {errors[-3000:]}"
        assert not [name for name in (logs / f"{size}.ls").read_text().split() if name.startswith("r")]
        stages.add(summary["stages"][-1]["name"] if summary["stages"] else "")  # type: ignore[index]
    assert len(stages) >= 3, f"the disk was full in {stages} only"
    assert told("enough")[0] == told("again")[0] == 0 and told("again")[1]["outcome"] == "unchanged"
    code, summary, errors = told("read-only")
    assert (code, summary["outcome"]) == (1, "failed") and "Traceback" not in errors, errors[-3000:]
    assert errors.splitlines()[-1].startswith("error: can't be written: "), errors[-1000:]
    shutil.rmtree(store)
    kept.rename(store)
    assert held(Config.load(conf)) == undisturbed


def test_a_registry_that_is_away_at_the_start_and_goes_away_meanwhile(feed: Path, undisturbed: Held, tmp_path: Path) -> None:
    registry = RegistryServer(tmp_path / "mlflow", free_port())
    conf = conf_of(tmp_path, feed, registry={"uri": registry.uri})
    config = Config.load(conf)
    assert re.search(r"registry\.uri=http://127\.0\.0\.1:\d+ does not answer", refused_night(conf))
    assert not (tmp_path / "store" / "tables" / "products").exists(), "nothing was begun"
    with registry:
        night = start_night(conf)
        lines = lines_until(night, "stage=build_shards started")
        registry.stop()
        errors = "".join([*lines, night.communicate(timeout=LONGEST_S)[1]])
        assert night.returncode == 1 and "Traceback" not in errors, errors[-3000:]
        assert errors.splitlines()[-1].startswith(f"error: registry.uri={registry.uri} does not answer")
        registry.start()
        finish_night(conf)
        assert held(config) == undisturbed
        assert [row["outcome"] for row in read_rows(Tables(config.store.tables))] == ["failed", "failed", "published"]


def test_others_write_and_clean_while_the_night_reads(feed: Path, tmp_path: Path) -> None:
    """Another process changes prices by MERGE and asks for VACUUM without end, from when the catalog is curated."""
    conf = conf_of(tmp_path, feed)
    config = Config.load(conf)
    path, done, merges, refused = Tables(config.store.tables).path("products"), threading.Event(), [0], [0]

    def disturb() -> None:
        while not done.wait(0.2):
            table = DeltaTable(path)
            rows = table.to_pyarrow_table(columns=["product_id", "price"])
            rows = rows.set_column(1, "price", pc.add(pc.fill_null(rows["price"], 1.0), 1.0))
            merge = table.merge(pa.table(rows), "o.product_id = n.product_id", source_alias="n", target_alias="o")
            merge.when_matched_update({"price": "n.price", "currency": "'EUR'"}).execute()
            merges[0] += 1
            try:
                DeltaTable(path).vacuum(retention_hours=0, dry_run=False)
            except DeltaError:
                refused[0] += 1

    night, other = start_night(conf), threading.Thread(target=disturb)
    lines = lines_until(night, "stage=embed_images started")
    other.start()
    cleaned = run_module("jobs.clean_store", conf)
    errors = "".join([*lines, night.communicate(timeout=LONGEST_S)[1]])
    done.set()
    other.join()
    assert cleaned.returncode == 4 and "another run is on" in cleaned.stderr, cleaned.stderr
    assert night.returncode == 0, errors[-3000:]
    assert merges[0] > 5 and refused[0] == merges[0], (merges, refused)
    folder = champion(config.registry, config.store)
    version = read_manifest(folder).tables["products"]
    pinned = {
        row["product_id"]: row["price"]
        for row in read_table(Tables(config.store.tables), "products", version=version).to_pylist()
    }
    assert version < DeltaTable(path).version()
    release = Release.open(folder)
    served = {product_id: product["price"] for product_id in pinned if (product := release.product(product_id)) is not None}
    assert served and served == {product_id: pinned[product_id] for product_id in served}, "rows of one version only"


def skew(store: Path, seconds: float) -> None:
    """As if the clock of all that wrote the store had been wrong by so much."""
    for path in (*store.glob(f"tables/*/{LOG}/[0-9]*.json"), *store.glob(f"tables/*/{LOG}/[0-9]*.crc")):
        text = path.read_text()
        for name in ("timestamp", "modificationTime", "deletionTimestamp", "createdTime"):
            text = re.sub(rf'("{name}":)(\d{{13}})', lambda found: f"{found[1]}{int(found[2]) + round(seconds * 1000)}", text)
        path.write_text(text)
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)  # Hadoop's checksum of the bytes as they were
    for path in sorted(store.rglob("*"), reverse=True):
        stat = path.stat()
        os.utime(path, (stat.st_atime + seconds, stat.st_mtime + seconds))


def test_clocks_that_are_a_day_apart(feed: Path, tmp_path: Path) -> None:
    """What was written yesterday is from tomorrow, or the day before; the night after it does the same as if it were not."""
    rows = read_feed(feed)
    second = write_feed(tmp_path / "second.jsonl", another_night(rows, tmp_path / "photos", NIGHT, seed=1))
    stores = {}
    for name, seconds in (("right", 0), ("ahead", DAY_S), ("behind", -DAY_S)):
        today = write_feed(tmp_path / f"{name}.jsonl", rows)
        conf = conf_of(tmp_path / name, today)
        config = Config.load(conf)
        nightly.run(config)
        first = champion(config.registry, config.store)
        skew(config.store.root, seconds)
        write_feed(today, [json.loads(line) for line in second.read_text().splitlines()])
        for _ in range(2):
            finish_night(conf)
        stores[name] = held(config)
        assert finished_folders(config.store.releases) == [first, champion(config.registry, config.store)]
        assert [row["outcome"] for row in read_rows(Tables(config.store.tables))] == ["published", "published", "unchanged"]
    assert stores["ahead"] == stores["right"] == stores["behind"]


@pytest.mark.parametrize("name", ["features", "products"])
def test_the_cure_of_a_damaged_table_is_one(feed: Path, undisturbed: Held, tmp_path: Path, name: str) -> None:
    """What the run says is done to the letter, and the next one makes good what was lost."""
    conf = conf_of(tmp_path, feed)
    config = Config.load(conf)
    nightly.run(config)
    table = Path(Tables(config.store.tables).path(name))
    before = champion(config.registry, config.store)
    DAMAGES["truncated entry"][0](table)
    told = re.search(r"go back to version (\d+).*with --full", refused_night(conf))
    assert told is not None and champion(config.registry, config.store) == before
    for path in [path for path in (table / LOG).iterdir() if path.is_file()]:
        number = re.match(r"\.?(\d{20})", path.name)
        if number is None or int(number[1]) > int(told[1]):
            path.unlink()
    finish_night(conf, "--full")
    assert held(config) == undisturbed


def test_bad_rows_within_their_budget_and_beyond(feed: Path, tmp_path: Path) -> None:
    """0.1 % and 5 % of 1,000 rows are set aside, each with its reason; 60 % change nothing at all."""
    models, rows = read_feed(feed), []
    for number in range(1000):
        model = models[number % len(models)]
        rows.append(model | {"product_id": f"sku-{number:04}", "image_uris": model["image_uris"][:1]})
    today = tmp_path / "feed.jsonl"
    config = Config.load(conf_of(tmp_path, today))
    for num_bad in (1, 50):
        write_feed(today, [row | {"price": "?"} if number < num_bad else row for number, row in enumerate(rows)])
        nightly.run(config)
        rejects = read_table(Tables(config.store.tables), "rejects").to_pylist()
        assert [row["reason"] for row in rejects] == ["bad_price"] * num_bad
        manifest = read_manifest(champion(config.registry, config.store))
        assert manifest.counts.products == 1000 - num_bad and manifest.metrics["accepted_rows_frac"] == 1 - num_bad / 1000
    before = {name: table_state(Tables(config.store.tables), name) for name in nightly.BUILT_ON}
    write_feed(today, [row | {"price": "?"} if number < 600 else row for number, row in enumerate(rows)])
    with pytest.raises(JobError, match=r"600 of 1000 rows are bad \(bad_price 600\).*nothing was changed") as refused:
        nightly.run(config)
    assert refused.value.exit_code == GATE_EXIT_CODE
    assert {name: table_state(Tables(config.store.tables), name) for name in nightly.BUILT_ON} == before
    assert read_manifest(champion(config.registry, config.store)) == manifest


def test_every_table_is_looked_at() -> None:
    assert set(TABLE_NAMES) - set(nightly.BUILT_ON) == {"runs", "feedback"}
