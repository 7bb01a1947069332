"""What a run has learnt so far, measured now and then on data it does not train on.

kNN accuracy needs labels: labelled training samples are the known ones, among which the neighbours of the
held out samples are looked for. Retrieval between sound and video needs none. Neither touches what is
trained: a run is the same with and without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import torch
from torch.distributed.fsdp import FSDPModule

from avssl import dist
from avssl.build import Config, build_specs
from avssl.data import EvalDataset, Manifest
from avssl.decode import open_reader
from avssl.errors import ConfigError, EvaluationError, ManifestError
from avssl.evaluate import knn_accuracy, retrieval_metrics
from avssl.features import Features, extract_features
from avssl.objectives import Objective

MAX_HELD_OUT, MAX_KNOWN = 2000, 5000
"""Samples looked at, one clip of each: of more, so many at equal distances in the order of their ids."""


class HeldOut:
    """Measures encoders on held out samples; built once, used again and again.

    Parameters
    ----------
    config : Config
        The recipe with its statistics, `train.held_out_every` above 0.
    whole : Manifest
        All samples of the run, of all splits.
    device : torch.device
        Where the objective is.
    num_workers : int >= 0
        Processes that read, besides those of the training.
    precision : torch.dtype
        Of the passes through the networks.

    Raises
    ------
    ConfigError
        As `find_held_out`.
    """

    def __init__(
        self,
        config: Config,
        whole: Manifest,
        device: torch.device,
        num_workers: int = 0,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        self.device = device
        self.num_workers = num_workers
        self.precision = precision
        held_out, known = find_held_out(config, whole)
        self.held_out = _Share(held_out)
        self.known = None if known is None else _Share(known)

    def numbers(
        self, objective: Objective, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, float]:
        """Measure the encoders of an objective as they are; all processes must call it, after a step.

        Parameters
        ----------
        objective : Objective
            On the device; not the wrapper for several processes. Left as it was, random numbers too.
        progress : callable, optional
            Called as ``progress(clips done, clips in all)``, of this process.

        Returns
        -------
        dict
            The same on all processes and always of the same names; NaN where nothing can be said, as of
            networks that say the same of everything. ``held_out_knn_video`` and ``held_out_knn_audio``, with
            labels: accuracy among the known samples, of held out samples whose class is among theirs.
            ``held_out_a2v_r1`` and ``held_out_v2a_r1``, with sound: R@1 among ``held_out_pool`` samples.
            ``held_out_skipped``: samples, known ones too, that could not be read.
        """
        with _undisturbed(objective, self.device):
            known = None if self.known is None else self._extract(objective, self.known, progress)
            held_out = self._extract(objective, self.held_out, progress)
        return dist.from_first(lambda: self._measure(known, held_out))

    def _extract(
        self, objective: Objective, share: _Share, progress: Callable[[int, int], None] | None
    ) -> Features | None:
        """Features of all samples that could be read, from all processes; None of none."""
        train = self.config.train
        try:
            own: Features | None = extract_features(
                objective.encoders,
                self.config,
                share.own,
                num_clips=1,
                batch_size=train.batch_size // train.accumulate // dist.world_size(),
                num_workers=self.num_workers,
                device=self.device,
                precision=self.precision,
                progress=progress,
            )
        except EvaluationError:  # none of this process's samples could be read
            own = None
        parts = dist.gather_objects(None if own is None else replace(own, rows=own.rows + share.start))
        return _join([part for part in parts if part is not None])

    def _measure(self, known: Features | None, held_out: Features | None) -> dict[str, float]:
        numbers: dict[str, float] = {}
        modalities = ["video"] if self.config.model.audio is None else ["video", "audio"]
        if self.known is not None:
            for name in modalities:
                numbers[f"held_out_knn_{name}"] = self._knn(known, held_out, name)
        if len(modalities) == 2:
            numbers["held_out_a2v_r1"] = _recall(held_out, "audio_embedding", "video_embedding")
            numbers["held_out_v2a_r1"] = _recall(held_out, "video_embedding", "audio_embedding")
        read = [0 if features is None else len(features.rows) for features in (held_out, known)]
        there = len(self.held_out.samples) + (0 if self.known is None else len(self.known.samples))
        return numbers | {"held_out_pool": float(read[0]), "held_out_skipped": float(there - sum(read))}

    def _knn(self, known: Features | None, held_out: Features | None, modality: str) -> float:
        if known is None or held_out is None or self.known is None:
            return math.nan
        classes = np.array(self.known.samples.labels)[known.rows]
        asked = np.array(self.held_out.samples.labels, dtype=object)[held_out.rows]
        familiar = np.isin(asked.astype(str), classes) & (asked != None)  # noqa: E711
        fit, judge = getattr(known, modality), getattr(held_out, modality)
        return _or_nan(lambda: knn_accuracy(fit, classes, judge[familiar], asked[familiar].astype(str)))


def find_held_out(config: Config, whole: Manifest) -> tuple[Manifest, Manifest | None]:
    """Samples held out, and labelled training samples to know their classes by, None without labels.

    Held out are those of `data.held_out`, else of the run's own manifest: of its split "val", else "test",
    which is what scanning holds out by `data.val_share`; of a named manifest that has neither, all. Copies of
    training samples are not held out.

    Parameters
    ----------
    config : Config
        The recipe.
    whole : Manifest
        All samples of the run.

    Raises
    ------
    ConfigError
        When nothing is held out, or nothing of it can be measured.
    """
    need_audio = config.model.audio is not None
    named, asked = config.data.held_out, f"train.held_out_every is {config.train.held_out_every}"
    training = whole.select(split=config.data.split, need_video=True, need_audio=need_audio)
    try:
        source = whole if named is None else Manifest.load(named)
        split = next((name for name in ("val", "test") if name in source.splits), None)
        if split is None and named is None:
            there = ", ".join(f"{name} ({count})" for name, count in source.splits.items())
            raise ConfigError(
                f"{asked}, but the manifest has no split 'val' or 'test', only {there}; name a manifest of "
                "held out samples with data.held_out=FILE, or scan data.root anew with data.val_share above 0"
            )
        candidates = source.select(split=split, need_video=True, need_audio=need_audio)
        video, audio = build_specs(config)  # the dataset raises if samples were never probed
        EvalDataset(candidates, open_reader(config.data.decoder), video, audio)
    except ManifestError as error:
        raise ConfigError(f"{asked}, and data.held_out is {named!r}: {error}") from error
    own = _without_copies(candidates, training)
    if own is None:
        raise ConfigError(
            f"{asked}, but all {len(candidates)} samples held out are copies of training samples; name a "
            "manifest of others with data.held_out=FILE, or use train.held_out_every=0"
        )
    held_out = _some(own, MAX_HELD_OUT)
    known = _known(training, held_out)
    if known is None and not need_audio:
        raise ConfigError(
            f"{asked}, but nothing can be measured: the model has no sound to retrieve by, and there are no "
            "two classes among the labels of training samples of which one is held out; label the manifest, "
            "or use train.held_out_every=0"
        )
    return held_out, known


def _without_copies(held_out: Manifest, training: Manifest) -> Manifest | None:
    """Samples that do not have content and times of a training sample; None of none."""
    names = ["content_hash", "start_seconds", "end_seconds"]
    alike = pc.is_in(training.table["content_hash"], held_out.table["content_hash"])
    seen = {tuple(row.values()) for row in training.table.select(names).filter(alike).to_pylist()}
    contents = [tuple(row.values()) for row in held_out.table.select(names).to_pylist()]
    rows = [row for row, content in enumerate(contents) if content[0] == "" or content not in seen]
    return _take(held_out, np.array(rows))


def _known(training: Manifest, held_out: Manifest) -> Manifest | None:
    """Labelled training samples; None unless they have two classes, one of which is asked for."""
    labelled = _take(training, np.flatnonzero(training.label_indices() >= 0))
    if labelled is None:
        return None
    known = _some(labelled, MAX_KNOWN)
    return known if len(known.classes) > 1 and set(known.classes) & set(held_out.classes) else None


def _some(manifest: Manifest, most: int) -> Manifest:
    """At most so many samples, at equal distances."""
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(most, len(manifest))).round().astype(int))
    taken = _take(manifest, rows)
    assert taken is not None
    return taken


def _take(manifest: Manifest, rows: np.ndarray) -> Manifest | None:
    return Manifest(manifest.table.take(rows), manifest.root) if len(rows) else None


class _Share:
    """Samples, and this process's part of them: equally many in each, so that some may be in two."""

    def __init__(self, samples: Manifest) -> None:
        self.samples = samples
        size = -(-len(samples) // dist.world_size())
        self.start = min(dist.rank() * size, len(samples) - size)
        self.own = Manifest(samples.table.slice(self.start, size), samples.root)


def _join(parts: list[Features]) -> Features | None:
    """Features of all processes, each sample once."""
    if not parts:
        return None
    rows, first = np.unique(np.concatenate([part.rows for part in parts]), return_index=True)
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])[first]
        for name in ("video", "audio", "video_embedding", "audio_embedding")
        if getattr(parts[0], name) is not None
    }
    return replace(parts[0], rows=rows, failures=[], **arrays)


def _recall(features: Features | None, queries: str, gallery: str) -> float:
    if features is None:
        return math.nan
    asked, ranked = getattr(features, queries), getattr(features, gallery)
    return _or_nan(lambda: retrieval_metrics(asked, ranked, ks=(1,)).recall[1])


def _or_nan(measure: Callable[[], float]) -> float:
    """A number, or NaN of features that it cannot be computed from: collapsed, not finite, or too few."""
    try:
        return measure()
    except EvaluationError:
        return math.nan


@contextmanager
def _undisturbed(objective: Objective, device: torch.device) -> Iterator[None]:
    """Leave an objective as it is: modes and buffers of all modules, sharded parameters, random numbers.

    Meanwhile all processes have the buffers of the first, which are those of a checkpoint: batch norms that
    count each process's own clips have others on each.
    """
    modes = {module: module.training for module in objective.modules()}
    buffers = list(objective.encoders.buffers()) if dist.is_distributed() else []
    kept = [buffer.clone() for buffer in buffers]
    on_gpu = [device] if device.type == "cuda" else []
    for buffer in buffers:
        dist.broadcast_(buffer)
    if isinstance(objective, FSDPModule):
        objective.unshard()  # all that is not in a block; blocks gather themselves
    try:
        with torch.random.fork_rng(devices=on_gpu):
            yield
    finally:
        if isinstance(objective, FSDPModule):
            objective.reshard()
        for module, mode in modes.items():
            module.training = mode
        for buffer, before in zip(buffers, kept, strict=True):
            buffer.copy_(before)
        if on_gpu:
            torch.cuda.empty_cache()  # blocks of the sizes of evaluation are of no use to the training
