from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from media import write_media

from avssl.cli.main import main
from avssl.data import Manifest


@pytest.fixture
def videos(tmp_path):
    """Two labelled files, one without sound, beside a broken one and a text."""
    for name in ("dog/a.mp4", "cat/b.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True)
        write_media(tmp_path / "videos" / name, seconds=1, fps=8, size=(32, 32), audio=name.startswith("dog"))
    (tmp_path / "videos/cat/broken.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "videos/readme.txt").write_text("hello")
    return tmp_path / "videos"


def prepare(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["prepare", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_folder_becomes_a_manifest_with_an_account(videos, tmp_path):
    output = tmp_path / "new/manifest.parquet"
    code, account, progress = prepare(videos, "--output", output, "--workers", 1)
    manifest = Manifest.load(output)
    assert code == 0
    assert manifest.ids == ["cat/b.mp4", "dog/a.mp4"]
    assert account.startswith(f"{output}: 2 samples of 2 files, hash {manifest.hash[:12]}\n")
    assert "streams: video only 1, video and audio 1\n" in account
    assert "splits:  train 2\n" in account
    assert "classes: 2\n" in account
    assert "not media: .txt 1\n" in account
    assert "1 skipped, listed in" in account
    assert progress.startswith("prepare 3/3 (100%)")


def test_skipped_files_are_written_down_beside_the_manifest(videos, tmp_path):
    prepare(videos, "--output", tmp_path / "m.csv")
    (record,) = map(json.loads, (tmp_path / "m.skipped.jsonl").read_text().splitlines())
    assert record["path"].endswith("videos/cat/broken.mp4")
    assert record["stage"] == "open"
    assert record["reason"]


def test_clean_scan_removes_the_skipped_list_of_an_earlier_one(videos, tmp_path):
    prepare(videos, "--output", tmp_path / "m.csv")
    (videos / "cat/broken.mp4").unlink()
    code, account, _ = prepare(videos, "--output", tmp_path / "m.csv", "--overwrite")
    assert code == 0
    assert "skipped" not in account
    assert not (tmp_path / "m.skipped.jsonl").exists()


def test_existing_manifest_is_kept_without_overwrite(videos, tmp_path):
    (tmp_path / "m.csv").write_text("mine")
    code, _, errors = prepare(videos, "--output", tmp_path / "m.csv")
    assert code == 2
    assert errors == (
        f"avssl: error: {tmp_path}/m.csv exists already; give another name, or --overwrite to replace it\n"
    )
    assert (tmp_path / "m.csv").read_text() == "mine"
    assert prepare(videos, "--output", tmp_path / "m.csv", "--overwrite")[0] == 0
    assert len(Manifest.load(tmp_path / "m.csv")) == 2


def test_list_is_never_overwritten_by_its_manifest(videos, tmp_path):
    files = tmp_path / "list.csv"
    files.write_text("path\nvideos/dog/a.mp4\n")
    code, _, errors = prepare(files, "--output", files, "--overwrite")
    assert code == 2
    assert "is the list to read; give another name to --output" in errors
    assert files.read_text() == "path\nvideos/dog/a.mp4\n"


def test_held_out_share_is_a_split(videos, tmp_path):
    code, account, _ = prepare(videos, "--output", tmp_path / "m.csv", "--val-share", "0.999")
    assert code == 0
    assert "splits:  test 2\n" in account


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["{0}", "-o", "{0}/m.txt"], "give a name that ends in .parquet or .csv to --output"),
        (["{0}/nothing", "-o", "{0}/m.csv"], "nothing does not exist; give a folder or a list of files"),
        (["{0}/cat", "-o", "{0}/dog/a.mp4/m.csv"], "cannot make the folder"),
        (["{0}", "-o", "m.csv", "--val-share", "1"], "1.0 is not in the range 0<=x<1"),
        (["{0}", "-o", "m.csv", "--workers", "0"], "0 is not in the range x>=1"),
        (["{0}"], "give OUT, a folder for shards or a manifest that ends in .parquet or .csv"),
    ],
)
def test_impossible_wish_is_refused_with_status_2(videos, arguments, answer):
    code, _, errors = prepare(*(argument.format(videos) for argument in arguments))
    assert code == 2
    assert answer in errors


def test_nothing_readable_is_an_error(videos, tmp_path):
    (videos / "cat/b.mp4").unlink()
    code, _, errors = prepare(videos / "cat", "--output", tmp_path / "m.csv")
    assert code == 2
    assert "avssl: error: none of the 1 files of" in errors
    assert not (tmp_path / "m.csv").exists()
