"""The decoder: every mode comes out right, every hostile file is an ImageError, and cheaply."""

import functools
import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from serve.vision.header import ALLOWED_FORMATS, read_header
from serve.vision.image import ImageError, decode_image, dihedral, image_id_of, image_size
from serve.vision.spec import DecodeLimits

LIMITS = DecodeLimits()


def photo(width: int = 200, height: int = 120, seed: int = 3) -> Image.Image:
    """A smooth coloured picture with no symmetry."""
    cells = np.random.default_rng(seed).integers(20, 236, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, kind, **options)
        return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def code_of(data: bytes, limits: DecodeLimits = LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, limits)
    assert "\n" not in caught.value.detail
    return caught.value.code


def fastest_s(call: Callable[[], object]) -> float:
    """Of three runs: the machine may be busy."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def difference(pixels: np.ndarray, image: Image.Image) -> float:
    return float(np.abs(pixels.astype(int) - np.asarray(image.convert("RGB")).astype(int)).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_allowed_formats_decode_to_rgb(kind: str) -> None:
    pixels = decode_image(encoded(photo(), kind), LIMITS)
    assert pixels.shape == (120, 200, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert difference(pixels, photo()) < (10 if kind == "GIF" else 2)  # 256 colours


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("at_least_px", [None, 32])
def test_every_exif_orientation_gives_equal_pixels(orientation: int, at_least_px: int | None) -> None:
    stored_as = {1: 0, 2: 1, 3: 3, 4: 2, 5: 4, 6: 6, 7: 7, 8: 5}[orientation]  # the inverse of what makes it upright
    upright = np.asarray(photo(192, 128))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(Image.fromarray(np.ascontiguousarray(dihedral(upright, stored_as))), "PNG", exif=exif)
    reference = decode_image(encoded(photo(192, 128), "PNG"), LIMITS, at_least_px=at_least_px)
    assert np.array_equal(decode_image(stored, LIMITS, at_least_px=at_least_px), reference)
    assert image_size(stored, LIMITS) == (192, 128)


def test_broken_exif_leaves_the_image_as_it_is() -> None:
    stored = encoded(photo(), exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12")
    assert decode_image(stored, LIMITS).shape == (120, 200, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height", "at_least_px", "expected"), [
    (640, 480, 128, (240, 320)),  # a quarter would leave 120
    (640, 480, 60, (60, 80)),
    (323, 400, 64, (100, 81)),
    (100, 90, 64, (90, 100)),
    (1600, 1024, 64, (128, 200)),
])  # fmt: skip
def test_reduced_decode_keeps_the_shorter_side(
    kind: str, width: int, height: int, at_least_px: int, expected: tuple[int, int]
) -> None:
    pixels = decode_image(encoded(photo(width, height), kind), LIMITS, at_least_px=at_least_px)
    assert pixels.shape[:2] == expected
    small = photo(width, height).resize(expected[::-1], Image.Resampling.BOX)
    assert difference(pixels, small) < 3


@functools.cache
def mode_cases() -> dict[str, tuple[bytes, Image.Image]]:
    """name -> (encoded, what it has to look like)."""
    grey = photo().convert("L")
    alpha = Image.linear_gradient("L").resize((200, 120))
    on_white = Image.composite(photo(), Image.new("RGB", (200, 120), "white"), alpha)
    grey_on_white = Image.composite(grey, Image.new("L", (200, 120), 255), alpha)
    rgba, la = photo().copy(), grey.copy()
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = photo().quantize(64)
    see_through = palette.copy()
    see_through_rgb = np.asarray(palette.convert("RGB")).copy()
    see_through_rgb[np.asarray(palette) == 5] = 255
    cmyk = photo().convert("CMYK")
    return {
        "rgba_png": (encoded(rgba, "PNG"), on_white),
        "rgba_webp": (encoded(rgba, "WEBP", lossless=True, exact=True), on_white),
        "la": (encoded(la, "PNG"), grey_on_white),
        "grey": (encoded(grey, "PNG"), grey),
        "grey_16_bit": (encoded(sixteen, "PNG"), grey),
        "palette": (encoded(palette, "PNG"), palette),
        "palette_transparent": (encoded(see_through, "PNG", transparency=5), Image.fromarray(see_through_rgb)),
        "one_bit": (encoded(grey.convert("1"), "PNG"), grey.convert("1")),
        "cmyk_adobe_inverted": (encoded(cmyk, "JPEG", quality=95), cmyk),
        "progressive": (encoded(photo(), "JPEG", quality=95, progressive=True), photo()),
    }


@pytest.mark.parametrize("name", mode_cases())
def test_modes_come_out_as_they_look(name: str) -> None:
    data, reference = mode_cases()[name]
    assert difference(decode_image(data, LIMITS), reference) < 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256 * 64).astype(np.uint16).reshape(64, 256)
    pixels = decode_image(encoded(Image.fromarray(ramp), "PNG"), LIMITS)
    assert np.array_equal(pixels[..., 0], (ramp >> 8).astype(np.uint8))


def test_sixteen_bit_transparency_is_white() -> None:
    grey = np.full((32, 32), 1000, np.uint16)
    grey[:16] = 40_000
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in grey)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 0, 0, 0, 0))
    data += png_chunk(b"tRNS", struct.pack(">H", 1000)) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    pixels = decode_image(data, LIMITS)
    assert (pixels[0, 0].tolist(), pixels[31, 0].tolist()) == ([156] * 3, [255] * 3)


def test_colours_go_through_the_profile() -> None:
    """A profile whose red and green primaries are swapped shows red as green; others that do not fit change nothing."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green = (srgb[at : at + 4] for at in (srgb.index(b"rXYZ"), srgb.index(b"gXYZ")))
    swapped = srgb.replace(red, b"????").replace(green, red).replace(b"????", green)
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    red_png = Image.new("RGB", (32, 32), (255, 0, 0))
    assert decode_image(encoded(red_png, "PNG", icc_profile=swapped), LIMITS)[0, 0].tolist() == [0, 255, 0]
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain = decode_image(encoded(photo(), "PNG"), LIMITS)
    for profile in (srgb, lab, b"no profile at all"):
        assert np.array_equal(decode_image(encoded(photo(), "PNG", icc_profile=profile), LIMITS), plain)


def test_animations_give_their_first_frame() -> None:
    frames = [photo(seed=seed) for seed in range(4)]
    for kind in ("GIF", "WEBP", "PNG"):
        pixels = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), LIMITS)
        assert pixels.shape == (120, 200, 3)
        assert difference(pixels, frames[0]) < 10


def test_gif_of_many_frames_costs_one() -> None:
    one = encoded(Image.new("P", (64, 64)), "GIF")
    frame = one[one.index(b",") : -1]
    data = one[:-1] + frame * 10_000 + b";"
    assert decode_image(data, LIMITS).shape == (64, 64, 3)
    assert fastest_s(lambda: decode_image(data, LIMITS)) < 0.1


@pytest.mark.parametrize(("data", "code"), [
    (b"", "not_an_image"),
    (b"just some text in a file called photo.jpg", "not_an_image"),
    (b"<html><body>404</body></html>", "not_an_image"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
    (b"%PDF-1.7 ...", "unsupported_format"),
    (b"PK\x03\x04....", "unsupported_format"),
    (encoded(photo(), "BMP"), "unsupported_format"),
    (encoded(photo(), "TIFF"), "unsupported_format"),
    (encoded(photo(), "AVIF"), "unsupported_format"),
    (b"\xff\xd8\xff", "truncated"),
    (b"\x89PNG\r\n\x1a\n", "truncated"),
    (b"GIF89a", "truncated"),
    (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "truncated"),
])  # fmt: skip
def test_what_is_no_image_of_ours(data: bytes, code: str) -> None:
    assert code_of(data) == code
    if code != "truncated":
        with pytest.raises(ImageError, match="allowed: JPEG, PNG, WebP, GIF"):
            decode_image(data, LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "GIF"])
def test_truncated_at_every_5_percent(kind: str) -> None:
    data = encoded(photo(), "JPEG", progressive=True) if kind == "progressive" else encoded(photo(), kind)
    for percent in range(5, 100, 5):
        assert code_of(data[: len(data) * percent // 100]) == "truncated", percent


@functools.cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """name -> (bytes, code)."""

    def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")

    side = 20_000
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side // 8 + 1)) for _ in range(side)) + packer.flush()
    small = zlib.compress(bytes(5 * 32))
    exif = b"Exif\x00\x00" + bytes(65_000)
    jpeg, webp_side = encoded(photo()), (16_383).to_bytes(3, "little")
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + webp_side * 2 + b"ANMF" + struct.pack("<I", 16) + bytes(16)
    profile = png_chunk(b"iCCP", b"x\x00\x00" + zlib.compress(np.random.default_rng(0).bytes(2_000_000)))
    text = png_chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(900_000)))
    return {
        "png_20k": (png(side, side, rows=rows), "too_many_pixels"),
        "png_65k_header": (png(65_000, 65_000), "too_many_pixels"),
        "png_thin": (png(60_000, 1), "too_large"),
        "png_slim": (png(8_000, 20), "bad_aspect"),
        "png_tiny": (png(4, 4), "too_small"),
        "png_profile": (png(32, 32, profile, rows=small), "metadata_too_large"),
        "png_text_chunks": (png(32, 32, *[text] * 2_000, rows=small), "metadata_too_large"),
        "jpeg_exif": (jpeg[:2] + (b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif) * 40 + jpeg[2:], "metadata_too_large"),
        "webp_canvas": (b"RIFF" + struct.pack("<I", len(webp)) + webp, "too_many_pixels"),
        "gif_frame": (b"GIF89a\x20\x00\x20\x00\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00", "too_many_pixels"),
        "bytes": (bytes(LIMITS.max_bytes + 1), "too_large"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_before_they_are_decoded(name: str) -> None:
    data, code = bombs()[name]
    if name == "png_20k":
        assert len(data) < 60_000
    assert code_of(data) == code
    assert fastest_s(lambda: code_of(data)) < 0.1
    tracemalloc.start()
    code_of(data)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize("build", [
    lambda jpeg, png: jpeg[:2] + b"\xff\xc0\x00\x0b\x08\x00\x20\x00\x20\x01\x01\x11\x00" + jpeg[2:],  # a second frame header
    lambda jpeg, png: png[:8] + png[8:33] + png[8:33] + png[33:],
    lambda jpeg, png: png[:8] + png[33:],
    lambda jpeg, png: jpeg[:4] + b"\x00\x02" + b"garbage" * 9 + jpeg[6:],
])  # fmt: skip
def test_contradicting_headers_are_corrupt(build: Callable[[bytes, bytes], bytes]) -> None:
    assert code_of(build(encoded(photo()), encoded(photo(), "PNG"))) == "corrupt"


def test_header_agrees_with_the_pixels() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        header = read_header(encoded(photo(), kind))
        assert (header.width, header.height) == (200, 120)
        assert header.format in ALLOWED_FORMATS


def test_image_id_is_the_digest_of_the_bytes() -> None:
    assert image_id_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
