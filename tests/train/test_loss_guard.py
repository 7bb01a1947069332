"""Steps that are not finite: the run stops, or the step is as if it had never been; their clips are known."""

import json
from pathlib import Path

import pytest
import torch

from avssl.checkpoint import load_checkpoint
from avssl.errors import TrainingError
from avssl.objectives import AVID
from avssl.train import pretrain
from avssl.train.trainer import Trainer


@pytest.fixture
def spoil(monkeypatch):
    """Make the losses of some steps NaN, or gradients infinite, or let a step not happen at all."""

    def spoil(steps=(), gradient_steps=(), left_out=()):
        forward, step, clip = AVID.forward, Trainer._step, Trainer._gradient_norm
        at = []

        def spoilt(self, views):
            out = forward(self, views)
            factor = float("nan") if at[-1] in steps else 1.0
            return out | {"loss": out["loss"] * factor}

        def noted(self, agreed):
            at.append(self.position.step + 1)
            if at[-1] in left_out:
                return
            step(self, agreed)

        def infinite(self):
            if at[-1] in gradient_steps:
                next(p for p in self.objective.parameters() if p.grad is not None).grad[0] = float("inf")
            return clip(self)

        monkeypatch.setattr(AVID, "forward", spoilt)
        monkeypatch.setattr(Trainer, "_step", noted)
        monkeypatch.setattr(Trainer, "_gradient_norm", infinite)

    return spoil


def pretrain_folder(recipe):
    run = recipe().run
    return Path(run.folder) / run.name


def written_down(folder):
    return [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_by_default_the_run_stops_names_the_clips_and_keeps_a_good_checkpoint(recipe, progress, spoil):
    spoil(steps=(5,))
    with pytest.raises(
        TrainingError, match=r"the loss became nan in step 5; its clips are in .*jsonl; lower optim\.lr"
    ):
        pretrain(recipe(train={"log_every": 100}), progress)  # noticed where the next checkpoint is due
    folder = pretrain_folder(recipe)
    (line,) = written_down(folder)
    assert (line["step"], line["epoch"], line["loss"], line["action"]) == (5, 1, "nan", "stop")
    assert len(line["clips"]) == 4
    assert all(clip["path"].endswith(clip["id"].rpartition("/")[2]) for clip in line["clips"])
    saved = load_checkpoint(folder)
    assert saved["position"]["step"] == 3
    assert all(value.isfinite().all() for value in saved["objective"].values() if value.is_floating_point())
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"


def test_a_gradient_that_is_infinite_where_the_loss_is_not_spoils_no_checkpoint(recipe, progress, spoil):
    spoil(gradient_steps=(6,))
    with pytest.raises(TrainingError, match=r"weights are not finite after step 6; lower optim\.lr"):
        pretrain(recipe(), progress)
    assert load_checkpoint(pretrain_folder(recipe))["position"]["step"] == 3


@pytest.mark.parametrize("spoilt", [{"steps": (5,)}, {"gradient_steps": (5,)}])
def test_a_step_that_is_skipped_leaves_weights_and_means_as_they_were(
    recipe, progress, spoil, monkeypatch, spoilt
):
    with monkeypatch.context():
        spoil(**spoilt)
        folder = pretrain(recipe(train={"nonfinite": "skip"}), progress)
    (line,) = written_down(folder)
    assert (line["step"], line["action"], len(line["clips"])) == (5, "skip", 4)
    numbers = logged(folder)
    assert [line["step"] for line in numbers] == list(range(1, 10))
    assert [line["step"] for line in numbers if "dropped_steps" in line] == [5]
    assert "loss" not in numbers[4]
    saved = load_checkpoint(folder)["objective"]
    assert all(value.isfinite().all() for value in saved.values() if value.is_floating_point())
    counts = [value for name, value in saved.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(int(count) == 8 for count in counts)


def test_a_skipped_step_equals_one_that_never_was(recipe, progress, spoil, monkeypatch):
    """The memories alone know more: they took in what was finite."""
    results = []
    for spoilt in ({"gradient_steps": (9,)}, {"left_out": (9,)}):
        with monkeypatch.context() as patch:
            patch.setattr(AVID, "forward", AVID.forward)
            patch.setattr(Trainer, "_step", Trainer._step)
            patch.setattr(Trainer, "_gradient_norm", Trainer._gradient_norm)
            spoil(**spoilt)
            name = next(iter(spoilt))
            folder = pretrain(recipe(train={"nonfinite": "skip"}, run={"name": name}), progress)
        results.append(load_checkpoint(folder))
    one, other = results
    for name, value in one["objective"].items():
        if not name.startswith("bank."):
            assert torch.equal(value, other["objective"][name]), name
    for index, values in one["optimizer"]["state"].items():
        for name, value in values.items():
            assert torch.equal(value, other["optimizer"]["state"][index][name])


def test_backing_off_halves_the_rate_for_what_follows(recipe, progress, spoil):
    spoil(steps=(2, 5))
    folder = pretrain(recipe(train={"nonfinite": "back_off"}), progress)
    rates = [round(line["lr"] / 1e-3, 3) for line in logged(folder)]
    assert rates == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert load_checkpoint(folder)["guard"] == {"rate_factor": 0.25, "in_a_row": 0, "good_steps": 4}


def test_a_run_whose_steps_are_all_spoilt_is_given_up(recipe, progress, spoil):
    spoil(steps=range(3, 100))
    with pytest.raises(TrainingError, match=r"10 steps in a row, up to step 12, had a loss or gradient"):
        pretrain(recipe(train={"nonfinite": "skip", "epochs": 9}), progress)
    assert len(written_down(pretrain_folder(recipe))) == 10
