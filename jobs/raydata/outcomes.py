"""What became of each image: staged rows as rows of `fetches`, `checks` and `features`, and the sum that must add up."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import JobError
from jobs.raydata.actors import DUPLICATE, EMBEDDED, REJECTED, ROWS, UNCHANGED
from jobs.raydata.fetch import TRANSIENT
from jobs.raydata.staging import Plan, Stage
from jobs.tables import CHECKS, FEATURES, FETCHES

STAGED = pa.schema([field for field in ROWS if field.name in {*FETCHES.names, "known"}])


@dataclass(frozen=True)
class EmbedResult:
    """Counts of image URIs: images_in = embedded + duplicates + rejected + unchanged."""

    images_in: int = 0
    embedded: int = 0
    duplicates: int = 0  # equal bytes under another URI
    rejected: int = 0
    unchanged: int = 0  # asked for again: the same bytes, or none
    waiting: int = 0  # left for another night
    images_per_s: float = 0.0  # while images streamed, start-up of the actors included


def staged(stage: Stage) -> pa.Table:
    """The stage's finished rows, features left out."""
    if not stage.rows.files:
        return STAGED.empty_table()
    return stage.rows.to_table(columns=STAGED.names)


def owners(stage: Stage) -> dict[bytes, str]:
    """Digest -> URI of the staged rows that were decoded, or tried: what a killed run claimed and finished."""
    rows = staged(stage)
    claimed = pc.is_in(rows["status"], pa.array([EMBEDDED, REJECTED]))
    rows = rows.filter(pc.and_(pc.is_valid(rows["image_id"]), claimed))
    return {bytes.fromhex(i): uri for i, uri in zip(rows["image_id"].to_pylist(), rows["image_uri"].to_pylist(), strict=True)}


def outcomes(rows: pa.Table, plan: Plan, rate: float, stored_ids: Collection[str]) -> tuple[pa.Table, pa.Table, EmbedResult]:
    """Rows of FETCHES, rows of CHECKS, and their counts. Raises JobError where the sum is wrong.

    A duplicate shares the fate of the image it equals: embedded by this run, in `stored_ids` by an earlier one, or rejected.
    Where it has none (the URI that owned the bytes was lost in a kill and gave other bytes afterwards) the next run looks again.
    What was asked for again and failed stays what it was: an embedded photo whatever the reason, others where it may pass.
    """
    status, reason, detail, ids, known = (rows[name].to_pylist() for name in ("status", "reason", "detail", "image_id", "known"))
    owned = [image_id for image_id, was in zip(ids, status, strict=True) if was == EMBEDDED]
    bad = {i: (r, d) for s, r, d, i in zip(status, reason, detail, ids, strict=True) if s == REJECTED and i is not None}
    found = {*owned, *stored_ids}
    num_duplicates = 0
    for row, image_id in enumerate(ids):
        if status[row] == DUPLICATE and image_id in found:
            status[row] = EMBEDDED
            num_duplicates += 1
        elif status[row] == DUPLICATE:
            lost = ("fetch_failed", "the URI with the same bytes has other bytes now")
            status[row], (reason[row], detail[row]) = REJECTED, bad.get(image_id, lost)
        if status[row] == REJECTED and (known[row] == EMBEDDED or (known[row] and reason[row] in TRANSIENT)):
            status[row] = UNCHANGED
    counts = Counter(status)
    num_embedded = counts[EMBEDDED] - num_duplicates
    if not len(set(owned)) == len(owned) == num_embedded or len(status) != plan.num_pending:
        raise JobError(
            f"run {plan.run_id}: {plan.num_pending} images in, but {num_embedded} embedded ({len(set(owned))} distinct) + "
            f"{num_duplicates} duplicates + {counts[REJECTED]} rejected + {counts[UNCHANGED]} unchanged out; nothing is committed"
        )
    columns = {name: rows[name] for name in rows.column_names} | {"status": status, "reason": reason, "detail": detail}
    columns |= {"bundle_digest": [plan.bundle_digest] * len(status), "run_id": [plan.run_id] * len(status)}
    layout = pa.schema([*rows.schema, FETCHES.field("bundle_digest"), FETCHES.field("run_id")])
    table = pa.table({name: columns[name] for name in layout.names}, schema=layout)
    same = pc.equal(table["status"], UNCHANGED)
    settled = pc.invert(pc.is_in(table["reason"], pa.array(TRANSIENT, pa.string())))  # the others are asked again by the next run
    return (
        table.filter(pc.invert(same)).select(FETCHES.names).cast(FETCHES),
        table.filter(pc.and_(same, settled)).select(CHECKS.names).cast(CHECKS),
        EmbedResult(len(status), num_embedded, num_duplicates, counts[REJECTED], counts[UNCHANGED], images_per_s=round(rate, 1)),
    )


def explode(batch: pa.RecordBatch, digest: str) -> pa.RecordBatch:
    """Staged rows as rows of FEATURES, one a crop; the fingerprint stays with crop 0."""
    images = batch.filter(pc.equal(batch["status"], EMBEDDED))
    crops, parents = images["crops"].flatten(), pc.list_parent_indices(images["crops"])
    columns = {name: crops.field(name) for name in (field.name for field in crops.type)}
    columns |= {name: images[name].take(parents) for name in ("image_id", "width", "height")}
    whole = pc.equal(columns["crop"], 0)
    for name in ("hash", "hash_quality", "colour"):
        values = images[name].take(parents)
        columns[name] = pc.if_else(whole, values, pa.scalar(None, values.type))
    columns["bundle_digest"] = pa.repeat(digest, len(crops))
    return pa.RecordBatch.from_arrays([columns[name] for name in FEATURES.names], schema=FEATURES)
