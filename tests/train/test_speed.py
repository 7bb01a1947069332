"""Layout, compilation and copies: that they change no result, and that a step waits for nothing."""

import shutil
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from processes import run_two
from torch import nn

from avssl.data import ClipBatch
from avssl.errors import ConfigError
from avssl.models import AudioConvNet, DualEncoder, R2Plus1D, VisualEncoder
from avssl.models.image import ImageEncoder
from avssl.models.recompute import recomputed
from avssl.objectives import AVID, BYOL
from avssl.optim import make_optimizer
from avssl.schema import TrainConfig
from avssl.train import speed
from avssl.types import Views

SEVERAL = """
import sys
import warnings
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, sys.argv[3])
from test_speed import losses_of, small_byol, speed
from avssl.train.sharding import shard

warnings.filterwarnings("error", "Grad strides do not match bucket view strides")
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
found = {}
for way in ("replicated", "sharded"):
    for quick in (False, True):
        objective = small_byol(recompute=quick)
        if way == "sharded":
            objective = shard(objective, torch.device("cpu"), torch.float32)
        if quick:
            speed.lay_channels_last(objective)
            speed.compile_trunks(objective, backend="aot_eager")
        model = objective
        if way == "replicated":
            model = DistributedDataParallel(objective, broadcast_buffers=False)
        found[f"{way}{' quick' * quick}"] = losses_of(objective, model, seed=rank)
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


class SmallNetwork(ImageEncoder):
    """Two blocks of convolutions, each also with a kernel of one pixel."""

    stages: ClassVar[dict[str, tuple[str, ...]]] = {"conv1": ("layer",)}

    def __init__(self, recompute=False):
        super().__init__()
        self.layer = nn.Sequential(self.block(3), self.block(8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dim = 8
        recomputed(self, ["layer"], recompute)

    def block(self, channels):
        first = nn.Conv2d(channels, 8, 3, 2, 1, bias=False)
        return nn.Sequential(first, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False), nn.ReLU())


def small_byol(recompute=False):
    torch.manual_seed(0)
    return BYOL(VisualEncoder(SmallNetwork(recompute)), hidden_dim=8, dim=8)


def image_views(seed, batch=4):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(batch, 3, 1, 16, 16, generator=generator) for _ in range(2)]
    return Views(tuple(images), (), torch.arange(batch))


def losses_of(objective, model=None, seed=0, batches=(4, 4, 3)):
    """Losses of a few steps of SGD."""
    optimizer = make_optimizer("sgd", objective.param_groups(), lr=0.05)
    losses = []
    for step, batch in enumerate(batches):
        loss = (model or objective)(image_views(10 * step + seed, batch))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step()
        losses.append(loss.item())
    return losses


def clips(count=3, **changes):
    fields = {
        "frames": [torch.full((2, 4, 5 + i, 3), i, dtype=torch.uint8) for i in range(count)],
        "waveform": torch.arange(2.0 * count).view(count, 1, 2),
        "index": torch.arange(count),
    }
    return ClipBatch(**{**fields, **changes})


# ---- layout


def test_channels_last_keeps_the_state_and_the_results():
    torch.manual_seed(0)
    plain, quick = AVID(DualEncoder.tiny(), 8, num_negatives=4), AVID(DualEncoder.tiny(), 8, num_negatives=4)
    quick.load_state_dict(plain.state_dict())
    speed.quicken(quick, TrainConfig(), torch.device("cpu"))
    for (name, before), (same_name, after) in zip(
        plain.state_dict().items(), quick.state_dict().items(), strict=True
    ):
        assert name == same_name
        torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)
    video, audio = torch.randn(3, 3, 4, 32, 32).double(), torch.randn(3, 1, 40, 32).double()
    for objective in (plain, quick):
        encoders = objective.encoders.double()
        (encoders.video(video).square().mean() + encoders.audio(audio).square().mean()).backward()
    for p, q in zip(plain.parameters(), quick.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-6, atol=1e-9)
    weight = quick.encoders.video.conv2x.spt_conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not weight.is_contiguous()


def test_channels_first_stay_where_asked():
    objective = small_byol()
    speed.quicken(objective, TrainConfig(channels_last=False), torch.device("cpu"))
    assert all(p.is_contiguous() for p in objective.parameters())


def test_teachers_are_laid_out_and_compiled_as_their_students():
    objective = small_byol()
    assert speed.trunks(objective) == [objective.encoders.video, objective.teacher.trunk]
    speed.lay_channels_last(objective)
    for p, q in zip(objective.encoders.video.parameters(), objective.teacher.trunk.parameters(), strict=True):
        assert p.stride() == q.stride()


# ---- compilation


def test_compiled_trunks_train_as_before_under_the_same_names():
    plain, compiled = small_byol(), small_byol()
    speed.compile_trunks(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own compiler uses it
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_code_trains_as_before():
    plain, compiled = small_byol(), small_byol()
    speed.quicken(compiled, TrainConfig(compile=True), torch.device("cpu"))
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-3)


def test_batches_beyond_the_first_few_sizes_are_not_compiled():
    objective = small_byol()
    speed.compile_trunks(objective, backend="eager")
    trunk = objective.encoders.video
    call = trunk._compiled_call_impl
    compiled = []
    call.compiled = lambda x: compiled.append(len(x)) or trunk._call_impl(x)
    for batch in (*range(2, 12), 3, 11):
        assert trunk(torch.randn(batch, 3, 1, 16, 16)).shape == (batch, 8)
    assert compiled == [*range(2, 2 + speed.MOST_COMPILED), 3]


def test_a_missing_compiler_is_said_before_the_first_step(monkeypatch):
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(ConfigError, match="true, but torch cannot compile on cpu here: ") as e:
        speed.quicken(small_byol(), TrainConfig(compile=True), torch.device("cpu"))
    assert "install a C++ compiler such as g++, or use train.compile=false" in str(e.value)


def test_recomputed_blocks_are_compiled_one_by_one():
    plain, compiled = small_byol(), small_byol(recompute=True)
    speed.compile_trunks(compiled, backend="aot_eager")
    trunk = compiled.encoders.video
    assert trunk._compiled_call_impl is None
    assert all(block._compiled_call_impl is not None for block in trunk.blocks())
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-4)
    for a, b in zip(plain.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_replicas_and_shards_train_as_before_when_quick(tmp_path):
    run_two(SEVERAL, tmp_path, __file__)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for way in ("replicated", "sharded"):
            assert found[f"{way} quick"] == pytest.approx(found[way], rel=1e-3)


# ---- copies


def test_parts_pass_unchanged_where_there_is_no_gpu():
    parts = [clips(3), clips(2, waveform=None), clips(3, sounding=torch.tensor([0, 2]))]
    found = list(speed.DevicePrefetcher(torch.device("cpu"))(parts))
    assert len(found) == len(parts)
    for before, after in zip(parts, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before.frames, after.frames, strict=True))
        assert torch.equal(before.index, after.index)
        assert (after.waveform is None) == (before.waveform is None)
        assert (after.sounding is None) == (before.sounding is None)


def test_copies_begin_together_on_a_stream_of_their_own_and_are_waited_for_in_order(monkeypatch):
    done = []

    class Stream:
        def record_event(self):
            return sum(1 for what, *_ in done if what == "copy")

        def wait_event(self, event):
            done.append(("wait", event))

    def copied(part, device, non_blocking):
        assert beside == [side]
        done.append(("copy", len(part), str(device), non_blocking))
        return part

    side, current, beside = Stream(), Stream(), []

    def on(stream):
        beside[:] = [stream]
        return nullcontext()

    fake = SimpleNamespace(Stream=lambda device: side, stream=on, current_stream=lambda device: current)
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(ClipBatch, "to", copied)
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: kept.append((x.numel(), stream)))
    for part in speed.DevicePrefetcher(torch.device("cuda"))([clips(3), clips(2)]):
        done.append(("step", len(part)))
    copies = [("copy", 3, "cuda", True), ("copy", 2, "cuda", True)]
    assert done == [*copies, ("wait", 1), ("step", 3), ("wait", 2), ("step", 2)]
    sizes = (2 * 4 * (5 + 6 + 7) * 3, 6, 3, 2 * 4 * (5 + 6) * 3, 4, 2)
    assert kept == [(size, current) for size in sizes]


# ---- on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_waits_for_nothing():
    device = torch.device("cuda")
    objective = AVID(DualEncoder(R2Plus1D(10), AudioConvNet()), 8, num_negatives=4, unseen_negatives=True)
    objective = objective.to(device)
    speed.quicken(objective, TrainConfig(), device)
    optimizer = make_optimizer("adam", objective.param_groups(), lr=1e-3)
    views = Views(
        (torch.randn(8, 3, 4, 64, 64, device=device),),
        (torch.randn(8, 1, 64, 64, device=device),),
        torch.arange(8, device=device),
    )
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss = objective(views)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert bool(loss.isfinite())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_a_gpu_hold_what_was_sent():
    parts = [clips(3).pin_memory(), clips(2).pin_memory()]
    for before, after in zip(parts, speed.DevicePrefetcher(torch.device("cuda"))(parts), strict=True):
        assert after.index.is_cuda
        assert torch.equal(after.frames.pixels.cpu(), before.frames.pixels)
        assert torch.equal(after.waveform.cpu(), before.waveform)
