"""Encoders that pass embeddings through, and the equations of NCE written naively in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn


class Passing(nn.Module):
    """Stands where encoders stand and gives back what it is given: `Views` then hold embeddings."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding_dim = dim
        self.scale = nn.Parameter(torch.ones(()))
        self.video = self.audio = nn.Identity()

    def video_head(self, x: Tensor) -> Tensor:
        return self.scale * x

    audio_head = video_head

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        return self.video_head(video), self.audio_head(audio)


@pytest.fixture
def passing():
    return Passing


def naive_nce(
    z: Tensor, memory: Tensor, positives: list[list[int]], negatives: list[list[int]], log_z: float
) -> Tensor:
    """Mean over samples of mean over positives of -log P plus sum over negatives of -log(1 - P), float64."""
    total, used = torch.zeros((), dtype=torch.float64), 0
    for i, rows in enumerate(positives):
        if not rows:
            continue
        used += 1
        query = z[i].double() / z[i].double().norm()
        noise = len(negatives[i]) * math.exp(log_z)
        attract = torch.zeros((), dtype=torch.float64)
        for j in rows:
            score = ((query * memory[j].double()).sum() / 0.07).exp()
            attract = attract - (score / (score + noise)).log() / len(rows)
        repel = torch.zeros((), dtype=torch.float64)
        for j in negatives[i]:
            score = ((query * memory[j].double()).sum() / 0.07).exp()
            repel = repel - (noise / (score + noise)).log()
        total = total + attract + repel
    return total / max(used, 1)


def naive_softmax(
    z: Tensor, memory: Tensor, positives: list[list[int]], negatives: list[list[int]]
) -> Tensor:
    """InfoNCE with the logarithm inside the mean over positives, float64."""
    total, used = torch.zeros((), dtype=torch.float64), 0
    for i, rows in enumerate(positives):
        if not rows:
            continue
        used += 1
        query = z[i].double() / z[i].double().norm()
        noise = sum(((query * memory[j].double()).sum() / 0.07).exp() for j in negatives[i])
        for j in rows:
            score = ((query * memory[j].double()).sum() / 0.07).exp()
            total = total - (score / (score + noise)).log() / len(rows)
    return total / max(used, 1)


@pytest.fixture
def naive():
    return {"nce": naive_nce, "softmax": naive_softmax}
