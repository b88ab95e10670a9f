"""The encoder in the browser, over the tiny release: no picture is sent, and the network's input is the server's."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from playwright.sync_api import Page, Request, expect, sync_playwright

from serve.vision.preprocess import network_input
from serve.vision.spec import Preprocess
from tests.api.conftest import api, encode, groups, served, tiny  # noqa: F401 - the same release in a session of its own
from tests.api.tiny_release import TinyRelease
from tests.page.test_page import FLAGS, browser_path, choose, keep  # noqa: F401 - a fixture

pytestmark = [pytest.mark.browser, pytest.mark.slow]  # the network is exported for browsers first

INPUTS = """async ({ photo, config }) => {
  const { networkInput } = await import("/page/device.js");
  const bitmap = await createImageBitmap(new Blob([Uint8Array.from(atob(photo), (c) => c.charCodeAt(0))]));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return [...networkInput(canvas.getContext("2d").getImageData(0, 0, bitmap.width, bitmap.height), config)];
}"""


@pytest.fixture
def device_page(browser_path: str, api: str) -> Iterator[Page]:  # noqa: F811
    """The page over the tiny release, whose network was exported."""
    offered_device(api)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(api)
        yield page
        browser.close()


def offered_device(api: str) -> Any:  # noqa: F811
    """The answer of /v1/device, once the network is written."""
    for _ in range(100):
        answer = httpx.get(f"{api}/v1/device", timeout=30)
        if answer.status_code == 200:
            return answer.json()
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready") and answer.headers["retry-after"]
    raise AssertionError("the network for browsers was not written")


def taken_again(path: Path, seed: int) -> bytes:
    """A catalog photo as a phone might show it: a little turned, cut and in another light, so that its hash is another one."""
    random = np.random.default_rng(seed)
    image = Image.open(path).convert("RGB")
    image = image.rotate(float(random.uniform(4, 9)) * random.choice([-1, 1]), Image.Resampling.BICUBIC, fillcolor="white")
    left, top, right, bottom = random.uniform(0.03, 0.09, 4)
    image = image.crop((left * image.width, top * image.height, (1 - right) * image.width, (1 - bottom) * image.height))  # type: ignore[arg-type]
    image = ImageEnhance.Brightness(image).enhance(float(random.uniform(0.85, 1.15)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def test_no_picture_leaves_the_device(device_page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    sent: list[Request] = []
    device_page.on("request", lambda request: sent.append(request))
    device_page.get_by_label("Keep the photo on this device").check()
    expect(device_page.locator("#privacy")).to_contain_text("stays on this device")
    choose(device_page, taken_again(tiny.photos["p/03"], 1))
    expect(device_page.locator(".tile").first).to_be_visible()
    expect(device_page.locator("#privacy")).to_contain_text("did not leave this device")
    keep(device_page, "device")
    frame = device_page.locator("#photo").bounding_box()
    assert frame is not None
    device_page.mouse.move(frame["x"] + 0.2 * frame["width"], frame["y"] + 0.2 * frame["height"])
    device_page.mouse.down()
    device_page.mouse.move(frame["x"] + 0.8 * frame["width"], frame["y"] + 0.8 * frame["height"], steps=3)
    device_page.mouse.up()
    expect(device_page.locator("#results-title")).to_have_text("Results for the part you drew")
    posted = [request for request in sent if request.method != "GET"]
    assert [request.url.split("/v1/")[-1] for request in posted] == ["search", "search"]
    for request in posted:
        assert request.headers["content-type"] == "application/json"
        assert len(request.post_data or "") < 5_000, "16 numbers, no pixels"
        body = request.post_data_json
        assert body.keys() == {"k", "explain", "look", "embedding", "bundle_digest"}
        assert len(body["embedding"]) == 16 and all(isinstance(number, float) for number in body["embedding"])
    assert all(len(request.url) < 300 for request in sent if not request.url.startswith(("blob:", "data:")))
    device_page.get_by_label("Keep the photo on this device").uncheck()  # and this is what the log shows of a photo
    expect(device_page.locator("#privacy")).to_contain_text("made smaller")
    expect(device_page.locator("#timings")).to_contain_text("analyse")
    assert any(request.headers.get("content-type", "").startswith("multipart/form-data") for request in sent)


@pytest.mark.parametrize("resize", ["pad", "squash", "shorter_side_crop"])
def test_the_browser_makes_the_same_input(device_page: Page, resize: str) -> None:
    """Pillow's resize, written again: all but a few values to the byte, none off by more than one."""
    random = np.random.default_rng(3)
    pixels = np.asarray(
        Image.fromarray(random.integers(0, 256, (23, 17, 3), np.uint8)).resize((301, 417), Image.Resampling.BICUBIC)
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    photo = base64.b64encode(buffer.getvalue()).decode()
    for kernel in ("bilinear", "bicubic"):
        config = Preprocess(size_px=128, resize=resize, filter=kernel)  # type: ignore[arg-type]
        values = device_page.evaluate(INPUTS, {"photo": photo, "config": config.model_dump()})
        ours = np.array(values, np.float32).reshape(3, 128, 128)
        levels = np.abs(ours - network_input([pixels], config)[0]) * np.array(config.std)[:, None, None] * 255
        assert levels.max() < 1.5 and (levels > 0.5).mean() < 0.02


def test_the_network_belongs_to_the_release(api: str) -> None:  # noqa: F811
    offered = offered_device(api)
    assert offered["bundle_digest"] == httpx.get(f"{api}/v1/release").json()["release"]["bundle_digest"]
    network = httpx.get(api + offered["network_url"])
    assert len(network.content) == offered["num_bytes"] and "immutable" in network.headers["cache-control"]
    assert httpx.get(f"{api}/v1/device/encoder.onnx", params={"bundle": "0" * 16}).json()["code"] == "other_bundle"
    other = {"embedding": [1.0] + [0.0] * (offered["dim"] - 1), "bundle_digest": "0" * 64}
    assert httpx.post(f"{api}/v1/search", json=other).status_code == 422
