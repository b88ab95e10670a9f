"""Sets of products that go well together by known rules, so that a look model can be judged exactly.

The rules:
1. Slots. An outfit is a dress, or a top and a bottom; shoes; a bag; and sometimes a hat or a watch. A room set is a lamp,
   a vase and a mug.
2. Gender. No men's with women's; unisex goes with both.
3. Colour. Every two main colours are in harmony: one is neutral, or their hues lie within 35 degrees, or they lie opposite
   (180 +- 30 degrees).
4. Pattern. At most one product is patterned.
"""

from collections.abc import Iterator, Sequence
from colorsys import rgb_to_hsv
from dataclasses import dataclass

import numpy as np

from jobs.render.catalog import COLOURS, NEUTRAL
from jobs.render.products import RenderedProduct

SLOTS = {
    "t-shirt": "top",
    "hoodie": "top",
    "pants": "bottom",
    "skirt": "bottom",
    "dress": "dress",
    "boot": "shoes",
    "sneaker": "shoes",
    "handbag": "bag",
    "backpack": "bag",
    "hat": "extra",
    "watch": "extra",
    "lamp": "lamp",
    "vase": "vase",
    "mug": "mug",
}
KINDS = {
    "outfit": (("top", "bottom", "shoes", "bag"), ("dress", "shoes", "bag")),
    "outfit-extra": (("top", "bottom", "shoes", "bag", "extra"), ("dress", "shoes", "bag", "extra")),
    "room": (("lamp", "vase", "mug"),),
}
TOGETHER = {(a, b) for sets in KINDS.values() for slots in sets for a in slots for b in slots if a != b}
TRIES = 80  # products looked at for a slot before the outfit is given up


@dataclass(frozen=True)
class Outfit:
    """A set that keeps all rules; the first product is the one it was built around."""

    kind: str
    product_ids: tuple[str, ...]


def in_harmony(first: str, second: str) -> bool:
    """Rule 3 for two named colours."""
    if first in NEUTRAL or second in NEUTRAL or first == second:
        return True
    hues = [rgb_to_hsv(*(value / 255 for value in COLOURS[name]))[0] * 360 for name in (first, second)]
    apart = abs(hues[0] - hues[1])
    apart = min(apart, 360 - apart)
    return apart <= 35 or apart >= 150


def goes_with(first: RenderedProduct, second: RenderedProduct) -> bool:
    """Rules 2 to 4 for two products of different slots."""
    genders = {first.gender, second.gender} - {None, "unisex"}
    one_plain = "plain" in (first.pattern, second.pattern)
    return len(genders) < 2 and one_plain and in_harmony(first.main_colour, second.main_colour)


def make_outfits(products: Sequence[RenderedProduct], seed: int) -> list[Outfit]:
    """At most one set around each product, where the catalog holds what it needs."""
    by_slot: dict[str, list[RenderedProduct]] = {}
    for product in products:
        by_slot.setdefault(SLOTS.get(product.spec.leaf, ""), []).append(product)
    outfits = []
    for index, hero in enumerate(products):
        rng = np.random.default_rng([seed, 2, index + 1])
        slot = SLOTS.get(hero.spec.leaf, "")
        choices = [(kind, slots) for kind, sets in KINDS.items() for slots in sets if slot in slots]
        if not choices:
            continue
        kind, slots = choices[int(rng.integers(len(choices)))]
        chosen = [hero]
        for needed in slots:
            if needed == slot:
                continue
            shelf = by_slot.get(needed, [])
            order = rng.permutation(len(shelf))[:TRIES]
            match = next((shelf[i] for i in order if all(goes_with(shelf[i], other) for other in chosen)), None)
            if match is not None:
                chosen.append(match)
        if len(chosen) == len(slots):
            outfits.append(Outfit(kind, tuple(product.product_id for product in chosen)))
    return outfits


def partners(products: Sequence[RenderedProduct], num: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The first `num` products that have any, each with every product that may be in a set with it.

    Outfits are drawn from these: of the dozens of bags that go with a dress an outfit holds one, so outfits that a model has not
    seen cannot be told from what else keeps the rules, and a proposal is judged by the rules themselves.
    """
    found = 0
    for product in products:
        if found == num:
            return
        slot = SLOTS.get(product.spec.leaf, "")
        fitting = tuple(
            other.product_id
            for other in products
            if (slot, SLOTS.get(other.spec.leaf, "")) in TOGETHER and goes_with(product, other)
        )
        if fitting:
            found += 1
            yield product.product_id, fitting
