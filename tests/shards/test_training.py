"""Training reads shards through the code that reads files, near or far."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from preparing import prepare

from avssl.build import Config
from avssl.config import config_from_dict
from avssl.data import (
    AudioSpec,
    ClipDataset,
    ClipKey,
    EpochSampler,
    Manifest,
    Sample,
    ShardOrder,
    VideoSpec,
    make_loader,
    remote,
    scan,
)
from avssl.decode import open_reader
from avssl.errors import ManifestError
from avssl.retrieve import write_preview
from avssl.train import pretrain


@contextmanager
def quiet(description, total, completed):
    class Quiet:
        def update(self, completed, **fields):
            pass

    yield Quiet()


def recipe(folder: Path, name: str, **data) -> Config:
    return config_from_dict(
        {
            "data": {
                "num_frames": 4, "fps": 8, "short_side": 32, "audio_seconds": 0.5, "sample_rate": 8000,
                "num_workers": 0, "silent": "keep", **data,
            },
            "views": {"video": {"size": 32}, "spectrogram": {"n_fft": 256, "hop_seconds": 0.02}},
            "model": {
                "video": {"name": "R2Plus1D", "depth": 10, "width": 4},
                "audio": {"name": "AudioConvNet", "width": 4},
                "projection": [16, 8],
                "batch_norm": True,
            },
            "objective": {"name": "AVID", "num_negatives": 3},
            "train": {"epochs": 2, "batch_size": 2, "log_every": 1, "threads": 1, "device": "cpu"},
            "run": {"folder": str(folder), "name": name},
        },
        Config,
    )  # fmt: skip


@pytest.fixture
def small(videos, tmp_path) -> Path:
    code, _, errors = prepare(
        videos, tmp_path / "small", "--short-side", 32, "--fps", 8, "--sample-rate", 8000, "--workers", 1
    )
    assert code == 0, errors
    return tmp_path / "small"


def test_run_from_shards_sees_the_rows_of_a_run_from_files(videos, small, tmp_path):
    files = scan(videos).manifest
    files.save(tmp_path / "files.parquet")
    runs = {
        "files": pretrain(recipe(tmp_path, "files", manifest=str(tmp_path / "files.parquet")), quiet),
        "shards": pretrain(recipe(tmp_path, "shards", manifest=str(small / "manifest.parquet")), quiet),
    }
    losses, memories, ids = {}, {}, {}
    for name, folder in runs.items():
        losses[name] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
        memories[name] = {k: v.shape for k, v in checkpoint["objective"].items() if "memory" in k}
        ids[name] = Manifest.load(folder / "manifest.parquet").ids
    assert ids["shards"] == ids["files"] == files.ids
    assert len(losses["shards"]) == len(losses["files"]) > 0
    assert memories["shards"] == memories["files"]
    assert not (runs["shards"] / "skipped.jsonl").exists()


def test_previews_of_a_gallery_are_made_from_shards(small, tmp_path):
    manifest = Manifest.load(small / "manifest.parquet").select(need_video=True, need_audio=True)
    source, sound = manifest.sources(0)
    assert write_preview(source, 0.0, tmp_path / "p.mp4", sound=sound)
    assert (tmp_path / "p.mp4").stat().st_size > 1000


@pytest.fixture
def bucket(prepared, tmp_path, monkeypatch) -> str:
    """The prepared folder in a file system that has no paths, and an empty cache."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    for path in prepared.iterdir():
        files.pipe(f"/bucket/{path.name}", path.read_bytes())
    remote._look_up.cache_clear()
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


def clip_dataset(manifest: Manifest) -> ClipDataset:
    return ClipDataset(manifest, open_reader(), VideoSpec(4, 8.0), AudioSpec(0.5, 24000), silent="keep")


def test_clips_from_a_url_are_those_of_the_folder(prepared, bucket, tmp_path):
    near = Manifest.load(prepared / "manifest.parquet").select(need_video=True, need_audio=True)
    far = Manifest.load(f"{bucket}/manifest.parquet").select(need_video=True, need_audio=True)
    assert far.is_remote
    assert not near.is_remote
    assert far.hash == near.hash
    assert far.path(0) == f"{bucket}/{near.row(0).path}"
    for row in range(len(near)):
        ours, theirs = clip_dataset(far)[ClipKey(1, row)], clip_dataset(near)[ClipKey(1, row)]
        assert torch.equal(ours.frames, theirs.frames)
        assert torch.equal(ours.waveform, theirs.waveform)
    copies = [path.name[17:] for path in (tmp_path / "cache").iterdir() if path.suffix == ".tar"]
    assert sorted(copies) == sorted({row.path for row in map(near.row, range(len(near)))})


def test_saved_manifest_of_a_run_goes_on_to_point_at_the_url(bucket, tmp_path):
    Manifest.load(f"{bucket}/manifest.parquet").save(tmp_path / "run.parquet")
    assert Manifest.load(tmp_path / "run.parquet").path(0).startswith(f"{bucket}/shard-")


def test_cache_keeps_its_size_and_fetches_again_what_had_to_go(bucket, prepared, tmp_path, monkeypatch):
    manifest = Manifest.load(f"{bucket}/manifest.parquet").select(need_video=True, need_audio=True)
    largest = max(path.stat().st_size for path in prepared.glob("*.tar"))
    monkeypatch.setenv("AVSSL_CACHE_GB", str(1.1 * largest / 1e9))
    dataset = clip_dataset(manifest)
    for epoch in range(2):
        for row in range(len(manifest)):
            assert dataset[ClipKey(epoch, row)].row == row
            size = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
            assert size <= 1.1 * largest


def test_copy_that_vanishes_before_it_is_opened_is_fetched_again(bucket, monkeypatch):
    manifest = Manifest.load(f"{bucket}/manifest.parquet").select(need_video=True, need_audio=True)
    reader = open_reader()
    gone = []

    class Late:
        def read(self, path, video=None, audio=None, row=-1, audio_source=None):
            if not gone:
                Path(path.path).unlink()
                gone.append(path.path)
            return reader.read(path, video, audio, row=row, audio_source=audio_source)

    dataset = ClipDataset(manifest, Late(), VideoSpec(4, 8.0), None)
    assert dataset[ClipKey(0, 0)].row == 0
    assert gone


def test_shard_that_cannot_be_fetched_is_a_failure_and_a_missing_manifest_an_error(bucket):
    manifest = Manifest.load(f"{bucket}/manifest.parquet").select(need_video=True, need_audio=True)
    fsspec.filesystem("memory").rm(f"/bucket/{manifest.row(0).path}")
    failure = clip_dataset(manifest)[ClipKey(0, 0)]
    assert failure.stage == "open"
    assert "check the address and your access" in failure.reason
    with pytest.raises(ManifestError, match=r"none.parquet: .*; check the address"):
        Manifest.load(f"{bucket}/none.parquet")
    with pytest.raises(ManifestError, match=r"b.parquet: .*; check the address"):
        Manifest.load("nosuch://a/b.parquet")


@pytest.mark.parametrize("text", ["0", "-1", "big"])
def test_impossible_cache_size_is_refused(monkeypatch, text):
    monkeypatch.setenv("AVSSL_CACHE_GB", text)
    with pytest.raises(ManifestError, match="must be a number of gigabytes above 0"):
        remote.cache_bytes()


def test_shard_larger_than_the_cache_says_so(bucket, monkeypatch):
    manifest = Manifest.load(f"{bucket}/manifest.parquet")
    monkeypatch.setenv("AVSSL_CACHE_GB", "1e-6")
    with pytest.raises(ManifestError, match="set AVSSL_CACHE_GB to several shards, or write smaller"):
        manifest.sources(0)


def test_workers_share_the_cache(bucket, tmp_path):
    manifest = Manifest.load(f"{bucket}/manifest.parquet").select(need_video=True, need_audio=True)
    sampler = EpochSampler(len(manifest), 2, seed=0, epoch=0, drop_last=False)
    batches = list(make_loader(clip_dataset(manifest), sampler, num_workers=2, stall_seconds=120))
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(len(manifest)))
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_order_visits_a_window_of_shards_at_a_time_and_every_row_once():
    shards = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 30))
    order = ShardOrder(shards, window=3)
    rows = order(np.random.default_rng(5))
    assert sorted(rows) == list(range(300))
    seen = [set(shards[rows[start : start + 90]]) for start in range(0, 270, 90)]
    assert [len(group) for group in seen] == [3, 3, 3]
    assert len(set.union(*seen)) == 9
    first = shards[rows[:30]]
    assert len(set(first)) == 3  # mixed, not one shard after another
    assert (rows == order(np.random.default_rng(5))).all()
    assert (rows != order(np.random.default_rng(6))).any()


def test_order_is_for_remote_shards_only(prepared):
    manifest = Manifest.load(prepared / "manifest.parquet")
    assert ShardOrder.of(manifest) is None
    far = Manifest(manifest.table, "s3://bucket/prepared")
    order = ShardOrder.of(far)
    paths = far.table["path"].to_pylist()
    assert [paths[row] for row in np.unique(order.shards, return_index=True)[1]] == list(dict.fromkeys(paths))


def test_manifest_of_files_has_no_columns_of_shards_and_an_unchanged_hash(tmp_path):
    sample = Sample("a", "a.mp4", 0.0, 2.0, "x", duration_seconds=2.0, fps=25.0, width=8, height=6)
    manifest = Manifest.from_samples([sample], tmp_path)
    assert "video_offset_bytes" not in manifest.table.column_names
    assert manifest.hash == "4e559dec0405e72b8ceff2a4d51bc721f1a10085f43a5b040bfcc8b1c93ab665"
    placed = dataclasses.replace(sample, video_offset_bytes=512, video_num_bytes=99)
    assert Manifest.from_samples([placed], tmp_path).hash == manifest.hash
    for bad in ({"video_offset_bytes": 5}, {"video_offset_bytes": -1, "video_num_bytes": 3}):
        with pytest.raises(ManifestError, match=r"video_offset_bytes .* must be >= 0 and > 0, or both empty"):
            Manifest.from_samples([dataclasses.replace(sample, **bad)], tmp_path)


@pytest.mark.parametrize("name", ["m.parquet", "m.csv"])
def test_places_are_kept_in_files(prepared, tmp_path, name):
    manifest = Manifest.load(prepared / "manifest.parquet")
    manifest.save(tmp_path / name)
    loaded = Manifest.load(tmp_path / name)
    assert loaded.hash == manifest.hash
    assert [loaded.sources(row) for row in range(7)] == [manifest.sources(row) for row in range(7)]
