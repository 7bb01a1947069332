"""Long videos, images, and shards that others have written."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from media import frame_numbers, write_media
from preparing import prepare

from avssl.data import ClipDataset, ClipKey, Manifest, Sample, VideoSpec, scan
from avssl.decode import open_reader
from avssl.shards import ShardSettings
from avssl.shards.plan import cut_sample
from avssl.types import VideoWindow


def starts_of(sample: Sample, cuts: list[float] | None = None, **settings) -> dict[str, tuple[float, float]]:
    pieces = cut_sample(sample, ShardSettings(**settings), cuts or [])
    return {piece.id: (piece.start_seconds, piece.end_seconds) for piece in pieces}


@pytest.mark.parametrize(
    ("end", "pieces"),
    [
        (14.9, {"a.mp4": (0, 14.9)}),
        (15.0, {"a.mp4#0-10": (0, 10), "a.mp4#10-15": (10, 15)}),
        (24.0, {"a.mp4#0-10": (0, 10), "a.mp4#10-24": (10, 24)}),
        (25.0, {"a.mp4#0-10": (0, 10), "a.mp4#10-20": (10, 20), "a.mp4#20-25": (20, 25)}),
    ],
)
def test_pieces_are_of_one_length_and_the_last_takes_the_rest(end, pieces):
    assert starts_of(Sample("a.mp4", "a.mp4", 0.0, end), segment_seconds=10) == pieces


def test_pieces_of_a_part_are_named_by_their_own_times():
    part = Sample("a.mp4#5-25", "a.mp4", 5.0, 25.0)
    assert list(starts_of(part, segment_seconds=10)) == ["a.mp4#5-15", "a.mp4#15-25"]
    named = Sample("walk", "a.mp4", 5.0, 25.0)
    assert list(starts_of(named, segment_seconds=10)) == ["walk#5-15", "walk#15-25"]


def test_scenes_are_cut_first_and_long_ones_again():
    sample = Sample("a.mp4", "a.mp4", 0.0, 30.0)
    assert list(starts_of(sample, [4.0, 29.0], segment_seconds=10)) == [
        "a.mp4#0-4",
        "a.mp4#4-14",
        "a.mp4#14-24",
        "a.mp4#24-29",
        "a.mp4#29-30",
    ]
    assert list(starts_of(sample, [4.0])) == ["a.mp4#0-4", "a.mp4#4-30"]


def test_segments_hold_the_frames_of_their_time(tmp_path):
    (tmp_path / "v").mkdir()
    write_media(tmp_path / "v/long.mp4", seconds=5, fps=16, gop=60, size=(64, 64))
    code, _, errors = prepare(tmp_path / "v", tmp_path / "out", "--segment-seconds", 2, "--workers", 1)
    assert code == 0, errors
    manifest = Manifest.load(tmp_path / "out/manifest.parquet")
    assert [name.partition("#")[2].split("-")[0] for name in manifest.ids] == ["0", "2", "4"]
    for row, (first, count) in enumerate([(0, 32), (32, 32), (64, 16)]):
        video, _ = manifest.sources(row)
        frames = open_reader().read(video, VideoWindow(0.0, count, 16.0)).frames
        assert frame_numbers(frames) == list(range(first, first + count))
        assert manifest.row(row).duration_seconds == pytest.approx(count / 16, abs=0.1)


def write_two_scenes(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(80):
            picture = np.full((64, 64, 3), (200, 40, 40) if i < 35 else (30, 60, 210), np.uint8)
            picture[8:16, i % 56 : i % 56 + 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_scene_change_is_found_and_cut(tmp_path):
    pytest.importorskip("scenedetect", reason="PySceneDetect is not installed: pip install 'avssl[scenes]'")
    (tmp_path / "v").mkdir()
    write_two_scenes(tmp_path / "v/film.mp4")
    code, _, errors = prepare(tmp_path / "v", tmp_path / "out", "--scenes", "--workers", 1)
    assert code == 0, errors
    manifest = Manifest.load(tmp_path / "out/manifest.parquet")
    assert manifest.ids == ["film.mp4#0-3.5", "film.mp4#3.5-8"]
    assert "scenes 1/1 (100%)" in errors
    for row, channel in ((0, 0), (1, 2)):
        frame = open_reader().read(manifest.sources(row)[0], VideoWindow(0.0, 1, 16.0)).frames[0]
        assert int(frame[40, 40].argmax()) == channel


def test_images_become_jpegs_and_are_read_as_one_frame(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, size in (("a.png", (300, 200)), ("b.jpg", (64, 96))):
        picture = np.zeros((size[1], size[0], 3), np.uint8)
        picture[:, : size[0] // 2] = (250, 120, 10)
        with av.open(str(tmp_path / "photos" / name), "w", format="image2") as container:
            stream = container.add_stream("png" if name == "a.png" else "mjpeg")
            stream.width, stream.height = size
            stream.pix_fmt = "rgb24" if name == "a.png" else "yuvj444p"
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode(None))
    code, _, errors = prepare(
        tmp_path / "photos", tmp_path / "out", "--images", "--short-side", 100, "--workers", 1
    )
    assert code == 0, errors
    manifest = Manifest.load(tmp_path / "out/manifest.parquet")
    assert [(row.width, row.height) for row in map(manifest.row, range(2))] == [(150, 100), (64, 96)]
    with tarfile.open(tmp_path / "out/shard-000000.tar") as file:
        assert [name.partition(".")[2] for name in file.getnames()] == ["jpg", "json"] * 2
    dataset = ClipDataset(manifest, open_reader(), VideoSpec(1, 1.0, 100), None)
    frames = dataset[ClipKey(3, 0)].frames
    assert frames.shape == (1, 100, 150, 3)
    assert (frames[0, 50, 20].int() - frames.new_tensor([250, 120, 10]).int()).abs().max() < 12


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


@pytest.fixture
def foreign(tmp_path) -> Path:
    """Two shards as others write them: labels three ways, sound apart and inside, and some malice."""
    one = write_media(tmp_path / "one.mp4", seconds=1.5, size=(64, 64)).read_bytes()
    two = write_media(tmp_path / "two.webm", seconds=1.5, size=(64, 48), codec="libvpx", audio=False)
    sound = write_media(tmp_path / "two.wav", seconds=1.5, video=False, audio_codec="pcm_s16le").read_bytes()
    flac = write_media(tmp_path / "three.flac", seconds=1.5, video=False, audio_codec="flac").read_bytes()
    write_tar(
        tmp_path / "shards/000.tar",
        {
            "a/x1.mp4": one,
            "a/x1.json": json.dumps({"label": "dog", "split": "test"}).encode(),
            "a/x2.webm": two.read_bytes(),
            "a/x2.wav": sound,
            "a/x2.cls": b"7",
            "../../etc/x3.mp4": one,
            "/root/x4.mp4": one,
            "a/x5.mp4": link("a/x5.mp4", "/etc/passwd"),
        },
    )
    write_tar(
        tmp_path / "shards/001.tar",
        {"x6.flac": flac, "x6.txt": b"rain\n", "x7.mp4": b"broken" * 200, "readme.md": b"hello"},
    )
    return tmp_path / "shards"


def test_shards_of_others_become_a_manifest_that_trains_as_it_is(foreign, tmp_path):
    code, _, errors = prepare(foreign, tmp_path / "m.parquet")
    assert code == 0, errors
    manifest = Manifest.load(tmp_path / "m.parquet")
    assert manifest.ids == ["000.tar/a/x1", "000.tar/a/x2", "001.tar/x6"]
    assert manifest.labels == ["dog", "7", "rain"]
    assert manifest.splits == {"test": 1, "train": 2}
    assert [(row.has_video, row.has_audio) for row in map(manifest.row, range(3))] == [
        (True, True),
        (True, True),
        (False, True),
    ]
    assert manifest.row(0).audio_num_bytes is None
    dataset = ClipDataset(manifest, open_reader(), VideoSpec(4, 8.0), None)
    numbers = frame_numbers(dataset[ClipKey(0, 1)].frames)
    assert numbers == sorted(numbers)
    skipped = (tmp_path / "m.skipped.jsonl").read_text()
    assert skipped.count("leads outside the archive") == 2
    assert "000.tar: a/x5.mp4" in skipped
    assert "a link to /etc/passwd" in skipped
    assert "001.tar: 001.tar/x7" in skipped


def test_shards_of_others_are_prepared_like_files(foreign, tmp_path):
    code, _, errors = prepare(foreign, tmp_path / "out", "--workers", 1)
    assert code == 0, errors
    manifest = Manifest.load(tmp_path / "out/manifest.parquet")
    assert manifest.ids == ["000.tar/a/x1", "000.tar/a/x2", "001.tar/x6"]
    frames = open_reader().read(manifest.sources(1)[0], VideoWindow(0.5, 4, 16.0)).frames
    assert frame_numbers(frames) == [8, 9, 10, 11]


def test_own_shards_are_a_source_too(prepared, tmp_path):
    ids = Manifest.load(prepared / "manifest.parquet").ids
    assert scan(prepared).manifest.ids == ids
    assert scan(prepared / "manifest.parquet").manifest.ids == ids
    assert scan(prepared / "shard-000000.tar").manifest.labels


def test_damaged_tar_gives_what_comes_before_and_is_named(foreign, tmp_path):
    path = foreign / "000.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        place = file.getmember("a/x2.wav").offset
    content[place : place + 512] = b"\xff" * 512
    path.write_bytes(content)
    result = scan(foreign)
    assert "000.tar/a/x1" in result.manifest.ids
    reasons = [skipped.reason for skipped in result.skipped if skipped.path == str(path)]
    assert len(reasons) == 1
    assert f"damaged at byte {place}" in reasons[0]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["{0}", "{1}/m.parquet", "--fps", "8"], "--fps is for shards, and"),
        (["{0}", "{1}/out", "--short-side", "97"], "short_side is 97; must be even and at least 16 pixels"),
        (["{0}", "{1}/out", "--short-side", "small"], "'small' is no size; give a number of pixels, or keep"),
        (["{0}", "{1}/out", "--max-skipped", "many"], "'many' is no limit; give a number such as 20, or a"),
        (["{0}", "{1}/out", "--max-skipped", "120%"], "'120%' is no limit"),
        (["{0}", "{1}/out", "-o", "{1}/m.csv"], "give OUT, a folder for shards or a manifest"),
        (["--verify", "{0}", "{1}"], "--verify takes one folder"),
        (["{1}/empty", "{1}/out"], "no media file below"),
        (["{0}", "{0}", "--overwrite"], "is or holds the source; give another folder"),
        (["{0}/000.tar", "{0}"], "is or holds the source; give another folder"),
    ],
)
def test_impossible_wish_is_refused(foreign, tmp_path, arguments, answer):
    (tmp_path / "empty").mkdir()
    code, _, errors = prepare(*(argument.format(foreign, tmp_path) for argument in arguments))
    assert code == 2
    assert answer in errors
