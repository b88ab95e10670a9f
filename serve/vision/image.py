"""The one image decoder of both sides: bytes in, upright RGB pixels out, everything hostile an ImageError.

JPEG, PNG, WebP and GIF (first frame). The header is judged before a pixel is decoded; then: EXIF transpose, 16-bit scale,
alpha on white, ICC profile to sRGB, RGB. Decode foreign bytes through serve.vision.guarded, which calls this.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from serve.vision.header import Header, ImageError, read_header

if TYPE_CHECKING:  # the guarded process imports no settings
    from serve.vision.spec import DecodeLimits

__all__ = ["ImageError", "Reduced", "decode_image", "decode_reduced", "dihedral", "image_id_of", "image_size"]

DECODERS: dict[str, type[ImageFile.ImageFile]] = {  # the class itself: no other plugin is tried, no MPO frames are followed
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
}
ORIENTATION_TAG = 0x0112
UPRIGHT = {2: 1, 3: 3, 4: 2, 5: 4, 6: 5, 7: 7, 8: 6}  # EXIF orientation (EXIF 2.32, 4.6.5.A) -> dihedral variant that undoes it


@dataclass(frozen=True)
class Reduced:
    """A whole image at reduced scale. The scale rounds sizes up: 323 px at 1/4 are 80.75 px in 81, and `box` says so."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB, upright
    box: tuple[float, float, float, float]  # x0, y0, x1, y1: what the image covers of the pixels


def image_id_of(data: bytes) -> str:
    """The key of an image: hex SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()


def image_size(data: bytes, limits: "DecodeLimits") -> tuple[int, int]:
    """(width, height) in pixels of the upright image, from the header alone. Raises ImageError."""
    with _opened(data, limits) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def decode_image(data: bytes, limits: "DecodeLimits", *, at_least_px: int | None = None) -> np.ndarray:
    """Upright pixels, (H, W, 3) uint8 RGB. Raises ImageError and nothing else, whatever the bytes.

    With `at_least_px` the image comes at 1/2, 1/4 or 1/8 of its size, as long as its shorter side stays >= that:
    a JPEG by scaled inverse DCT, which is where the time goes, others by box reduction after the decode.
    """
    return decode_reduced(data, limits, at_least_px).pixels


def decode_reduced(data: bytes, limits: "DecodeLimits", at_least_px: int | None) -> Reduced:
    """`decode_image` with the exact extent of the image in its pixels. Raises ImageError."""
    with _opened(data, limits) as image:
        width, height = image.size
        scale = _scale(image.size, at_least_px)
        if isinstance(image, JpegImageFile) and scale > 1:
            image.draft(None, (width // scale, height // scale))
        variant = UPRIGHT.get(_orientation(image), 0)
        rgb = _rgb(image)
        if scale > 1 and not isinstance(image, JpegImageFile):
            rgb = rgb.reduce(scale)
        pixels = np.array(dihedral(np.asarray(rgb), variant), order="C")
        return Reduced(pixels, _upright_box(width / scale, height / scale, rgb.size, variant))


def dihedral(array: np.ndarray, variant: int) -> np.ndarray:
    """One of the 8 ways to turn and mirror (H, W, ...): 4 = swap axes, then 2 = flip rows, 1 = flip columns. A view."""
    if variant & 4:
        array = array.swapaxes(0, 1)
    return array[:: -1 if variant & 2 else 1, :: -1 if variant & 1 else 1]


@contextmanager
def _opened(data: bytes, limits: "DecodeLimits") -> Iterator[ImageFile.ImageFile]:
    """The image, judged by its header and not yet decoded. Whatever goes wrong inside the block is an ImageError."""
    if len(data) > limits.max_bytes:
        raise ImageError("too_large", f"{len(data)} bytes; at most {limits.max_bytes}")
    header = read_header(data)
    _check(header, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd EXIF and the like: the pixels decide
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with DECODERS[header.format](io.BytesIO(data)) as image:
                if image.size != (header.width, header.height):
                    raise ImageError("corrupt", f"the header says {header.width} x {header.height}, the pixels {image.size}")
                yield image
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError("too_large", "decoding needs more memory than max_memory_bytes allows") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ImageError("too_many_pixels", f"at most {limits.max_pixels} pixels") from error
        except Exception as error:  # OSError, SyntaxError, struct.error, ...: Pillow names no common base
            code = "truncated" if "truncated" in str(error).lower() else "corrupt"
            raise ImageError(code, f"the {header.format} can't be decoded ({type(error).__name__})") from error


def _check(header: Header, limits: "DecodeLimits") -> None:
    """Raise ImageError where the header breaks a limit."""
    width, height = header.width, header.height
    size, shorter, longer = f"{width} x {height} pixels", min(width, height), max(width, height)
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"{size}; at most {limits.max_pixels} in all")
    if longer > limits.max_side_px:
        raise ImageError("too_large", f"{size}; at most {limits.max_side_px} a side")
    if shorter < limits.min_side_px:
        raise ImageError("too_small", f"{size}; at least {limits.min_side_px} a side")
    if longer > limits.max_aspect * shorter:
        raise ImageError("bad_aspect", f"{size}; the longer side may be {limits.max_aspect:g} times the shorter")
    if header.metadata_bytes > limits.max_metadata_bytes:
        raise ImageError("metadata_too_large", f"{header.metadata_bytes} bytes of it; at most {limits.max_metadata_bytes}")


def _scale(size: tuple[int, int], at_least_px: int | None) -> int:
    """The largest of 8, 4, 2, 1 by which the shorter side can be divided and stays >= `at_least_px`; 1 without it."""
    if at_least_px is None:
        return 1
    return next((scale for scale in (8, 4, 2) if min(size) // scale >= at_least_px), 1)


def _upright_box(width: float, height: float, size: tuple[int, int], variant: int) -> tuple[float, float, float, float]:
    """Where `dihedral` puts a picture of width x height that lay at the top left of `size` pixels."""
    x_slack, y_slack = size[0] - width, size[1] - height
    if variant & 4:
        width, height, x_slack, y_slack = height, width, y_slack, x_slack
    x0, y0 = x_slack * (variant & 1), y_slack * (variant >> 1 & 1)
    return x0, y0, x0 + width, y0 + height


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation that stands before the pixels, 1..8; 1 (upright) where there is none or it can't be read."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - EXIF is foreign bytes; browsers ignore a broken one too
        return 1
    return orientation if orientation in UPRIGHT else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16 bits scaled (Pillow would clip them), alpha on white, colours through the ICC profile."""
    icc_profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        transparent = image.info.get("transparency")
        grey_16 = np.asarray(image)
        image = Image.fromarray((grey_16 >> 8).astype(np.uint8))
        if transparent is not None:
            image.putalpha(Image.fromarray(np.where(grey_16 == transparent, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    transform = _to_srgb(icc_profile, image.mode) if icc_profile and image.mode in ("RGB", "CMYK") else None
    if transform is not None:
        image = transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(icc_profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where nothing is to be done: the profile is sRGB, or broken, or of other channels (browsers ignore those too)."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        if profile.profile.xcolor_space.strip() != mode or "sRGB" in ImageCms.getProfileDescription(profile):
            return None
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
