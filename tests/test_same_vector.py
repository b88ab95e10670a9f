"""The same picture gives the same vector offline and over HTTP: embed_images and the query encoder share one kernel."""

from pathlib import Path

import numpy as np
import requests

from jobs.tables import Tables, read_table
from tests.parts import BuiltStore

MAX_DIFFERENCE = 1e-5  # of the stored fp16 vector, see below


def test_offline_and_http(built_store: BuiltStore, served: str) -> None:
    """Catalog photos are searched by vector only; the answer's embedding must be the stored one.

    Stored vectors are fp16, so both are compared after rounding to fp16.
    """
    tables = Tables(built_store.config.store.tables)
    features = read_table(tables, "features").to_pylist()
    stored = {row["image_id"]: np.frombuffer(row["embedding"], np.float16) for row in features if row["crop"] == 0}
    fetched = [row for row in read_table(tables, "fetches").to_pylist() if row["status"] == "embedded"][:10]
    for row in fetched:
        photo = Path(row["image_uri"].removeprefix("file://")).read_bytes()
        answer = requests.post(f"{served}/v1/embed", files={"image": photo}, timeout=30).json()
        online = np.array(answer["crops"][0]["embedding"], np.float32)
        assert np.abs(online - stored[row["image_id"]].astype(np.float32)).max() <= np.float16(2**-11)
        assert np.array_equal(online.astype(np.float16), stored[row["image_id"]])
