"""The same picture gives the same vector offline, over HTTP and in the browser."""

import base64
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from playwright.sync_api import sync_playwright

from jobs.tables import Tables, read_table
from serve.vision.bundle_files import read_config
from serve.vision.encoder import build_module
from serve.vision.image import decode_image, image_id_of
from serve.vision.preprocess import network_input
from serve.vision.runtime import file_network
from serve.vision.spec import CpuRuntime, RuntimeConfig
from tests.page.test_page import FLAGS, browser_path  # noqa: F401 - a fixture
from tests.page.test_page_device import offered_device
from tests.parts import BuiltStore

MAX_DIFFERENCE = 1e-5  # of the stored fp16 vector, see below

NUM_PHOTOS = 100

# Of each photo, shrunk as the page does: first product by the server's vector, by the browser's, that vector, what its network
# was shown, and the JPEG that a server would have got.
BOTH_WAYS = """async (photos) => {
  const { prepare } = await import("/page/photo.js");
  const device = await import("/page/device.js");
  const network = await (await fetch("/v1/device")).json();
  const post = async (url, options) => (await fetch(url, { method: "POST", ...options })).json();
  const first = async (embedding) => {
    const body = JSON.stringify({ embedding, bundle_digest: network.bundle_digest });
    return (await post("/v1/search", { body, headers: { "content-type": "application/json" } })).results[0].product_id;
  };
  const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  const found = [];
  for (const photo of photos) {
    const { canvas, jpeg } = await prepare(new Blob([Uint8Array.from(atob(photo), (c) => c.charCodeAt(0))]));
    const form = new FormData();
    form.append("image", jpeg, "photo.jpg");
    const server = (await post("/v1/embed", { body: form })).crops[0].embedding;
    const own = await device.embed(network, canvas, null);
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const shown = base64(new Uint8Array(device.networkInput(pixels, network.preprocess).buffer));
    found.push([await first(server), await first(own), own, shown, base64(new Uint8Array(await jpeg.arrayBuffer()))]);
  }
  return found;
}"""


def test_offline_and_http(built_store: BuiltStore, served: str) -> None:
    """Catalog photos are searched by vector only; the answer's embedding must be the stored one.

    Stored vectors are fp16, so both are compared after rounding to fp16.
    """
    tables = Tables(built_store.config.store.tables)
    features = read_table(tables, "features").to_pylist()
    stored = {row["image_id"]: np.frombuffer(row["embedding"], np.float16) for row in features if row["crop"] == 0}
    for path in shop_photos(built_store)[:10]:
        photo = path.read_bytes()
        answer = requests.post(f"{served}/v1/embed", files={"image": photo}, timeout=30).json()
        online = np.array(answer["crops"][0]["embedding"], np.float32)
        assert np.abs(online - stored[image_id_of(photo)].astype(np.float32)).max() <= np.float16(2**-11)
        assert np.array_equal(online.astype(np.float16), stored[image_id_of(photo)])


def shop_photos(store: BuiltStore) -> list[Path]:
    """The catalog's photos that could be read, in the order of their paths."""
    fetches = read_table(Tables(store.config.store.tables), "fetches").to_pylist()
    return sorted(Path(row["image_uri"].removeprefix("file://")) for row in fetches if row["status"] == "embedded")


@pytest.mark.slow
@pytest.mark.browser
def test_in_the_browser(built_store: BuiltStore, served: str, browser_path: str) -> None:  # noqa: F811
    """The page's INT8 network finds what the server's does; it runs as it does here, on the pixels that it would be shown here.

    Street scenes first, then shop photos.
    """
    paths = [*sorted(built_store.feed.parent.glob("scenes/*.jpg")), *shop_photos(built_store)][:NUM_PHOTOS]
    assert len(paths) == NUM_PHOTOS
    photos = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    offered_device(served)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(served)
        found = [one for start in range(0, NUM_PHOTOS, 20) for one in page.evaluate(BOTH_WAYS, photos[start : start + 20])]
        browser.close()
    assert len({server for server, *_ in found}) >= 20, "photos of many products"
    assert sum(server == device for server, device, *_ in found) >= 0.95 * NUM_PHOTOS
    assert built_store.config.bundle.path is not None
    folder = Path(built_store.config.bundle.path)
    encoder = read_config(folder).encoder
    assert encoder is not None and encoder.browser is not None, "the shipped bundle has one"
    file = encoder.browser.network
    cpu = CpuRuntime(engine="onnxruntime", precision="int8", network=file)
    int8, float32 = file_network(folder / file, cpu, RuntimeConfig(), one_by_one=True), build_module(encoder, folder)
    for _, _, own, shown, sent in found:
        theirs = np.frombuffer(base64.b64decode(shown), np.float32).reshape(1, 3, *[encoder.preprocess.size_px] * 2)
        ours = network_input([decode_image(base64.b64decode(sent), built_store.config.decode)], encoder.preprocess)
        assert cosine(int8.run(theirs)[0], own) > 0.999, "the network runs there as here"
        with torch.inference_mode():
            vectors = [float32(torch.from_numpy(pixels.copy()))[0].numpy() for pixels in (theirs, ours)]
        assert cosine(*vectors) > 0.999, "the pixels are the same"


def cosine(one: np.ndarray | list[float], other: np.ndarray | list[float]) -> float:
    """Of two vectors."""
    a, b = np.ravel(one), np.ravel(other)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
