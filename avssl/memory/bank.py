"""The memory bank of instance discrimination: one unit vector a sample and modality.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018);
Morgado et al., "Audio-Visual Instance Discrimination with Cross-Modal Agreement" (2021), section 3.1.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl import dist

Modality = Literal["video", "audio"]


class MemoryBank(nn.Module):
    """Unit vectors of every instance in both modalities, with a mask of what has been seen.

    Everything is a persistent buffer, so a checkpoint of the module that owns the bank holds it whole.
    A slot that was never updated (its file could not be read, say) still holds its random initial vector;
    `seen` tells it apart, and `pool` leaves it out.

    Parameters
    ----------
    num_instances : int >= 2
        Number of slots N, one a row of the manifest.
    dim : int >= 1
        Dimension D of the vectors.
    momentum : float in [0, 1)
        Share m of the old vector kept at an update.
    """

    video: Tensor
    audio: Tensor
    seen: Tensor

    def __init__(self, num_instances: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__()
        if num_instances < 2:
            raise ValueError(
                f"num_instances is {num_instances}; instance discrimination needs at least 2 samples"
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {momentum}")
        self.momentum = momentum
        for modality in ("video", "audio"):
            vectors = F.normalize(torch.randn(num_instances, dim), dim=1)
            self.register_buffer(modality, dist.broadcast_(vectors))
        self.register_buffer("seen", torch.zeros(num_instances, dtype=torch.bool))
        self._pool: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return int(self.seen.shape[0])

    @property
    def dim(self) -> int:
        """Dimension of the stored vectors."""
        return int(self.video.shape[1])

    def vectors(self, modality: Modality) -> Tensor:
        """All vectors of a modality, (N, D)."""
        return self.video if modality == "video" else self.audio

    @torch.no_grad()
    def update(self, index: Tensor, z_video: Tensor, z_audio: Tensor) -> None:
        """Move slots towards new embeddings: ``mem <- normalize(m mem + (1 - m) z / |z|)``.

        Embeddings of all ranks are gathered first, so that replicas of the bank stay equal. An index that
        occurs more than once takes its last embedding on every device: all its duplicates write one value.

        Parameters
        ----------
        index : Tensor, (B,), int64
            Slots to update.
        z_video, z_audio : Tensor, (B, D)
            Embeddings; normalised here.
        """
        index = dist.all_gather(index)
        positions = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index[None, :], positions, -1).amax(dim=1)
        for vectors, z in ((self.video, z_video), (self.audio, z_audio)):
            z = F.normalize(dist.all_gather(z).float(), dim=1)[last]
            mixed = self.momentum * vectors[index] + (1 - self.momentum) * z
            vectors[index] = F.normalize(mixed, dim=1)
        if self._pool is None or not bool(self.seen[index].all()):
            self.seen[index] = True
            self._pool = None

    def pool(self) -> tuple[Tensor, Tensor]:
        """Rows that may serve as negatives or positives.

        Returns
        -------
        rows : Tensor, (M,), int64
            The seen rows in ascending order.
        position : Tensor, (N,), int64
            Number of seen rows below each row; for a seen row its position in `rows`.
        """
        if self._pool is None or self._pool[0].device != self.seen.device:
            seen = self.seen.long()
            self._pool = (self.seen.nonzero().flatten(), seen.cumsum(0) - seen)
        return self._pool

    def load_from(self, other: dict[str, Tensor], prefix: str = "bank.") -> None:
        """Take over the vectors of another stage's state dict, such as AVID's for CMA."""
        for name in ("video", "audio", "seen"):
            getattr(self, name).copy_(other[prefix + name])
        self._pool = None

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._pool = None
