"""From a model and a manifest to the features of each clip: what the feature cache stores.

`avssl.features` gives the mean over the clips of a sample, of both modalities; the protocols of this room
want every clip, the blocks of the trunks as well, and data sets that can only be seen or only be heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from avssl.build import Config, build_specs, build_views
from avssl.data import BatchKey, ClipBatch, ClipKey, EvalDataset, Failure, Manifest, make_loader
from avssl.decode import open_reader
from avssl.errors import EvaluationError
from avssl.evaluate.blocks import POOL, block_features, block_names, frozen
from avssl.evaluate.labelled import BLOCK_CLIPS, LabelledClips, PickedRows
from avssl.features import Features
from avssl.models import DualEncoder, VisualEncoder
from avssl.types import Views

EMBEDDING = "embedding"
MODALITIES = ("video", "audio")


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """Features of the clips of a manifest that could be read, in the order of its rows.

    Parameters
    ----------
    rows : int64 (M,)
        Row of the manifest each clip is of, rising.
    arrays : dict of str to float (M, d)
        By name, as `feature_names` gives them; memory-mapped where they come from a cache.
    failures : list of Failure
        Clips that could not be read.
    """

    rows: NDArray[np.int64]
    arrays: Mapping[str, NDArray[np.floating[Any]]]
    failures: list[Failure]

    def labelled(self, name: str, manifest: Manifest) -> LabelledClips:
        """Clips of the samples that have a label, with the features of this name.

        Raises
        ------
        EvaluationError
            When no sample has a label.
        """
        labels = np.array(manifest.labels, dtype=object)[self.rows]
        clips = np.flatnonzero([label is not None for label in labels])
        if not clips.size:
            raise EvaluationError(
                f"none of the {len(manifest)} samples has a label; probes need classes; give the manifest a "
                "label column"
            )
        array = self._array(name)
        features = array if len(clips) == len(labels) else PickedRows(array, clips)
        return LabelledClips(features, self.rows[clips], labels[clips].astype(str))

    def means(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of the samples, (N,), and the mean of each one's clips, (N, d); of embeddings unit vectors."""
        array = self._array(name)
        rows, slot, counts = np.unique(self.rows, return_inverse=True, return_counts=True)
        total = torch.zeros(len(rows), array.shape[1])
        for start in range(0, len(array), BLOCK_CLIPS):
            part = slice(start, start + BLOCK_CLIPS)
            block = torch.from_numpy(np.array(array[part], dtype=np.float32))
            total.index_add_(0, torch.from_numpy(slot[part]), block)
        mean = total / torch.from_numpy(counts)[:, None]
        if name.endswith(f".{EMBEDDING}"):
            mean = F.normalize(mean, dim=1)
        return rows, mean.numpy()

    def as_features(self) -> Features:
        """What `avssl.features.extract_features` gives: pooled trunks and embeddings, mean over the clips."""
        rows, video = self.means(f"video.{POOL}")
        heard = f"audio.{POOL}" in self.arrays
        if f"video.{EMBEDDING}" in self.arrays:
            embedding = self.means(f"video.{EMBEDDING}")[1]
        else:
            embedding = F.normalize(torch.from_numpy(video), dim=1).numpy()
        audio = self.means(f"audio.{POOL}")[1] if heard else None
        audio_embedding = self.means(f"audio.{EMBEDDING}")[1] if heard else None
        return Features(rows, video, audio, embedding, audio_embedding, self.failures)

    def _array(self, name: str) -> NDArray[np.floating[Any]]:
        if name not in self.arrays:
            raise EvaluationError(f"no features {name!r} here; there are {', '.join(self.arrays)}")
        return self.arrays[name]


def feature_names(
    encoders: DualEncoder | VisualEncoder, modalities: Sequence[str] | None = None, blocks: bool = True
) -> tuple[str, ...]:
    """Names of the features that encoders give.

    Parameters
    ----------
    encoders : DualEncoder or VisualEncoder
    modalities : sequence of "video" and "audio", optional
        Default: those there is an encoder for.
    blocks : bool
        The blocks of the trunks too, which are long: about 9000 numbers each.

    Returns
    -------
    tuple of str
        ``"video.pool"`` (pooled trunk), ``"video.embedding"`` (of a `DualEncoder`), ``"video.conv2x"`` and so
        on, see `block_names`, and the same for ``"audio"``.
    """
    names = []
    for modality in modalities or [m for m in MODALITIES if getattr(encoders, m) is not None]:
        trunk = _trunk(encoders, modality)
        names.append(f"{modality}.{POOL}")
        if isinstance(encoders, DualEncoder):
            names.append(f"{modality}.{EMBEDDING}")
        if blocks:
            names += [f"{modality}.{name}" for name in block_names(trunk)]
    return tuple(names)


@dataclass(frozen=True)
class Chunk:
    """Clips of consecutive samples: the `number`-th chunk, and what `ClipFeatures` says of it."""

    number: int
    features: ClipFeatures


@torch.no_grad()
def extract_chunks(
    encoders: DualEncoder | VisualEncoder,
    config: Config,
    manifest: Manifest,
    chunks: Mapping[int, range],
    names: Sequence[str],
    *,
    num_clips: int,
    batch_size: int = 32,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Chunk]:
    """Run the encoders over evenly spaced clips of the samples of each chunk; one chunk is held at a time.

    Parameters
    ----------
    encoders, config, manifest, num_clips, batch_size, num_workers, device, precision
        As for `avssl.features.extract_features`, but the encoders keep their modes, and of a `DualEncoder`
        only the modalities that `names` has are read.
    chunks : dict of int to range
        Rows of the manifest by number of the chunk.
    names : sequence of str
        Features, see `feature_names`; in place of a stage may stand the dotted name of a submodule.
    progress : callable, optional
        Called with the number of clips done so far.
    """
    wanted = _by_modality(encoders, names)
    video, audio = build_specs(config)
    dataset = EvalDataset(
        manifest,
        open_reader(config.data.decoder),
        video if "video" in wanted else None,
        audio if "audio" in wanted else None,
        num_clips=num_clips,
    )
    batches, owner = _batches(chunks, num_clips, batch_size)
    loader = make_loader(dataset, batches, num_workers=num_workers, stall_seconds=config.data.stall_seconds)
    encoders = encoders.to(device)
    views = build_views(config, train=False).to(device)
    done, parts, rows, failures = 0, [], [], []
    for place, batch in enumerate(loader):
        if len(batch):
            moved = batch.to(device)
            with torch.autocast(moved.index.device.type, precision, enabled=precision != torch.float32):
                parts.append(_encode(encoders, _view(views, moved), wanted))
            rows.append(batch.index)
        failures += batch.failures
        if place + 1 == len(batches) or owner[place + 1] != owner[place]:
            yield Chunk(owner[place], _joined(parts, rows, failures))
            parts, rows, failures = [], [], []
        done += len(batches[place].keys)
        if progress is not None:
            progress(done)


def _batches(
    chunks: Mapping[int, range], num_clips: int, batch_size: int
) -> tuple[list[BatchKey], list[int]]:
    """Batches that end where chunks end, and the chunk of each."""
    batches: list[BatchKey] = []
    owner: list[int] = []
    for number, rows in chunks.items():
        keys = [ClipKey(0, row, clip) for row in rows for clip in range(num_clips)]
        for start in range(0, len(keys), batch_size):
            batches.append(BatchKey(0, len(batches), tuple(keys[start : start + batch_size])))
            owner.append(number)
    return batches, owner


def _view(views: nn.Module, batch: ClipBatch) -> Views:
    made: Views = views(batch.frames, batch.waveform, batch.index)
    return made


def _encode(
    encoders: DualEncoder | VisualEncoder, view: Views, wanted: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """Features of one batch by full name, float32 on the CPU."""
    found: dict[str, Tensor] = {}
    for modality, names in wanted.items():
        trunk = _trunk(encoders, modality)
        seen = getattr(view, modality)[0]
        blocks = [name for name in names if name not in (POOL, EMBEDDING)]
        features = block_features(trunk, seen, blocks)
        if EMBEDDING in names:
            head = getattr(encoders, f"{modality}_head")
            with frozen(head):
                features[EMBEDDING] = F.normalize(head(features[POOL]).float(), dim=1)
        found |= {f"{modality}.{name}": features[name].cpu() for name in names}
    return found


def _joined(parts: list[dict[str, Tensor]], rows: list[Tensor], failures: list[Failure]) -> ClipFeatures:
    arrays = {name: torch.cat([part[name] for part in parts]).numpy() for name in (parts[0] if parts else ())}
    index = torch.cat(rows).numpy() if rows else np.zeros(0, dtype=np.int64)
    return ClipFeatures(index, arrays, failures)


def _by_modality(encoders: DualEncoder | VisualEncoder, names: Sequence[str]) -> dict[str, list[str]]:
    """Names after the dot, by what stands before it."""
    wanted: dict[str, list[str]] = {}
    for full in names:
        modality, _, name = full.partition(".")
        _trunk(encoders, modality)
        if not name or (name == EMBEDDING and not isinstance(encoders, DualEncoder)):
            raise EvaluationError(
                f"features {full!r} do not exist for this model; there are "
                f"{', '.join(feature_names(encoders))}"
            )
        wanted.setdefault(modality, []).append(name)
    return wanted


def _trunk(encoders: DualEncoder | VisualEncoder, modality: str) -> nn.Module:
    trunk = getattr(encoders, modality, None) if modality in MODALITIES else None
    if trunk is None:
        there = [m for m in MODALITIES if getattr(encoders, m) is not None]
        raise EvaluationError(
            f"the model has no {modality!r} encoder; it has {' and '.join(there)}; ask for features of these"
        )
    module: nn.Module = trunk
    return module
