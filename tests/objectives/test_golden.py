"""The official release's own numbers: losses, gradients, memories, Z and mined sets at float32 accuracy."""

from pathlib import Path

import pytest
import torch

from avssl.objectives import AVID, CMA, Partition, nce_loss

GOLDEN = torch.load(Path(__file__).parents[1] / "golden" / "avid.pt", weights_only=True)


def set_memories(objective, state):
    objective.bank.video.copy_(state["nce_average.view1_mem"])
    objective.bank.audio.copy_(state["nce_average.view2_mem"])
    objective.bank.seen.fill_(True)


def check_steps(objective, steps, log_names):
    for step in steps:
        z_video = step["video_emb"].clone().requires_grad_()
        z_audio = step["audio_emb"].clone().requires_grad_()
        out = objective.contrast_embeddings(z_video, z_audio, step["y"], step["neg_idx"])
        out["loss"].backward()
        torch.testing.assert_close(out["loss"].detach(), step["loss"])
        for name, official in log_names.items():
            torch.testing.assert_close(out[name], step["log"][official])
        torch.testing.assert_close(z_video.grad, step["grad_video"], atol=2e-7, rtol=1e-5)
        torch.testing.assert_close(z_audio.grad, step["grad_audio"], atol=2e-7, rtol=1e-5)
        after = step["state_after"]
        torch.testing.assert_close(objective.bank.video, after["nce_average.view1_mem"])
        torch.testing.assert_close(objective.bank.audio, after["nce_average.view2_mem"])
        z = after["criterion.avg_exp_score"].reshape(())
        torch.testing.assert_close(objective.partition.log_z.exp(), z, rtol=1e-5, atol=0)


def test_avid_equals_the_official_release(passing):
    case = GOLDEN["avid_cross"]
    objective = AVID(passing(16), case["kwargs"]["num_data"], num_negatives=case["kwargs"]["num_negatives"])
    set_memories(objective, case["state0"])
    check_steps(objective, case["steps"], {"loss_v2a": "Loss/v2a", "loss_a2v": "Loss/a2v"})


def make_cma(passing):
    case = GOLDEN["cma_consensus"]
    objective = CMA(
        passing(16),
        case["kwargs"]["num_data"],
        num_negatives=case["kwargs"]["num_negatives"],
        num_negatives_positive=case["kwargs"]["num_negatives_within"],
        num_positives=case["kwargs"]["sampling_args"]["pos_k"],
        partition="first_batch",
    )
    set_memories(objective, case["state0"])
    objective.positive_set.copy_(case["state0"]["nce_average.positive_set"])
    objective.partition.log_z.copy_(case["state0"]["criterion.avg_exp_score"].log())
    return objective, case


def test_cma_equals_the_official_release(passing):
    objective, case = make_cma(passing)
    names = {
        "loss_instance_v2a": "Loss/inst-v2a",
        "loss_instance_a2v": "Loss/inst-a2v",
        "loss_positive_v2v": "Loss/pos-v2v",
        "loss_positive_a2a": "Loss/pos-a2a",
    }
    check_steps(objective, case["steps"], names)
    objective.before_epoch(0)
    assert torch.equal(objective.positive_set, case["positive_set_refreshed"])


def test_mining_at_the_start_equals_the_official_release(passing):
    objective, case = make_cma(passing)
    objective.positive_set.fill_(-1)
    objective.before_epoch(0)
    assert torch.equal(objective.positive_set, case["state0"]["nce_average.positive_set"])


def test_nce_with_its_frozen_constant_equals_the_official_release():
    case = GOLDEN["nce"]
    partition = Partition()
    first = nce_loss(case["scores_pos"], case["scores_neg"], partition(case["scores_neg"]))
    torch.testing.assert_close(first, case["loss_first"])
    torch.testing.assert_close(partition.log_z.exp(), case["Z"].reshape(()), rtol=1e-5, atol=0)
    halves = case["scores_pos"] / 2, case["scores_neg"] / 2
    second = nce_loss(*halves, partition(halves[1]))
    torch.testing.assert_close(second, case["loss_second_half_scores"])


def test_a_stage_inherits_the_official_memories_or_not(passing):
    memories = GOLDEN["tiny_avid_checkpoint"]["train_criterion"]
    z = memories["criterion.avg_exp_score"].reshape(())
    state = {
        "bank.video": memories["nce_average.view1_mem"],
        "bank.audio": memories["nce_average.view2_mem"],
        "bank.seen": torch.ones(60, dtype=torch.bool),
        "partition.log_z": z.log(),
        "encoders.scale": torch.tensor(2.0),
    }
    for rule, expected in (("first_batch", float(z.log())), ("start_of_stage", float("nan"))):
        objective = CMA(passing(16), 60, num_positives=4, partition=rule)
        objective.start_from(state)
        assert torch.equal(objective.bank.video, state["bank.video"])
        assert float(objective.partition.log_z) == pytest.approx(expected, nan_ok=True)
        assert float(objective.encoders.scale.detach()) == 2.0
