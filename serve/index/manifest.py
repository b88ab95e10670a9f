"""The manifest of a release: which tables, bundle, shards and measured figures it is made of, and its verification.

`manifest.json` is the last file a release gets. A folder without one is not a release; a folder whose files differ
from it by one byte is not served (FAISS opens a damaged file without an error).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from serve.index.hash_exit import HashExit
from serve.index.spec import VectorKind

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 3
# Of tables whose versions a manifest names. Delta would drop their log entries after 30 days, pinned or not; clean_store does it.
LOG_IS_KEPT = {"delta.logRetentionDuration": "interval 36500 days"}


class ReleaseError(ValueError):
    """A release that must not be served, or a query it cannot answer. One line: what, where, what to do."""


def _inside(path: str) -> str:
    """`path` when it stays inside the folder it is relative to."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"{path!r} must be a path inside its folder, without '..'")
    return path


InsidePath = Annotated[str, AfterValidator(_inside)]


class Part(BaseModel):
    """A frozen piece of the manifest; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Part):
    """One file of a shard."""

    name: InsidePath
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ShardEntry(Part):
    """One shard folder: bucket `bucket` of its partition."""

    path: InsidePath = Field(description="relative to the release folder")
    bucket: int = Field(ge=0)
    num_rows: int = Field(ge=0, description="crops")
    num_products: int = Field(ge=0)
    files: tuple[FileEntry, ...]
    rows_digest: str | None = Field(None, description="of the photos that it was made from; none = unknown")


class PartitionSpec(Part):
    """How the shards of one partition are searched."""

    factory: str = Field(description="FAISS factory string; 'Flat' = exact scan of the stored vectors")
    vectors: VectorKind = Field("fp16", description="stored vectors that candidates are re-scored with")
    nprobe: int = Field(1, ge=1)
    refine_factor: int = Field(10, ge=1, description="candidates a result that are re-scored exactly")
    metric: str = Field("cosine", pattern="^cosine$")


class OperatingPoint(Part):
    """What one setting of a partition's search was measured to find."""

    nprobe: int
    refine_factor: int
    recall_at_10: float
    cpu_ms: float = Field(description="of one query")


class PartitionEntry(Part):
    """One partition: the category prefixes it holds and its shards."""

    name: str
    categories: tuple[str, ...] = Field(description="category prefixes; those of no partition are in `rest`")
    spec: PartitionSpec
    template_digest: str | None = Field(description="SHA-256 of the trained empty index; none = flat")
    points: tuple[OperatingPoint, ...] = Field((), description="what spec was chosen from; empty = flat")
    shards: tuple[ShardEntry, ...]


class BundleEntry(Part):
    """The bundle every vector of the release came from; a query must use the same."""

    name: str
    digest: str
    folder: InsidePath = Field(description="relative to store.root")
    dim: int = Field(ge=1)


class HashEntry(Part):
    """The hash stage: kind and calibrated thresholds (see serve.index.hash_exit)."""

    kind: str
    version: int
    max_distance: int = Field(ge=-1, description="of 256 bits; -1 = the stage answers nothing")
    max_colour_distance: float
    min_quality: float
    false_accept_frac: float = Field(description="measured on the catalog's photos")
    found_frac: float = Field(description="share of edited catalog photos found again")

    @property
    def exit(self) -> HashExit:
        """The thresholds as the kernel takes them."""
        return HashExit(**self.model_dump(exclude={"kind", "version"}))


class NoMatchEntry(Part):
    """From which score on a result is a match, by partition, and what that was measured to do."""

    thresholds: dict[str, float] = Field(description="cosine, by name of the partition that holds the product")
    false_match_frac: float = Field(description="of crops of things that no partition left has: some result passes")
    lost_frac: float = Field(description="of photos with known answers whose first result is right: it does not pass")


class Counts(Part):
    """Sizes of the release."""

    products: int
    images: int
    crops: int


class Manifest(Part):
    """Everything a release is made of."""

    format_version: int = FORMAT_VERSION
    release_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    created_at: str
    code_version: str
    tables: dict[str, int]
    bundle: BundleEntry
    hash: HashEntry
    route_threshold: float = Field(description="partitions are searched until their predicted probability passes it")
    no_match: NoMatchEntry | None = Field(None, description="none = any result is one: no answers are known")
    num_buckets: int = Field(ge=1, description="buckets of product_id in one partition")
    partition_depth: int = Field(ge=0, description="category levels that name a partition")
    partitions: tuple[PartitionEntry, ...]
    counts: Counts
    metrics: dict[str, float]
    models: tuple[FileEntry, ...] = Field((), description="looks and learned ranking; names relative to the release folder")

    def shards(self) -> Iterator[tuple[PartitionEntry, ShardEntry]]:
        """Every shard with its partition, in order."""
        for partition in self.partitions:
            for shard in partition.shards:
                yield partition, shard


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(folder: Path, name: str) -> FileEntry:
    """Size and digest of `folder`/`name` as it lies on disk."""
    path = folder / name
    return FileEntry(name=name, bytes=path.stat().st_size, sha256=file_sha256(path))


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make what was written to the file durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write `manifest` as the last file of `folder`; returns the SHA-256 of the file."""
    data = (json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()
    write_durably(folder / MANIFEST_NAME, data)
    return hashlib.sha256(data).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the release in `folder`. Raises ReleaseError."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ReleaseError(f"{path}: no manifest, so this is no finished release; run `python -m jobs.nightly` again")
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ReleaseError(f"{path}: not valid JSON ({error}); {WHAT_TO_DO}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise ReleaseError(f"{path}: format_version is {version!r}, this code reads {FORMAT_VERSION}; build the release again")
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ReleaseError(f"{path}: {key}: {first['msg']}; {WHAT_TO_DO}") from error


WHAT_TO_DO = "serve another release (`python -m jobs.publish_release --rollback`) or build it again"


def verify_files(folder: Path, entries: Iterable[FileEntry]) -> None:
    """Check size and SHA-256 of files below `folder`. Raises ReleaseError with the file's name."""
    for entry in entries:
        path = folder / entry.name
        if not path.is_file():
            raise ReleaseError(f"{path}: missing from the release; {WHAT_TO_DO}")
        size = path.stat().st_size
        if size != entry.bytes:
            raise ReleaseError(f"{path}: {size} bytes, the manifest says {entry.bytes}; {WHAT_TO_DO}")
        if file_sha256(path) != entry.sha256:
            raise ReleaseError(f"{path}: its SHA-256 differs from the manifest, the file is damaged; {WHAT_TO_DO}")


def verify_shard(folder: Path, shard: ShardEntry) -> None:
    """Check every file of one shard; `folder` is the release. Raises ReleaseError with the file's name."""
    verify_files(folder / shard.path, shard.files)


def verify_release(folder: Path, manifest: Manifest) -> None:
    """Check every file the manifest names, and that it names all. Raises ReleaseError naming the damaged or missing file."""
    crops = sum(shard.num_rows for _, shard in manifest.shards())
    if crops != manifest.counts.crops:
        raise ReleaseError(f"{folder}: its shards hold {crops} crops, the release has {manifest.counts.crops}; {WHAT_TO_DO}")
    for _, shard in manifest.shards():
        verify_shard(folder, shard)
    verify_files(folder, manifest.models)
