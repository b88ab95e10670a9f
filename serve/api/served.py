"""The one release a server answers from, resolved to exact, verified files before anything is started."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from serve.index.manifest import Manifest, ReleaseError, read_manifest, verify_release
from serve.index.release import assign_shards
from serve.registry import RegistryAwayError, champion, release_folder, release_ids
from serve.settings import Settings
from serve.vision.bundle_files import bundle_digest, read_config


@dataclass(frozen=True)
class ServedRelease:
    """A verified release, its bundle, and which shards each searcher opens. Pickles small; every deployment gets one."""

    folder: Path
    manifest: Manifest
    bundle_folder: Path
    shard_groups: tuple[tuple[str, ...], ...]
    has_text: bool  # whether the bundle embeds texts
    pinned: bool = False  # asked for by its id: another champion changes nothing

    @classmethod
    def resolve(cls, settings: Settings, release_id: str | None = None) -> Self:
        """The champion, or the published release `release_id`. Raises ReleaseError that names what is missing or damaged."""
        release_id = release_id or settings.serve.release
        store = settings.store.model_copy(update={"root": settings.store.root.resolve()})
        try:
            folder = release_folder(store, release_id) if release_id else champion(settings.registry, store)
        except RegistryAwayError as error:
            published = ", ".join(release_ids(store)) or "none"
            raise RegistryAwayError(f"{error}; --release ID serves a published one without it: {published}") from error
        served = cls.open(folder.resolve(), store.root, settings.serve.num_searchers)
        return replace(served, pinned=release_id is not None)

    @classmethod
    def open(cls, folder: Path, store_root: Path, num_searchers: int) -> Self:
        """The release in `folder`, every file checked against its manifest, the bundle against its digest."""
        manifest = read_manifest(folder)
        verify_release(folder, manifest)
        bundle_folder = store_root / manifest.bundle.folder
        if not bundle_folder.is_dir():
            raise ReleaseError(
                f"{bundle_folder}: the bundle of release {manifest.release_id} is missing; build the release again"
            )
        digest = bundle_digest(bundle_folder)
        if digest != manifest.bundle.digest:
            raise ReleaseError(
                f"{bundle_folder}: digest {digest[:12]} is not {manifest.bundle.digest[:12]} of release {manifest.release_id}, "
                "so its vectors can't be compared; put that bundle back or build the release again"
            )
        return cls(
            folder, manifest, bundle_folder, shard_groups(manifest, num_searchers), read_config(bundle_folder).text is not None
        )


def shard_groups(manifest: Manifest, num_searchers: int) -> tuple[tuple[str, ...], ...]:
    """What each searcher opens; fewer than `num_searchers` where there are fewer shards. One group where the ingress searches."""
    return tuple(group for group in assign_shards(manifest, max(num_searchers, 1)) if group)
