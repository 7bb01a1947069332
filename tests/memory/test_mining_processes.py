"""Two processes that share the mining find what one finds alone."""

import torch
from processes import run_two

from avssl.memory import methods, mine_positives

WORKER = """
import sys
import torch
import torch.distributed as dist

sys.path.insert(0, sys.argv[3])
from test_mining_processes import METHODS, mine

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.save({method: mine(method) for method in METHODS}, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""
METHODS = ("exact", "clusters", "flat", "ivf")


def mine(method):
    methods.default_side = lambda device: 64
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 40, 16, generator=g)
    label = torch.arange(601) % 40
    video, audio = torch.nn.functional.normalize(
        centres[:, label] + 0.4 * torch.randn(2, 601, 16, generator=g), dim=2
    )
    seen = torch.arange(601) % 7 > 0  # an odd number of rows: the ranks' parts are uneven
    found = mine_positives(video, audio, 6, seen=seen, method=method)
    return {"positives": found.positives, "method": found.method, "recall": found.recall}


def test_two_processes_equal_one(tmp_path, monkeypatch):
    run_two(WORKER, tmp_path, __file__)
    monkeypatch.setattr(methods, "default_side", methods.default_side)  # `mine` replaces it: restore
    for method in METHODS:
        alone = mine(method)
        for rank in (0, 1):
            shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[method]
            assert torch.equal(shared["positives"], alone["positives"]), (method, rank)
            assert (shared["method"], shared["recall"]) == (alone["method"], alone["recall"])
