"""A user's own folder: good files, a corrupt, a silent and a soundless one; wrong input, Ctrl-C, kill -9."""

import json
import signal
import time
from pathlib import Path

import pytest
from media import write_media

RECIPES = Path(__file__).parents[2] / "configs"
SMALL = (
    "model.video.width=4", "model.audio.width=4", "views.video.size=32", "data.num_frames=4",
    "data.short_side=40", "data.num_workers=1", "train.batch_size=4", "train.log_every=1",
    "objective.num_negatives=8", "data.max_skipped=0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 good files of two classes, and what is found in real folders."""
    root = tmp_path_factory.mktemp("own")
    for label, tone in (("dogs", 300), ("cats", 900)):
        (root / label).mkdir()
        for i in range(12):
            write_media(
                root / label / f"{i:02d}.mp4",
                seconds=2.0, size=(64, 48), tone_hz=tone + 25 * i, first_number=100 * i + tone,
            )  # fmt: skip
    write_media(root / "dogs" / "mute.mp4", seconds=2.0, size=(64, 48), audio=False)
    write_media(root / "cats" / "silent.mp4", seconds=2.0, size=(64, 48), gains=[0.0])
    (root / "cats" / "corrupt.mp4").write_bytes(b"not a video " * 400)
    (root / "notes.txt").write_text("hello")
    return root


def recipe(stage, folder, *extra):
    return ("pretrain", RECIPES / stage / "folder_small.yaml", f"data.root={folder}", *SMALL, *extra)


@pytest.fixture(scope="module")
def trained(avssl, folder, tmp_path_factory):
    """AVID, then CMA from it, as the README has it."""
    home = tmp_path_factory.mktemp("home")
    avid = avssl(*recipe("avid", folder, "train.epochs=3"), cwd=home)
    assert avid.returncode == 0, avid.stderr
    cma = avssl(
        *recipe(
            "cma", folder, "train.epochs=2", "objective.num_positives=3", "run.start_from=runs/avid_small"
        ),
        cwd=home,
    )
    assert cma.returncode == 0, cma.stderr
    return home


def test_both_stages_train_and_say_what_was_left_out(trained):
    page = (trained / "runs" / "avid_small" / "report.html").read_text()
    for name in ("corrupt.mp4", "silent.mp4", "mute.mp4"):
        assert name in page
    assert "no audio stream" in page
    assert (trained / "runs" / "cma_small" / "checkpoint.pt").exists()


def test_progress_is_log_lines_outside_a_terminal(avssl, folder, trained):
    again = avssl(*recipe("avid", folder, "train.epochs=3"), cwd=trained)
    assert again.returncode == 0
    assert "\x1b" not in again.stderr + again.stdout
    assert "runs/avid_small/report.html" in again.stdout


def test_evaluate_prints_a_table_and_extends_the_report(avssl, trained):
    result = avssl("evaluate", "runs/cma_small", cwd=trained)
    assert result.returncode == 0, result.stderr
    for text in ("random init", "cma_small", "A→V R@1", "linear audio", "positives"):
        assert text in result.stdout
    results = json.loads((trained / "runs" / "cma_small" / "results.json").read_text())
    metrics = results["rows"][1]["metrics"]
    assert 0 <= metrics["a2v_r1"] <= 1
    assert results["pool_size"] >= 1
    assert 0 <= metrics["positive_precision"] <= 1
    page = (trained / "runs" / "cma_small" / "report.html").read_text()
    assert "Audio to video" in page


def test_evaluate_reads_a_manifest_at_a_url(avssl, trained):
    url = (trained / "runs" / "cma_small" / "manifest.parquet").as_uri()
    options = ("--manifest", url, "--output", "elsewhere", "--no-gallery", "--clips", 1)
    result = avssl("evaluate", "runs/cma_small", *options, cwd=trained)
    assert result.returncode == 0, result.stderr
    assert json.loads((trained / "elsewhere" / "results.json").read_text())["pool_size"] >= 1


def test_evaluate_reads_an_earlier_checkpoint_of_a_run(avssl, trained):
    earlier = next((trained / "runs" / "cma_small" / "checkpoints").glob("step_*.pt"))
    result = avssl("evaluate", earlier, "--no-gallery", "--clips", 1, cwd=trained)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((earlier.with_suffix("") / "results.json").read_text())["rows"][1]["metrics"]
    assert 0 <= metrics["positive_precision"] <= 1


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        (("few-shot",), ["shots", "accuracy", "from", "to", "draws", "test files"]),
        (("audio-svm",), ["block", "accuracy"]),
        (("blocks", "--modality", "audio"), ["block", "accuracy", "clip accuracy", "top 5"]),
    ],
)
def test_evaluate_runs_a_protocol_and_reads_its_files_once(avssl, trained, folder, arguments, columns):
    command = ("evaluate", "runs/avid_small", *arguments, "--clips", 2)
    result = avssl(*command, cwd=trained)
    assert result.returncode == 0, result.stderr
    name = arguments[0].replace("-", "_")
    (path,) = (trained / "runs" / "avid_small").glob(f"{name}_*.json")
    first = json.loads(path.read_text())
    assert list(first["rows"][0])[: len(columns)] == columns
    assert all(0 <= row["accuracy"] <= 1 for row in first["rows"])
    assert len(first["weights"]) == 64
    assert all(column in result.stdout for column in columns)
    folder.rename(folder.with_name("elsewhere"))
    try:
        again = avssl(*command, cwd=trained)
    finally:
        folder.with_name("elsewhere").rename(folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(path.read_text()) == first


def test_a_protocol_that_a_model_cannot_have_is_refused(avssl, trained):
    result = avssl("evaluate", "runs/avid_small", "--modality", "audio", cwd=trained)
    assert result.returncode == 2
    assert "--modality is for a PROTOCOL" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("optim.lrr=1",), "command line: optim.lrr: no such key; did you mean 'optim.lr'?"),
        (("train.epochs=ten",), "train.epochs"),
        (("objective.name=AVIDD",), "did you mean 'AVID'?"),
        (("objective.num_negatives=0",), "num_negatives must be at least 1; got 0"),
        (("data.root=/nowhere",), "/nowhere"),
        (("run.start_from=/nowhere",), "no such checkpoint"),
        (("data.val_share=2",), "data.val_share"),
        (("data.max_skipped=0.01",), "data.max_skipped="),
    ],
)
def test_wrong_input_gives_one_clear_line(avssl, folder, tmp_path, arguments, message):
    result = avssl(*recipe("avid", folder, *arguments), cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sum(line.startswith("avssl: error:") for line in result.stderr.splitlines()) == 1


def test_evaluating_what_is_no_run_is_one_clear_line(avssl, tmp_path):
    result = avssl("evaluate", tmp_path / "nothing")
    assert result.returncode == 2
    assert "no such checkpoint; give a run folder" in result.stderr


def test_a_place_that_cannot_be_written_is_one_clear_line(avssl, folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = avssl(*recipe("avid", folder, f"run.folder={tmp_path / 'file'}"))
    assert result.returncode == 2
    assert f"avssl: error: {tmp_path / 'file'}" in result.stderr
    assert "Traceback" not in result.stderr


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def wait_for_step(process, run, step):
    """Wait until the run has logged a step; the metrics file may end in half a line."""
    for _ in range(600):
        assert process.poll() is None, process.communicate()[1]
        path = run / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the run did not get that far in a minute")


def test_ctrl_c_and_kill_lose_nothing(avssl, start_avssl, folder, tmp_path):
    whole = recipe("avid", folder, "train.epochs=8", "run.name=whole")
    cut = recipe("avid", folder, "train.epochs=8", "run.name=cut")
    assert avssl(*whole, cwd=tmp_path).returncode == 0
    run = tmp_path / "runs" / "cut"

    process = start_avssl(*cut, cwd=tmp_path)
    wait_for_step(process, run, 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "give the same command again to resume" in errors
    assert "Traceback" not in errors

    process = start_avssl(*cut, cwd=tmp_path)
    wait_for_step(process, run, 14)
    process.kill()
    process.communicate(timeout=60)

    resumed = avssl(*cut, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(run) == losses(tmp_path / "runs" / "whole")
