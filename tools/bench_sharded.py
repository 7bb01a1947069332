"""Memories spread over processes, measured: torchrun --nproc-per-node 2 tools/bench_sharded.py [--rows N]

Of Cross-AVID without networks, on the clips of one process (--batch): loss, gradient and update of the
memories, medians of --rounds, replicated against sharded; and what a process sends for it. Then mining of the
same memories, filled by the vectors of tools/bench_mining.py, and its recall on --queries rows.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from bench_mining import K, make_banks, official, overlap
from torch import nn

from avssl import dist
from avssl.memory import MemoryBank, lookup, mine_positives
from avssl.memory.lookup import ShardedLookup
from avssl.objectives import AVID

DIM, NEGATIVES = 128, 1024


class NoEncoders(nn.Module):
    """Stands where the networks would."""

    embedding_dim = DIM


def step_seconds(storage: str, shared: bool, arguments: argparse.Namespace) -> float:
    """Median seconds of a step."""
    torch.manual_seed(0)
    objective = AVID(
        NoEncoders(),  # type: ignore[arg-type]
        arguments.rows,
        num_negatives=NEGATIVES,
        bank_storage=storage,  # type: ignore[arg-type]
        bank_dtype=arguments.dtype,
        shared_negatives=shared,
    )
    objective.bank.seen.fill_(True)
    seconds = []
    for _ in range(arguments.rounds + 1):
        index = dist.own_rows(torch.randperm(arguments.rows)[: arguments.batch * dist.world_size()])
        z_video, z_audio = (torch.randn(arguments.batch, DIM, requires_grad=True) for _ in range(2))
        dist.wait_for_all()
        start = time.perf_counter()
        objective.contrast_embeddings(z_video, z_audio, index)["loss"].backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def bytes_sent(arguments: argparse.Namespace) -> float:
    """Bytes a process sends to the others for one direction, from the sizes that are exchanged."""
    bank = MemoryBank(arguments.rows, DIM, storage="sharded")
    rows = torch.randint(arguments.rows, (arguments.batch, 1 + NEGATIVES))
    found = lookup(bank.vectors("video"), rows)
    if not isinstance(found, ShardedLookup):
        return 0.0
    ranks, samples, width = found.route.shape
    return (ranks - 1) * samples * (3 * 4 * width + 2 * 4 * DIM)  # rows, scores, slopes; embeddings, sums


def mine(method: str, arguments: argparse.Namespace) -> str:
    """Time and recall of one method on sharded memories."""
    bank = MemoryBank(arguments.rows, DIM, dtype=arguments.dtype, storage="sharded")
    video, audio = make_banks(arguments.rows)
    bank.load_from({"bank.video": video, "bank.audio": audio, "bank.seen": torch.ones(len(video)).bool()})
    mined = mine_positives(bank.vectors("video"), bank.vectors("audio"), K, method=method)  # type: ignore[arg-type]
    queries = torch.randperm(len(video))[: arguments.queries]
    recall = overlap(mined.positives[queries], official(video, audio, queries))
    return (
        f"{method} {mined.seconds:.1f} s, recall {recall:.4f} (it says {mined.recall:.4f}), "
        f"compared {mined.compared_share:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--methods", nargs="*", default=["exact", "clusters"])
    arguments = parser.parse_args()
    with dist.process_group():
        sent = bytes_sent(arguments)
        lines = [f"{dist.world_size()} processes, N = {arguments.rows:,}, {arguments.dtype}"]
        for shared in (False, True):
            times = {name: step_seconds(name, shared, arguments) for name in ("replicated", "sharded")}
            kind = "one pool" if shared else f"drawn for each sample, {sent / 2**20:.2f} MiB sent a direction"
            lines.append(f"step, {kind}: " + ", ".join(f"{n} {1e3 * s:.1f} ms" for n, s in times.items()))
        lines += [mine(method, arguments) for method in arguments.methods]
        if dist.rank() == 0:
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
