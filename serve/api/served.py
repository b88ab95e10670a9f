"""The one release a server answers from, resolved to exact, verified files before anything is started."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from serve.index.manifest import MANIFEST_NAME, Manifest, ReleaseError, read_manifest, verify_release
from serve.index.release import assign_shards
from serve.registry import CHAMPION, RegistryAwayError, champion, registered, release_folder, release_ids
from serve.settings import Settings
from serve.vision.bundle_files import bundle_digest, read_config
from serve.vision.spec import BundleError

log = logging.getLogger(__name__)


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
    def of_now(cls, deployed: Self, settings: Settings) -> Self:
        """What a replica answers from that starts long after its deployment: the champion of this moment.

        `deployed` where that is it, was asked for by its id, or nobody can tell; where it was cleared away meanwhile, the newest
        release on this disk that is whole. Raises ReleaseError where there is none.
        """
        if deployed.pinned:
            return deployed
        try:
            found = registered(settings.registry, settings.store, CHAMPION)
            return deployed if found is None or found.release_id == deployed.manifest.release_id else cls.resolve(settings)
        except (ReleaseError, BundleError, OSError) as error:
            log.warning("event=champion_not_opened error=%s", error)
        if (deployed.folder / MANIFEST_NAME).is_file():
            return deployed
        return cls.newest(settings)

    @classmethod
    def newest(cls, settings: Settings) -> Self:
        """The newest published release that is whole, whatever the registry says. Raises ReleaseError."""
        store = settings.store
        folders = [release_folder(store, release_id) for release_id in release_ids(store)]
        for folder in sorted(folders, key=lambda folder: read_manifest(folder).created_at, reverse=True):
            try:
                return cls.open(folder.resolve(), store.root.resolve(), settings.serve.num_searchers)
            except (ReleaseError, BundleError) as error:
                log.warning("event=release_not_whole release=%s error=%s", folder.name, error)
        raise ReleaseError(f"{store.releases}: no release in it is whole")

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
