"""The search page in a real browser over the tiny release: photo in, tiles out, by mouse and keyboard, no other host asked."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.api.conftest import api, encode, groups, served, tiny  # noqa: F401 - the same release in a session of its own
from tests.api.tiny_release import NUM_PRODUCTS, TinyRelease, encoded, picture

pytestmark = pytest.mark.browser
SCREENSHOTS = os.environ.get("VS_SCREENSHOTS")  # a folder: the page as the tests saw it


@pytest.fixture(scope="module")
def browser_path() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    return path


@pytest.fixture
def page(browser_path: str, api: str) -> Iterator[Page]:  # noqa: F811
    """The page, open; ends in failure when it logged an error or asked another host for anything."""
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
        page.on("request", lambda sent: None if sent.url.startswith((api, "blob:", "data:")) else faults.append(sent.url))
        page.goto(api)
        yield page
        browser.close()
    assert faults == []


def choose(page: Page, photo: bytes, name: str = "photo.jpg") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": photo})


def keep(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def test_a_catalog_photo_shows_its_product_first(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    choose(page, tiny.photo("p/03"))
    tiles = page.locator(".tile")
    expect(tiles).to_have_count(NUM_PRODUCTS)
    first = tiles.first
    expect(first.locator("h3")).to_have_text("Thing 3")
    expect(first.locator(".badge")).to_have_text("exact")
    expect(first.locator(".price")).to_have_text("€13.00")
    expect(first.locator(".stock")).to_have_text("sold out")
    expect(page.locator("#status")).to_contain_text("found by its hash")
    expect(page.locator("#timings")).to_contain_text("hash")
    expect(page.locator("#release")).to_have_text("release rtiny")
    assert first.locator("img").evaluate("img => img.decode().then(() => img.naturalWidth)") == 192
    keep(page, "exact")


def test_what_is_sent_is_small_and_has_no_camera_data(page: Page) -> None:
    camera = picture(900, 1400).getexif()
    camera[0x010F] = "CameraMaker"
    page.evaluate(
        "const real = fetch; window.fetch = (url, options) => { window.sent = options?.body; return real(url, options); }"
    )
    choose(page, encoded(picture(900, 1400), exif=camera))
    expect(page.locator(".tile").first).to_be_visible()
    body = bytes(page.evaluate("sent.get('image').arrayBuffer().then((buffer) => [...new Uint8Array(buffer)])"))
    assert b"CameraMaker" not in body
    assert max(Image.open(io.BytesIO(body)).size) == 640
    expect(page.locator("#status")).to_contain_text("found by looks")
    keep(page, "looks")


def test_more_like_this(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    choose(page, tiny.photo("p/03"))
    page.get_by_role("button", name="More like Thing 3", exact=True).click()
    expect(page.locator("#results-title")).to_have_text("Similar to Thing 3")
    expect(page.locator(".tile")).to_have_count(NUM_PRODUCTS - 1)
    assert page.evaluate("document.activeElement.id") == "results-title"


def test_a_box_drawn_over_the_photo_is_searched(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    choose(page, tiny.photo("p/03"))
    expect(page.locator(".tile").first).to_be_visible()
    frame = page.locator("#photo").bounding_box()
    assert frame is not None
    page.mouse.move(frame["x"] + 0.2 * frame["width"], frame["y"] + 0.2 * frame["height"])
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.8 * frame["width"], frame["y"] + 0.7 * frame["height"], steps=4)
    page.mouse.up()
    expect(page.locator("#results-title")).to_have_text("Results for the part you drew")
    expect(page.locator("#drawn")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("found by looks")
    keep(page, "drawn")


def test_paste_and_drop(page: Page) -> None:
    for event in ("paste", "drop"):
        page.evaluate(
            """async (kind) => {
              const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 80 });
              canvas.getContext("2d").fillRect(10, 10, 30, 40);
              const blob = await new Promise((resolve) => canvas.toBlob(resolve));
              const transfer = new DataTransfer();
              transfer.items.add(new File([blob], "a.png", { type: "image/png" }));
              const init = { bubbles: true, cancelable: true };
              document.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", { ...init, clipboardData: transfer })
                                                      : new DragEvent("drop", { ...init, dataTransfer: transfer }));
            }""",
            event,
        )
        expect(page.locator(".tile").first).to_be_visible()
        page.reload()


def test_errors_are_said(page: Page) -> None:
    choose(page, b"these are no pixels")
    expect(page.get_by_role("alert")).to_contain_text("cannot read that file as a photo")
    page.route("**/v1/search", lambda route: route.abort())
    choose(page, encoded(picture(901)))
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.unroute("**/v1/search")
    choose(page, encoded(picture(901)))
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator(".tile").first).to_be_visible()


def test_the_keyboard_is_enough(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    choose(page, tiny.photo("p/03"))
    expect(page.locator(".tile").first).to_be_visible()
    page.keyboard.press("Tab")
    seen = []
    for _ in range(8):
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        page.keyboard.press("Tab")
    assert "file" in seen and "More like this" in seen
    page.locator(".tile .more").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#results-title")).to_contain_text("Similar to")
    assert page.locator("img:not([alt]), button:empty, input:not([id])").count() == 0


def test_the_api_page_needs_no_other_host(page: Page, api: str) -> None:  # noqa: F811
    page.goto(f"{api}/docs")
    expect(page.locator("article h3", has_text="/v1/search")).to_be_visible()
    page.locator("article", has_text="/v1/search").first.locator("summary").first.click()
    expect(page.locator("article", has_text="/v1/search").first).to_contain_text("multipart/form-data")
    keep(page, "docs")
