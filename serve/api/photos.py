"""Catalog photos for the page: the bytes behind an image_id of the release, and nothing else of the disk."""

import fsspec

from serve.api.problems import Problem
from serve.vision.image import image_id_of

MAGIC = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))


def read_photo(uri: str, image_id: str, max_bytes: int) -> tuple[bytes, str]:
    """Bytes and media type of the photo at `uri`, when they are still those of `image_id`. Raises Problem 404."""
    gone = Problem(404, "photo_gone", "the photo is no longer where the catalog kept it", "image_id")
    try:
        with fsspec.open(uri, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError:
        raise gone from None
    if image_id_of(data) != image_id:
        raise Problem(404, "photo_changed", "the file was changed since the release was built", "image_id")
    if not any(data.startswith(magic) for magic, _ in MAGIC):
        raise gone
    return data, kind_of(data)


def kind_of(photo: bytes) -> str:
    """Media type of a photo, by its first bytes."""
    return next(kind for magic, kind in MAGIC if photo.startswith(magic))
