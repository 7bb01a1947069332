"""What a run makes of files without sound and of too many bad ones."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from media import write_media

from avssl.config import config_to_dict
from avssl.errors import ConfigError
from avssl.train import pretrain


@pytest.fixture
def partly_mute(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(6):
        write_media(folder / f"{i}.mp4", seconds=1.2, size=(48, 40), audio=i > 1)
    return folder


def run_with(recipe, progress, folder, **data):
    said: list[str] = []
    changes = {"root": str(folder), "val_share": 0.0, **data}
    run = pretrain(recipe(data=changes, train={"epochs": 1}), progress, say=said.append)
    return json.loads((run / "run.json").read_text())["manifest"], said


def test_files_without_sound_are_left_out_and_counted(recipe, progress, partly_mute):
    record, said = run_with(recipe, progress, partly_mute)
    assert (record["rows"], record["used"], record["silenced"]) == (6, 4, 0)
    assert [entry["reason"] for entry in record["left_out"]] == ["the file has no audio stream"] * 2
    assert said == ["2 of 6 samples have no sound and are left out (data.without_audio=drop)"]


def test_files_without_sound_take_part_with_silence(recipe, progress, partly_mute):
    record, said = run_with(recipe, progress, partly_mute, without_audio="silence", silent="keep")
    assert (record["rows"], record["used"], record["silenced"]) == (6, 6, 2)
    assert record["left_out"] == []
    assert said == [
        "2 of 6 samples have no sound and take part with silence in its place (data.without_audio=silence)"
    ]


def test_silence_that_would_be_skipped_again_is_refused(recipe, progress):
    with pytest.raises(ConfigError, match=r"give data\.silent=keep too, or data\.without_audio=drop"):
        pretrain(recipe(data={"without_audio": "silence"}), progress)


def test_too_many_bad_files_end_the_command_with_a_status_and_one_line(recipe, partly_mute, tmp_path):
    for i in range(6):
        (partly_mute / f"bad{i}.mp4").write_bytes(b"no video " * 99)
    config = recipe(data={"root": str(partly_mute), "val_share": 0.0})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    result = subprocess.run(
        [sys.executable, "-m", "avssl", "pretrain", str(tmp_path / "recipe.yaml")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "6 of 12 samples (50.0%) could not be read; at most 5.0% may fail" in result.stderr
    assert "data.max_skipped=0.55" in result.stderr
    assert "Traceback" not in result.stderr
