"""Linear classifiers on the blocks of a frozen trunk, as AVID's release has them for Kinetics.

Each block has a head of its own: batch norm, then a linear layer, on the pooled map (see
`avssl.evaluate.blocks`). Adam, batches of 128 clips, 12 epochs, the rate a tenth after half and again after
three quarters of them. Data far smaller than Kinetics would have too few steps so: they get more epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.errors import EvaluationError
from avssl.evaluate.checks import FloatArray, IntArray
from avssl.evaluate.labelled import LabelledClips, Predictions, common_classes, predict_samples
from avssl.evaluate.linear import validation_rows

LEARNING_RATES = (1e-4, 1e-3, 1e-2)
"""Rates to choose from; the release has 1e-4 without a choice."""

EPOCHS, BATCH_SIZE = 12, 128
LEAST_STEPS = 1000
MILESTONES = (0.5, 0.75)  # shares of the epochs after which the rate falls
DECAY = 0.1


@dataclass(frozen=True, eq=False)
class BlockProbeResult:
    """Outcome of the probe of one block.

    Parameters
    ----------
    accuracy : float
        Share of the test samples classified rightly by the mean of their clips' probabilities.
    clip_accuracy : float
        Share of the test clips classified rightly, each by itself.
    top5 : float
        Share of the test samples whose class is among the five likeliest.
    learning_rate : float
        The one the final head was trained with.
    validation : dict of float to float
        Accuracy of each rate on the validation samples; empty when there was no choice.
    epochs : int
        Its length.
    num_train, num_train_clips : int
        Samples and clips of the final training.
    predictions : Predictions
        Of the test samples.
    """

    accuracy: float
    clip_accuracy: float
    top5: float
    learning_rate: float
    validation: Mapping[float, float]
    epochs: int
    num_train: int
    num_train_clips: int
    predictions: Predictions


def block_probe(
    train: LabelledClips,
    test: LabelledClips,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int | None = None,
    batch_size: int = BATCH_SIZE,
    weight_decay: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> BlockProbeResult:
    """Train a head on the training clips and judge the test samples.

    Of several rates the one of largest accuracy on a fifth of each class of the training samples is taken,
    trained without them (the smallest among equals); then a head is trained on all. All clips of a sample are
    on one side. Test samples take no part in either. All rates see the same batches, so clips are read once
    an epoch.

    Parameters
    ----------
    train, test : LabelledClips
        Clips with the features of one block.
    learning_rates : sequence of float > 0
        Rates to choose from; of a single one nothing is chosen.
    epochs : int >= 1, optional
        Length of training. Default: 12, or as many as make 1000 steps of the training clips.
    batch_size : int >= 2
        Clips a step; batches of an epoch differ in size by one at most.
    weight_decay : float >= 0
        Of Adam, as a term of the gradient.
    seed : int
        Of the first weights, the order of clips and the validation samples.
    device : torch.device or str
        Where the head is trained.
    progress : callable, optional
        Called as ``progress(epochs done, epochs in all)``, both trainings together.

    Raises
    ------
    EvaluationError
        When numbers, classes or features do not fit, or a feature is not finite.
    """
    if epochs is None and batch_size >= 2:
        epochs = max(EPOCHS, math.ceil(LEAST_STEPS / math.ceil(len(train) / batch_size)))
    if (
        not learning_rates
        or min(learning_rates) <= 0
        or not epochs
        or epochs < 1
        or batch_size < 2
        or weight_decay < 0
    ):
        raise EvaluationError(
            f"got learning_rates={tuple(learning_rates)}, epochs={epochs}, batch_size={batch_size} and "
            f"weight_decay={weight_decay}; must be rates > 0, epochs >= 1, batch_size >= 2 and weight_decay "
            ">= 0"
        )
    names, _, true = common_classes(train, test)
    rates = sorted(learning_rates)
    trainings = (len(rates) > 1) + 1
    training = _Training(epochs, batch_size, weight_decay, seed, torch.device(device))
    validation: dict[float, float] = {}
    if len(rates) > 1:
        classes = np.unique(train.sample_labels, return_inverse=True)[1].astype(np.int64)
        held = train.samples[validation_rows(classes, seed)]
        judge = train.of(held)
        numbers = np.searchsorted(names, judge.labels).astype(np.int64)
        told = None if progress is None else lambda done: progress(done, trainings * epochs)
        heads = training.run(train.of(np.setdiff1d(train.samples, held)), names, rates, told)
        for rate, head in zip(rates, heads, strict=True):
            scores = training.probabilities(head, judge)
            validation[rate] = predict_samples(scores, judge, numbers, names).accuracy
    best = max(rates, key=lambda rate: (validation.get(rate, 0.0), -rate))
    before = (trainings - 1) * epochs
    told = None if progress is None else lambda done: progress(before + done, trainings * epochs)
    scores = training.probabilities(training.run(train, names, [best], told)[0], test)
    predictions = predict_samples(scores, test, true, names)
    return BlockProbeResult(
        accuracy=predictions.accuracy,
        clip_accuracy=float(np.mean(scores.argmax(axis=1) == true)),
        top5=_top(scores, test, predictions, 5),
        learning_rate=best,
        validation=validation,
        epochs=epochs,
        num_train=len(train.samples),
        num_train_clips=len(train),
        predictions=predictions,
    )


def make_head(dimensions: int, num_classes: int, seed: int) -> nn.Sequential:
    """Batch norm and a linear layer at PyTorch's first weights; the state of its generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.BatchNorm1d(dimensions), nn.Linear(dimensions, num_classes))


def epoch_batches(num_clips: int, batch_size: int, seed: int, epoch: int) -> list[IntArray]:
    """Clips of each batch of an epoch, in random order, none left out; sizes differ by one at most."""
    order = np.random.default_rng([seed, epoch]).permutation(num_clips)
    return np.array_split(order, -(-num_clips // batch_size))


@dataclass(frozen=True)
class _Training:
    """How heads are trained."""

    epochs: int
    batch_size: int
    weight_decay: float
    seed: int
    device: torch.device

    def run(
        self,
        clips: LabelledClips,
        names: list[Any],
        rates: Sequence[float],
        told: Callable[[int], None] | None,
    ) -> list[nn.Sequential]:
        """A trained head for each rate, in evaluation mode."""
        for _ in clips.blocks():  # refuses features that are not finite
            pass
        classes = torch.from_numpy(np.searchsorted(names, clips.labels)).to(self.device)
        heads, optimizers, schedules = [], [], []
        for rate in rates:
            head = make_head(clips.features.shape[1], len(names), self.seed).to(self.device)
            optimizer = torch.optim.Adam(head.parameters(), lr=rate, weight_decay=self.weight_decay)
            steps = [max(1, round(share * self.epochs)) for share in MILESTONES]
            schedules.append(torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, DECAY))
            heads.append(head)
            optimizers.append(optimizer)
        for epoch in range(self.epochs):
            for places in epoch_batches(len(clips), self.batch_size, self.seed, epoch):
                x = self._features(clips, np.sort(places))
                y = classes[torch.from_numpy(np.sort(places)).to(self.device)]
                for head, optimizer in zip(heads, optimizers, strict=True):
                    optimizer.zero_grad()
                    F.cross_entropy(head(x), y).backward()
                    optimizer.step()
            for schedule in schedules:
                schedule.step()
            if told is not None:
                told(epoch + 1)
        return [head.eval() for head in heads]

    @torch.no_grad()
    def probabilities(self, head: nn.Sequential, clips: LabelledClips) -> FloatArray:
        """Softmax (M, K) of each clip."""
        parts = [
            head(torch.from_numpy(block).to(self.device)).double().softmax(dim=1).cpu().numpy()
            for _, block in clips.blocks()
        ]
        return np.concatenate(parts)

    def _features(self, clips: LabelledClips, places: IntArray) -> Tensor:
        return torch.from_numpy(np.array(clips.features[places], dtype=np.float32)).to(self.device)


def _top(scores: FloatArray, clips: LabelledClips, predictions: Predictions, k: int) -> float:
    """Share of the samples with fewer than `k` classes likelier than the true one."""
    mean = clips.mean_scores(scores)
    own = np.take_along_axis(mean, predictions.true[:, None], axis=1)
    return float(np.mean((mean > own).sum(axis=1) < k))
