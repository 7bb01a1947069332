"""From a model and a manifest to arrays: used by probes, retrieval and galleries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avssl.build import Config, build_encoders, build_specs, build_views
from avssl.config import config_from_dict
from avssl.data import (
    AudioSpec,
    ClipBatch,
    EvalDataset,
    Failure,
    Manifest,
    VideoSpec,
    make_loader,
    ordered_batches,
)
from avssl.decode import open_reader
from avssl.errors import EvaluationError
from avssl.models import DualEncoder, VisualEncoder
from avssl.types import Views

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """What the encoders say of the samples of a manifest that could be read.

    Parameters
    ----------
    rows : int64 (N,)
        Row of the manifest of each.
    video, audio : float32 (N, dim)
        Pooled trunk features, mean over the clips of a sample; `audio` is None without an audio encoder.
    video_embedding, audio_embedding : float32 (N, D)
        Unit vectors in the common space; of a visual encoder the trunk features, and None.
    failures : list of Failure
        Clips that could not be read; a sample is missing when all of its clips failed.
    """

    rows: NDArray[np.int64]
    video: Array
    audio: Array | None
    video_embedding: Array
    audio_embedding: Array | None
    failures: list[Failure]


def load_encoders(
    state: dict[str, object], source: str | Path = "checkpoint"
) -> tuple[DualEncoder | VisualEncoder, Config]:
    """Encoders and recipe of a checkpoint that `avssl.train.load_checkpoint` read."""
    config = config_from_dict(state["config"], Config, str(source))  # type: ignore[arg-type]
    encoders = build_encoders(config.model)
    objective: dict[str, Tensor] = state["objective"]  # type: ignore[assignment]
    prefix = "encoders."
    encoders.load_state_dict({k[len(prefix) :]: v for k, v in objective.items() if k.startswith(prefix)})
    return encoders, config


@torch.no_grad()
def extract_features(
    encoders: DualEncoder | VisualEncoder,
    config: Config,
    manifest: Manifest,
    *,
    num_clips: int = 2,
    batch_size: int = 32,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Run both encoders over evenly spaced clips of every sample.

    Processes that hold parts of one network wait for each other in every pass through it: each may extract
    samples of its own, if all have equally many. There is one pass a batch, also when nothing of it could be
    read.

    Parameters
    ----------
    encoders : DualEncoder or VisualEncoder
        Put in evaluation mode and moved to the device.
    config : Config
        What a clip and its views are; augmentation is left out.
    manifest : Manifest
        Samples with video and, for a `DualEncoder`, audio.
    num_clips : int >= 1
        Clips a sample.
    batch_size, num_workers, device
        How to work; they do not change the result beyond rounding.
    precision : torch.dtype
        Of the networks' passes; features are float32 at any.
    progress : callable, optional
        Called as ``progress(clips done, clips in all)``.

    Raises
    ------
    EvaluationError
        When no sample could be read.
    """
    video, audio = build_specs(config)
    dataset = EvalDataset(manifest, open_reader(config.data.decoder), video, audio, num_clips=num_clips)
    batches = ordered_batches(len(manifest), batch_size, num_clips)
    stall_seconds = config.data.stall_seconds
    loader = make_loader(dataset, batches, num_workers=num_workers, stall_seconds=stall_seconds)
    encoders = encoders.to(device).eval()
    views = build_views(config, train=False).to(device)
    parts: list[tuple[Tensor, ...]] = []
    failures: list[Failure] = []
    for number, batch in enumerate(loader):
        failures += batch.failures
        moved = (batch if len(batch) else _blank(video, audio)).to(device)
        view = views(moved.frames, moved.waveform, moved.index)
        with torch.autocast(moved.index.device.type, precision, enabled=precision != torch.float32):
            encoded = _encode(encoders, view)
        if len(batch):
            parts.append((batch.index, *encoded))
        if progress is not None:
            done = min((number + 1) * batch_size, len(manifest) * num_clips)
            progress(done, len(manifest) * num_clips)
    if not parts:
        raise EvaluationError(
            f"none of the {len(manifest)} samples could be read; the first: {failures[0].path}: "
            f"{failures[0].stage}: {failures[0].reason}"
        )
    return _average(parts, failures)


def _blank(video: VideoSpec, audio: AudioSpec | None) -> ClipBatch:
    """A batch of one clip that is black and silent."""
    side = video.short_side or 2
    frames = torch.zeros(video.num_frames, side, side, 3, dtype=torch.uint8)
    samples = 0 if audio is None else audio.window(0.0).num_samples
    return ClipBatch([frames], torch.zeros(1, 1, samples) if samples else None, torch.zeros(1).long())


def _encode(encoders: DualEncoder | VisualEncoder, view: Views) -> tuple[Tensor, ...]:
    """Trunk features, then unit embeddings, of video and, where there is an encoder for it, audio."""
    seen = encoders.video(view.video[0]).float()
    if isinstance(encoders, VisualEncoder):
        return seen.cpu(), F.normalize(seen, dim=1).cpu()
    heard = encoders.audio(view.audio[0]).float()
    embedded = encoders.video_head(seen), encoders.audio_head(heard)
    return tuple(x.cpu() for x in (seen, heard, *(F.normalize(z.float(), dim=1) for z in embedded)))


def _average(parts: list[tuple[Tensor, ...]], failures: list[Failure]) -> Features:
    """Mean over the clips of each sample; embeddings are scaled to unit length again."""
    index, *values = (torch.cat(column) for column in zip(*parts, strict=True))
    rows, slot, count = index.unique(return_inverse=True, return_counts=True)
    means = [torch.zeros(len(rows), x.shape[1]).index_add_(0, slot, x) / count[:, None] for x in values]
    half = len(means) // 2
    trunks, embeddings = means[:half], [F.normalize(x, dim=1) for x in means[half:]]
    audio = trunks[1].numpy() if half == 2 else None
    audio_embedding = embeddings[1].numpy() if half == 2 else None
    return Features(rows.numpy(), trunks[0].numpy(), audio, embeddings[0].numpy(), audio_embedding, failures)
