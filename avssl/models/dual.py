"""What training produces and everything after it reads: a pair of encoders, or a video encoder alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.errors import ConfigError
from avssl.models.audio import AudioConvNet
from avssl.models.heads import ProjectionHead
from avssl.models.r2plus1d import R2Plus1D


class DualEncoder(nn.Module):
    """A video and an audio encoder, each with its projection into one common embedding space.

    Parameters
    ----------
    video : nn.Module with an int attribute ``dim``
        Maps (B, 3, T, H, W) to (B, dim); kept as `video`.
    audio : nn.Module with an int attribute ``dim``
        Maps (B, 1, frames, bins) to (B, dim); kept as `audio`.
    projection : sequence of int
        Lengths after each layer of the two heads, kept as `video_head` and `audio_head`; see
        `ProjectionHead`. One number is the linear head.
    batch_norm : bool
        Batch norm in the heads; the official ones have none.

    Attributes
    ----------
    embedding_dim : int
        Length of an embedding, the last number of `projection`.

    Raises
    ------
    ConfigError
        When an encoder has no ``dim`` or `projection` cannot be built.
    """

    def __init__(
        self,
        video: nn.Module,
        audio: nn.Module,
        projection: Sequence[int] = (512, 512, 128),
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.video = video
        self.audio = audio
        self.video_head = ProjectionHead(_dim(video, "video"), projection, batch_norm)
        self.audio_head = ProjectionHead(_dim(audio, "audio"), projection, batch_norm)
        self.embedding_dim = self.video_head.dim

    @classmethod
    def official(cls, depth: int = 18) -> DualEncoder:
        """Build the released model of AVID and CMA: 21,286,784 parameters at depth 18 (others: 10, 34)."""
        return cls(R2Plus1D(depth), AudioConvNet())

    @classmethod
    def tiny(cls) -> DualEncoder:
        """Build a model of 0.8 million parameters that trains on a CPU, for small frames and spectrograms."""
        return cls(R2Plus1D(10, width=16), AudioConvNet(width=16), projection=(128, 128, 64), batch_norm=True)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings as the objectives take them, not normalised.

        Parameters
        ----------
        video : Tensor, (B, 3, T, H, W)
        audio : Tensor, (B, 1, frames, bins)

        Returns
        -------
        z_video, z_audio : Tensor, (B, embedding_dim)
        """
        return self.video_head(self.video(video)), self.audio_head(self.audio(audio))

    def embed_video(self, video: Tensor) -> Tensor:
        """Unit vectors (B, embedding_dim), float32 also under autocast, of video (B, 3, T, H, W)."""
        return _unit(self.video_head(self.video(video)))

    def embed_audio(self, audio: Tensor) -> Tensor:
        """Unit vectors (B, embedding_dim), float32 also under autocast, of sound (B, 1, frames, bins)."""
        return _unit(self.audio_head(self.audio(audio)))


class VisualEncoder(nn.Module):
    """A video (or image) encoder alone, for the visual objectives, which have heads of their own.

    Parameters
    ----------
    video : nn.Module with an int attribute ``dim``
        Maps (B, 3, T, H, W) to (B, dim); kept as `video`.

    Attributes
    ----------
    embedding_dim : int
        ``video.dim``: there is no projection.
    """

    audio = None

    def __init__(self, video: nn.Module) -> None:
        super().__init__()
        self.video = video
        self.embedding_dim = _dim(video, "video")

    def embed_video(self, video: Tensor) -> Tensor:
        """Trunk features of video (B, 3, T, H, W) as unit vectors (B, dim), float32 also under autocast."""
        return _unit(self.video(video))


def _unit(z: Tensor) -> Tensor:
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)


def _dim(encoder: nn.Module, modality: str) -> int:
    dim = getattr(encoder, "dim", None)
    if not isinstance(dim, int):
        raise ConfigError(
            f"the {modality} encoder {type(encoder).__name__} must have an int attribute `dim`, the "
            f"length of the features it returns; got {dim!r}. Set `self.dim` in its constructor"
        )
    return dim
