"""The demo as a user runs it, and its page in a browser."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(avssl, tmp_path_factory):
    home = tmp_path_factory.mktemp("demo")
    arguments = ("demo", "--quick", "--output", "run", "--cache", "cache")
    result = avssl(*arguments, cwd=home, timeout=900)
    assert result.returncode == 0, result.stderr
    return home / "run", result, lambda: avssl(*arguments, cwd=home, timeout=300)


def test_demo_writes_a_whole_run(demo):
    run, result, _ = demo
    for stage in ("avid", "cma"):
        present = {path.name for path in (run / stage).iterdir()}
        assert {"config.yaml", "checkpoint.pt", "metrics.jsonl", "run.json", "tensorboard"} <= present
    assert str(run.name) in result.stdout
    assert "report.html" in result.stdout
    for name in ("random init", "AVID", "AVID+CMA"):
        assert name in result.stdout


def test_training_visibly_works(demo):
    run, _, _ = demo
    rows = {row["name"]: row["metrics"] for row in json.loads((run / "results.json").read_text())["rows"]}
    random, avid, cma = rows["random init"], rows["AVID"], rows["AVID+CMA"]
    assert cma["linear_audio"] > random["linear_audio"] + 0.05
    for trained in (avid, cma):
        assert trained["linear_video"] > random["linear_video"] + 0.05
    assert cma["positive_precision"] > 1.5 / 12
    lines = [json.loads(line) for line in (run / "avid" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert lines[-1]["mean_norm_video"] < 0.7  # no cone


@pytest.mark.browser
def test_its_page_opens_without_complaint_and_its_videos_play(demo, browser):
    run, _, _ = demo
    page = browser.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((run / "report.html").as_uri())
    assert page.locator("#comparison tbody tr").count() >= 3
    assert page.locator("#losses figure svg polyline").count() >= 2
    video = page.locator("video").first
    video.scroll_into_view_if_needed()
    page.locator("video[src]").first.wait_for()
    video.evaluate("async video => { video.muted = true; await video.play(); }")
    page.wait_for_timeout(1000)
    assert video.evaluate("video => video.currentTime") > 0.2
    assert video.evaluate("video => video.error") is None
    assert complaints == []
    page.close()


def test_a_second_call_reuses_everything(demo):
    run, _, again = demo
    before = (run / "cma" / "checkpoint.pt").stat().st_mtime_ns
    result = again()
    assert result.returncode == 0, result.stderr
    assert (run / "cma" / "checkpoint.pt").stat().st_mtime_ns == before
