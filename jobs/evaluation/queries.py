"""Photos with known answers: what recall of the whole search is measured on."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from jobs.config import JobError

CLEAR_FRAC, HIDDEN_FRAC = 0.05, 0.25  # a product is clear when at most this share of it is hidden, hidden from the second on


@dataclass(frozen=True)
class Query:
    """One photo and the products that are in it.

    `boxes_N4` are pixels (x0, y0, x1, y1) of the upright photo, one per product, or () where none are known. `domain`: what kind
    of photo it is, `occluded_frac_N`: which share of each product is hidden, where the file says it.
    """

    path: Path
    product_ids: tuple[str, ...]
    boxes_N4: tuple[tuple[float, float, float, float], ...] = ()
    domain: str | None = None
    occluded_frac_N: tuple[float, ...] = ()

    def visibility(self, number: int) -> str | None:
        """How much of product `number` is seen: "clear", "partly" or "hidden"; None where the file does not say it."""
        if not self.occluded_frac_N:
            return None
        frac = self.occluded_frac_N[number]
        return "clear" if frac <= CLEAR_FRAC else "hidden" if frac >= HIDDEN_FRAC else "partly"


def load_queries(path: Path, where: dict[str, str], max_queries: int, seed: int) -> list[Query]:
    """Queries from JSONL: `path` (relative to the file's folder), `product_id` or `product_ids`, optional `boxes` (pixels),
    `occluded_frac` (one for each product), `domain`.

    Only rows that match every `column: value` of `where`; a seeded sample where there are more than `max_queries`,
    in the file's order.
    """
    if not path.is_file():
        raise JobError(f"evaluate.queries={path}: no such file; it is JSONL with path and product_id, one photo a line")
    queries = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            if any(str(row.get(column)) != value for column, value in where.items()):
                continue
            products = row.get("product_ids") or [row["product_id"]]
            boxes = tuple(tuple(box) for box in row.get("boxes", ())) if "product_ids" in row else ()
            hidden = tuple(float(frac) for frac in row.get("occluded_frac", ())) if "product_ids" in row else ()
            if hidden and len(hidden) != len(products):
                raise ValueError(f"{len(hidden)} numbers in occluded_frac, {len(products)} products")
            queries.append(Query(path.parent / row["path"], tuple(products), boxes, row.get("domain"), hidden))
        except (KeyError, TypeError, ValueError) as error:
            raise JobError(
                f"{path} line {number}: not a query ({error!r}); it needs path and product_id or product_ids"
            ) from error
    if not queries:
        raise JobError(f"evaluate.queries={path}: no row matches queries_where={where}")
    if len(queries) > max_queries:
        chosen = sorted(random.Random(seed).sample(range(len(queries)), max_queries))
        queries = [queries[i] for i in chosen]
    return queries
