"""Small pictures for pages and notebooks, read from where the catalog's photos lie."""

import base64
import io
from collections.abc import Sequence
from urllib.parse import unquote, urlparse

import fsspec
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from jobs.evaluation.queries import Query
from serve.vision.image import ImageError, decode_image
from serve.vision.spec import DecodeLimits


def read_thumbnail(uri: str, longest_px: int) -> Image.Image | None:
    """The photo at `uri` (path, file://, s3://, https://), shrunk; none where it cannot be read."""
    path = unquote(urlparse(uri).path) if uri.startswith("file:") else uri
    try:
        with fsspec.open(path, "rb") as file:
            picture = Image.fromarray(decode_image(file.read(), DecodeLimits()))
    except (OSError, ImageError):
        return None
    picture.thumbnail((longest_px, longest_px))
    return picture


def framed_photo(query: Query, number: int) -> Image.Image:
    """The query photo, the box of its product `number` in green where it is known."""
    picture = Image.fromarray(decode_image(query.path.read_bytes(), DecodeLimits()))
    if query.boxes_N4:
        pen = ImageDraw.Draw(picture)
        pen.rectangle(query.boxes_N4[number], outline="#22c55e", width=max(2, picture.width // 150))
    return picture


def data_uri(picture: Image.Image) -> str:
    """`picture` as a JPEG data URI, to be part of a page."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(uris: Sequence[str], captions: Sequence[str], columns: int = 6, tile_px: int = 150) -> Image.Image:
    """Photos in rows of `columns`, each with its caption below; a photo that cannot be read stays a grey tile."""
    return tile_sheet([shown_at(uri, tile_px) for uri in uris], captions, columns, tile_px)


def shown_at(uri: str, tile_px: int) -> Image.Image:
    """The photo as a tile of a sheet; grey where it cannot be read."""
    return read_thumbnail(uri, tile_px - 8) or Image.new("RGB", (tile_px - 8, tile_px - 8), "#ddd")


def tile_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int, tile_px: int) -> Image.Image:
    """Pictures of at most `tile_px` in rows of `columns`, each with its caption below."""
    caption_px = 28
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * tile_px, rows * (tile_px + caption_px)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = number % columns * tile_px, number // columns * (tile_px + caption_px)
        sheet.paste(picture, (x + (tile_px - picture.width) // 2, y + (tile_px - picture.height) // 2))
        pen.text((x + 4, y + tile_px), caption[: tile_px // 6], fill="black")
    return sheet


def figure_uri(figure: Figure) -> str:
    """A drawing as a PNG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
