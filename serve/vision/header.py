"""What an image's header says, read by hand before any decoder sees the bytes: format, size, weight of metadata.

Only the structure is walked (JPEG segments, PNG and RIFF chunks, GIF blocks), so a 20,000 x 20,000 bomb costs microseconds.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

ALLOWED_FORMATS = ("JPEG", "PNG", "WebP", "GIF")

JPEG_SCAN, JPEG_END, JPEG_COMMENT = 0xDA, 0xD9, 0xFE
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 without DHT, JPG, DAC
JPEG_APPLICATION = range(0xE0, 0xF0)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"fdAT", b"fcTL", b"acTL", b"IEND"})
WEBP_METADATA = frozenset({b"ICCP", b"EXIF", b"XMP "})
GIF_EXTENSION, GIF_IMAGE = 0x21, 0x2C
REFUSED = (  # (offset, magic, name): pictures and documents we know and do not take
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"BM", "BMP"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "HEIC or another ISO media file"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"<svg", "SVG"),
)


class ImageError(ValueError):
    """Bytes that are no image we take. `code` is stable, `detail` one line: what was given, what is allowed."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


@dataclass(frozen=True)
class Header:
    """Of an encoded image: size in pixels as stored (EXIF not applied), bytes that are neither pixels nor needed for them."""

    format: str  # one of ALLOWED_FORMATS
    width: int
    height: int
    metadata_bytes: int


def read_header(data: bytes) -> Header:
    """Raises ImageError: not_an_image, unsupported_format, truncated or corrupt."""
    reader = _reader(data)
    try:
        return reader(data)
    except (struct.error, IndexError) as error:
        raise ImageError("truncated", f"the file ends early, after {len(data)} bytes") from error


def _reader(data: bytes) -> Callable[[bytes], Header]:
    """By magic bytes; the file's name and declared type do not count."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg
    if data.startswith(PNG_SIGNATURE):
        return _png
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif
    allowed = f"allowed: {', '.join(ALLOWED_FORMATS)}"
    for offset, magic, name in REFUSED:
        if data.startswith(magic, offset):
            raise ImageError("unsupported_format", f"this is {name}; {allowed}")
    raise ImageError("not_an_image", f"{len(data)} bytes that start like no image; {allowed}")


def _jpeg(data: bytes) -> Header:
    position, size, metadata_bytes = 2, None, 0
    while True:
        if data[position] != 0xFF:
            raise ImageError("corrupt", f"no JPEG segment starts at byte {position}")
        while data[position] == 0xFF:  # any number of fill bytes may stand before a marker
            position += 1
        marker = data[position]
        if marker == JPEG_END:
            raise ImageError("truncated", "the JPEG ends before its pixels")
        (length,) = struct.unpack_from(">H", data, position + 1)
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 4)
            if size is not None:
                raise ImageError("corrupt", "two JPEG frame headers")
            size = (width, height)
        elif marker == JPEG_SCAN:
            if size is None:
                raise ImageError("corrupt", "JPEG pixels before their frame header")
            return Header("JPEG", *size, metadata_bytes)
        elif marker in JPEG_APPLICATION or marker == JPEG_COMMENT:
            metadata_bytes += length
        position += 1 + length


def _png(data: bytes) -> Header:
    size: tuple[int, int] | None = None
    position, metadata_bytes, kind = len(PNG_SIGNATURE), 0, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IHDR":
            if size is not None:
                raise ImageError("corrupt", "two PNG headers")
            width, height = struct.unpack_from(">II", data, position + 8)
            size = (width, height)
        elif size is None:
            raise ImageError("corrupt", "the PNG does not start with its header")
        if kind not in PNG_PIXELS:
            metadata_bytes += length + 12
        position += length + 12
        if position > len(data):
            raise IndexError(position)
    assert size is not None
    return Header("PNG", *size, metadata_bytes)


def _webp(data: bytes) -> Header:
    (riff_bytes,) = struct.unpack_from("<I", data, 4)
    if riff_bytes + 8 > len(data):
        raise IndexError(riff_bytes)
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise ImageError("corrupt", "the WebP does not start with a picture")
    position, metadata_bytes = 12, 0
    while position + 8 <= riff_bytes + 8:
        chunk, length = struct.unpack_from("<4sI", data, position)
        if chunk in WEBP_METADATA:
            metadata_bytes += length
        position += 8 + length + length % 2
    return Header("WebP", width, height, metadata_bytes)


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position, metadata_bytes = 13, 0
    if flags & 0x80:
        position += 3 << (flags & 7) + 1
    while data[position] == GIF_EXTENSION:
        start = position
        position += 2
        while data[position]:
            position += data[position] + 1
        position += 1
        metadata_bytes += position - start
    if data[position] != GIF_IMAGE:
        raise ImageError("truncated", "the GIF ends before its first frame")
    x, y, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
    return Header("GIF", max(width, x + frame_width), max(height, y + frame_height), metadata_bytes)
