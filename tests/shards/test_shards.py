"""What a user gets from ``avssl prepare SOURCE FOLDER``, read by this package and by others."""

from __future__ import annotations

import gc
import io
import json
import shutil
import tarfile
import warnings
import wave

import pytest
import webdataset
from media import frame_numbers, lag_seconds, write_media
from preparing import contents, prepare

from avssl.data import AudioSpec, ClipDataset, ClipKey, Manifest, VideoSpec, scan
from avssl.decode import open_reader
from avssl.types import AudioWindow, VideoWindow


def test_account_says_what_was_read_written_and_skipped(prepared):
    account = (prepared.parent / "account.txt").read_text()
    manifest = Manifest.load(prepared / "manifest.parquet")
    assert account.startswith(f"{prepared}: 7 samples in 3 shards, ")
    assert f"hash {manifest.hash[:12]}\n" in account
    assert "  read:    7 samples of 7 files\n" in account
    assert "  splits:  train 7\n  classes: 2\n" in account
    assert f"1 skipped, listed in {prepared}/skipped.jsonl:\n" in account
    (record,) = map(json.loads, (prepared / "skipped.jsonl").read_text().splitlines())
    assert record["path"].endswith("dog/cut.mp4")
    assert record["stage"] == "open"
    assert sorted(contents(prepared)) == [
        "manifest.parquet",
        "shard-000000.tar",
        "shard-000001.tar",
        "shard-000002.tar",
        "shards.json",
        "skipped.jsonl",
    ]


def test_shards_keep_ids_labels_and_splits_of_the_source(videos, prepared):
    source, manifest = scan(videos).manifest, Manifest.load(prepared / "manifest.parquet")
    assert manifest.ids == source.ids
    assert manifest.labels == source.labels
    assert manifest.splits == source.splits
    for row in range(len(manifest)):
        new, old = manifest.row(row), source.row(row)
        assert (new.has_video, new.has_audio) == (old.has_video, old.has_audio)
        assert new.duration_seconds == new.end_seconds == pytest.approx(old.duration_seconds, abs=0.1)
        assert new.fps == (16 if new.has_video else 0)
        assert new.content_hash
    assert len(set(manifest.table["content_hash"].to_pylist())) == 7


def test_webdataset_library_reads_the_shards(videos, prepared):
    urls = [str(path) for path in sorted(prepared.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library leaves the shards open
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        gc.collect()
    described = {json.loads(sample["json"])["id"]: sample for sample in samples}
    assert sorted(described) == scan(videos).manifest.ids
    sample = described["dog/1.mp4"]
    content = json.loads(sample["json"])
    assert content["label"] == "dog"
    assert content["source"]["path"] == "dog/1.mp4"
    assert content["source"]["width"] == 96
    with wave.open(io.BytesIO(sample["wav"])) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (24000, 1, 2)
        assert sound.getnframes() == pytest.approx(48000, abs=1200)
    assert {name for name in described["cat/mute.mkv"] if not name.startswith("__")} == {"mp4", "json"}


def test_tar_members_belong_to_nobody_and_have_no_time(prepared):
    with tarfile.open(prepared / "shard-000000.tar") as file:
        members = file.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert members[0].name == "000000000.mp4"


def test_clips_from_a_shard_are_those_of_its_member_alone(prepared, tmp_path):
    manifest = Manifest.load(prepared / "manifest.parquet").select(need_video=True, need_audio=True)
    dataset = ClipDataset(
        manifest, open_reader(), VideoSpec(8, 16.0), AudioSpec(0.5, 24000), seed=3, silent="keep"
    )
    for row in range(len(manifest)):
        video, audio = manifest.sources(row)
        for name, part in (("a.mp4", video), ("a.wav", audio)):
            with open(part.path, "rb") as file:
                file.seek(part.offset_bytes)
                (tmp_path / name).write_bytes(file.read(part.num_bytes))
        clip = dataset[ClipKey(0, row)]
        window = VideoWindow(clip.video_start_seconds, 8, 16.0)
        alone = open_reader().read(tmp_path / "a.mp4", window)
        sound = open_reader().read(
            tmp_path / "a.wav", None, AudioWindow(clip.audio_start_seconds, 0.5, 24000)
        )
        assert (clip.frames == alone.frames).all()
        assert (clip.waveform == sound.waveform).all()


def test_frames_and_sound_stay_those_of_the_source_and_on_time(videos, prepared):
    manifest = Manifest.load(prepared / "manifest.parquet")
    row = manifest.ids.index("dog/1.mp4")
    video, audio = manifest.sources(row)
    clip = open_reader().read(
        video, VideoWindow(0.5, 16, 16.0), AudioWindow(0.25, 1.5, 24000), audio_source=audio
    )
    original = open_reader().read(
        str(videos / "dog/1.mp4"), VideoWindow(0.5, 16, 16.0), AudioWindow(0.25, 1.5, 24000)
    )
    assert frame_numbers(clip.frames) == list(range(8, 24)) == frame_numbers(original.frames)
    error = clip.frames.double() - original.frames.double()
    assert error.square().mean().sqrt() < 8  # grey levels, after a second lossy encoding
    assert (clip.waveform - original.waveform).abs().max() <= 1 / 2**15
    assert abs(lag_seconds(clip.waveform, 24000, 0.25, tone_hz=400)) < 0.0005


def test_silent_sound_is_kept_and_judged_by_training(prepared):
    manifest = Manifest.load(prepared / "manifest.parquet")
    row = manifest.ids.index("cat/silent.mp4")
    dataset = ClipDataset(manifest, open_reader(), VideoSpec(4, 8.0), AudioSpec(0.5, 24000))
    assert dataset[ClipKey(0, row)].stage == "silent"
    assert dataset[ClipKey(0, manifest.ids.index("cat/mute.mkv"))].reason == "the file has no audio stream"


def test_recipe_gives_size_rate_and_sampling_and_options_win(videos, tmp_path):
    (tmp_path / "r.yaml").write_text("data: {root: x, short_side: 48, fps: 8, sample_rate: 8000}\n")
    code, _, errors = prepare(videos / "dog", tmp_path / "out", "--recipe", tmp_path / "r.yaml", "--fps", 10)
    assert code == 0, errors
    manifest = Manifest.load(tmp_path / "out/manifest.parquet")
    row = manifest.row(manifest.ids.index("1.mp4"))
    assert (row.width, row.height, row.fps) == (64, 48, 10.0)
    assert row.audio_num_bytes == pytest.approx(44 + 2 * 8000 * row.duration_seconds, abs=2500)


def test_odd_sizes_lose_their_last_line_and_small_ones_are_not_enlarged(tmp_path):
    (tmp_path / "v").mkdir()
    write_media(
        tmp_path / "v/a.avi", seconds=1, size=(99, 75), codec="mjpeg", pix_fmt="yuvj444p", audio=False
    )
    code, _, errors = prepare(tmp_path / "v", tmp_path / "out")
    assert code == 0, errors
    row = Manifest.load(tmp_path / "out/manifest.parquet").row(0)
    assert (row.width, row.height) == (98, 74)


def test_prepared_folder_can_be_moved(prepared, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(prepared, moved)
    manifest = Manifest.load(moved / "manifest.parquet")
    assert manifest.path(0) == str(moved / manifest.row(0).path)
    assert manifest.hash == Manifest.load(prepared / "manifest.parquet").hash
