"""Retrieval metrics, measured: python tools/bench_retrieval.py [--rows 20000] [--rounds 3]

Pairs of unit vectors of 128 dimensions; R@k, median and mean rank, mAP, nDCG and precision of all queries in
one direction, each in the same pool. Sides take turns, medians are printed. Beside the package:

- loop: a query at a time in numpy, scores in float64, sorted, its match looked for in the order. It is timed
  on --loop-rows queries and as many gallery rows, and so is the package beside it; its mAP must be the same;
- full matrix: all scores at once in torch, float32, on --full-rows; ranks by counting, or by sorting rows for
  classes. Not exact: cosines that float32 cannot tell apart count as it happens. Only mAP is computed;
- faiss: IndexFlatIP, float32, the 50 nearest only: enough for R@k, not for ranks, and not exact either.

--rows-ahead N says how long the package would take for so many, by the square.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from avssl.evaluate.pool import make_pool
from avssl.evaluate.ranking import DEPTHS, rank_pool

DIM = 128
Array = np.ndarray


def make_sides(rows: int, seed: int = 0) -> tuple[Array, Array]:
    """Queries and gallery whose rows match, with noise that puts the match first for about two in three."""
    generator = np.random.default_rng(seed)
    one = generator.normal(size=(rows, DIM))
    sides = one, one + 2.5 * generator.normal(size=(rows, DIM))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in sides)


def loop(queries: Array, gallery: Array, groups: Array) -> float:
    """Mean average precision by a loop over queries."""
    found = []
    wide = gallery.astype(np.float64)
    for query, group in zip(queries.astype(np.float64), groups, strict=True):
        order = np.argsort(-(wide @ query))
        places = np.flatnonzero(groups[order] == group) + 1
        found.append(np.mean(np.arange(1, len(places) + 1) / places))
    return float(np.mean(found))


def full_matrix(queries: torch.Tensor, gallery: torch.Tensor, groups: torch.Tensor, single: bool) -> float:
    """Mean average precision from all scores at once."""
    scores = queries @ gallery.T
    if single:
        return float((1 / (1 + (scores > scores.diagonal()[:, None]).sum(dim=1))).double().mean())
    hits = groups[scores.argsort(dim=1, descending=True)] == groups[:, None]
    precision = hits.cumsum(dim=1) / torch.arange(1, hits.shape[1] + 1)
    return float(((precision * hits).sum(dim=1) / hits.sum(dim=1)).double().mean())


def seconds(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each, taking turns after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, times: dict[str, float], ahead: dict[int, float]) -> None:
    print(f"\n{title}")
    for name, value in times.items():
        print(f"  {name:12} {value:9.3f} s   {value / times['package']:7.1f} x package")
    for rows, value in ahead.items():
        print(f"  package at {rows:,} by the square: {value / 60:.1f} minutes a direction")


def bench(args: argparse.Namespace, classes: Array | None) -> None:
    """One kind of relevance: a small pool with the loop, a larger one with the full matrix, the largest."""
    kind = "instance" if classes is None else "class"
    for size, peer in ((args.loop_rows, "loop"), (args.full_rows, "full matrix"), (args.rows, "faiss")):
        queries, gallery = make_sides(size)
        groups = np.arange(size) if classes is None else classes[:size]
        labels = None if classes is None else groups
        pool = make_pool(np.arange(size), np.arange(size), labels, labels)
        sides: dict[str, Callable[[], object]] = {
            "package": lambda q=queries, g=gallery, p=pool: rank_pool(q, g, p, DEPTHS)  # type: ignore[misc]
        }
        if peer == "loop":
            sides[peer] = lambda q=queries, g=gallery, n=groups: loop(q, g, n)  # type: ignore[misc]
            exact = rank_pool(queries, gallery, pool, DEPTHS).metrics["map"]
            assert abs(loop(queries, gallery, groups) - exact) < 1e-6
        elif peer == "full matrix":
            tensors = [torch.from_numpy(x) for x in (queries, gallery, groups)]
            sides[peer] = lambda x=tensors: full_matrix(*x, single=classes is None)  # type: ignore[misc]
        elif classes is None:
            index = faiss.IndexFlatIP(DIM)
            index.add(gallery)
            sides[peer] = lambda i=index, q=queries: i.search(q, max(DEPTHS))  # type: ignore[misc]
        times = seconds(sides, args.rounds)
        ahead = args.rows_ahead if size == args.rows else []
        show(
            f"{kind} relevance, {size:,} x {size:,}",
            times,
            {rows: times["package"] * (rows / size) ** 2 for rows in ahead},
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--loop-rows", type=int, default=4000)
    parser.add_argument("--full-rows", type=int, default=8000)
    parser.add_argument("--rows-ahead", type=int, nargs="*", default=[100_000])
    parser.add_argument("--classes", type=int, default=300)
    parser.add_argument("--kinds", nargs="+", default=["instance", "class"], choices=["instance", "class"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    print(f"{DIM} dimensions, {args.threads} threads, {args.rounds} rounds, medians")
    most = max(args.rows, args.full_rows, args.loop_rows)
    classes = np.random.default_rng(1).integers(0, args.classes, most)
    for kind in args.kinds:
        bench(args, None if kind == "instance" else classes)


if __name__ == "__main__":
    main()
