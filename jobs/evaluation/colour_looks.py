"""A second look at products whose colour their photos seem to lack: pixels decide what a signature only suspects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from jobs.colours import named_frac
from jobs.config import Config
from jobs.evaluation.doctor_report import Example
from jobs.evaluation.shelf import read_photos

COLOUR_PX = 96  # longer side of a photo whose pixels are counted


def confirmed(config: Config, suspects: Sequence[Example]) -> list[Example]:
    """Those with at most doctor.max_named_frac of the named colour in each photo, least first; unreadable photos acquit."""
    photos = [(row, product.image_uri) for row, suspect in enumerate(suspects) for product in suspect.products]
    fracs: dict[int, list[float]] = {}
    for rows, _, pixels in read_photos(config, [(row, uri) for row, uri in photos if uri is not None]):
        for row, picture in zip(rows, pixels, strict=True):
            fracs.setdefault(row, []).append(named_frac(shrunk(picture), suspects[row].kind.split(" or ")))
    found = []
    for row, suspect in enumerate(suspects):
        most = max(fracs.get(row, ()), default=1.0)
        if most <= config.doctor.max_named_frac and len(fracs[row]) == len(suspect.products):
            told = f"{suspect.kind} is named; {most:.1%} of {'the photo has' if len(fracs[row]) == 1 else 'any photo has'} it"
            found.append((most, replace(suspect, told=told)))
    return [example for _, example in sorted(found, key=lambda pair: (pair[0], pair[1].products[0].product_id))]


def shrunk(pixels_HW3: np.ndarray) -> np.ndarray:
    """The photo with COLOUR_PX on its longer side, each pixel a mean."""
    picture = Image.fromarray(pixels_HW3)
    picture.thumbnail((COLOUR_PX, COLOUR_PX), Image.Resampling.BOX)
    return np.asarray(picture)
