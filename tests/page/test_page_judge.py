"""The judging page in a real browser: two raters, by keyboard and by mouse, and what comes of it in an evaluation."""

from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from playwright.sync_api import Page, expect, sync_playwright

from jobs.evaluation.judgments import Judgments, judge_ranking
from serve.api.cascade import Cascade
from serve.api.host import Host
from serve.api.metrics import Metrics
from serve.api.routes import create_app
from serve.api.served import ServedRelease
from serve.index.judging import write_pool
from serve.vision.image import image_id_of
from tests.api.conftest import encode, groups, served, tiny  # noqa: F401 - the same release in a session of its own
from tests.api.live_app import live, until_there
from tests.api.tiny_release import TinyRelease
from tests.page.test_page import FLAGS, browser_path, keep  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser
PHOTO_SHOWN = """before => {
  const photo = document.getElementById("photo");
  return photo.getAttribute("src") !== before && photo.complete && photo.naturalWidth === 192;
}"""
SEEN = {"p/00": 3, "p/02": 2, "p/04": 1, "p/05": 0}  # what a careful rater says, whatever the order


def test_two_raters(
    browser_path: str,  # noqa: F811
    served: ServedRelease,  # noqa: F811
    tiny: TinyRelease,  # noqa: F811
    encode: Any,  # noqa: F811
    groups: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    store = tiny.settings.store.model_copy(update={"tables": str(tmp_path / "tables"), "root": tmp_path})
    settings = tiny.settings.model_copy(update={"store": store})
    photos = {image_id_of(tiny.photo(name)): tiny.photos[name] for name in ("p/00", "p/01", "p/02")}
    write_pool(tmp_path, "plain", {image_id: (path, ["p/00", "p/02"]) for image_id, path in photos.items()})
    write_pool(tmp_path, "other", {image_id: (path, ["p/04", "p/05", "p/00"]) for image_id, path in photos.items()})
    with live(create_app(Host(Cascade(served, settings, encode, groups)), Metrics())) as url, sync_playwright() as playwright:
        until_there(url)
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        for rater, how in (("ann", by_keyboard), ("ben", by_mouse)):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            faults: list[str] = []
            page.on("pageerror", lambda error, faults=faults: faults.append(str(error)))
            page.goto(f"{url}/judge")
            page.get_by_label("Your name").fill(rater)
            page.get_by_role("button", name="Start").click()
            shown: str | None = None
            for number in range(len(photos)):
                expect(page.locator("#progress")).to_have_text(f"{number} of 3 photos judged")
                expect(page.locator(".tile")).to_have_count(4)
                page.wait_for_function(PHOTO_SHOWN, arg=shown)
                shown = page.locator("#photo").get_attribute("src")
                how(page)
                if number == 0:
                    keep(page, f"judge-{rater}")
                page.get_by_role("button", name="Send").click() if how is by_mouse else page.keyboard.press("Enter")
            expect(page.locator("#empty")).to_contain_text("judged everything")
            assert not faults
        browser.close()
    judgments = Judgments.of_table(DeltaTable(str(tmp_path / "tables" / "judgments")).to_pyarrow_table())
    assert {rater: len(verdicts) for rater, verdicts in judgments.by_rater.items()} == {"ann": 12, "ben": 12}
    assert judgments.by_rater["ann"] == {(image_id, name): grade for image_id in photos for name, grade in SEEN.items()}
    judged = judge_ranking({image_id: ["p/00", "p/02", "p/04"] for image_id in photos}, judgments, seed=1)
    assert (judged.raters, judged.kappa, judged.good_at_1.mean, judged.flagged) == (2, 1.0, 1.0, {})
    assert judge_ranking({image_id: ["p/05", "p/04"] for image_id in photos}, judgments, seed=1).good_at_1.mean == 0.0


def by_keyboard(page: Page) -> None:
    """One key a product; the next one without a grade is then in focus."""
    for _ in SEEN:
        name = page.evaluate("document.activeElement.dataset.product")
        page.keyboard.press(str(SEEN[name] + 1))
    expect(page.get_by_role("button", name="Send")).to_be_focused()


def by_mouse(page: Page) -> None:
    for name, grade in SEEN.items():
        page.locator(f'.tile[data-product="{name}"]').get_by_role("button").nth(grade).click()
