"""Agreement mining, measured: python tools/bench_mining.py [--rows 20000 100000 1000000] [--queries 1024]

Rows: unit vectors of a hierarchy that both modalities share. A class has some 250 members and belongs to one
of sqrt(classes) families; a vector is the normalised sum of its family's direction, its class's direction,
16 latent numbers of the instance (the same in both modalities, mixed by a random matrix of each) and
isotropic noise of length about 1, so that the best agreements of a row are decided by latents and noise.

Official procedure, from its description (AVID-CMA release): 16 queries at a time against all rows,
(N, 16) matrices, minimum, topk(k + 1, dim=0) without rank 0, sorted by index. Where --queries is below
--rows it is timed on so many queries and multiplied, and recall is measured on those; "exact" is run in full
up to --full rows and above that timed on a sample of its tile pairs and multiplied. All sides take turns.
The floor is the arithmetic alone: 2 N^2 D multiply-adds a modality over the rate of a large float32 product
measured in the same minute ("exact" needs half by symmetry and multiplies in bfloat16 where that is faster).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from avssl.memory import mine_positives
from avssl.memory.clusters import similar_order
from avssl.memory.exact import all_pairs, cut_tiles, default_side, search_pairs
from avssl.memory.rows import Rows
from avssl.memory.screen import screen_dtype

DIM, K = 128, 32


def make_banks(num_rows: int, seed: int = 0) -> list[torch.Tensor]:
    """Two banks that share a class hierarchy; see above."""
    g = torch.Generator().manual_seed(seed)
    classes = max(2, num_rows // 250)
    families = max(2, int(classes**0.5))
    label = torch.randint(classes, (num_rows,), generator=g)
    parent = torch.randint(families, (classes,), generator=g)
    latent = torch.randn(num_rows, 16, generator=g)
    banks = []
    for _ in range(2):
        family = F.normalize(torch.randn(families, DIM, generator=g), dim=1)
        own = F.normalize(torch.randn(classes, DIM, generator=g), dim=1)
        mix = torch.randn(16, DIM, generator=g) / (16 * DIM) ** 0.5
        bank = (family[parent] + own)[label]
        bank += latent @ mix + torch.randn(num_rows, DIM, generator=g) / DIM**0.5
        banks.append(F.normalize(bank, dim=1))
    return banks


def official(video: torch.Tensor, audio: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Positive sets of some rows by the official procedure."""
    found = []
    for ids in queries.split(16):
        scores = torch.minimum(video @ video[ids].T, audio @ audio[ids].T)
        found.append(scores.topk(K + 1, dim=0).indices[1:].T.sort(dim=1).values)
    return torch.cat(found)


def exact_on_sample(video: torch.Tensor, audio: torch.Tensor, rows_of_tiles: int) -> float:
    """Seconds of the exact search of all rows, from some rows of its tile pairs."""
    rows = Rows(video, audio, "consensus")
    start = time.perf_counter()
    tiles = cut_tiles(similar_order(rows, default_side(video.device)), default_side(video.device))
    ordered = time.perf_counter() - start
    own = [(i, i) for i in range(len(tiles))]  # whose cost does not grow with the number of pairs
    pairs = [(i, j) for i, j in all_pairs(len(tiles)) if i != j]
    some = pairs[:: max(1, len(pairs) // (rows_of_tiles * 100))]
    seconds = []
    for part in (own, sorted(own + some)):
        start = time.perf_counter()
        search_pairs(rows, K, tiles, part, lambda done: None)
        seconds.append(time.perf_counter() - start)
    return ordered + seconds[0] + (seconds[1] - seconds[0]) * len(pairs) / len(some)


def product_rate(device: torch.device) -> float:
    """Operations a second of a float32 product of (4096, 512) with (512, 4096)."""
    block, best = torch.randn(4096, 512, device=device), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float((block @ block.T)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * 4096 * 4096 * 512 / best


def overlap(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Share of the reference sets that was found."""
    return float((reference[:, :, None] == found[:, None, :]).any(dim=2).float().mean())


def bench(num_rows: int, arguments: argparse.Namespace) -> None:
    """Print the table of one size."""
    video, audio = (bank.to(arguments.device) for bank in make_banks(num_rows))
    queries = torch.randperm(num_rows, generator=torch.Generator().manual_seed(1))
    queries = queries[: arguments.queries].to(video.device)
    times: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    reference = official(video, audio, queries)

    def run_official() -> None:
        start = time.perf_counter()
        official(video, audio, queries)
        times.setdefault("official", []).append((time.perf_counter() - start) * num_rows / len(queries))
        notes["official"] = "" if len(queries) == num_rows else f"{len(queries)} queries, multiplied"

    def run_method(method: str) -> None:
        if method == "exact" and num_rows > arguments.full:
            times.setdefault(method, []).append(exact_on_sample(video, audio, 20))
            notes[method] = "some tile pairs, multiplied"
            return
        mined = mine_positives(video, audio, K, method=method)
        times.setdefault(method, []).append(mined.seconds)
        notes[method] = (
            f"did {mined.method}, recall@{K} {overlap(mined.positives[queries], reference):.4f}, "
            f"certified {mined.certified_share:.0%}, compared {mined.compared_share:.1%} of pairs"
        )

    sides: list[Callable[[], None]] = [run_official]
    sides += [lambda method=method: run_method(method) for method in arguments.methods]
    for _ in range(arguments.rounds):
        for side in sides:
            side()
    rate = product_rate(video.device)
    floor = 2 * 2 * num_rows**2 * DIM / rate
    print(
        f"\nN = {num_rows:,}, D = {DIM}, k = {K}; {torch.get_num_threads()} threads on {video.device}; ",
        end="",
    )
    print(f"screen {str(screen_dtype(video.device)).split('.')[-1]}; {arguments.rounds} rounds, medians")
    print(f"{'floor':10} {floor:9.2f} s at {rate / 1e9:.0f} GFLOP/s float32 (half by symmetry)")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        ratios = f"{medians['official'] / seconds:7.1f} x official"
        if "exact" in medians:
            ratios += f" {medians['exact'] / seconds:7.1f} x exact"
        spread = f"({min(times[name]):.2f} to {max(times[name]):.2f})"
        print(f"{name:10} {seconds:9.2f} s {spread:20} {ratios}  {notes[name]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--methods", nargs="+", default=["exact", "clusters"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", type=int, default=200_000, help="exact in full up to so many rows")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with torch.no_grad():
        for num_rows in arguments.rows:
            bench(num_rows, arguments)


if __name__ == "__main__":
    main()
