"""``avssl report``: a page of whatever a run has come to."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from avssl.cli.main import main

LINES = [{"step": step, "epoch": 0, "loss": 5.0 - step / 10} for step in (10, 20)]
RECORD = {"status": "running", "total_steps": 80, "seconds": 3.0, "settings": {"checkpoint_minutes": 1.0}}


def avssl(*arguments):
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "config.yaml").write_text("objective: {name: AVID}\n")
    (folder / "run.json").write_text(json.dumps(RECORD))
    return folder


def test_report_of_a_run_that_has_logged_nothing_yet(run):
    result = avssl(run)
    assert result.stdout == f"report  {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    assert "one is running: step – of 80." in page
    assert "No loss was logged yet." in page


def test_report_while_a_line_is_being_written_and_again_later(run):
    whole = "".join(json.dumps(line) + "\n" for line in LINES)
    (run / "metrics.jsonl").write_text(whole + '{"step": 30, "epo')
    assert avssl(run).exit_code == 0
    assert "one is running: step 20 of 80 (25%)." in (run / "report.html").read_text()
    (run / "metrics.jsonl").write_text(whole + json.dumps({"step": 80, "loss": 1.0}) + "\n")
    (run / "run.json").write_text(json.dumps(RECORD | {"status": "finished"}))
    assert avssl(run).exit_code == 0
    page = (run / "report.html").read_text()
    assert "Training took 3.0 s" in page
    assert "80 of 80" in page
    assert "Damaged files" not in page


def test_report_goes_where_it_is_asked_to(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = avssl("one", "--output", "pages/one.html")
    assert result.stdout == f"report  {tmp_path / 'pages' / 'one.html'}\n"
    assert "one is running" in (tmp_path / "pages" / "one.html").read_text()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere is no folder; a report needs the folder of a run"),
        ("photographs", "photographs holds none of metrics.jsonl"),
        ("waiting", "waiting: its job has not begun; 'avssl runs list' shows when it does"),
    ],
)
def test_report_refuses_what_is_no_run(tmp_path, name, message):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "waiting" / "jobs").mkdir(parents=True)
    (tmp_path / "waiting" / "jobs" / "17_submitted.pkl").write_bytes(b"")
    result = avssl(tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.rglob("*.html"))
