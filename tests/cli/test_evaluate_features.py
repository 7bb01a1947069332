"""``avssl evaluate-features`` as a user calls it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from avssl.cli.main import main
from avssl.evaluate import retrieval_metrics
from avssl.evaluate.ranking_file import load_ranking

SIZE = 60


def call(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["evaluate-features", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def files(tmp_path):
    """Video with ids and labels, audio in another order, better audio, and audio alone in ``.npy``."""
    generator = np.random.default_rng(0)
    video = generator.normal(size=(SIZE, 8)).astype(np.float32)
    noise = generator.normal(size=(SIZE, 8)).astype(np.float32)
    ids = np.array([f"clip{i:02d}" for i in range(SIZE)])
    labels = [None if i == 5 else "abc"[i % 3] for i in range(SIZE)]
    pq.write_table(pa.table({"id": ids, "v": list(video), "kind": labels}), tmp_path / "v.parquet")
    mixed = generator.permutation(SIZE)[:-4]
    np.savez(tmp_path / "a.npz", features=(video + 2 * noise)[mixed], ids=ids[mixed])
    np.savez(tmp_path / "better.npz", features=(video + noise)[mixed], ids=ids[mixed])
    np.save(tmp_path / "v.npy", video)
    np.save(tmp_path / "a.npy", video + 2 * noise)
    return tmp_path


def test_plain_arrays_give_a_table_of_both_directions(files):
    code, table, errors = call(files / "v.npy", files / "a.npy")
    assert (code, errors) == (0, "")
    expected = retrieval_metrics(np.load(files / "a.npy"), np.load(files / "v.npy"))
    assert "A→V instance" in table
    assert "V→A instance" in table
    row = next(line for line in table.splitlines() if "R@5 " in line)
    assert f" {expected.recall[5]:.3f} [" in row
    assert row.count("c 0.083") == 2
    assert "a2v_instance: 60 queries to 60 rows, 0 tied (mean), excluded: none, pool " in table
    assert "95% intervals over queries" in table


def test_results_are_written_one_a_file_with_all_they_depend_on(files):
    output = files / "new/results"
    arguments = ("--labels", "kind", "--directions", "a2v,v2v", "--output", output, "--depths", "1,5,100")
    code, table, errors = call(files / "v.parquet", files / "a.npz", *arguments)
    assert (code, errors) == (0, "")
    assert f"results  {output}" in table
    names = ["a2v_class", "a2v_instance", "v2v_class"]
    assert sorted(path.name for path in output.iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("json", "npz")
    )
    found = json.loads((output / "v2v_class.json").read_text())
    labelled = found["queries"]
    assert found["excluded"]["only in video"] == 4
    assert found["pool_size"] == labelled - 1
    assert labelled + found["excluded"].get("queries without a label", 0) == SIZE - 4
    assert (found["direction"], found["relevance"], found["ties"]) == ("v2v", "class", "mean")
    assert found["interval"] == {"level": 0.95, "resamples": 1000, "seed": 0, "over": "queries"}
    assert sorted(found["versions"]) == ["avssl", "numpy", "python"]
    assert found["command"].startswith("avssl")
    assert set(found["metrics"]) == {
        "r1", "r5", "median_rank", "mean_rank", "map", "ndcg1", "ndcg5", "p1", "p5",
    }  # fmt: skip
    for metric in found["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["chance"] > 0
    saved = load_ranking(output / "v2v_class.npz")
    assert saved.pool_hash == found["pool_hash"]
    assert saved.metrics["map"] == found["metrics"]["map"]["value"]


def test_json_goes_to_the_output_and_repeats(files):
    arguments = (
        files / "v.parquet",
        files / "a.npz",
        "--json",
        "--ties",
        "pessimistic",
        "--resamples",
        "100",
    )
    code, text, errors = call(*arguments)
    assert (code, errors) == (0, "")
    found = json.loads(text)
    assert [(one["direction"], one["ties"]) for one in found] == [
        ("a2v", "pessimistic"),
        ("v2a", "pessimistic"),
    ]
    assert call(*arguments)[1] == text


def test_two_models_are_compared_on_the_same_samples(files):
    assert call(files / "v.parquet", files / "a.npz", "--output", files / "old")[0] == 0
    code, table, _ = call(files / "v.parquet", files / "better.npz", "--against", files / "old")
    assert code == 0
    assert "a2v_instance: these features minus the others" in table
    code, text, _ = call(files / "v.parquet", files / "better.npz", "--against", files / "old", "--json")
    difference = json.loads(text)[0]["against"]["map"]
    assert difference["value"] == pytest.approx(difference["first"] - difference["second"])
    assert difference["low"] > 0
    assert difference["p_value"] < 0.05
    code, _, errors = call(files / "v.npy", files / "a.npy", "--against", files / "old")
    assert code == 2
    assert "the results are of different pools: 60 queries to 60 rows" in errors


def test_one_modality_alone_is_measured_by_class(files):
    code, text, _ = call(files / "v.parquet", "--labels", "kind", "--json")
    assert code == 0
    (found,) = json.loads(text)
    assert (found["direction"], found["queries"], found["pool_size"]) == ("v2v", 59, 58)
    assert found["excluded"] == {"queries without a label": 1, "gallery rows without a label": 1}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["v.npy", "gone.npy"], "gone.npy: no such file; give a file of features"),
        (["v.npy", "a.npz"], "v.npy has 60 rows and "),
        (["v.npy", "nan.npy"], "1 of 60 rows of nan.npy hold NaN or infinity (ids 7)"),
        (["v.npy", "same.npy"], "all 60 rows of same.npy are the same embedding (ids 0, 1, 2, 3, 4, ...)"),
        (["v.npy", "narrow.npy"], "v.npy has 8 dimensions and narrow.npy has 4; must be equal"),
        (["v.npy", "a.npy", "--directions", "a2b"], "--directions a2b: 'a2b' is no direction; each must be"),
        (["v.npy", "--directions", "a2v"], "--directions a2v: a2v needs features of audio"),
        (["v.npy"], "v2v: within one modality a sample's only match is itself; give --labels"),
        (["v.npy", "a.npy", "--labels", "kind"], "--labels kind: no such file, and no such column"),
        (["v.npy", "a.npy", "--depths", "1,x"], "--depths 1,x: must be whole numbers from 1"),
        (["v.npy", "a.npy", "--depths", "0"], "--depths 0: must be whole numbers from 1"),
        (["v.npy", "a.npy", "--depths", "61"], "got k in (61,) for a pool of 60"),
        (["v.npy", "a.npy", "--against", "nowhere"], "nowhere/a2v_instance.npz: no such result"),
        (["v.npy", "a.npy", "--video-name", "x"], "'x' was asked for; name one of: features"),
        (["v.npy", "a.npy", "--output", "v.npy/x"], "v.npy/x: cannot be written: "),
    ],
)
def test_wrong_input_gets_one_clear_line(arguments, message, files, monkeypatch):
    monkeypatch.chdir(files)
    audio = np.load("a.npy")
    np.save("same.npy", np.ones_like(audio))
    np.save("narrow.npy", audio[:, :4])
    audio[7] = np.nan
    np.save("nan.npy", audio)
    code, output, errors = call(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("avssl: error: ")
    assert message in errors
    assert errors.count("\n") == 1
