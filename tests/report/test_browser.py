"""The page in a real browser, opened from a file: no complaint, videos that play, no request to a network."""

import pytest

from avssl.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(browser, finished_run, tmp_path_factory):
    """The page, and everything it complained about or asked for."""
    path = write_report(finished_run, tmp_path_factory.mktemp("page") / "page.html")
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page, complaints, requests, path
    page.close()


def test_browser_shows_the_table_and_the_curves(opened):
    page, complaints, _, _ = opened
    assert page.locator("#comparison tbody tr").count() == 4
    assert page.locator("#comparison strong").first.is_visible()
    assert page.locator("#losses figure svg polyline").count() == 6
    assert page.locator("#held-out figure svg").locator("visible=true").count() >= 3
    assert page.locator("#held-out figure svg polyline").count() == 6
    box = page.locator("#losses figure > svg").first.bounding_box()
    assert box["width"] > 250
    assert box["height"] > 120
    assert complaints == []


def test_browser_shows_mined_agreements(opened):
    page, complaints, _, _ = opened
    section = page.locator("#mined")
    assert section.locator("figure").count() == 4
    assert section.locator("tbody tr").count() == 4
    area = section.locator("path.area").first
    area.scroll_into_view_if_needed()
    assert area.bounding_box()["height"] > 50
    assert area.evaluate("area => getComputedStyle(area).fill") != "none"
    column = section.locator("rect.bin").nth(20)
    column.hover()
    assert float(column.evaluate("column => getComputedStyle(column).opacity")) > 0
    assert complaints == []


def test_browser_loads_videos_only_when_they_come_near(browser, opened):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.goto(opened[3].as_uri())
    assert page.locator("video").count() == 24
    assert page.locator("video[src]").count() == 0
    page.locator("video").first.scroll_into_view_if_needed()
    page.locator("video[src]").first.wait_for()
    assert 0 < page.locator("video[src]").count() < 24
    page.close()


@pytest.mark.parametrize("number", [0, 1, 2, 3, 12])
def test_browser_plays_the_videos(opened, number):
    page, complaints, _, _ = opened
    video = page.locator("video").nth(number)
    video.scroll_into_view_if_needed()
    state = video.evaluate(
        """async video => {
            const until = async ready => {
                for (let wait = 0; wait < 100 && !ready(); wait++)
                    await new Promise(done => setTimeout(done, 50));
            };
            await until(() => video.src);
            video.muted = true;
            await video.play();
            await until(() => video.currentTime > 0.2);
            return {
                time: video.currentTime,
                ready: video.readyState,
                error: video.error && video.error.message,
                width: video.videoWidth,
                duration: video.duration,
                bytes: video.webkitAudioDecodedByteCount,
            };
        }"""
    )
    assert state["error"] is None
    assert state["time"] > 0.2
    assert state["ready"] >= 2
    assert state["width"] == 96
    assert state["duration"] == pytest.approx(2.0, abs=0.15)
    assert state["bytes"] > 0
    assert complaints == []


def test_browser_plays_one_video_at_a_time(opened):
    page, _, _, _ = opened
    for number in (0, 1):
        page.locator("video").nth(number).evaluate(
            "async video => { video.muted = video.loop = true; await video.play(); }"
        )
    assert page.locator("video").nth(0).evaluate("video => video.paused")
    assert not page.locator("video").nth(1).evaluate("video => video.paused")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390, 320])
def test_browser_fits_the_page_to_the_screen(browser, opened, width, scheme):
    path = opened[3]
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(brightness) > 380) == (scheme == "light")
    page.close()


def test_browser_asks_only_for_the_page_and_its_own_blobs(opened):
    _, _, requests, path = opened
    assert {url for url in requests if not url.startswith("blob:")} == {path.as_uri()}
