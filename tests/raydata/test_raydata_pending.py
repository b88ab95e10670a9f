"""Which images a run looks at, and in what order."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from jobs.raydata.actors import ASKED
from jobs.raydata.pending import first_look, mixed, pending_images
from jobs.tables import CHECKS, FETCHES, Tables

NOW = datetime.now(UTC)


def test_each_stretch_has_its_share_of_every_host() -> None:
    uris = [f"https://big/{i:02}" for i in range(20)] + [f"https://small/{i}" for i in range(5)]
    order = mixed(first_look(sorted(uris)))["image_uri"].to_pylist()
    assert all(sum("small" in uri for uri in order[i : i + 5]) == 1 for i in range(0, 25, 5))


@given(st.lists(st.tuples(st.sampled_from(["file:///a", "https://h", "https://g", "a path"]), st.integers(0, 9)), unique=True))
def test_mixing_loses_nothing_and_keeps_the_order_of_each_host(pairs: list[tuple[str, int]]) -> None:
    uris = sorted(f"{host}/{number}" for host, number in pairs)
    order = mixed(first_look(uris))["image_uri"].to_pylist()
    assert sorted(order) == uris
    for host in {host for host, _ in pairs}:
        assert [uri for uri in order if uri.startswith(host)] == [uri for uri in uris if uri.startswith(host)]


def test_what_is_looked_at(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    names = ["new", "fresh", "old", "checked", "untimed", "away", "broken"]
    images = {"product_id": names, "position": pa.array([0] * len(names), pa.int32()), "image_uri": names}
    write_deltalake(tables.path("images"), pa.table(images))
    fates = {
        "fresh": ("embedded", None, NOW),
        "old": ("embedded", None, NOW - timedelta(days=9)),
        "checked": ("embedded", None, NOW - timedelta(days=9)),
        "untimed": ("embedded", None, None),
        "away": ("rejected", "timeout", NOW),
        "broken": ("rejected", "corrupt", NOW - timedelta(days=9)),
        "withdrawn": ("embedded", None, NOW - timedelta(days=9)),
    }
    same = {"bundle_digest": "d", "run_id": "r", "etag": "first"}
    fetches = [
        {"image_uri": uri, "status": status, "reason": reason, "image_id": f"id of {uri}", "fetched_at": at, **same}
        for uri, (status, reason, at) in fates.items()
    ]
    write_deltalake(tables.path("fetches"), pa.Table.from_pylist(fetches, schema=FETCHES))

    def asked(**settings: object) -> dict[str, tuple[str | None, str | None]]:
        found = pending_images(tables, 0, "d", **settings)  # type: ignore[arg-type]
        assert found.schema.equals(ASKED)
        return {row["image_uri"]: (row["known"], row["etag"]) for row in found.to_pylist()}

    nothing = (None, None)
    assert asked(retry=False) == asked(retry=False, refetch_days=7.0) == {"new": nothing}
    assert asked(retry=True) == {"new": nothing, "away": nothing}
    due = {"new": nothing, "away": nothing, "old": ("embedded", "first"), "untimed": ("embedded", "first")}
    due |= {"broken": ("rejected", "first")}
    assert asked(retry=True, refetch_days=7.0) == due | {"checked": ("embedded", "first")}
    check = {"image_uri": "checked", "bundle_digest": "d", "run_id": "r", "etag": "second"}
    write_deltalake(tables.path("checks"), pa.Table.from_pylist([check | {"fetched_at": NOW - timedelta(days=1)}], schema=CHECKS))
    assert asked(retry=True, refetch_days=7.0) == due
    assert asked(retry=True, refetch_days=0.5) == due | {"checked": ("embedded", "second")}
