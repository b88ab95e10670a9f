"""Renders the generated catalog: a shop of any size with exact truth, and nothing to download.

Reads:  nothing; all comes from the section `render` and its seed.
Writes: render.folder with images/, feed.jsonl, scenes/, queries.jsonl, outfits.jsonl, partners.jsonl, faults.json and
        _done.json (last).
Engine: processes of this machine (render.num_workers). A second run with the same settings does nothing.

    python -m jobs.render_catalog --conf conf/local.yaml --set render.num_products=1000
"""

import sys

from jobs.config import Config, run_job
from jobs.render.feed import FeedCounts, write_feed


def run(config: Config) -> FeedCounts:
    """Renders the catalog and says what it made."""
    counts = write_feed(config.render)
    folder = config.render.folder
    lines = [
        f"{'rendered' if counts.changed else 'already there'}: {folder}",
        f"  {counts.rows} feed rows ({counts.products} products, {counts.bad_rows} bad on purpose)  {folder / 'feed.jsonl'}",
        f"  {counts.images} photos ({counts.bad_images} broken on purpose)",
        f"  {counts.scenes} street scenes with boxes  {folder / 'queries.jsonl'}",
        f"  {counts.outfits} outfits  {folder / 'outfits.jsonl'}",
        f"next: python -m jobs.nightly --conf conf/local.yaml --set feed.uri={folder / 'feed.jsonl'}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return counts


def main() -> None:
    """Entry point of `python -m jobs.render_catalog`."""
    run_job(__doc__ or "", run)


if __name__ == "__main__":
    main()
