import json

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from media import write_media

from avssl.build import Config, build_encoders, build_specs, build_views
from avssl.config import config_from_dict, config_to_dict
from avssl.data import ClipKey, EvalDataset, scan
from avssl.decode import open_reader
from avssl.errors import EvaluationError
from avssl.evaluate.suite import evaluate_encoders, results_table
from avssl.features import extract_features, load_encoders
from avssl.retrieve import write_gallery, write_preview

CONFIG = config_from_dict(
    {
        "data": {"num_frames": 2, "fps": 8, "short_side": 40, "audio_seconds": 0.5, "sample_rate": 8000},
        "views": {"video": {"size": 32}, "spectrogram": {"n_fft": 256, "hop_seconds": 0.02}},
        "model": {
            "video": {"name": "R2Plus1D", "depth": 10, "width": 4},
            "audio": {"name": "AudioConvNet", "width": 4},
            "projection": [16, 8],
            "batch_norm": True,
        },
    },
    Config,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    for split, count in (("train", 5), ("test", 4)):
        for number, label in enumerate(("low", "high")):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                path = root / split / label / f"{i}.mp4"
                frames = 1000 * number + 100 * i
                tone = 300 + 600 * number + 20 * i
                write_media(path, seconds=1.2, size=(48, 40), tone_hz=tone, first_number=frames)
    return scan(root).manifest


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    return build_encoders(CONFIG.model)


def test_features_are_the_means_over_the_clips_of_a_sample(manifest, encoders):
    features = extract_features(encoders, CONFIG, manifest, num_clips=3, batch_size=5, num_workers=0)
    assert features.rows.tolist() == list(range(18))
    dataset = EvalDataset(manifest, open_reader(), *build_specs(CONFIG), num_clips=3)
    views = build_views(CONFIG, train=False)
    for row in (0, 11):
        clips = [dataset[ClipKey(0, row, i)] for i in range(3)]
        view = views([c.frames for c in clips], torch.stack([c.waveform for c in clips]), torch.arange(3))
        with torch.no_grad():
            seen = encoders.eval().video(view.video[0]).mean(dim=0)
            heard = F.normalize(encoders.embed_audio(view.audio[0]).mean(dim=0), dim=0)
        np.testing.assert_allclose(features.video[row], seen, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(features.audio_embedding[row], heard, rtol=1e-4, atol=1e-5)


def test_a_file_that_vanished_is_left_out_and_named(manifest, encoders, tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(3):
        write_media(tmp_path / "a" / f"{i}.mp4", seconds=1.2, size=(48, 40))
    few = scan(tmp_path).manifest
    (tmp_path / "a" / "1.mp4").unlink()
    features = extract_features(encoders, CONFIG, few, num_clips=2, num_workers=0)
    assert features.rows.tolist() == [0, 2]
    assert {failure.id for failure in features.failures} == {"a/1.mp4"}
    for i in (0, 2):
        (tmp_path / "a" / f"{i}.mp4").write_bytes(b"")
    with pytest.raises(EvaluationError, match=r"none of the 3 samples could be read; the first: .*0\.mp4"):
        extract_features(encoders, CONFIG, few, num_workers=0)


def test_encoders_of_a_checkpoint_are_those_that_were_saved(encoders):
    objective = {f"encoders.{k}": v for k, v in encoders.state_dict().items()} | {"bank.video": torch.ones(2)}
    loaded, config = load_encoders({"config": config_to_dict(CONFIG), "objective": objective})
    assert config == CONFIG
    for name, value in encoders.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_suite_measures_probes_and_retrieval(manifest, encoders):
    train, test = manifest.select(split="train"), manifest.select(split="test")
    row, features = evaluate_encoders(encoders, CONFIG, train, test, num_clips=1, num_workers=0)
    assert row["linear_audio"] == 1.0  # one tone or another: random filters tell them apart
    assert {"knn_video", "a2v_r1", "v2a_r5", "a2v_median_rank", "a2v_class_precision"} <= row.keys()
    assert "a2v_r10" not in row  # deeper than the pool
    table = results_table([{"name": "x", "metrics": row}], len(features.rows), train, test, "cmd")
    assert table["chance"] == {
        "r1": 1 / 8,
        "r5": 5 / 8,
        "linear": 0.5,
        "positive_precision": 2 * 5 * 4 / (10 * 9),
        "class_precision": 0.5,
    }


def test_gallery_marks_the_query_itself_and_its_class(manifest, encoders, tmp_path):
    test = manifest.select(split="test")
    features = extract_features(encoders, CONFIG, test, num_clips=1, num_workers=0)
    path = write_gallery(tmp_path, {"A": (features, "a2v"), "V": (features, "v2a")}, test, num_queries=3, k=8)
    sections = json.loads(path.read_text())["sections"]
    assert [section["title"] for section in sections] == ["A", "V"]
    for query in (query for section in sections for query in section["queries"]):
        assert sum(match["is_self"] for match in query["matches"]) == 1
        assert sum(match["same_class"] for match in query["matches"]) == 4
        assert (tmp_path / query["media"]).stat().st_size > 1000
        scores = [match["score"] for match in query["matches"]]
        assert scores == sorted(scores, reverse=True)


def test_preview_of_odd_sized_video_is_even_and_of_a_broken_one_is_none(tmp_path):
    source = write_media(tmp_path / "a.mkv", size=(301, 201), codec="ffv1", pix_fmt="bgr0", seconds=1.0)
    assert write_preview(str(source), 0.0, tmp_path / "p.mp4")
    with av.open(str(tmp_path / "p.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width % 2, stream.height % 2) == (0, 0)
        assert stream.height == 128
        assert container.streams.audio[0].codec_context.name == "aac"
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    assert not write_preview(str(tmp_path / "b.mp4"), 0.0, tmp_path / "q.mp4")
    assert not (tmp_path / "q.mp4").exists()
