"""Scans: what a folder or a list becomes, and that nothing disappears without a word."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.data.manifest import Manifest
from avssl.data.measure import content_hash
from avssl.data.scan import scan
from avssl.decode import MediaInfo
from avssl.errors import DecodeError, ManifestError


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files are what their text says."""
    calls: list[str] = []

    def probe(path: str) -> MediaInfo:
        calls.append(path)
        text = Path(path).read_text()
        if "broken" in text:
            raise DecodeError(path, "open", "invalid data")
        return MediaInfo(
            duration_seconds=0.0 if "endless" in text else 10.0,
            fps=25.0,
            width=64,
            height=48,
            has_video="nothing" not in text and "audio" not in text,
            has_audio="nothing" not in text and "video" not in text,
            sample_rate=16000,
        )

    monkeypatch.setattr("avssl.data.measure.probe", probe)
    return calls


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def labels_and_splits(manifest: Manifest) -> dict[str, tuple[str | None, str]]:
    rows = [manifest.row(i) for i in range(len(manifest))]
    return {row.id: (row.label, row.split) for row in rows}


def test_plain_folder_gives_sorted_rows_with_what_was_measured(tmp_path: Path) -> None:
    write(
        tmp_path, b_dot_mp4="both", a_dot_MKV="video", c_dot_webm="audio", notes_dot_txt="", cover_dot_jpg=""
    )
    result = scan(tmp_path)
    assert result.manifest.ids == ["a.MKV", "b.mp4", "c.webm"]
    assert result.manifest.root == tmp_path
    assert result.ignored == {".jpg": 1, ".txt": 1}
    assert result.skipped == []
    row = result.manifest.row(0)
    assert (row.has_video, row.has_audio, row.label, row.split) == (True, False, None, "train")
    assert (row.start_seconds, row.end_seconds, row.duration_seconds, row.fps) == (0.0, 10.0, 10.0, 25.0)
    assert (row.width, row.height, row.content_hash) == (64, 48, content_hash(tmp_path / "a.MKV"))


def test_class_folders_give_labels(tmp_path: Path) -> None:
    write(tmp_path, dog__1_dot_mp4="", cat__deep__2_dot_mp4="", train__3_dot_mp4="", free_dot_mp4="")
    assert labels_and_splits(scan(tmp_path).manifest) == {
        "cat/deep/2.mp4": ("cat", "train"),
        "dog/1.mp4": ("dog", "train"),
        "free.mp4": (None, "train"),
        "train/3.mp4": ("train", "train"),
    }


def test_split_folders_give_splits_and_labels(tmp_path: Path) -> None:
    write(
        tmp_path,
        train__dog__1_dot_mp4="",
        validation__cat__2_dot_mp4="",
        test__3_dot_mp4="",
        readme_dot_md="",
    )
    assert labels_and_splits(scan(tmp_path).manifest) == {
        "test/3.mp4": (None, "test"),
        "train/dog/1.mp4": ("dog", "train"),
        "validation/cat/2.mp4": ("cat", "val"),
    }
    assert scan(tmp_path, split="val").manifest.splits == {"val": 3}
    splits = {"test": 1, "train": 1, "val": 1}
    assert scan(tmp_path, val_share=0.5).manifest.splits == splits  # concerns only files without a split


def test_val_share_holds_out_the_same_files_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, **{f"v{i}_dot_mp4": str(i) for i in range(200)})
    first, second = (
        scan(tmp_path / "one", val_share=0.25).manifest,
        scan(tmp_path / "two", val_share=0.25).manifest,
    )
    assert first.hash == second.hash
    assert 30 <= first.splits["test"] <= 70
    more = scan(tmp_path / "one", val_share=0.5).manifest
    assert set(first.select("test").ids) < set(more.select("test").ids)
    with pytest.raises(ManifestError, match=r"val_share must be at least 0 and below 1; got 1\.5"):
        scan(tmp_path / "one", val_share=1.5)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path, good_dot_mp4="", bad_dot_mp4="broken", endless_dot_mp4="endless", none_dot_mp4="nothing")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    result = scan(tmp_path)
    assert result.manifest.ids == ["good.mp4"]
    assert {(Path(s.path).name, s.stage, s.reason) for s in result.skipped} == {
        ("bad.mp4", "open", "invalid data"),
        ("endless.mp4", "open", "the file has no length"),
        ("gone.mp4", "open", "there is no such file"),
        ("none.mp4", "open", "neither a video nor an audio stream"),
    }


def test_name_that_is_no_utf8_is_skipped_by_name(tmp_path: Path) -> None:
    write(tmp_path, good_dot_mp4="")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.mp4")).write_text("")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    [skipped] = scan(tmp_path).skipped
    assert (Path(skipped.path).name, skipped.reason) == (
        "b\ufffd.mp4",
        "the name of the file is not UTF-8; rename it",
    )


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "real", x__1_dot_mp4="")
    write(tmp_path / "data", y__2_dot_mp4="")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "y" / "loop").symlink_to(tmp_path / "data")
    assert scan(tmp_path / "data").manifest.ids == ["linked/x/1.mp4", "y/2.mp4"]


def test_folders_without_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist; give a folder or a list"):
        scan(tmp_path / "none")
    with pytest.raises(ManifestError, match=r"no media file .* the folder is empty"):
        scan(tmp_path)
    write(tmp_path, a_dot_wav="", b_dot_wav="", c="")
    with pytest.raises(
        ManifestError, match=r"extensions seen: .wav \(2\), \(none\) \(1\); extensions taken: 3gp avi"
    ):
        scan(tmp_path)
    write(tmp_path, d_dot_mp4="broken")
    with pytest.raises(ManifestError, match=r"none of the 1 files .* the first: .*d.mp4: open: invalid data"):
        scan(tmp_path)


def test_list_says_parts_labels_and_splits(tmp_path: Path, probed: list[str]) -> None:
    write(tmp_path, v__a_dot_mp4="", v__b_dot_wav="audio")
    (tmp_path / "list.csv").write_text(
        "path,start_seconds,end_seconds,label,split,has_audio\n"
        "v/a.mp4,0,4,dog,train,false\n"
        "v/a.mp4,4,40,cat,,\n"
        "v/a.mp4,12,14,,,\n"
        f"{tmp_path}/v/b.wav,,,,test,\n"
        "v/gone.mp4,,,,,\n"
    )
    result = scan(tmp_path / "list.csv", workers=2)
    assert labels_and_splits(result.manifest) == {
        "v/a.mp4#0-4": ("dog", "train"),
        "v/a.mp4#4-40": ("cat", "train"),
        "v/b.wav": (None, "test"),
    }
    assert result.manifest.row(1).end_seconds == 10.0
    assert result.manifest.row(0).has_audio
    assert [(s.path, s.reason) for s in result.skipped] == [
        (str(tmp_path / "v/gone.mp4"), "there is no such file"),
        ("v/a.mp4#12-14", "12.0 s to 10.0 s is empty or outside the 10.0 s of the file"),
    ]
    assert sorted(probed) == [str(tmp_path / "v/a.mp4"), str(tmp_path / "v/b.wav")]


def test_parts_of_a_file_are_held_out_together(tmp_path: Path) -> None:
    write(tmp_path, **{f"{i}_dot_mp4": "" for i in range(40)})
    rows = "".join(f"{i}.mp4,{start},{start + 1}\n" for i in range(40) for start in range(3))
    (tmp_path / "list.csv").write_text("path,start_seconds,end_seconds\n" + rows)
    manifest = scan(tmp_path / "list.csv", val_share=0.5).manifest
    split_of: dict[str, set[str]] = {}
    for i in range(len(manifest)):
        split_of.setdefault(manifest.row(i).path, set()).add(manifest.row(i).split)
    assert {len(splits) for splits in split_of.values()} == {1}
    assert set(manifest.splits) == {"test", "train"}


def test_saved_manifest_can_be_scanned_again(tmp_path: Path) -> None:
    write(tmp_path / "media", a__1_dot_mp4="", b__2_dot_mp4="")
    first = scan(tmp_path / "media").manifest
    first.save(tmp_path / "media" / "m.parquet")
    assert scan(tmp_path / "media" / "m.parquet").manifest.hash == first.hash


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".parquet"])
def test_lists_of_other_kinds(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, a_dot_mp4="", b_dot_mp4="")
    path = tmp_path / f"list{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"path": ["b.mp4", "a.mp4"]}), path)
    else:
        path.write_text("b.mp4\n\n  a.mp4\n" if suffix == ".txt" else "path\tlabel\nb.mp4\tx\na.mp4\t\n")
    assert scan(path).manifest.ids == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "file,label\na,b\n", "unknown column 'file'"),
        ("list.csv", "label\nb\n", "no column 'path'"),
        ("list.txt", "\n\n", "lists no file"),
        ("list.json", "{}", r"cannot scan .*; give a folder or a list that ends in .csv"),
        ("list.csv", "path\na.mp4\na.mp4\n", r"unique; more than once: 'a.mp4'"),
    ],
)
def test_lists_without_use_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    write(tmp_path, a_dot_mp4="")
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message):
        scan(tmp_path / name)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    write(tmp_path, a_dot_mp4="", b_dot_mp4="broken", c_dot_mp4="")
    seen: list[tuple[int, int]] = []
    scan(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_content_hash_sees_the_size_the_ends_and_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "f"
    whole = bytearray(os.urandom(1_000_000))
    hashes = set()
    for position in (None, 0, 500_000, 999_999):
        changed = bytearray(whole)
        if position is not None:
            changed[position] ^= 1
        path.write_bytes(changed)
        hashes.add(content_hash(path))
    path.write_bytes(whole + b"x")
    hashes.add(content_hash(path))
    assert len(hashes) == 5
    path.write_bytes(whole)
    assert content_hash(path) in hashes
