"""What a run writes down about its mined positives each time they are mined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from avssl.memory import MemoryBank, Mining
from avssl.memory.diagnostics import Diagnosis, Histogram, diagnose
from avssl.train.log import MetricsLog, append_line, drop_lines_after

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MiningObjective(Protocol):
    """What is asked of an objective that mines, such as `avssl.objectives.CMA`.

    Attributes
    ----------
    bank : MemoryBank
        Where positives are mined.
    positive_set : Tensor, (N, k), integer
        The sets in use; -1 marks an empty place.
    previous_positive_set : Tensor, (N, any), integer, or None
        Those in use before.
    groups : Tensor, (N,), int64
        Instances of one group are never each other's positives.
    last_mining : Mining or None
        How the sets in use were found.
    """

    bank: MemoryBank
    positive_set: Tensor
    previous_positive_set: Tensor | None
    groups: Tensor
    last_mining: Mining | None


class MiningObserver:
    """Diagnoses positives each time they are mined: one line of ``mining.jsonl``, scalars and histograms.

    A line holds ``step``, ``epoch``, ``num_positives``, the provenance of the sets and a `Diagnosis`. Scalars
    go to ``metrics.jsonl`` and TensorBoard under names such as ``positives/precision_consensus``, histograms
    to TensorBoard.

    Parameters
    ----------
    log : MetricsLog or None
        Of the run; ``mining.jsonl`` lies beside its file. None in all processes but the first, which write
        nothing and take part where the bank is spread over the processes.
    step : int
        Step the run (re)starts from. Lines of this step and of later ones are dropped: positives are mined
        before the first step of an epoch, so a run that resumes there mines again.
    labels : array, (N,), int64, optional
        Class of each row of the manifest, -1 where unknown; fewer than two classes cannot judge and count as
        none.
    num_queries : int >= 1
        See `diagnose`.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        step: int = 0,
        labels: ArrayLike | None = None,
        num_queries: int = 2048,
    ) -> None:
        self.log = log
        self.num_queries = num_queries
        classes = None if labels is None else torch.as_tensor(labels)
        judge = classes is not None and len(classes[classes >= 0].unique()) > 1
        self.labels = classes if judge else None
        path = None if log is None else log.path.with_name("mining.jsonl")
        if path is not None and path.exists():  # else there is none to make before something is mined
            drop_lines_after(path, step - 1)

    def __call__(self, objective: MiningObjective, epoch: int, step: int) -> Diagnosis | None:
        """Diagnose the sets the objective has just mined before the first step of `epoch`."""
        if self.log is None and not objective.bank.is_sharded:
            return None
        diagnosis = diagnose(
            objective.bank.vectors("video"),
            objective.bank.vectors("audio"),
            objective.positive_set,
            previous=objective.previous_positive_set,
            seen=objective.bank.seen,
            groups=objective.groups,
            labels=self.labels,
            num_queries=self.num_queries,
            seed=step,
        )
        if self.log is None:
            return None
        place = {"step": step, "epoch": epoch, "num_positives": objective.positive_set.shape[1]}
        mined = {} if objective.last_mining is None else {"mining": objective.last_mining.provenance()}
        append_line(self.log.path.with_name("mining.jsonl"), place | mined | diagnosis.record())
        numbers = {f"positives/{name}": value for name, value in diagnosis.numbers().items()}
        self.log.write(step, epoch, numbers)
        _write_histogram(self.log.events, "positives/in_degree", diagnosis.in_degree, step)
        for pairs, cosines in diagnosis.similarity.items():
            _write_histogram(self.log.events, f"positives/similarity_{pairs}", cosines, step)
        return diagnosis


def _write_histogram(events: SummaryWriter, name: str, histogram: Histogram, step: int) -> None:
    count = sum(histogram.counts)
    events.add_histogram_raw(
        name,
        min=histogram.edges[0],
        max=histogram.edges[-1],
        num=count,
        sum=histogram.mean * count,
        sum_squares=(histogram.std**2 + histogram.mean**2) * count,
        bucket_limits=histogram.edges[1:],
        bucket_counts=histogram.counts,
        global_step=step,
    )
