"""The models that a release carries beside its shards, opened: looks and the learned ranking, where there are any."""

from dataclasses import dataclass
from pathlib import Path

from serve.index.manifest import Manifest, ReleaseError
from serve.ranking.looks import LOOKS_FILE, Looks
from serve.ranking.ranker import RANKER_FILE, Ranker


@dataclass(frozen=True)
class ReleaseModels:
    """None = the release has none."""

    looks: Looks | None
    ranker: Ranker | None

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, *, learned: bool) -> "ReleaseModels":
        """Those of the release in `folder`. Raises ReleaseError where `learned` ranking is wanted and the release has none."""
        files = {Path(entry.name).name: folder / entry.name for entry in manifest.models}
        if learned and RANKER_FILE not in files:
            raise ReleaseError(
                f"ranking.learned is set, yet release {manifest.release_id} has no learned ranking: "
                "run `python -m jobs.train_ranker` and nightly, or unset it"
            )
        looks = Looks(files[LOOKS_FILE]) if LOOKS_FILE in files else None
        return cls(looks, Ranker.open(files[RANKER_FILE]) if learned else None)
