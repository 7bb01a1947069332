from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from media import write_media

from avssl.cli.main import main
from avssl.data import Manifest, scan
from avssl.statistics import Statistics

RECIPE = """
data: {num_frames: 2, fps: 8, audio_seconds: 0.5, sample_rate: 8000, num_workers: 0, max_skipped: 0.5}
views:
  spectrogram: {n_fft: 256, hop_seconds: 0.02}
  statistics: auto
train: {threads: 1}
"""


@pytest.fixture
def videos(tmp_path):
    """Training files, one without sound and one broken, and a test file."""
    for name in ("train/x/a.mp4", "train/x/b.mp4", "train/x/mute.mp4", "test/x/c.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_media(
            tmp_path / "videos" / name,
            seconds=1, fps=8, size=(32, 32), sample_rate=8000, audio="mute" not in name,
        )  # fmt: skip
    (tmp_path / "videos/train/x/broken.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "videos"


def statistics(tmp_path, *arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["statistics", str(tmp_path / "recipe.yaml"), *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_folder_becomes_statistics_with_an_account(videos, tmp_path):
    output = tmp_path / "new/stats.json"
    code, account, progress = statistics(tmp_path, f"data.root={videos}", "-o", output)
    result = Statistics.load(output)
    assert code == 0
    assert (len(result.mean), len(result.std), result.num_clips, result.num_frames) == (65, 65, 2, 50)
    assert account.startswith(f"{output}: 65 bins from 2 clips, 50 frames\n  mean: ")
    assert f"  std:  {min(result.std):g} to {max(result.std):g} dB\n" in account
    assert "1 skipped:\n" in account
    assert f"  {videos}/train/x/broken.mp4: open: " in account
    assert re.search(r"^scan 5/5 \(100%\) \S+ files/s$", progress, flags=re.MULTILINE)
    assert re.search(r"^statistics 2/2 \(100%\) \S+ clips/s", progress, flags=re.MULTILINE)


def test_manifest_gives_the_same_numbers_and_again(videos, tmp_path):
    manifest = scan(videos).manifest
    manifest.save(tmp_path / "m.parquet")
    arguments = (f"data.manifest={tmp_path / 'm.parquet'}", "-o", tmp_path / "a.json")
    assert statistics(tmp_path, *arguments)[0] == 0
    first = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text("mine")
    code, _, errors = statistics(tmp_path, *arguments)
    assert code == 2
    assert f"{tmp_path}/a.json exists already; give another name, or --overwrite to replace it" in errors
    assert (tmp_path / "a.json").read_text() == "mine"
    assert statistics(tmp_path, *arguments, "--overwrite")[0] == 0
    assert (tmp_path / "a.json").read_text() == first
    statistics(tmp_path, f"data.root={videos}", "-o", tmp_path / "b.json")
    assert (tmp_path / "b.json").read_text() == first
    whole = Manifest.load(tmp_path / "m.parquet")
    training = whole.select(split="train", need_video=True, need_audio=True)
    assert json.loads(first)["manifest_hash"] == training.hash


def test_sound_without_video_is_enough(tmp_path):
    (tmp_path / "sound").mkdir()
    for name in ("a.mkv", "b.mkv"):
        write_media(tmp_path / "sound" / name, seconds=1, sample_rate=8000, video=False, audio_codec="flac")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = (f"data.root={tmp_path / 'sound'}", "data.val_share=0", "-o", tmp_path / "s.json")
    assert statistics(tmp_path, *arguments)[0] == 0
    assert Statistics.load(tmp_path / "s.json").num_clips == 2


def test_max_clips_limits_what_is_read(videos, tmp_path):
    code, account, _ = statistics(
        tmp_path, f"data.root={videos}", "-o", tmp_path / "s.json", "--max-clips", 1
    )
    assert code == 0
    assert "from 1 clips, 25 frames" in account


def test_many_skipped_files_are_cut_in_the_account(videos, tmp_path):
    for i in range(12):
        (videos / f"train/x/broken{i:02}.mp4").write_bytes(b"no video" * 100)
    arguments = (f"data.root={videos}", "data.max_skipped=1", "-o", tmp_path / "s.json")
    _, account, _ = statistics(tmp_path, *arguments)
    assert "13 skipped:\n" in account
    assert account.count(": open: ") == 10
    assert "  and 3 more" in account


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["-o", "s.json"], "give exactly one: data.root=FOLDER"),
        (["data.root={0}"], "Missing option '--output' / '-o'"),
        (["data.root={0}", "-o", "s.json", "--max-clips", "0"], "0 is not in the range x>=1"),
        (["data.root={0}", "data.split=dev", "-o", "s.json"], "no sample of split 'dev'"),
        (["data.root={0}", "views.spectrogram.n_fft=1022", "-o", "s.json"], "must be a multiple of 4"),
    ],
)
def test_impossible_wish_is_refused_with_status_2(videos, tmp_path, arguments, answer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, errors = statistics(tmp_path, *(argument.format(videos) for argument in arguments))
    assert code == 2
    assert answer in errors
    assert not (tmp_path / "s.json").exists()
