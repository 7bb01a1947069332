"""Files without sound beside others, ``data.without_audio: video_only``: what learns from which."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from media import write_media
from processes import run_two

from avssl.build import Config, DataConfig, TrainConfig
from avssl.checkpoint import load_checkpoint
from avssl.cli.main import main
from avssl.data.batch import ClipBatch
from avssl.errors import ConfigError, Interrupted, ManifestError
from avssl.models import DualEncoder
from avssl.objectives import AVID, CMA, Joint, SimSiam
from avssl.report.reading import read_run
from avssl.report.tables import left_out
from avssl.train import pretrain
from avssl.train.lockstep import agree
from avssl.train.parallel import place, replicate
from avssl.train.trainer import Trainer
from avssl.types import Views

SIMSIAM = {"name": "SimSiam", "hidden_dim": 16, "dim": 16, "predictor_dim": 8}
PARTS = {"av": {"name": "AVID", "num_negatives": 4}, "visual": SIMSIAM}
JOINT = {"name": "Joint", "parts": PARTS}
TWO_VIEWS = {"video": {"size": 32}, "crops": [{"size": 32, "count": 2, "min_area": 0.8}]}


# ---- runs on real files


@pytest.fixture(scope="module")
def partly_mute(tmp_path_factory):
    """Sixteen files, of which those with an odd number have no sound."""
    folder = tmp_path_factory.mktemp("partly_mute")
    for i in range(16):
        path, tone = folder / f"{i:02d}.mp4", 300 + 70 * i
        write_media(path, seconds=1.2, size=(48, 40), audio=i % 2 == 0, tone_hz=tone, first_number=251 * i)
    return folder


@pytest.fixture
def run(recipe, progress, partly_mute):
    def train(
        root=partly_mute, objective=JOINT, name="run", say=lambda line: None, without="video_only", **more
    ):
        data = {"root": str(root), "val_share": 0.0, "without_audio": without}
        train = {"epochs": 2, "batch_size": 8} | more.pop("train", {})
        changes = {"views": TWO_VIEWS, "data": data, "train": train, "run": {"name": name}} | more
        return pretrain(recipe(objective=objective, **changes), progress, say=say)

    return train


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_files_without_sound_teach_the_visual_part_alone_and_are_counted(run):
    said = []
    views = TWO_VIEWS | {"statistics": "auto"}
    folder = run(say=said.append, views=views)
    assert said == [
        "8 of 16 samples have no sound and take part with their video alone (data.without_audio=video_only)"
    ]
    record = json.loads((folder / "run.json").read_text())["manifest"]
    assert (record["rows"], record["used"], record["silenced"], record["video_only"]) == (16, 16, 0, 8)
    assert record["left_out"] == []
    assert left_out(read_run(folder)).unknown == [
        "run: 8 files without sound took part with their video alone"
    ]
    assert sum(line["video_only_share"] for line in lines(folder)) == pytest.approx(0.5 * len(lines(folder)))
    statistics = json.loads((folder / "statistics.json").read_text())
    assert (statistics["num_clips"], statistics["skipped"]) == (8, [])
    state = load_checkpoint(folder)["objective"]
    assert state["parts.av.bank.seen"].tolist() == [True, False] * 8


def test_a_run_where_all_files_have_sound_is_what_it_was(run, videos):
    kept, dropped = run(videos, name="kept"), run(videos, name="dropped", without="drop")
    for one, other in zip(lines(kept), lines(dropped), strict=True):
        same = one.keys() - {"clips_per_second", "data_wait_share", "memory_gb"}
        assert one.keys() == other.keys()
        assert [one[key] for key in same] == [other[key] for key in same]


def test_a_stopped_run_goes_on_bit_for_bit(run, monkeypatch):
    cma = {"name": "CMA", "num_negatives": 4, "num_positives": 2, "refresh_epochs": 1}
    objective = {"name": "Joint", "parts": {"av": cma, "visual": SIMSIAM}}
    more = {"objective": objective, "train": {"memory_warmup_epochs": 1, "accumulate": 2}}
    whole = run(name="whole", **more)
    advance = Trainer._advance

    def advance_and_stop(trainer, last):
        advance(trainer, last)
        if trainer.position.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_advance", advance_and_stop)
        with pytest.raises(Interrupted):
            run(name="cut", **more)
    states = [load_checkpoint(folder)["objective"] for folder in (whole, run(name="cut", **more))]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    positives = states[0]["parts.av.positive_set"]
    assert (positives[1::2] == -1).all()  # none for files without sound
    assert (positives[::2] >= 0).all()
    assert (positives[::2] % 2 == 0).all()  # and they are nobody's


@pytest.mark.parametrize(
    ("objective", "lacking"),
    [
        ({"name": "AVID", "num_negatives": 4}, "video alone"),
        ({"name": "Joint", "parts": {"av": PARTS["av"]}}, "video alone"),
        (JOINT | {"weights": {"visual": 0.0}}, "video alone"),
        (SIMSIAM, "sound"),
        (JOINT | {"weights": {"av": 0.0}}, "sound"),
    ],
)
def test_an_objective_that_learns_nothing_from_some_files_is_refused(run, objective, lacking):
    with pytest.raises(
        ConfigError, match=rf"nothing in the objective learns from {lacking}; it needs a Joint .*=drop"
    ):
        run(objective=objective)


def test_data_without_any_sound_is_refused(run, tmp_path):
    (tmp_path / "mute").mkdir()
    for i in range(2):
        write_media(tmp_path / "mute" / f"{i}.mp4", seconds=1.2, size=(48, 40), audio=False)
    with pytest.raises(ManifestError, match="with video and audio"):
        run(root=tmp_path / "mute")


# ---- two processes

WORKER = """
import sys

import torch
import torch.distributed

sys.path.insert(0, sys.argv[3])
from test_video_only import KINDS, make_clips, train

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for kind in KINDS:
    torch.save(train(kind, [make_clips(step, rank) for step in range(3)]), f"{folder}/{kind}-{rank}.pt")
torch.distributed.destroy_process_group()
"""
KINDS = ("avid", "cma", "sharded")
# Places of the clips with sound, by step and process; and in the batch of one process that they come to.
SOUNDING = [([0, 2, 3], [1, 2]), ([0, 1, 2, 3], []), ([0, 1], [0, 3])]
TOGETHER = [[0, 2, 5, 6], [], [0, 1, 4, 7]]


def make_clips(step, rank, sounding=None):
    """Four clips of a process; the sound of a clip depends on the clip alone."""
    places = SOUNDING[step][rank] if sounding is None else sounding
    g = torch.Generator().manual_seed(10 * step + rank)
    # In patches: on noise all clips have nearly the same features, and gradients are steep.
    coarse = torch.randint(256, (4, 2, 4, 4, 3), generator=g, dtype=torch.uint8)
    frames = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    waveform = torch.randn(4, 1, 4, 4, generator=g).repeat_interleave(8, 2).repeat_interleave(8, 3).flatten(2)
    heard = torch.tensor(places, dtype=torch.int64)
    return ClipBatch(
        list(frames),
        waveform[heard] if places else None,
        torch.arange(4) + 4 * rank,
        sounding=heard if 0 < len(places) < 4 else None,
    )


def train(kind, batches):
    """Three steps; what was lost, and what was learnt."""
    torch.manual_seed(0)
    encoders = DualEncoder.tiny()
    avid = AVID(encoders, 8, num_negatives=4, temperature=0.5, cross=1, within=1)
    cma = CMA(encoders, 8, num_negatives=4, num_positives=2, temperature=0.5)
    parts = {
        "av": cma if kind == "cma" else avid,
        "visual": SimSiam(encoders, hidden_dim=16, dim=16, predictor_dim=8),
    }
    sharding = "full" if kind == "sharded" else "none"
    config = Config(data=DataConfig(without_audio="video_only"), train=TrainConfig(sharding=sharding))
    objective = place(Joint(encoders, parts), config, torch.device("cpu"), torch.float32)
    parts["av"].bank.seen[:6] = True
    objective.before_epoch(0)
    model = replicate(objective, config)
    optimizer = torch.optim.SGD(objective.param_groups(), lr=1e-4, momentum=0.9)
    lost, mute = [], []
    for step, batch in enumerate(batches):
        agreed = agree([batch], stop=0, save=False, fill=False)
        (part,) = agreed.parts
        torch.manual_seed(step)
        video = torch.stack(list(part.frames)).permute(0, 4, 1, 2, 3) / 255
        audio = () if part.waveform is None else (part.waveform.view(-1, 1, 32, 32),)
        loss = model(Views((video, video.flip(-1)), audio, part.index, part.sounding))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        lost.append(float(loss.detach()))
        mute.append(agreed.mute)
    bank = parts["av"].bank
    heads = encoders.audio_head.state_dict() | encoders.video_head.state_dict()
    weights = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in heads.items()}
    return {"loss": torch.tensor(lost), "mute": mute, "bank": bank.audio, "seen": bank.seen, **weights}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(WORKER, tmp_path_factory.mktemp("two"), __file__)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_from_as_much_sound_each_what_one_learns(two, kind):
    one = train(kind, [together(step) for step in range(3)])
    found = [torch.load(two / f"{kind}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    mean = (found[0].pop("loss") + found[1].pop("loss")) / 2
    torch.testing.assert_close(mean, one.pop("loss"), rtol=1e-4, atol=1e-4)
    for result in found:
        assert result.pop("mute") == one["mute"] == [4, 8, 4]
        for name, value in result.items():
            torch.testing.assert_close(
                value, one[name], rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def together(step):
    """The batch of one process, with the clips in the order in which two processes have them."""
    halves = [make_clips(step, rank, range(4)) for rank in (0, 1)]
    places = TOGETHER[step]
    waveform = torch.cat([half.waveform for half in halves])
    return replace(
        halves[0],
        frames=[clip for half in halves for clip in half.frames],
        waveform=waveform[places] if places else None,
        index=torch.cat([half.index for half in halves]),
        sounding=torch.tensor(places) if places else None,
    )


def test_evaluation_judges_the_positives_mined_beside_files_without_sound(run, tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for label in ("low", "high"):
            (tmp_path / "classes" / split / label).mkdir(parents=True)
            for i in range(count):
                path, tone = tmp_path / "classes" / split / label / f"{i}.mp4", 300 + 70 * i
                first = 251 * i + 1000 * (label == "high")
                write_media(path, seconds=1.2, size=(48, 40), audio=i > 0, tone_hz=tone, first_number=first)
    folder = run(tmp_path / "classes")
    result = CliRunner().invoke(main, ["evaluate", str(folder), "--no-gallery", "--clips", "1"])
    assert result.exit_code == 0, result.output
    metrics = json.loads((folder / "results.json").read_text())["rows"][1]["metrics"]
    assert 0 <= metrics["positive_precision"] <= 1
