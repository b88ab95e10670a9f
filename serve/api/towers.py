"""The encoder, asked for photos and texts; what it refuses becomes a problem here."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from serve.api.problems import Problem, image_problem
from serve.api.schemas import Box
from serve.api.searchers import Lost, ask_again
from serve.api.served import ServedRelease
from serve.vision.bundle import CropFeatures
from serve.vision.crop import Crop

T = TypeVar("T")


@dataclass(frozen=True)
class Refused:
    """A photo, a box or a text that was not taken; unlike an exception it keeps its form on the way between processes."""

    code: str
    detail: str
    field: str = "image"


@dataclass(frozen=True)
class AskEncoder:
    """The encoder's two towers, and crops of a photo in its other quarter turns."""

    photo: Callable[[bytes, tuple[Box, ...], bool, int], Awaitable[list[CropFeatures] | Refused]]
    text: Callable[[str], Awaitable[np.ndarray | Refused]]
    turned: Callable[[bytes, tuple[Crop, ...]], Awaitable[list[list[CropFeatures]] | Refused]]


class Towers:
    """Both towers of one release's bundle."""

    def __init__(self, served: ServedRelease, ask: AskEncoder, timeout_s: float, lost: Lost) -> None:
        self.served, self.ask, self.timeout_s, self.lost = served, ask, timeout_s, lost

    async def photo(
        self, photo: bytes, boxes: tuple[Box, ...], *, may_wait: bool = False, quarters: int = 0
    ) -> list[CropFeatures]:
        """Crops of a photo, found after so many quarter turns; one that `may_wait` lets queries go first.

        Raises Problem: what the decoder refuses, 503 when no encoder answered.
        """
        features: list[CropFeatures] | Refused = await self.asked(partial(self.ask.photo, photo, boxes, may_wait, quarters))
        if isinstance(features, Refused):
            if features.field == "image":
                raise image_problem(features.code, features.detail)
            field = features.field if len(boxes) == 1 else "boxes"
            raise Problem(422, f"{features.field}_{features.code}", features.detail, field)
        return features

    async def turned(self, photo: bytes, crops: tuple[Crop, ...]) -> list[list[CropFeatures]]:
        """These crops of a photo that was taken already, after each other quarter turn. Raises Problem 503 when no encoder
        answered.
        """
        found: list[list[CropFeatures]] | Refused = await self.asked(partial(self.ask.turned, photo, crops))
        if isinstance(found, Refused):
            raise image_problem(found.code, found.detail)
        return found

    async def text(self, text: str) -> np.ndarray:
        """(D,) embedding of a text. Raises Problem 422 where the release takes none."""
        if not self.served.has_text:
            detail = f"bundle {self.served.manifest.bundle.name} of release {self.served.manifest.release_id} has no text encoder"
            raise Problem(422, "not_offered", detail, "text")
        text_D: np.ndarray | Refused = await self.asked(partial(self.ask.text, text))
        if isinstance(text_D, Refused):
            raise Problem(422, f"text_{text_D.code}", text_D.detail, "text")
        return text_D

    async def asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What the encoder says. Raises Problem 503 when it says nothing in time."""
        answer = await ask_again(ask, self.timeout_s, self.lost)
        if answer is None:
            raise Problem(503, "no_encoder", "no encoder answered; try again", headers={"Retry-After": "1"})
        return answer
