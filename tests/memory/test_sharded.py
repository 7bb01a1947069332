"""A bank spread over two and three processes against a whole one in one process."""

import pytest
import torch
from processes import run_two

from avssl.memory import MemoryBank, ShardedRows, instance_keys, mine_positives, streamed, take
from avssl.memory import bank as bank_module
from avssl.memory import methods as methods_module
from avssl.memory.diagnostics import diagnose
from avssl.objectives import AVID, CMA

ROWS, BATCH, DIM = 31, 12, 8  # 31 rows: processes hold unequally many

WORKER = """
import sys
import torch
import torch.distributed as dist

sys.path.insert(0, sys.argv[3])
import test_sharded as test

rank, folder, size = int(sys.argv[1]), sys.argv[2], PROCESSES
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
part = test.BATCH // size
for name in test.KINDS:
    objective = test.make(name, storage="sharded")
    assert len(objective.bank.video) == -(-test.ROWS // size)
    batch = [x[rank * part : (rank + 1) * part] for x in test.batch()]
    result = test.train(objective, batch)
    for key in ("loss", "gradient"):
        dist.all_reduce(result[key])
        result[key] /= size
    state = objective.state_dict()
    again = test.make(name, storage="sharded", seed=5)
    again.load_state_dict(torch.load(f"{folder}/../whole-{name}.pt", weights_only=True))
    result["loaded"] = again.bank.state_dict()
    torch.save({**result, "state": state}, f"{folder}/{name}-{rank}.pt")
torch.save(test.uneven_requests(rank), f"{folder}/uneven-{rank}.pt")
torch.save(test.mine_and_diagnose(rank, size), f"{folder}/mined-{rank}.pt")
test.bank_alone(rank, folder)
dist.destroy_process_group()
"""
KINDS = {
    "avid": {"within": 1.0},
    "avid_softmax_pool": {"contrast": "softmax", "shared_negatives": True},
    "avid_half": {"bank_dtype": "float16"},
    "cma": {"instance_within": 1.0, "positive_cross": 1.0},
    "cma_pool_half": {
        "shared_negatives": True,
        "bank_dtype": "float16",
        "agreement": "union",
        "partition": 40.0,
    },
}


class Heads(torch.nn.Module):
    embedding_dim = DIM

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(DIM, DIM, generator=generator))

    def forward(self, video, audio):
        return video @ self.weight, audio @ self.weight


def make(name, storage="replicated", seed=1):
    torch.manual_seed(seed)
    settings = {"num_negatives": 6, "bank_storage": storage, **KINDS[name]}
    if name.startswith("avid"):
        return AVID(Heads(), ROWS, **settings)
    return CMA(Heads(), ROWS, num_negatives_positive=3, num_positives=4, **settings)


def batch():
    g = torch.Generator().manual_seed(5)
    index = torch.randperm(ROWS, generator=g)[:BATCH]
    index[11] = index[1]  # one instance on two ranks
    return [torch.randn(BATCH, DIM, generator=g), torch.randn(BATCH, DIM, generator=g), index]


def train(objective, own):
    """Three steps of a batch, the last after mining; what came of them."""
    for step in range(3):
        torch.manual_seed(step)
        if step == 2:
            objective.before_epoch(0)
        video, audio, index = own
        out = objective.contrast_embeddings(*objective.encoders(video, audio), index)
        objective.zero_grad()
        out["loss"].backward()
    return {
        "loss": out["loss"].detach(),
        "gradient": objective.encoders.weight.grad,
        "log_z": objective.partition.log_z,
        "positive_set": getattr(objective, "positive_set", torch.zeros(0)),
    }


def uneven_requests(rank):
    """Rows that ranks ask for: 0, 3 and 6 of them."""
    torch.manual_seed(0)
    bank = MemoryBank(ROWS, DIM, dtype="bfloat16", storage="sharded")
    rows = torch.arange(3 * rank) * 5 % ROWS
    bank.update(rows, torch.randn(len(rows), DIM), torch.randn(len(rows), DIM))
    return {"rows": rows, "video": take(bank.vectors("video"), rows), "state": bank.state_dict()}


def world(num_rows=601):
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 40, 16, generator=g)
    label = torch.arange(num_rows) % 40
    noise = torch.randn(2, num_rows, 16, generator=g)
    video, audio = torch.nn.functional.normalize(centres[:, label] + 0.4 * noise, dim=2)
    others = {"seen": torch.arange(num_rows) % 7 > 0, "groups": torch.arange(num_rows) // 2}
    return video, audio, label, others


def mine_and_diagnose(rank, size):
    video, audio, label, others = world()
    length = -(-len(video) // size)
    methods_module.default_side = streamed.default_side = lambda device: 64
    streamed.QUERIES = 100
    spread = []
    for whole in (video, audio):
        padded = torch.nn.functional.pad(whole, (0, 0, 0, length * size - len(whole)), value=torch.nan)
        spread.append(ShardedRows(padded[rank * length : (rank + 1) * length].clone(), len(whole)))
    done, found = [], {}
    for method in ("exact", "clusters"):
        done.append([])
        mined = mine_positives(
            *spread, 6, method=method, progress=lambda rows, total, to=done[-1]: to.append(rows), **others
        )
        found[method] = {"positives": mined.positives, **mined.provenance()}
    sets = found["exact"]["positives"]
    return {
        **found,
        "progress": done,
        "diagnosis": diagnose(*spread, sets, labels=label, num_queries=300, **others).record(),
    }


def bank_alone(rank, folder):
    """Saved apart from weights, and begun from other data."""
    bank = MemoryBank(5, DIM, storage="sharded")
    bank.keys.copy_(instance_keys(["a", "b", "c", "d", "e"]))
    bank.save(f"{folder}/bank.pt")
    other = MemoryBank.load(f"{folder}/../other.pt")
    bank.load_from({f"bank.{name}": value for name, value in other.state_dict().items()})
    bank.save(f"{folder}/bank-begun.pt")
    assert MemoryBank(4, DIM, storage="auto").is_sharded is False
    bank_module.REPLICATED_BYTES = 4 * 2 * DIM * 4 - 1
    assert MemoryBank(4, DIM, storage="auto").is_sharded is True
    few = MemoryBank(4, DIM, storage="sharded")  # on three processes the last holds none of them
    few.update(torch.tensor([rank]), torch.randn(1, DIM), torch.randn(1, DIM))
    vectors = few.vectors("video"), few.vectors("audio")
    mined = {method: mine_positives(*vectors, 2, method=method).positives for method in ("exact", "clusters")}
    torch.save({"state": few.state_dict(), "mined": mined}, f"{folder}/few-{rank}.pt")
    with pytest.raises(ValueError, match=r"mining is 'ivf' and the banks are spread over the processes"):
        CMA(Heads(), ROWS, num_positives=4, mining="ivf", bank_storage="sharded")
    with pytest.raises(RuntimeError, match=r"size mismatch for seen"):
        MemoryBank(ROWS, DIM, storage="sharded").load_state_dict(other.state_dict())


@pytest.fixture(scope="module", params=[2, 3])
def results(request, tmp_path_factory):
    above = tmp_path_factory.mktemp("ranks")
    for name in KINDS:
        objective = make(name)
        train(objective, batch())
        torch.save(objective.state_dict(), above / f"whole-{name}.pt")
    other = MemoryBank(3, DIM)
    other.keys.copy_(instance_keys(["e", "x", "b"]))
    other.update(torch.arange(3), torch.randn(3, DIM), torch.randn(3, DIM))
    other.save(above / "other.pt")
    folder = above / "run"
    folder.mkdir()
    script = WORKER.replace("PROCESSES", str(request.param))
    return run_two(script, folder, __file__, request.param), request.param


def read(results, name):
    folder, size = results
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize("name", KINDS)
def test_training_on_a_sharded_bank_equals_a_whole_one(results, name):
    objective = make(name)
    expected = train(objective, batch())
    for rank, got in enumerate(read(results, name)):
        for key, value in expected.items():
            torch.testing.assert_close(
                got[key],
                value,
                rtol=1e-4,
                atol=2e-5,
                equal_nan=True,
                msg=lambda m, at=(key, rank): f"{at}: {m}",
            )
    state = read(results, name)[0]["state"]
    for key, value in objective.state_dict().items():
        assert state[key].dtype == value.dtype, key
        atol = 1e-5 if value.dtype not in (torch.float16, torch.bfloat16) else 8e-3
        torch.testing.assert_close(
            state[key], value, rtol=0, atol=atol, equal_nan=True, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_passes_between_whole_and_sharded_unchanged(results, name):
    whole = torch.load(results[0].parent / f"whole-{name}.pt", weights_only=True)
    loaded = [got["loaded"] for got in read(results, name)]
    for key in ("video", "audio", "seen", "keys"):
        assert torch.equal(loaded[0][key], whole[f"bank.{key}"]), key
    assert all(len(got["video"]) == 0 for got in loaded[1:])  # the first process alone gathers
    objective = make(name, seed=9)
    objective.load_state_dict(read(results, name)[0]["state"])


def test_the_first_vectors_are_those_of_a_whole_bank(results):
    torch.manual_seed(0)
    bank = MemoryBank(ROWS, DIM, dtype="bfloat16")
    parts = read(results, "uneven")
    rows = torch.cat([part["rows"] for part in parts])
    untouched = [i for i in range(ROWS) if i not in rows.tolist()]
    assert torch.equal(parts[0]["state"]["video"][untouched], bank.video[untouched])


def test_ranks_may_ask_for_unequally_many_rows(results):
    parts = read(results, "uneven")
    whole = parts[0]["state"]["video"]
    for rank, part in enumerate(parts):
        assert part["video"].shape == (3 * rank, DIM)
        assert torch.equal(part["video"], whole[part["rows"]].float())
    touched = torch.cat([part["rows"] for part in parts]).unique()
    assert torch.equal(parts[0]["state"]["seen"].nonzero().flatten(), touched)


def test_streamed_mining_equals_that_of_whole_banks(results, monkeypatch):
    monkeypatch.setattr(methods_module, "default_side", lambda device: 64)
    video, audio, _, others = world()
    expected = mine_positives(video, audio, 6, method="exact", **others)
    for got in read(results, "mined"):
        assert torch.equal(got["exact"]["positives"], expected.positives)
        assert (got["exact"]["method"], got["exact"]["mining_num_rows"]) == ("exact", expected.num_rows)
        for rows in got["progress"]:
            assert rows == sorted(rows)
            assert rows[-1] == expected.num_rows
        clusters = got["clusters"]
        assert clusters["method"] == "clusters"
        assert 0 < clusters["mining_compared_share"] <= 0.5
        hits = (clusters["positives"][:, :, None] == expected.positives[:, None]).any(dim=2)
        recall = float(hits[others["seen"]].float().mean())
        assert recall > 0.93
        assert clusters["mining_recall"] == pytest.approx(recall, abs=0.04)
        assert torch.equal(clusters["positives"], read(results, "mined")[0]["clusters"]["positives"])


def test_a_sharded_bank_is_diagnosed_like_a_whole_one(results):
    video, audio, label, others = world()
    sets = mine_positives(video, audio, 6, method="exact", **others).positives
    expected = diagnose(video, audio, sets, labels=label, num_queries=300, **others).record()
    for got in read(results, "mined"):
        similarity = got["diagnosis"].pop("similarity")
        assert got["diagnosis"] == {key: value for key, value in expected.items() if key != "similarity"}
        for pairs, histogram in expected["similarity"].items():
            assert similarity[pairs]["counts"] == histogram["counts"]


def test_a_sharded_bank_is_saved_alone_and_begins_from_other_data(results):
    folder, _ = results
    before, begun = (MemoryBank.load(folder / name) for name in ("bank.pt", "bank-begun.pt"))
    other = MemoryBank.load(folder.parent / "other.pt")
    for old, new, start in zip(
        (other.video, other.audio), (begun.video, begun.audio), (before.video, before.audio), strict=True
    ):
        assert torch.equal(new, torch.stack([start[0], old[2], start[2], start[3], old[0]]))
    assert begun.seen.tolist() == [False, True, False, False, True]
    assert before.keys.tolist() == instance_keys(["a", "b", "c", "d", "e"]).tolist()


def test_a_process_may_hold_no_row(results):
    state = read(results, "few")[0]["state"]
    expected = mine_positives(state["video"], state["audio"], 2, method="exact").positives
    for got in read(results, "few"):
        for method, positives in got["mined"].items():
            assert torch.equal(positives, expected), method
    assert state["seen"].sum() == results[1]
