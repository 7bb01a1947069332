"""The memory bank of instance discrimination: one unit vector a sample and modality.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018);
Morgado et al., "Audio-Visual Instance Discrimination with Cross-Modal Agreement" (2021), section 3.1.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl import __version__, dist
from avssl.errors import CheckpointError
from avssl.files import atomic_write
from avssl.memory.exchange import gather_on_first, gather_uneven, padded
from avssl.memory.instances import random_rows
from avssl.memory.lookup import ShardedRows, Vectors
from avssl.memory.negatives import Pool

Modality = Literal["video", "audio"]
BankDtype = Literal["float32", "float16", "bfloat16"]
BankStorage = Literal["replicated", "sharded", "auto"]

REPLICATED_BYTES = 4 * 2**30
"""Up to so many bytes of vectors, both modalities together, "auto" keeps all of them in each process."""


class MemoryBank(nn.Module):
    """Unit vectors of every instance in both modalities, with a mask of what has been seen.

    Everything is a persistent buffer, so a checkpoint of the module that owns the bank holds it whole. So it
    does where the vectors are spread over the processes: `state_dict` is then a collective that gathers them
    in the main memory of the first process (the others get empty tensors), and any number of processes loads
    what it returns.

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
    dtype : {"float32", "float16", "bfloat16"}
        How vectors are stored: the shorter types halve the memory and are precise to 5e-4 and 4e-3.
        Arithmetic is done in float32.
    storage : {"replicated", "sharded", "auto"}
        Whether each process holds all vectors or, of W processes, a run of N / W of them; "auto" shards what
        takes more than `REPLICATED_BYTES`. One process holds all.

    Attributes
    ----------
    video, audio : Tensor, (N, D), or this process's (L, D) where sharded
        See `vectors`.
    seen : Tensor, (N,), bool
    keys : Tensor, (N,), int64
        `instance_keys` of the samples, so that vectors find their sample in a grown or reordered data set;
        all zero while unknown.
    """

    video: Tensor
    audio: Tensor
    seen: Tensor
    keys: Tensor

    def __init__(
        self,
        num_instances: int,
        dim: int,
        momentum: float = 0.5,
        dtype: BankDtype = "float32",
        storage: BankStorage = "replicated",
    ) -> None:
        super().__init__()
        if num_instances < 2:
            raise ValueError(
                f"num_instances is {num_instances}; instance discrimination needs at least 2 samples"
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {momentum}")
        for name, value, allowed in (("dtype", dtype, BankDtype), ("storage", storage, BankStorage)):
            if value not in get_args(allowed):
                raise ValueError(
                    f"the bank's {name} must be one of {', '.join(get_args(allowed))}; got {value!r}"
                )
        self.momentum = momentum
        stored = getattr(torch, dtype)
        large = 2 * num_instances * dim * stored.itemsize > REPLICATED_BYTES
        self.is_sharded = dist.world_size() > 1 and (storage == "sharded" or (storage == "auto" and large))
        rank, ranks = (dist.rank(), dist.world_size()) if self.is_sharded else (0, 1)
        length = -(-num_instances // ranks)
        self._run = slice(rank * length, (rank + 1) * length)
        for modality in ("video", "audio"):
            vectors = torch.zeros(length, dim, dtype=stored)
            for start, rows in random_rows(num_instances, dim):
                first, last = max(start, self._run.start), min(start + len(rows), self._run.stop)
                if first < last:
                    here = slice(first - self._run.start, last - self._run.start)
                    vectors[here] = rows[first - start : last - start]
            self.register_buffer(modality, vectors)
        self.register_buffer("seen", torch.zeros(num_instances, dtype=torch.bool))
        self.register_buffer("keys", torch.zeros(num_instances, dtype=torch.int64))
        self._pool: Pool | None = None
        self._everything: Pool | None = None
        self._held: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return int(self.seen.shape[0])

    @property
    def dim(self) -> int:
        """Dimension of the stored vectors."""
        return int(self.video.shape[1])

    def vectors(self, modality: Modality) -> Vectors:
        """All vectors of a modality, (N, D)."""
        held = self.video if modality == "video" else self.audio
        return ShardedRows(held, len(self)) if self.is_sharded else held

    @torch.no_grad()
    def update(self, index: Tensor, z_video: Tensor, z_audio: Tensor) -> None:
        """Move slots towards new embeddings: ``mem <- normalize(m mem + (1 - m) z / |z|)``.

        Embeddings of all ranks are gathered first, so that replicas of the bank stay equal; of a sharded bank
        each rank moves its own slots. An index that occurs more than once takes its last embedding on every
        device: all its duplicates write one value. A slot whose embeddings are not finite stays as it was.

        Parameters
        ----------
        index : Tensor, (B,), int64
            Slots to update.
        z_video, z_audio : Tensor, (B, D)
            Embeddings; normalised here.
        """
        gather = gather_uneven if self.is_sharded else dist.all_gather
        if self._held is not None:
            self._held.append((index, z_video.detach(), z_audio.detach()))
            return
        index, unit_video, unit_audio = (
            gather(index), *(F.normalize(gather(z).float(), dim=1) for z in (z_video, z_audio)),
        )  # fmt: skip
        positions = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index[None, :], positions, -1).amax(dim=1)
        finite = (unit_video.isfinite().all(dim=1) & unit_audio.isfinite().all(dim=1))[last]
        slots, source, fine = index, last, finite
        if self.is_sharded:
            held = (index >= self._run.start) & (index < self._run.stop)
            slots, source, fine = index[held] - self._run.start, last[held], finite[held]
        for vectors, unit in ((self.video, unit_video), (self.audio, unit_audio)):
            before = vectors[slots]
            mixed = self.momentum * before.float() + (1 - self.momentum) * unit[source]
            vectors[slots] = torch.where(fine[:, None], F.normalize(mixed, dim=1).to(vectors.dtype), before)
        complete = self._pool is not None and len(self._pool.rows) == len(self)
        if self._pool is None:  # nobody draws from those that have been seen
            self.seen[index] |= finite
        elif not complete and not bool(self.seen[index].all()):  # asking stalls a GPU: not once all are seen
            self.seen[index] |= finite
            self._pool = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the updates of the block as one at its end, as for a batch that is computed in parts."""
        self._held = []
        try:
            yield
        finally:
            parts, self._held = self._held, None
        if parts:
            self.update(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def pool(self) -> Pool:
        """Rows that may serve as negatives or positives: those that have been seen."""
        if self._pool is None or self._pool.rows.device != self.seen.device:
            self._pool = Pool.of(self.seen)
        return self._pool

    def everything(self) -> Pool:
        """All rows, seen or not; built once, for every step may ask for it."""
        if self._everything is None or self._everything.rows.device != self.seen.device:
            self._everything = Pool.of(torch.ones_like(self.seen))
        return self._everything

    # ---- from one data set to another

    def rows_in(self, keys: Tensor) -> Tensor:
        """Row of each of this bank's instances in another list of keys, (N,), int64; -1 where it has none.

        Without keys on either side, rows correspond by their number.

        Raises
        ------
        CheckpointError
            When keys are missing and the two lists differ in length.
        """
        if not (bool(self.keys.any()) and bool(keys.any())):
            if len(keys) != len(self):
                raise CheckpointError(
                    f"a bank of {len(keys)} instances without ids cannot be matched with {len(self)} "
                    "samples; use the data it was trained on, or start without its memories"
                )
            return torch.arange(len(self))
        ordered, order = keys.cpu().sort()
        place = torch.searchsorted(ordered, self.keys.cpu()).clamp_max(len(keys) - 1)
        return torch.where(ordered[place] == self.keys.cpu(), order[place], -1)

    def load_from(self, other: Mapping[str, Tensor], prefix: str = "bank.") -> Tensor:
        """Take over vectors of another bank's state, such as AVID's for CMA, instance by instance.

        Parameters
        ----------
        other : mapping
            State dict that holds ``video``, ``audio``, ``seen`` and, unless it is an old one, ``keys``.
        prefix : str
            What stands before these names.

        Returns
        -------
        Tensor, (N,), int64
            The row each instance was taken from, -1 for those that keep their random vector.
        """
        unknown = torch.zeros(len(other[prefix + "seen"]), dtype=torch.int64)
        rows = self.rows_in(other.get(prefix + "keys", unknown))
        for name, held in (("video", rows[self._run]), ("audio", rows[self._run]), ("seen", rows)):
            mine, theirs, here = getattr(self, name)[: len(held)], other[prefix + name], held >= 0
            mine[here.to(mine.device)] = theirs[held[here].to(theirs.device)].to(mine.device, mine.dtype)
        self._pool = None
        return rows

    def save(self, path: str | Path) -> None:
        """Write the bank alone, without encoders, whole or not at all; if sharded, all processes call it."""
        state = self.state_dict()
        if self.is_sharded and dist.rank() > 0:  # the first process writes
            return
        with atomic_write(Path(path)) as file:
            torch.save({"avssl_version": __version__, "bank": state}, file)

    @classmethod
    def load(cls, path: str | Path, momentum: float = 0.5) -> MemoryBank:
        """Read what `save` wrote; never executes a pickle.

        Raises
        ------
        CheckpointError
            When the file is damaged or not a bank.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["bank"]
            dtype = str(state["video"].dtype).removeprefix("torch.")
            num_instances, dim = state["video"].shape
            bank = cls(num_instances, dim, momentum, dtype)  # type: ignore[arg-type]
            bank.load_state_dict(state)
        except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path}: damaged or not a memory bank ({first_line}); give a file that MemoryBank.save wrote"
            ) from error
        return bank

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("video", "audio") if self.is_sharded else ():
            destination[prefix + name] = gather_on_first(destination[prefix + name])[: len(self)]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        state_dict.setdefault(prefix + "keys", torch.zeros_like(self.keys))  # foreign banks have none
        for name in ("video", "audio") if self.is_sharded else ():
            whole = state_dict.get(prefix + name)
            if whole is not None and len(whole) == len(self):  # of any other length is refused below
                state_dict[prefix + name] = padded(whole[self._run], len(self.video))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._pool = None
