"""Manifests: order, identity, files and the errors a user meets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.data.manifest import VERSION, Manifest
from avssl.data.tables import SCHEMA, Sample
from avssl.errors import ManifestError

SAMPLES = [
    Sample("b/2.mp4", "b/2.mp4", 0.0, 7.25, "dog", "test", True, False, 7.25, 25.0, 64, 48, "beef"),
    Sample(
        "a/1, é.mp4",
        "a/1, é.mp4",
        0.0,
        0.1 + 0.2,
        None,
        "train",
        True,
        True,
        0.1 + 0.2,
        30000 / 1001,
        8,
        6,
        "f0",
    ),
    Sample("c.mp4#1-2", "c.mp4", 1.0, 2.0, "cat", "train", False, True, 9.0, 0.0, 0, 0, "c0de"),
]


def test_rows_are_sorted_by_id_and_kept_exactly(tmp_path: Path) -> None:
    manifest = Manifest.from_samples(SAMPLES, tmp_path)
    assert manifest.ids == ["a/1, é.mp4", "b/2.mp4", "c.mp4#1-2"]
    assert [manifest.row(i) for i in range(3)] == [SAMPLES[1], SAMPLES[0], SAMPLES[2]]
    assert manifest.path(1) == str(tmp_path / "b/2.mp4")


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "deep/er/m.csv"])
def test_save_and_load_keep_rows_paths_and_hash(tmp_path: Path, name: str) -> None:
    manifest = Manifest.from_samples(SAMPLES, tmp_path)
    manifest.save(tmp_path / name)
    loaded = Manifest.load(tmp_path / name)
    assert loaded.hash == manifest.hash
    assert [loaded.path(i) for i in range(3)] == [manifest.path(i) for i in range(3)]
    assert Manifest.load(tmp_path / name, root=tmp_path).table == manifest.table
    assert not list(tmp_path.rglob("*.tmp"))


def test_save_leaves_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.from_samples(SAMPLES, tmp_path)
    manifest.save(tmp_path / "m.parquet")

    def full(table: pa.Table, file: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        manifest.select("train").save(tmp_path / "m.parquet")
    assert len(Manifest.load(tmp_path / "m.parquet")) == 3
    assert not list(tmp_path.glob(".*.tmp"))


def test_hash_ignores_place_and_order_but_no_value() -> None:
    manifest = Manifest.from_samples(SAMPLES, "/here")
    assert Manifest.from_samples(SAMPLES[::-1], "/there").hash == manifest.hash
    assert len(manifest.hash) == 64
    changes = {
        "id": "z",
        "start_seconds": 0.5,
        "end_seconds": 7.0,
        "label": "wolf",
        "split": "val",
        "has_video": False,
        "has_audio": True,
        "duration_seconds": 8.0,
        "fps": 24.0,
        "width": 65,
        "height": 47,
        "content_hash": "bee",
    }
    assert set(changes) == set(SCHEMA.names) - {"path"}
    hashes = {
        Manifest.from_samples([dataclasses.replace(SAMPLES[0], **{k: v}), *SAMPLES[1:]], "/here").hash
        for k, v in changes.items()
    }
    assert len(hashes | {manifest.hash}) == len(changes) + 1


def test_hash_separates_missing_labels_and_neighbouring_texts() -> None:
    def hash_of(*labels: str | None) -> str:
        samples = [Sample(f"{i}", "p", 0, 1, label, duration_seconds=1) for i, label in enumerate(labels)]
        return Manifest.from_samples(samples, "/").hash

    assert len({hash_of("ab", "c"), hash_of("a", "bc"), hash_of("abc", None), hash_of(None, "abc")}) == 4


def test_duplicate_ids_are_refused_by_name() -> None:
    with pytest.raises(ManifestError, match=r"unique; more than once: 'b/2.mp4'; remove"):
        Manifest.from_samples([*SAMPLES, SAMPLES[0]], "/")


@pytest.mark.parametrize(
    "change",
    [
        {"start_seconds": -1.0},
        {"end_seconds": 0.0},
        {"end_seconds": float("nan")},
        {"duration_seconds": float("inf")},
        {"fps": -1.0},
    ],
)
def test_impossible_numbers_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ManifestError, match=r"'b/2.mp4' .* 0 <= start < end"):
        Manifest.from_samples([dataclasses.replace(SAMPLES[0], **change)], "/")


def test_empty_manifest_is_refused() -> None:
    with pytest.raises(ManifestError, match="at least one sample"):
        Manifest.from_samples([], "/")


def test_select_by_split_and_streams() -> None:
    manifest = Manifest.from_samples(SAMPLES, "/")
    assert manifest.splits == {"test": 1, "train": 2}
    assert manifest.select("train").ids == ["a/1, é.mp4", "c.mp4#1-2"]
    assert manifest.select("train", need_video=True).ids == ["a/1, é.mp4"]
    assert manifest.select(need_audio=True).ids == ["a/1, é.mp4", "c.mp4#1-2"]
    with pytest.raises(
        ManifestError, match=r"no sample of split 'test' with audio; .* test \(1\), train \(2\)"
    ):
        manifest.select("test", need_audio=True)


def test_labels_get_the_numbers_of_the_sorted_classes() -> None:
    manifest = Manifest.from_samples(SAMPLES, "/")
    assert manifest.labels == [None, "dog", "cat"]
    assert manifest.classes == ["cat", "dog"]
    assert manifest.label_indices().tolist() == [-1, 1, 0]
    assert manifest.select("test").label_indices().tolist() == [0]
    assert manifest.select("test").label_indices(manifest.classes).tolist() == [1]
    with pytest.raises(ManifestError, match="'cat'"):
        manifest.label_indices(["dog"])


def test_rows_of_ids() -> None:
    manifest = Manifest.from_samples(SAMPLES, "/")
    rows = manifest.rows_of(["c.mp4#1-2", "a/1, é.mp4"])
    assert rows.tolist() == [2, 0]
    assert rows.dtype == np.int64
    with pytest.raises(ManifestError, match="'nowhere'"):
        manifest.rows_of(["nowhere"])


def test_csv_with_only_paths_takes_defaults(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path\nx/b.mp4\n./a.mp4\n{tmp_path}/x/../c.mp4\n/elsewhere/d.mp4\n")
    manifest = Manifest.load(tmp_path / "list.csv")
    assert manifest.ids == ["/elsewhere/d.mp4", "a.mp4", "c.mp4", "x/b.mp4"]
    assert manifest.row(1) == Sample("a.mp4", "a.mp4")


def test_parts_of_a_file_get_ids_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text(
        "path\tstart_seconds\tend_seconds\thas_audio\na.mp4\t0\t10\tyes\na.mp4\t10\t20.5\tNo\na.mp4\t30\t\t\n"
    )
    manifest = Manifest.load(tmp_path / "list.tsv")
    assert manifest.ids == ["a.mp4#0-10", "a.mp4#10-20.5", "a.mp4#30-"]
    assert [manifest.row(i).has_audio for i in range(3)] == [True, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,lable\na,b\n",
            r"line 1: unknown column 'lable'; did you mean 'label'\? Allowed columns: id, path,",
        ),
        ("path,fps\na,25\n\nb,fast\n", r"line 4: column 'fps' holds 'fast'; must be a number"),
        ("path,width\na,1.5\n", r"line 2: column 'width' holds '1.5'; must be a whole number"),
        ("path,has_audio\na,maybe\n", r"line 2: column 'has_audio' holds 'maybe'; must be true or false"),
        ("label\ncat\n", r"line 1: no column 'path' among label"),
        ("path,path\na,a\n", r"line 1: column 'path' is there twice"),
        ("path,label\na\n", r"line 2: 1 cells, but the header names 2 columns"),
        ("path,label\n,cat\n", r"line 2: the path is empty"),
        ("path\n", r"at least one sample"),
        ("", r"no column 'path' among none"),
    ],
)
def test_csv_errors_name_line_column_and_rule(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        Manifest.load(tmp_path / "m.csv")


def test_csv_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"path\n\xff\xfe.mp4\n")
    with pytest.raises(ManifestError, match="UTF-8"):
        Manifest.load(tmp_path / "m.csv")


def test_foreign_parquet_is_read_like_a_list(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["b.mp4", "a.mp4"], "label": ["x", None]}), tmp_path / "m.parquet")
    manifest = Manifest.load(tmp_path / "m.parquet")
    assert manifest.ids == ["a.mp4", "b.mp4"]
    assert manifest.labels == [None, "x"]
    pq.write_table(pa.table({"path": ["b.mp4"], "label": [3]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="row 0: column 'label' holds 3; must be text"):
        Manifest.load(tmp_path / "m.parquet")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(ManifestError, match="no readable parquet"):
        Manifest.load(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="does not exist"):
        Manifest.load(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="must end in"):
        Manifest.load(tmp_path / "m.json")
    with pytest.raises(ManifestError, match="must end in"):
        Manifest.from_samples(SAMPLES, tmp_path).save(tmp_path / "m.json")


def test_later_version_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([dataclasses.asdict(SAMPLES[0])], schema=SCHEMA)
    table = table.replace_schema_metadata({"avssl.version": str(VERSION + 1), "avssl.root": "/"})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=f"version {VERSION + 1}; .* reads up to {VERSION}"):
        Manifest.load(tmp_path / "m.parquet")
