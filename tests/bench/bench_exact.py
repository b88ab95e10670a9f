"""Does the hash stage know its own photos, and only those? All of luma-catalog in six versions, all of clothing-small, over HTTP.

    python -m tests.bench.bench_exact [--out FILE]

Needs the development photos beside the project (or VS_SHARED_DATA). Every miss is kept with its reason: what was answered
instead, and by which stage.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from tests.bench.record import record
from tests.parts import ROOT, endpoint, run_module, write_conf
from tests.photos import luma_sections, manifest_rows, re_uploads


def ask(session: requests.Session, url: str, photo: bytes) -> dict[str, Any]:
    """The endpoint's answer."""
    response = session.post(f"{url}/v1/search", files={"image": photo}, data={"k": 3, "explain": "true"}, timeout=60)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def re_upload_misses(session: requests.Session, url: str, folder: Path) -> tuple[Counter[str], list[dict[str, Any]]]:
    """How often each version was found, and every miss."""
    found: Counter[str] = Counter()
    misses = []
    for row in tqdm(manifest_rows(folder), desc="re-uploads", unit="photo"):
        for name, photo in re_uploads(folder / row["path"]).items():
            answer = ask(session, url, photo)
            first = answer["results"][0]["product_id"]
            if answer["stage"] == "hash" and first == row["product_id"]:
                found[name] += 1
            else:
                reason = "not exact: vector stage" if answer["stage"] != "hash" else f"exact, but {first}"
                misses.append({"photo": row["path"], "version": name, "reason": reason, "explain": answer.get("explain")})
    return found, misses


def foreign_exacts(session: requests.Session, url: str, folder: Path) -> list[str]:
    """Photos that are not in the catalog and were answered as exact."""
    rows = tqdm(manifest_rows(folder), desc="foreign", unit="photo")
    return [row["path"] for row in rows if ask(session, url, (folder / row["path"]).read_bytes())["stage"] == "hash"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", type=Path, help="ignored: the settings are those of the photos")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = Path(os.environ.get("VS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not data.is_dir():
        sys.stdout.write("bench_exact: skipped, the development photos are not beside the project\n")
        return
    with tempfile.TemporaryDirectory() as temp:
        conf = write_conf(Path(temp), luma_sections(data, data.parent / "weights"))
        done = run_module("jobs.nightly", conf)
        assert done.returncode == 0, done.stderr
        with endpoint(conf) as url, requests.Session() as session:
            found, misses = re_upload_misses(session, url, data / "luma-catalog")
            foreign = foreign_exacts(session, url, data / "clothing-small")
    num_photos = len(manifest_rows(data / "luma-catalog"))
    figures = {
        "photos": num_photos,
        "found_first_frac": {name: round(count / num_photos, 4) for name, count in found.items()},
        "found_first_frac_all": round(sum(found.values()) / (num_photos * len(found)), 4),
        "misses": misses,
        "foreign_photos": len(manifest_rows(data / "clothing-small")),
        "foreign_exact": foreign,
    }
    path = record("exact", figures, ("pillow", "numpy"), args.out)
    sys.stdout.write(f"{path}\n{ {name: value for name, value in figures.items() if name != 'misses'} }\n{len(misses)} misses\n")


if __name__ == "__main__":
    main()
