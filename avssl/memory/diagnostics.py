"""How good positive sets are: precision, stability, popularity, similarity; at a bounded cost.

Classes judge the sets and never take part in the mining. What would grow with N squared is measured
on a random sample of queries, against all instances.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from avssl.memory.lookup import Vectors, take
from avssl.memory.precision import agreement_precision

SIMILARITY_BINS = 40
GATHERED_ROWS = 65536  # rows or pairs looked up at once, which bounds the memory


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins.

    Parameters
    ----------
    edges : list of float
        Rising limits of the bins, one more than bins; bin i holds ``edges[i] <= value < edges[i + 1]``.
    counts : list of int
        Values in each bin.
    mean, std : float
        Of the values themselves, not of the bins.
    """

    edges: list[float]
    counts: list[int]
    mean: float
    std: float


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Parameters
    ----------
    precision : dict of str to float
        Share in [0, 1] of same-class pairs among pairs of known classes: of exactly mined ``"video"``,
        ``"audio"``, ``"consensus"`` and ``"union"`` sets, of the sets ``"used"``, and ``"chance"``, the
        expectation for positives drawn at random. Empty without classes.
    precision_queries : int
        Instances on which the precision was measured; chance is exact.
    kept_share : float or None
        Share of the previous positives that are positives still; None without previous positives.
    jaccard : float or None
        Mean of |old and new| / |old or new| over the instances that had positives.
    in_degree : Histogram
        How often a seen instance is a positive of another; bins 0, 1, 2 to 3, 4 to 7, and so on.
    never_chosen_share : float
        Share of the seen instances that are nobody's positive.
    largest_in_degree : int
        Largest number of sets one instance is in.
    gini : float
        Gini coefficient of the in-degree: 0, all chosen equally often, to 1, a single one chosen.
    similarity : dict of str to Histogram
        Cosines in 40 bins on [-1, 1]: ``"video_positives"`` and ``"audio_positives"`` of positive pairs,
        ``"video_random"`` and ``"audio_random"`` of random pairs; without those that have no pair.
    """

    precision: dict[str, float]
    precision_queries: int
    kept_share: float | None
    jaccard: float | None
    in_degree: Histogram
    never_chosen_share: float
    largest_in_degree: int
    gini: float
    similarity: dict[str, Histogram]

    def numbers(self) -> dict[str, float]:
        """Scalars to log, without those that are unknown."""
        found: dict[str, float | None] = {
            f"precision_{kind}": share for kind, share in self.precision.items()
        }
        found |= {f"similarity_{pairs}": cosines.mean for pairs, cosines in self.similarity.items()}
        for name in ("kept_share", "jaccard", "never_chosen_share", "largest_in_degree", "gini"):
            found[name] = getattr(self, name)
        return {name: float(value) for name, value in found.items() if value is not None}

    def record(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)


@torch.no_grad()
def diagnose(
    video: Vectors,
    audio: Vectors,
    positives: Tensor,
    *,
    previous: Tensor | None = None,
    seen: Tensor | None = None,
    groups: Tensor | None = None,
    labels: Tensor | None = None,
    num_queries: int = 2048,
    seed: int = 0,
) -> Diagnosis:
    """Judge positive sets; the same arguments give the same answer, and no global random number is drawn.

    Parameters
    ----------
    video, audio : Tensor or ShardedRows, (N, D)
        The two banks, unit rows; scored in float32 even when stored in half precision. Where they are spread
        over processes, all must call this.
    positives : Tensor, (N, k), integer
        The positive sets; -1 marks an empty place.
    previous : Tensor, (N, any), integer, optional
        The sets that were in use before.
    seen : Tensor, (N,), bool, optional
        Instances that take part; all by default.
    groups : Tensor, (N,), integer, optional
        Instances of one group, such as parts of one file, cannot be each other's positives. By default each
        instance is a group of its own.
    labels : Tensor, (N,), int64, optional
        Classes; -1 where unknown.
    num_queries : int >= 1
        Size of the sample that is mined exactly (among instances of known class), ``num_queries * N`` scores
        a modality, and of the one whose pairs give the similarities.
    seed : int
        Of the two samples and of the random pairs.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError
        If shapes do not fit or `num_queries` is not positive.
    """
    _check(video, audio, positives, previous, seen, groups, labels, num_queries)
    num_rows, device = len(video), video.device
    positives = positives.to(device)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.ones(num_rows, dtype=torch.bool, device=device) if seen is None else seen.to(device)
    groups = torch.arange(num_rows, device=device) if groups is None else groups.to(device)
    precision: dict[str, float] = {}
    judged = torch.empty(0, dtype=torch.long)
    if labels is not None:
        labels = labels.to(device)
        judged = _sample(seen & (labels >= 0), num_queries, generator)
        precision = agreement_precision(video, audio, positives, judged, seen, groups, labels)
    kept_share, jaccard = (None, None) if previous is None else _overlap(previous.to(positives), positives)
    in_degree = torch.bincount(positives[positives >= 0].long(), minlength=num_rows)[seen]
    queries = _sample(seen, num_queries, generator)
    return Diagnosis(
        precision=precision,
        precision_queries=len(judged),
        kept_share=kept_share,
        jaccard=jaccard,
        in_degree=_in_degree_histogram(in_degree),
        never_chosen_share=float((in_degree == 0).sum()) / max(1, len(in_degree)),
        largest_in_degree=int(in_degree.max()) if len(in_degree) else 0,
        gini=_gini(in_degree),
        similarity=_similarities(video, audio, positives, queries, seen, groups, generator),
    )


def _check(
    video: Vectors,
    audio: Vectors,
    positives: Tensor,
    previous: Tensor | None,
    seen: Tensor | None,
    groups: Tensor | None,
    labels: Tensor | None,
    num_queries: int,
) -> None:
    if num_queries < 1:
        raise ValueError(f"num_queries must be at least 1; got {num_queries}")
    if video.ndim != 2 or video.shape != audio.shape:
        raise ValueError(
            f"video is {tuple(video.shape)} and audio {tuple(audio.shape)}; both must be (N, D); "
            "pass the two banks of one memory"
        )
    for name, value, ndim in (
        ("positives", positives, 2),
        ("previous", previous, 2),
        ("seen", seen, 1),
        ("groups", groups, 1),
        ("labels", labels, 1),
    ):
        if value is not None and (value.ndim != ndim or len(value) != len(video)):
            shape = f"({len(video)}, k)" if ndim == 2 else f"({len(video)},)"
            raise ValueError(
                f"{name} is {tuple(value.shape)}; must be {shape}, one row an instance of the banks"
            )
        if value is not None and value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype}; must hold integers or booleans")


def _sample(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` rows where `mask` is true, sorted; drawn on the CPU: alike on all devices."""
    rows = mask.nonzero().flatten()
    chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values
    return rows[chosen.to(rows.device)]


def _overlap(previous: Tensor, positives: Tensor) -> tuple[float | None, float | None]:
    """Share of old positives kept, and the mean Jaccard index, over instances that had positives."""
    kept, old, jaccard, instances = 0, 0, 0.0, 0
    for before, after in zip(previous.split(GATHERED_ROWS), positives.split(GATHERED_ROWS), strict=True):
        both = torch.cat([before, after], dim=1).sort(dim=1).values
        common = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(dim=1)
        old_size, new_size = (before >= 0).sum(dim=1), (after >= 0).sum(dim=1)
        had = old_size > 0
        kept, old, instances = kept + int(common.sum()), old + int(old_size.sum()), instances + int(had.sum())
        jaccard += float((common[had].double() / (old_size + new_size - common)[had]).sum())
    return (kept / old, jaccard / instances) if old else (None, None)


def _in_degree_histogram(in_degree: Tensor) -> Histogram:
    """Bins 0, 1, 2 to 3, 4 to 7, ... up to the one of the largest value."""
    doubling = 2 ** torch.arange(31, device=in_degree.device)
    counts = torch.bincount(torch.bucketize(in_degree, doubling, right=True)).tolist() or [0]
    mean, std = _moments(in_degree)
    return Histogram([0.0, *(2.0**power for power in range(len(counts)))], counts, mean, std)


def _gini(values: Tensor) -> float:
    """``G = 2 sum(i x_i) / (n sum(x)) - (n + 1) / n`` with x sorted and i from 1; 0 if all are 0."""
    x, n = values.double().sort().values, len(values)
    if not float(x.sum()):
        return 0.0
    rank = torch.arange(1, n + 1, dtype=torch.double, device=x.device)
    return float(2 * (rank * x).sum() / (n * x.sum()) - (n + 1) / n)


def _similarities(
    video: Vectors,
    audio: Vectors,
    positives: Tensor,
    queries: Tensor,
    seen: Tensor,
    groups: Tensor,
    generator: torch.Generator,
) -> dict[str, Histogram]:
    """Cosines of the queries with their positives and with as many random instances of other groups."""
    chosen = positives[queries].long()
    rows = seen.nonzero().flatten()
    drawn = torch.randint(max(1, len(rows)), chosen.shape, generator=generator).to(rows.device)
    other = rows[drawn]
    other = other.masked_fill(groups[other] == groups[queries][:, None], -1)
    found = {}
    for pairs, partners in (("positives", chosen), ("random", other)):
        query, place = (partners >= 0).nonzero(as_tuple=True)
        for modality, bank in (("video", video), ("audio", audio)):
            if len(query):
                cosines = _cosines(bank, queries[query], partners[query, place])
                found[f"{modality}_{pairs}"] = _similarity_histogram(cosines)
    return found


def _cosines(bank: Vectors, one: Tensor, other: Tensor) -> Tensor:
    pairs = zip(one.split(GATHERED_ROWS), other.split(GATHERED_ROWS), strict=True)
    return torch.cat([(take(bank, i) * take(bank, j)).sum(dim=1) for i, j in pairs])


def _similarity_histogram(cosines: Tensor) -> Histogram:
    """Equal bins on [-1, 1]; a cosine that rounding puts outside falls into the bin at the end."""
    half = SIMILARITY_BINS // 2
    bins = ((cosines + 1) * half).long().clamp(0, SIMILARITY_BINS - 1)
    mean, std = _moments(cosines)
    edges = [i / half for i in range(-half, half + 1)]
    return Histogram(edges, torch.bincount(bins, minlength=SIMILARITY_BINS).tolist(), mean, std)


def _moments(values: Tensor) -> tuple[float, float]:
    x = values.double()
    return (float(x.mean()), float(x.std(correction=0))) if len(x) else (0.0, 0.0)
