"""``avssl weights``, and ``avssl evaluate`` on an official file."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
import torch
from click.testing import CliRunner
from media import write_media

import avssl
from avssl.cli.main import main
from avssl.data import scan
from avssl.errors import CheckpointError
from avssl.models import AudioConvNet, DualEncoder, R2Plus1D, to_official

N, DIM = 10, 16


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A miniature file as the release writes it, read-only and in a folder of its own."""
    torch.manual_seed(0)
    encoders = DualEncoder(R2Plus1D(10, width=8), AudioConvNet(width=8), projection=(DIM,))
    memories = torch.nn.functional.normalize(torch.randn(2, N, DIM), dim=2)
    content = {
        "epoch": 30,
        "model": {f"module.{key}": value for key, value in to_official(encoders.state_dict()).items()},
        "optimizer": {},
        "train_criterion": {
            "nce_average.view1_mem": memories[0].clone(),
            "nce_average.view2_mem": memories[1].clone(),
            "criterion.avg_exp_score": torch.tensor([2.5]),
        },
    }
    folder = tmp_path_factory.mktemp("foreign")
    torch.save(content, folder / "tiny.pth.tar")
    folder.chmod(0o555)
    yield folder / "tiny.pth.tar"
    folder.chmod(0o755)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 3), ("test", 2)):
        for label, tone in (("low", 300), ("high", 900)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                path = folder / split / label / f"{i}.mp4"
                write_media(
                    path, seconds=2.2, size=(48, 40), tone_hz=tone + 20 * i, first_number=tone + 50 * i
                )
    path = folder / "manifest.parquet"
    scan(folder).manifest.save(path)
    return path


def call(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_published_weights_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("AVSSL_WEIGHTS", str(tmp_path))
    text = call("weights")
    for part in ("avid-cma-audioset", "1,784,108", "91.5", "CC-BY-NC 4.0", "checkpoints/AVID-CMA/Kinetics/"):
        assert part in text
    assert f"{tmp_path}/NAME/checkpoint.pth.tar" in text
    listed = json.loads(call("weights", "--json"))
    assert [one["here"] for one in listed] == [False] * 4
    place = tmp_path / "avid-audioset" / "checkpoint.pth.tar"
    assert listed[2]["file"] == str(place)
    place.parent.mkdir()
    place.touch()
    assert [one["here"] for one in json.loads(call("weights", "--json"))] == [False, False, True, False]


def test_a_file_is_described(official):
    text = call("weights", official)
    assert "source       official AVID, 30 epochs\n" in text
    assert "memories     10 x 16 for video and audio\n" in text
    assert "Z            2.5\n" in text
    said = json.loads(call("weights", official, "--json", "--variant", "small"))
    assert said["memories"] == [N, DIM]
    assert said["z"] == pytest.approx([2.5])
    assert said["spectrogram"] == [100, 129]
    assert said["video"]["stem_pool"] is False


def test_a_file_is_converted_both_ways(official, tmp_path):
    ours, back = tmp_path / "ours.pt", tmp_path / "back.pth.tar"
    assert call("weights", official, "--to-avssl", ours) == f"{ours}: layout of avssl\n"
    text = call("weights", ours, "--export", back)
    assert text.startswith(f"{back}: official layout\n  without the optimiser's state")
    before, after = (torch.load(path, weights_only=True) for path in (official, back))
    assert list(after["model"]) == list(before["model"])
    assert all(torch.equal(after["model"][key], value) for key, value in before["model"].items())
    assert call("weights", ours) == call("weights", official) == call("weights", back)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt"], "nowhere.pt: no such checkpoint; give a run folder, a file or a name"),
        (["--export", "x.tar"], "there is nothing to write; give the FILE to convert"),
        (["x", "--json", "--export", "x.tar"], "--json describes a file; leave it out to write one"),
        (["x", "--variant", "big"], "'big' is not one of 'released', 'small'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(arguments, message):
    text = call("weights", *arguments, code=2)
    assert message in text
    assert sum("error" in line.lower() for line in text.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", b"not weights\n", "a text file, not a checkpoint"),
        ("none.pt", b"", "an empty file, not a checkpoint"),
        ("clip.mp4", None, "a file of another kind, not a checkpoint"),
        ("films.zip", b"", "a zip archive without tensors, not a checkpoint"),
        (
            "folder",
            None,
            "a folder without a checkpoint; give one that holds checkpoint.pt (a run folder) or",
        ),
        ("bare.pt", None, "a checkpoint without config, manifest_hash, position; give a run folder"),
        (
            "gone.pt",
            None,
            "no such checkpoint; give a run folder, a file or a name; names are avid-kinetics400",
        ),
    ],
)
def test_a_wrong_file_is_named_with_what_it_is_and_what_is_accepted(tmp_path, name, content, said):
    path = tmp_path / name
    if name == "clip.mp4":
        write_media(path, seconds=0.5, size=(32, 32))
    elif name == "films.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "text")
    elif name == "folder":
        path.mkdir()
    elif name == "bare.pt":
        torch.save({"avssl_version": "0", "objective": {}}, path)
    elif content is not None:
        path.write_bytes(content)
    for command in ("weights", "evaluate"):
        text = call(command, path, code=2)
        assert text.startswith(f"avssl: error: {path}: {said}")
        assert text.count("\n") == 1
    with pytest.raises(CheckpointError, match=re.escape(said)):
        avssl.load(path)


def test_an_official_file_is_evaluated_elsewhere(official, manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", official, "--clips", 1, "--device", "cpu", "--no-gallery"]
    text = call(*arguments, code=2)
    assert "has no data of its own; a checkpoint from elsewhere needs some to be measured on" in text
    call(*arguments, "--manifest", manifest)
    results = json.loads((tmp_path / "runs" / "tiny" / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["random init", "official_avid"]
    assert {"linear_video", "knn_audio", "a2v_r1"} <= results["rows"][1]["metrics"].keys()
    assert "positive_precision" not in results["rows"][1]["metrics"]  # its memories are of other data
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    assert [path.name for path in official.parent.iterdir()] == ["tiny.pth.tar"]


def test_published_weights_are_evaluated_by_name(official, manifest, tmp_path, monkeypatch):
    place = tmp_path / "store" / "avid-kinetics400" / "checkpoint.pth.tar"
    place.parent.mkdir(parents=True)
    place.write_bytes(official.read_bytes())
    monkeypatch.setenv("AVSSL_WEIGHTS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    common = ["--manifest", manifest, "--clips", 1, "--device", "cpu", "--no-gallery"]
    call("evaluate", "avid-kinetics400", *common)
    call("evaluate", place.parent, *common, "--output", tmp_path / "other")
    first, second = (tmp_path / "runs" / "avid-kinetics400", tmp_path / "other")
    rows = [json.loads((folder / "results.json").read_text())["rows"] for folder in (first, second)]
    assert rows[0] == rows[1]
    assert [path.name for path in place.parent.iterdir()] == [place.name]
