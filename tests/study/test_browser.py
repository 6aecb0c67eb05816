"""The rating page in a browser, with the keyboard and by touch, and through a lost server."""

import os
from contextlib import contextmanager

import pytest
from study_server import make_study, serving

from mav.study.votes import Votes

CHROMIUM = "/usr/bin/chromium"
CAN_ANSWER = "#ask:not([hidden]) #left[aria-disabled='false']"


def sync_api():
    return pytest.importorskip("playwright.sync_api")


@contextmanager
def browser_page(**options):
    if not os.path.exists(CHROMIUM):
        pytest.skip("no Chromium on this machine")
    with sync_api().sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            context = browser.new_context(**options)
            page = context.new_page()
            page.problems = []
            page.on(
                "console",
                lambda message: page.problems.append(message.text) if message.type in ("error", "warning") else None,
            )
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.on(
                "request", lambda request: None if "127.0.0.1" in request.url else page.problems.append(request.url)
            )
            yield page
        finally:
            browser.close()


def rate_all(page, answer, shots=""):
    """A whole session; answer(side) gives one answer. Returns the number of questions."""
    page.wait_for_selector("#start")
    if shots:
        page.screenshot(path=f"{shots}-intro.png")
    page.click("#start")
    asked = 0
    while True:
        page.wait_for_selector(f"{CAN_ANSWER}, #end:not([hidden])")
        if page.is_visible("#end"):
            break
        if shots and asked < 2:
            page.screenshot(path=f"{shots}-{'quality' if asked == 0 else 'text'}.png")
        if asked == 0:
            assert page.is_hidden("#prompt")
        before = page.inner_text("#count")
        answer("right" if asked % 3 else "left")
        sync_api().expect(page.locator("#count")).not_to_have_text(before)
        asked += 1
    if shots:
        page.screenshot(path=f"{shots}-end.png")
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("how", ["keyboard", "touch"])
def test_a_whole_session_in_a_browser(tmp_path, how):
    study = make_study(tmp_path / "study", 3, 3)
    shots = os.environ.get("MAV_SCREENSHOTS", "")
    desktop = {"viewport": {"width": 1280, "height": 800}}
    phone = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with (
        serving(tmp_path / "study", tmp_path / "votes", 1) as server,
        browser_page(**(phone if how == "touch" else desktop)) as page,
    ):
        page.goto(f"http://127.0.0.1:{server.port}/r/{server.tokens()[0]}")
        if how == "keyboard":
            asked = rate_all(
                page, lambda side: page.keyboard.press(f"Arrow{side.capitalize()}"), shots and f"{shots}/desktop"
            )
        else:
            asked = rate_all(page, lambda side: page.tap(f"#{side}"), shots and f"{shots}/phone")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        code = page.inner_text("#code")
        assert not page.problems
        page.reload()
        page.wait_for_selector("#code", state="visible")
        assert page.inner_text("#code") == code
    rows, raters = Votes(str(tmp_path / "votes" / "votes.sqlite"), study).rows()
    assert asked == len(rows) == 2 * (3 + 1)  # three pairs and a gold one
    assert raters[0]["code"] == code
    assert {row["answer"] for row in rows} == {"left", "right"}
    assert all(row["milliseconds"] >= 500 for row in rows)  # nobody can answer before both clips have played


@pytest.mark.slow
def test_a_browser_goes_on_where_it_stopped_and_through_a_lost_server(tmp_path):
    study = make_study(tmp_path / "study", 3, 3)
    with serving(tmp_path / "study", tmp_path / "votes", 1) as server, browser_page() as page:
        page.goto(f"http://127.0.0.1:{server.port}/r/{server.tokens()[0]}")
        page.click("#start")
        count = page.locator("#count")
        page.keyboard.press("ArrowLeft")  # too early: nothing has played
        page.wait_for_selector(CAN_ANSWER)
        page.keyboard.press("ArrowLeft")
        sync_api().expect(count).to_have_text("2 of 8")
        page.reload()
        page.click("#start")
        sync_api().expect(count).to_have_text("2 of 8")
        page.wait_for_selector(CAN_ANSWER)
        server.kill()
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#alert", state="visible")
        assert "stored" in page.inner_text("#alert")
        server.start()
        sync_api().expect(count).to_have_text("3 of 8", timeout=20_000)
        assert page.is_hidden("#alert")
        page.goto(f"http://127.0.0.1:{server.port}/r/unknown")
        page.wait_for_selector("#alert", state="visible")
        assert "not known" in page.inner_text("#alert")
    assert len(Votes(str(tmp_path / "votes" / "votes.sqlite"), study).rows()[0]) == 2
