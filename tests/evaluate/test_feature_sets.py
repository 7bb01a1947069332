"""Files of features as other programs write them, matched by id."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avssl.errors import EvaluationError
from avssl.evaluate.feature_sets import match_sets, read_features, read_labels

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = ["w", "x", "y", "z"]


def _write(path, features=FEATURES, ids=IDS, **others):
    """Write features in the format of the suffix."""
    if path.suffix == ".npy":
        np.save(path, features)
    elif path.suffix == ".npz":
        np.savez(path, features=features, **({} if ids is None else {"ids": ids}), **others)
    else:
        columns = {} if ids is None else {"id": ids}
        pq.write_table(pa.table(columns | {"embedding": list(features)} | others), path)
    return path


@pytest.mark.parametrize("name", ["f.npy", "f.npz", "f.parquet"])
def test_features_come_back_as_they_were_written(name, tmp_path):
    read = read_features(_write(tmp_path / name))
    np.testing.assert_array_equal(read.features, FEATURES)
    assert read.ids is None if name == "f.npy" else read.ids.tolist() == IDS


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), 3)]
)
def test_every_kind_of_list_column_is_read(kind, tmp_path):
    values = list(FEATURES.astype(kind.value_type.to_pandas_dtype()))
    table = pa.table({"id": IDS, "vector": pa.array(values, type=kind), "length": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=2)
    read = read_features(tmp_path / "f.parquet")
    np.testing.assert_array_equal(read.features, FEATURES)
    assert list(read.others) == ["length"]


def test_one_of_several_arrays_is_chosen_by_name(tmp_path):
    np.savez(tmp_path / "f.npz", video=FEATURES, audio=-FEATURES, id=IDS)
    np.testing.assert_array_equal(read_features(tmp_path / "f.npz", "audio").features, -FEATURES)
    with pytest.raises(EvaluationError, match=r"holds video \(4, 3\), audio \(4, 3\), id \(4,\); one array"):
        read_features(tmp_path / "f.npz")
    with pytest.raises(EvaluationError, match=r"'sound' was asked for; name one of: video, audio"):
        read_features(tmp_path / "f.npz", "sound")


def test_samples_are_matched_by_id_and_others_counted(tmp_path):
    video = read_features(_write(tmp_path / "v.npz"))
    audio = read_features(_write(tmp_path / "a.parquet", FEATURES[:3], ["z", "new", "x"]))
    found = match_sets(video, audio)
    assert found.ids.tolist() == ["x", "z"]
    assert (found.video_rows.tolist(), found.audio_rows.tolist()) == ([1, 3], [2, 0])
    assert found.excluded == {"only in video": 2, "only in audio": 1}


def test_rows_without_ids_correspond(tmp_path):
    plain, named = (read_features(_write(tmp_path / name)) for name in ("f.npy", "f.npz"))
    assert match_sets(plain, plain).ids.tolist() == ["0", "1", "2", "3"]
    assert match_sets(plain, named).ids.tolist() == IDS
    shorter = read_features(_write(tmp_path / "short.npy", FEATURES[:3]))
    with pytest.raises(EvaluationError, match=r"f.npy has 4 rows and .*short.npy has 3; without ids in both"):
        match_sets(plain, shorter)
    other = read_features(_write(tmp_path / "other.npz", ids=["a", "b", "c", "d"]))
    with pytest.raises(
        EvaluationError, match=r"no id of .*f.npz \(w, x, y, z\) is in .*other.npz \(a, b, c, d\)"
    ):
        match_sets(named, other)


def test_labels_come_from_a_column_a_table_or_a_list(tmp_path):
    video = read_features(_write(tmp_path / "v.parquet", kind=["cat", None, "dog", "cat"]))
    audio = read_features(_write(tmp_path / "a.npz", ids=["z", "y", "x", "n"], tone=[1, 2, 3, 4]))
    found = match_sets(video, audio)  # x, y, z
    sides = [(video, found.video_rows), (audio, found.audio_rows)]

    def labels(source):
        return read_labels(str(source), sides, found.ids)

    assert labels("kind") == [None, "dog", "cat"]
    assert labels("tone") == [3, 2, 1]
    (tmp_path / "l.csv").write_text("label,id\nbird,z\nfish,x\n")
    pq.write_table(pa.table({"ids": ["x", "z"], "labels": ["fish", "bird"]}), tmp_path / "l.parquet")
    np.savez(tmp_path / "l.npz", id=["x", "z"], label=["fish", "bird"])
    for name in ("l.csv", "l.parquet", "l.npz"):
        assert labels(tmp_path / name) == ["fish", None, "bird"]
    (tmp_path / "l.txt").write_text("a\nb\n\nd\n")
    np.save(tmp_path / "l.npy", [5, 6, 7, 8])
    assert labels(tmp_path / "l.txt") == ["b", None, "d"]
    assert labels(tmp_path / "l.npy") == [6, 7, 8]


def test_labels_that_do_not_fit_are_named(tmp_path):
    plain = read_features(_write(tmp_path / "f.npz", colour=["r", "g", "b", "r"]))
    sides, ids = [(plain, np.arange(4))], np.array(IDS)
    (tmp_path / "short.txt").write_text("a\nb\n")
    (tmp_path / "odd.csv").write_text("name,class\nx,y\n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for name, message in {
        "kind": r"--labels kind: no such file, and no such column in the features \(there: colour\)",
        f"{tmp_path}/short.txt": r"short.txt: has labels \(2,\) for 4 rows of features",
        f"{tmp_path}/odd.csv": r"odd.csv: has columns name, class; labels need id and label",
        f"{tmp_path}/latin.txt": r"latin.txt: is not text",
    }.items():
        with pytest.raises(EvaluationError, match=message):
            read_labels(name, sides, ids)


def _damaged(tmp_path):
    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npz").write_bytes(_write(tmp_path / "whole.npz").read_bytes()[:-40])
    (tmp_path / "text.parquet").write_text("not a table")
    np.save(tmp_path / "flat.npy", np.arange(3.0))
    (tmp_path / "renamed.npz").write_bytes((tmp_path / "flat.npy").read_bytes())
    (tmp_path / "renamed.npy").write_bytes((tmp_path / "whole.npz").read_bytes())
    _write(tmp_path / "twice.npz", ids=["a", "b", "a", "c"])
    lists = {"id": IDS, "v": [[1.0, 2.0], None, [1.0], [3.0, 4.0]]}
    pq.write_table(pa.table(lists), tmp_path / "ragged.parquet")
    (tmp_path / "f.mat").write_text("")


@pytest.mark.parametrize(
    "name, message",
    [
        ("gone.npy", r"gone.npy: no such file; give a file of features \(.npy, .npz, .parquet\)"),
        ("f.mat", r"f.mat: is not a file of features; must be one of .npy, .npz, .parquet"),
        ("text.npy", r"text.npy: cannot be read: .*; write it again, without pickled objects"),
        ("objects.npy", r"objects.npy: cannot be read: Object arrays cannot be loaded"),
        ("renamed.npz", r"renamed.npz: cannot be read: File is not a zip file"),
        ("renamed.npy", r"renamed.npy: cannot be read: the magic string is not correct"),
        ("cut.npz", r"cut.npz: cannot be read: "),
        ("text.parquet", r"text.parquet: cannot be read: "),
        ("flat.npy", r"flat.npy: holds features \(3,\); one array \(rows, dimensions\) is needed"),
        ("twice.npz", r"twice.npz: 1 of 4 ids occur again \(a\); each must be unique"),
        ("ragged.parquet", r"column v: 2 of 4 rows \(1, 2\) are empty or not 2 numbers long"),
    ],
)
def test_files_that_hold_no_features_are_named(name, message, tmp_path):
    _damaged(tmp_path)
    with pytest.raises(EvaluationError, match=message) as error:
        read_features(tmp_path / name)
    assert "\n" not in str(error.value)
