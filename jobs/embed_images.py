"""Every new image is fetched, decoded and embedded once per bundle: boxes, categories, hashes, embeddings.

Reads   images (at one exact version), fetches, checks and features of earlier runs, the bundle, the image files
Writes  features (one row an image and crop), fetches (one row an image URI: embedded, or rejected with its reason), checks (one
        row an image URI that was asked for again and had not changed)
Engine  Ray Data streams, the driver stages, delta-rs commits once a table

    python -m jobs.embed_images --conf conf/local.yaml [--set section.key=value ...]

Equal bytes under several URIs are one image. A URI is looked at once per bundle; rejected ones are tried again by every run only
where the reason may pass (fetch_failed, timeout, host_down), others stay rejected until the feed names another URI. With
feed.refetch_days photos that were looked at longer ago are asked for again (If-None-Match, If-Modified-Since; of files the time
and the size): other bytes are embedded, and the URI has them from then on; where there are none, the photo stays as it was. A run
that was killed at any moment is carried through by the next one, from the last finished block. Features that are gone, because a
table was put back or made anew, are made again. The same images again change no table that a release is made of.
"""

import json
import logging
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray
from deltalake import DeltaTable

from jobs.config import Config, JobError, run_job
from jobs.failpoint import failpoint
from jobs.raydata.actors import ASKED, DUPLICATE, Decoder, Embedder, start_claims
from jobs.raydata.delta import append, committed, ensure_table, pinned_version, upsert
from jobs.raydata.fetch import TRANSIENT, fetch_rules
from jobs.raydata.outcomes import EmbedResult, explode, outcomes, owners, staged
from jobs.raydata.pending import fetched, most_popular, pending_images
from jobs.raydata.session import map_actors, progress, require, start_ray, stop_ray
from jobs.raydata.staging import Plan, Stage, only_run
from jobs.runs import configure_logging, pairs
from jobs.tables import CHECKS, FEATURES, FETCHES, Tables, table_state, table_version
from serve.index.manifest import write_durably
from serve.vision.bundle import BundleError, assemble_bundle, bundle_digest

log = logging.getLogger("jobs.embed_images")

APP_ID = "embed_images"
STATES_FILE = "embedded.json"  # in store.root, by bundle: features and fetches as the last run left them


def run(config: Config, most: int | None = None) -> EmbedResult:
    """Finishes the stage of a killed run, then embeds what is new: the `most` popular photos of it. Raises JobError."""
    tables = Tables(config.store.tables)
    try:
        bundle_folder = assemble_bundle(config.bundle, config.store.bundles, config.registry.uri)
        digest = bundle_digest(bundle_folder)
    except BundleError as error:
        raise JobError(str(error)) from error
    root = config.store.staging / APP_ID
    with only_run(root, APP_ID):
        results = []
        if resumed := resumable(config, root, tables, digest):
            log.info("run=%s resumed", resumed.plan.run_id)
            results.append(carry_through(config, tables, bundle_folder, resumed))
        images_version = pinned_version(tables, "images", written_by="jobs.curate_catalog")
        pending = pending_of(config, tables, images_version, digest, retry=not resumed)
        left = None if most is None else max(0, most - sum(r.images_in for r in results))
        tonight = pending if left is None else most_popular(tables, images_version, pending, left)
        for first in range(0, tonight.num_rows, config.embed.round_images):
            some = tonight.slice(first, config.embed.round_images)
            number = max(committed_by(tables, name, digest) for name in ("features", "fetches", "checks")) + 1
            plan = Plan(f"embed-{number:06d}-{digest[:8]}", tables.root, images_version, digest, number, some.num_rows)
            results.append(carry_through(config, tables, bundle_folder, Stage.create(root, plan, some, "image_uri")))
        remember(config, tables, digest)
    if not results:
        log.info("nothing changed: every image of images version %d is embedded or rejected", images_version)
    return EmbedResult(
        images_in=sum(r.images_in for r in results),
        embedded=sum(r.embedded for r in results),
        duplicates=sum(r.duplicates for r in results),
        rejected=sum(r.rejected for r in results),
        unchanged=sum(r.unchanged for r in results),
        waiting=pending.num_rows - tonight.num_rows,
        images_per_s=results[-1].images_per_s if results else 0.0,
    )


def count_pending(config: Config) -> int:
    """Image URIs of the newest `images` that a run would look at; 0 before there is such a table. Changes no table."""
    tables = Tables(config.store.tables)
    version = table_version(tables, "images")
    if version is None:
        return 0
    digest = bundle_digest(assemble_bundle(config.bundle, config.store.bundles, config.registry.uri))
    return int(pending_of(config, tables, version, digest, retry=True).num_rows)


def pending_of(config: Config, tables: Tables, images_version: int, digest: str, *, retry: bool) -> pa.Table:
    """ASKED of a run. Where somebody else touched the tables since the last one, photos whose features are gone are in it."""
    path = config.store.root / STATES_FILE
    known = json.loads(path.read_text()).get(digest) if path.is_file() else None
    stored = None if known == states_of(tables) else stored_ids(tables, digest)
    refetch_days = config.feed.refetch_days
    return pending_images(tables, images_version, digest, retry=retry, refetch_days=refetch_days, stored_ids=stored)


def remember(config: Config, tables: Tables, digest: str) -> None:
    """From now on `features` and `fetches` agree about the photos of this bundle, as long as they are these."""
    path = config.store.root / STATES_FILE
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.get(digest) != (states := states_of(tables)):
        write_durably(path, json.dumps(known | {digest: states}).encode())


def states_of(tables: Tables) -> list[list[str | int] | None]:
    """Which features and fetches these are."""
    return [table_state(tables, name) for name in ("features", "fetches")]


def resumable(config: Config, root: Path, tables: Tables, digest: str) -> Stage | None:
    """The stage that a killed run left for these tables and this bundle; `nightly.next_bundle`'s waits, others are dropped."""
    found, wanted = None, {digest}
    if config.nightly.next_bundle is not None:
        wanted.add(bundle_digest(assemble_bundle(config.nightly.next_bundle, config.store.bundles, config.registry.uri)))
    for stage in Stage.unfinished(root, "image_uri"):
        ours = stage.plan.tables == tables.root and stage.plan.bundle_digest in wanted
        if ours and stage.remaining().column_names == ASKED.names:
            found = stage if stage.plan.bundle_digest == digest else found
        else:
            log.warning("run=%s dropped: it was staged for another bundle, other tables or by older code", stage.plan.run_id)
            stage.remove()
    return found


def carry_through(config: Config, tables: Tables, bundle_folder: Path, stage: Stage) -> EmbedResult:
    """Embeds what the stage still lacks, commits it, removes it."""
    rate = 0.0
    if not stage.complete:
        rate = stream(config, tables, bundle_folder, stage)
        stage.finish()
        failpoint("embed:after_success")
    result = commit(tables, stage, rate)
    stage.remove()
    return result


def stream(config: Config, tables: Tables, bundle_folder: Path, stage: Stage) -> float:
    """The remaining images through both actor pools into the stage, a block at a time; returns images a second."""
    remaining = stage.remaining()
    if not remaining.num_rows:
        return 0.0
    embed = config.embed
    start_ray(config.ray)
    require(
        config.ray,
        embed.decode_actors * embed.decode_cpus + embed.embed_actors * embed.embed_cpus,
        embed.embed_actors * embed.embed_gpus,
    )
    claims = start_claims(stored_ids(tables, stage.plan.bundle_digest), owners(stage))
    blocks = [remaining.slice(first, embed.block_rows) for first in range(0, remaining.num_rows, embed.block_rows)]
    images = ray.data.from_blocks(blocks)  # from_arrow would start a task for each to count its rows
    images = map_actors(
        images,
        Decoder,
        {"rules": fetch_rules(config), "limits": config.decode, "claims": claims},
        actors=embed.decode_actors,
        calls=embed.decode_blocks,
        batch_size=embed.block_rows,
        cpus=embed.decode_cpus,
        gpus=0,
        max_restarts=embed.max_restarts,
    )
    images = map_actors(
        images,
        Embedder,
        {"bundle_folder": bundle_folder, "digest": stage.plan.bundle_digest, "runtime": config.runtime},
        actors=embed.embed_actors,
        batch_size=embed.batch_size,
        cpus=embed.embed_cpus,
        gpus=embed.embed_gpus,
        max_restarts=embed.max_restarts,
    )
    start = time.perf_counter()
    try:
        with progress("embed_images", remaining.num_rows, "images") as shown:
            for rows in images.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):  # staged at once
                stage.add(rows)
                shown.add(rows.num_rows)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise JobError(f"embedding stopped: {reason}; finished blocks are kept in {stage.folder}: run again to go on") from error
    finally:
        ray.kill(claims)
    return float(remaining.num_rows / (time.perf_counter() - start))


def stored_ids(tables: Tables, digest: str, among: pa.ChunkedArray | None = None) -> list[str]:
    """image_id of the images whose features of this bundle are stored; of those in `among` only, where it is given."""
    if table_version(tables, "features") is None:
        return []
    wanted = (pc.field("bundle_digest") == digest) & (pc.field("crop") == 0)
    if among is not None:
        wanted &= pc.field("image_id").isin(among.combine_chunks())
    ids: list[str] = (
        DeltaTable(tables.path("features")).to_pyarrow_dataset().to_table(["image_id"], wanted)["image_id"].to_pylist()
    )
    return ids


def commit(tables: Tables, stage: Stage, rate: float) -> EmbedResult:
    """One commit into features, one into fetches, one into checks; each only once, whatever was killed in between."""
    number, digest = stage.plan.commit_number, stage.plan.bundle_digest
    rows = staged(stage)
    duplicates = rows.filter(pc.equal(rows["status"], DUPLICATE))["image_id"]
    fetches, checks, result = outcomes(rows, stage.plan, rate, stored_ids(tables, digest, duplicates))
    ensure_table(tables, "features", FEATURES)
    ensure_table(tables, "fetches", FETCHES)
    if result.embedded and committed_by(tables, "features", digest) < number:
        batches = (explode(batch, digest) for batch in stage.rows.to_batches())
        append(tables, "features", FEATURES, batches, app_id(digest), number)
    failpoint("embed:after_features")
    if committed_by(tables, "fetches", digest) < number:
        commit_fetches(tables, fetches, digest, number)
    failpoint("embed:after_fetches")
    if checks.num_rows and committed_by(tables, "checks", digest) < number:
        ensure_table(tables, "checks", CHECKS)
        upsert(tables, "checks", checks, ("image_uri", "bundle_digest"), app_id(digest), number)
    report(stage, rows, result)
    return result


def app_id(digest: str) -> str:
    """Whose transaction numbers a bundle's commits carry: two bundles are embedded side by side, each resumed by itself."""
    return f"{APP_ID}-{digest[:16]}"


def committed_by(tables: Tables, name: str, digest: str) -> int:
    """Highest transaction number of this bundle in table `name`. Older code counted all bundles together."""
    return max(committed(tables, name, who) for who in (app_id(digest), APP_ID))


def report(stage: Stage, rows: pa.Table, result: EmbedResult) -> None:
    """Says what became of the images, and which hosts were given up."""
    counts = {name: num for name, num in vars(result).items() if name != "images_per_s"}
    reasons = {r["values"]: r["counts"] for r in pc.value_counts(rows["reason"].drop_null()).to_pylist()}
    log.info("run=%s %s %s", stage.plan.run_id, pairs(counts), pairs(reasons))
    for why in pc.unique(rows.filter(pc.equal(rows["reason"], "host_down"))["detail"]).to_pylist():
        log.warning("run=%s given up until the next run: %s", stage.plan.run_id, why)


def commit_fetches(tables: Tables, fetches: pa.Table, digest: str, number: int) -> None:
    """One commit of what is new. A URI that was tried again and failed alike is no news: no row, and maybe no commit."""
    before = fetched(tables, digest)
    before = before.filter(pc.is_in(before["image_uri"], fetches["image_uri"]))
    fates_before = dict(zip(before["image_uri"].to_pylist(), fates(before), strict=True))
    fates_now = zip(fetches["image_uri"].to_pylist(), fates(fetches), strict=True)
    news = fetches.filter(pa.array([uri not in fates_before or fates_before[uri] != fate for uri, fate in fates_now], pa.bool_()))
    if not news.num_rows:
        return
    if fates_before:
        upsert(tables, "fetches", news, ("image_uri", "bundle_digest"), APP_ID, number)
    else:
        append(tables, "fetches", FETCHES, news.to_batches(), APP_ID, number)


def fates(rows: pa.Table) -> list[tuple[str | None, str | None]]:
    """What became of each URI. One reason that may pass is like another: which one it is differs from night to night."""
    told = zip(rows["reason"].to_pylist(), rows["image_id"].to_pylist(), strict=True)
    return [("passing", None) if reason in TRANSIENT else (reason, image_id) for reason, image_id in told]


def main() -> None:
    """Command line."""
    configure_logging()
    try:
        run_job(__doc__ or "", run)
    finally:
        stop_ray()


if __name__ == "__main__":
    main()
