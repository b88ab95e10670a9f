"""The search page in a real browser over the tiny release: photo in, tiles out, by mouse and keyboard, no other host asked."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect, sync_playwright

from serve.api.access import key_digest
from serve.api.cascade import Cascade
from serve.api.host import Host
from serve.api.metrics import Metrics
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.settings import ApiKey
from tests.api.conftest import api, encode, groups, served, tiny  # noqa: F401 - the same release in a session of its own
from tests.api.live_app import live
from tests.api.tiny_release import NUM_PRODUCTS, TinyRelease, encoded, picture

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)  # other tests may have the cores
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WATCH_FETCH = "const real = fetch; window.fetch = (url, options) => { window.sent = options?.body; return real(url, options); }"
SCREENSHOTS = os.environ.get("VS_SCREENSHOTS")  # a folder: the page as the tests saw it


@pytest.fixture(scope="module")
def browser_path() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    return path


@pytest.fixture
def page(browser_path: str, api: str) -> Iterator[Page]:  # noqa: F811
    """The page, open; ends in failure when it logged an error or asked another host for anything but a photo it was told of."""
    faults: list[str] = []
    own = (api, "blob:", "data:", "https://shop.invalid/")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, permissions=["camera"])
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
        page.on("request", lambda sent: None if sent.url.startswith(own) else faults.append(sent.url))
        page.goto(api)
        yield page
        browser.close()
    assert faults == []


def choose(page: Page, photo: bytes, name: str = "photo.jpg") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": photo})


def offering(api: str, **offers: bool) -> dict[str, Any]:  # noqa: F811
    """What /v1/release says, with these offers."""
    answer: dict[str, Any] = httpx.get(f"{api}/v1/release").json()
    return {**answer, "offers": answer["offers"] | offers}


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
    page.evaluate(WATCH_FETCH)
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
    for _ in range(16):
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        page.keyboard.press("Tab")
    assert "file" in seen and "More like this" in seen
    page.locator(".tile .more").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#results-title")).to_contain_text("Similar to")
    assert page.locator("img:not([alt]), button:empty, input:not([id])").count() == 0


def test_words_alone_and_beside_a_photo(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    page.get_by_role("searchbox").fill("brown boots")
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("#results-title")).to_have_text("Results for “brown boots”")
    expect(page.locator(".tile").first).to_be_visible()
    expect(page.locator(".why").first).to_contain_text("your words")
    choose(page, tiny.photo("p/03"))
    expect(page.locator("#results-title")).to_have_text("Results for your photo and “brown boots”")
    expect(page.locator(".why").first).to_contain_text("your photo and words")
    keep(page, "words")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#stage")).to_be_hidden()
    expect(page.locator("#results-title")).to_have_text("Results for “brown boots”")


def test_filters(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    choose(page, tiny.photo("p/03"))
    expect(page.locator(".tile")).to_have_count(NUM_PRODUCTS)
    page.locator("#filters summary").click()
    assert page.locator("#brands option").evaluate_all("options => options.map((one) => one.value)") == ["Tiny"]
    page.get_by_label("Price to").fill("14")
    page.get_by_label("In stock only").check()
    expect(page.locator(".tile")).to_have_count(1)  # in the partition that the photo is routed to; the photo's own is sold out
    expect(page.locator(".tile h3")).to_have_text("Thing 1")
    expect(page.locator("#num-filters")).to_have_text("(2)")
    keep(page, "filters")


def test_a_part_is_marked_by_keyboard(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    choose(page, tiny.photo("p/03"))
    expect(page.locator(".tile").first).to_be_visible()
    page.get_by_role("button", name="Mark a part").focus()
    page.keyboard.press("Enter")
    before = page.locator("#drawn").bounding_box()
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight"):
        page.keyboard.press(key)
    after = page.locator("#drawn").bounding_box()
    assert before and after and after["x"] < before["x"] and after["y"] < before["y"] and after["width"] > before["width"]
    page.evaluate(WATCH_FETCH)
    page.keyboard.press("Enter")
    expect(page.locator("#results-title")).to_have_text("Results for the part you drew")
    x0, y0, x1, y1 = map(float, page.evaluate("sent.get('box')").split(","))
    assert (x0, y0) == pytest.approx((0.23 * 192, 0.23 * 224), abs=0.1) and x1 - x0 == pytest.approx(0.52 * 192, abs=0.1)
    assert y1 - y0 == pytest.approx(0.5 * 224, abs=0.1)


def test_an_address_is_sent_as_one(page: Page, api: str) -> None:  # noqa: F811
    """This server fetches none, and says so; whether the field is shown follows from /v1/release."""
    expect(page.locator("#release")).to_have_text("release rtiny")
    expect(page.get_by_placeholder("address of a photo")).to_be_hidden()
    page.route("**/v1/release", lambda route: route.fulfill(json=offering(api, image_url=True)))
    page.reload()
    page.get_by_placeholder("address of a photo").fill("https://shop.invalid/a.jpg")
    page.route("https://shop.invalid/a.jpg", lambda route: route.abort())
    with page.expect_request("**/v1/search") as sent:
        page.get_by_role("button", name="Fetch").click()
    assert sent.value.post_data_json["image_url"] == "https://shop.invalid/a.jpg"
    expect(page.get_by_role("alert")).to_contain_text("image_url")


def test_the_camera(page: Page) -> None:
    page.get_by_role("button", name="Camera").click()
    expect(page.get_by_role("dialog", name="Take a photo")).to_be_visible()
    keep(page, "camera")
    page.get_by_role("button", name="Take photo").click()
    expect(page.locator(".tile").first).to_be_visible()
    assert page.evaluate("document.querySelector('#photo').naturalWidth") == 640
    assert page.evaluate("document.querySelector('#video').srcObject") is None, "the camera is off again"


def test_a_key_is_asked_for_once(browser_path: str, served: ServedRelease, tiny: TinyRelease, encode: Any, groups: Any) -> None:  # noqa: F811
    keys = (ApiKey(name="page", sha256=key_digest("vs_key")),)
    settings = tiny.settings.model_copy(update={"serve": tiny.settings.serve.model_copy(update={"api_keys": keys})})
    with live(create_app(Host(Cascade(served, settings, encode, groups)), Metrics())) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page()
        page.goto(url)
        page.get_by_label("API key").fill("vs_key")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#release")).to_have_text("release rtiny")
        choose(page, tiny.photo("p/03"))
        expect(page.locator(".tile").first).to_be_visible()
        assert page.locator(".tile img").first.evaluate("img => img.decode().then(() => img.naturalWidth)") == 192
        browser.close()


def test_names_and_titles_run_no_script(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    """File names are never shown, titles are text, and the policy lets nothing else run."""
    evil = "<img src=x onerror=alert(1)>"

    def poisoned(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        for result in body["results"]:
            result["attributes"]["title"] = result["why"] = evil
        route.fulfill(response=answer, json=body)

    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    page.route("**/v1/search", poisoned)
    choose(page, tiny.photo("p/03"), f"{evil}.jpg")
    expect(page.locator(".tile h3").first).to_have_text(evil)
    assert page.locator("img[src=x]").count() == 0
    policy = httpx.get(page.url).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe-inline" not in policy and " http" not in policy.replace("https:", "")


def test_small_screens_and_the_dark(page: Page, tiny: TinyRelease) -> None:  # noqa: F811
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    choose(page, tiny.photo("p/03"))
    expect(page.locator(".tile").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out sideways"
    keep(page, "phone")


def test_the_api_page_needs_no_other_host(page: Page, api: str) -> None:  # noqa: F811
    page.goto(f"{api}/docs")
    expect(page.locator("article h3", has_text="/v1/search")).to_be_visible()
    page.locator("article", has_text="/v1/search").first.locator("summary").first.click()
    expect(page.locator("article", has_text="/v1/search").first).to_contain_text("multipart/form-data")
    keep(page, "docs")
