"""The report in a browser: its videos can be paused with the keyboard, and a phone shows its bar whole."""

import os

import pytest
from made_up_run import RECIPE, make_run

from mav.report.page import write_report
from mav.storage import Folder

CHROMIUM = "/usr/bin/chromium"
PLAYING = "() => [...document.querySelectorAll('video')].filter(video => !video.paused).length"


@pytest.mark.slow
def test_videos_are_paused_with_the_keyboard_and_the_bar_fits_a_phone(tmp_path):
    api = pytest.importorskip("playwright.sync_api")
    if not os.path.exists(CHROMIUM):
        pytest.skip("no Chromium on this machine")
    write_report(RECIPE, make_run(tmp_path / "run"), Folder(str(tmp_path / "report")))
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            page = browser.new_page(viewport={"width": 390, "height": 844})
            page.goto(f"file://{tmp_path}/report/index.html")
            bar = page.evaluate(
                "() => { const n = document.querySelector('nav'); return [n.scrollWidth, n.clientWidth]; }"
            )
            assert bar[0] <= bar[1], "no section is beyond the edge"
            page.locator("#grid").scroll_into_view_if_needed()
            page.wait_for_function(f"({PLAYING})() > 0")
            page.get_by_role("button", name="Pause the videos").focus()
            page.keyboard.press("Enter")
            assert page.evaluate(PLAYING) == 0
            page.locator("#grid figure").last.scroll_into_view_if_needed()
            page.wait_for_timeout(300)
            assert page.evaluate(PLAYING) == 0, "those that come into sight stay paused"
            page.get_by_role("button", name="Play the videos").click()
            page.wait_for_function(f"({PLAYING})() > 0")
        finally:
            browser.close()
