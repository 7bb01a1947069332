"""NCE against a memory, forward and backward, both modalities: python tools/bench_nce.py [--device cuda]

Compares, interleaved in one call, with the procedure of the authors' release (negatives from an alias
table, all rows of a batch gathered at once, one product a sample, exponentials and logarithms, backward):

- AVID's own step with its draws for each sample, and
- with one pool of negatives for the batch (`shared_negatives`),

and prints the floors: gathering the same rows alone, the pool's matrix products alone.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.objectives import AVID

TEMPERATURE = 0.07


class Nothing(nn.Module):
    """In the place of encoders, which are not measured here."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding_dim = dim


class AliasTable:
    """Walker's alias method over N equally likely rows, as the release draws its negatives."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.probability = torch.ones(size, device=device)
        self.alias = torch.arange(size, device=device)

    def draw(self, number: int) -> Tensor:
        """Rows, one a draw."""
        rows = torch.randint(len(self.alias), (number,), device=self.alias.device)
        keep = torch.bernoulli(self.probability[rows])
        return (rows * keep + self.alias[rows] * (1 - keep)).long()


def official_step(
    bank: dict[str, Tensor], table: AliasTable, z: dict[str, Tensor], index: Tensor, k: int, big_z: float
) -> None:
    """One step as the release takes it."""
    unit = {name: F.normalize(x, dim=1) for name, x in z.items()}
    drawn = table.draw(len(index) * k).view(len(index), k)
    drawn = drawn + (drawn >= index[:, None]).long()
    total = torch.zeros((), device=index.device)
    for query, target in (("video", "audio"), ("audio", "video")):
        positive = bank[target][index]
        negative = bank[target].index_select(0, drawn.flatten()).view(len(index), k, -1)
        s_pos = (unit[query] * positive).sum(dim=1, keepdim=True) / TEMPERATURE
        s_neg = torch.bmm(negative, unit[query].unsqueeze(2)).squeeze(2) / TEMPERATURE
        pos, neg = s_pos.exp(), s_neg.exp()
        attract = -(pos / (pos + k * big_z)).log().mean(dim=1)
        repel = -(k * big_z / (neg + k * big_z)).log().sum(dim=1)
        total = total + (attract + repel).mean() / 2
    total.backward()
    with torch.no_grad():
        for name in ("video", "audio"):
            bank[name][index] = F.normalize(0.5 * bank[name][index] + 0.5 * unit[name], dim=1)


def own_step(objective: AVID, z: dict[str, Tensor], index: Tensor) -> None:
    objective.contrast_embeddings(z["video"], z["audio"], index)["loss"].backward()


def make_objective(args: argparse.Namespace, device: torch.device, shared: bool) -> AVID:
    objective = AVID(
        Nothing(args.dim),  # type: ignore[arg-type]
        args.rows,
        num_negatives=args.negatives,
        shared_negatives=shared,
        bank_dtype=args.bank_dtype,
        partition=1.0,
    ).to(device)
    objective.bank.seen.fill_(True)
    return objective


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bank-dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    drawn, shared = make_objective(args, device, False), make_objective(args, device, True)
    official = {name: drawn.bank.vectors(name).float().clone() for name in ("video", "audio")}  # type: ignore[arg-type]
    table = AliasTable(args.rows - 1, device)
    z = {m: torch.randn(args.batch, args.dim, device=device, requires_grad=True) for m in ("video", "audio")}
    index = torch.randperm(args.rows, device=device)[: args.batch]
    rows = torch.randint(args.rows, (args.batch * args.negatives,), device=device)

    def gather() -> None:
        for bank in official.values():
            bank.index_select(0, rows)

    def products() -> None:
        pool = rows[: args.negatives]
        for name, x in z.items():
            vectors = official[name][pool]
            (x.detach() @ vectors.T) @ vectors

    works = {
        "official procedure": lambda: official_step(official, table, z, index, args.negatives, math.e),
        "drawn for each sample": lambda: own_step(drawn, z, index),
        "one pool for the batch": lambda: own_step(shared, z, index),
        "floor: gather the rows": gather,
        "floor: pool's products": products,
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(args.rounds + 2):
        for name, work in works.items():
            elapsed = milliseconds(work, device)
            if round_ >= 2:
                times[name].append(elapsed)
    print(
        f"B = {args.batch}, K = {args.negatives}, D = {args.dim}, N = {args.rows}, bank {args.bank_dtype}, "
        f"{device}, {args.threads} threads; medians of {args.rounds} rounds"
    )
    reference = statistics.median(times["official procedure"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:24}{median:9.2f} ms {reference / median:7.1f}x")


if __name__ == "__main__":
    main()
