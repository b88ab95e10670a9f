"""How near each product lies to what users photograph: some products come up whatever is asked.

Training draws the products that it has photos of towards users' photos. A new product, of which it had none, lies farther away
and loses the first places to those that it has seen. The correction of Conneau et al., "Word Translation Without Parallel Data"
(ICLR 2018; cross-domain similarity local scaling), takes half of a product's mean cosine with the queries nearest to it; the
ranking rule `hubness` does. Letters: N rows, D width, P products, B queries.
"""

import numpy as np

from serve.index.vectors import CHUNK_ROWS

HUBNESS_FILE = "hubness.f32"  # (P,) of a shard's products; missing where the bundle has no queries
NEAREST = 10  # queries, as published


def hubness(vectors_ND: np.ndarray, product_N: np.ndarray, queries_BD: np.ndarray, chunk_rows: int = CHUNK_ROWS) -> np.ndarray:
    """(P,) float32: the mean cosine of the NEAREST queries with the best row of each product.

    `product_N`: ascending, from 0, every product has rows. Unit vectors; those of about `chunk_rows` rows are held at a time.
    """
    starts = np.flatnonzero(np.diff(product_N, prepend=-1, append=product_N[-1:] + 1))  # of each product, and the end
    nearest, parts, first = min(NEAREST, len(queries_BD)), [np.empty(0, np.float32)], 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + chunk_rows, side="right")) - 1)
        cosines = vectors_ND[starts[first] : starts[last]].astype(np.float32) @ queries_BD.T
        best = np.maximum.reduceat(cosines, starts[first:last] - starts[first], axis=0)
        parts.append(np.partition(best, -nearest, axis=1)[:, -nearest:].mean(axis=1))
        first = last
    return np.concatenate(parts)
