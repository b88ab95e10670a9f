"""What a shop declares about the order of its results: rules with weights, the guard rail, diversity.

A weight is in units of the visual score (a cosine): 0.05 moves a product past another that looks 0.05 nearer. Rules that need a
word from the shopper (price range, gender) do nothing without it; every other weight is 0 until the shop sets it.
"""

import re
from datetime import date
from itertools import combinations
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LEAP_YEAR = 2024  # every day of any year is a day of it


def _day(text: str) -> str:
    """`text` when it is a day of the year, MM-DD."""
    if re.fullmatch(r"\d\d-\d\d", text) is None:
        raise ValueError(f"{text!r} is no day of the year; write MM-DD, such as 03-01")
    date.fromisoformat(f"{LEAP_YEAR}-{text}")
    return text


Day = Annotated[str, AfterValidator(_day)]


class Rules(BaseModel):
    """A part of the section `ranking`; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Weights(Rules):
    """How much each rule may add to the visual score, or take from it."""

    hubness: Weight = Field(
        0.5, description="of a product's mean cosine with the nearest photos of training, where the release knows it"
    )
    availability: Weight = Field(0.0, description="taken from what is sold out, where ranking.sold_out is `demote`")
    price: Weight = Field(0.05, description="taken, the further the price lies outside the shopper's range")
    gender: Weight = Field(0.1, description="taken from what is made for another gender than the shopper's")
    popularity: Weight = Field(0.0, description="added to the most popular candidate, less to the others")
    recency: Weight = Field(0.0, description="added to a product updated today, half of it recency_half_life_days ago")


class Boost(Rules):
    """A brand, a seller or a category that is preferred (or, below 0, held back), all year or in a season."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="how explanations call it")
    weight: float = Field(ge=-1, le=1, allow_inf_nan=False, description="added to the score")
    brand: str | None = None
    seller: str | None = None
    category: str | None = Field(None, description="this path and everything below it")
    first_day: Day = Field("01-01", description="MM-DD; a season may run over the new year")
    last_day: Day = "12-31"

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if self.selector == (None, None, None):
            raise ValueError(f"boost {self.name!r} names no brand, seller or category")
        return self

    @property
    def selector(self) -> tuple[str | None, str | None, str | None]:
        """Which products it is for."""
        return (self.brand, self.seller, self.category.strip("/") if self.category else None)

    def is_on(self, day: str) -> bool:
        """Whether MM-DD `day` lies in its season."""
        if self.first_day <= self.last_day:
            return self.first_day <= day <= self.last_day
        return day >= self.first_day or day <= self.last_day

    def meets(self, other: Self) -> bool:
        """Whether the two seasons share a day."""
        return any(self.is_on(day) for day in (other.first_day, other.last_day)) or other.is_on(self.first_day)


class Diversity(Rules):
    """What one answer may show of the same thing."""

    near_duplicates: Literal["all", "once"] = Field("all", description="products with the very same picture")
    variants: Literal["all", "once"] = Field("all", description="products of one group_id: colours of a style")
    per_seller: int = Field(0, ge=0, description="most products of one seller; 0 = no cap")


class RankingConfig(Rules):
    """The section `ranking`."""

    depth: int = Field(100, ge=1, le=1000, description="candidates that are re-ranked, before the cut to k")
    max_gap: float = Field(
        0.15, ge=0, le=2, allow_inf_nan=False, description="guard rail: no boost lifts what looks this much less alike"
    )
    sold_out: Literal["show", "demote", "hide"] = "show"
    weights: Weights = Weights()
    price_tolerance: float = Field(0.25, gt=0, le=10, description="a price off by this share loses 63 % of weights.price")
    recency_half_life_days: float = Field(30.0, gt=0, le=10_000)
    boosts: tuple[Boost, ...] = ()
    diversity: Diversity = Diversity()
    shuffled_frac: float = Field(
        0.0, ge=0, le=0.5, description="answers whose first results come in an order drawn by lot, to measure position bias"
    )
    learned: bool = Field(False, description="the release's learned ranking instead of the weights; boosts stay")

    def without_hubness(self) -> Self:
        """For a release that knows none."""
        return self.model_copy(update={"weights": self.weights.model_copy(update={"hubness": 0.0})})

    @model_validator(mode="after")
    def _no_conflicts(self) -> Self:
        names = [boost.name for boost in self.boosts]
        if len(set(names)) < len(names):
            raise ValueError(f"two boosts have one name: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
        for one, other in combinations(self.boosts, 2):
            if one.selector == other.selector and one.weight * other.weight < 0 and one.meets(other):
                raise ValueError(f"boosts {one.name!r} and {other.name!r} contradict each other: same products, same days")
        if self.weights.availability and self.sold_out != "demote":
            raise ValueError(f"weights.availability is for sold_out: demote, yet sold_out is {self.sold_out!r}")
        return self
