import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from avssl.models import DualEncoder
from avssl.objectives import AVID, BYOL, CMA, BarlowTwins, Joint, SimSiam, SwAV, find_cma, memory_state
from avssl.types import Views

N = 30
MAKE = {
    "simsiam": lambda e: SimSiam(e, hidden_dim=16, dim=16, predictor_dim=8),
    "byol": lambda e: BYOL(e, hidden_dim=16, dim=8),
    "barlow_twins": lambda e: BarlowTwins(e, hidden_dim=16, dim=16),
    "swav": lambda e: SwAV(e, num_prototypes=6, head_dims=(16, 8)),
}


@pytest.fixture
def views():
    g = torch.Generator().manual_seed(0)
    video = tuple(torch.randn(6, 3, 2, 32, 32, generator=g) for _ in range(2))
    return Views(video, (torch.randn(6, 1, 32, 32, generator=g),), torch.arange(6))


def joint(*names, **settings):
    torch.manual_seed(0)
    encoders = DualEncoder.tiny()
    parts = {"avid": AVID(encoders, N, num_negatives=8, contrast="softmax")}
    parts |= {name: MAKE[name](encoders) for name in names}
    return Joint(encoders, parts, **settings)


def losses(objective, views):
    torch.manual_seed(1)
    return {name: float(value.detach()) for name, value in objective(views).items()}


@pytest.mark.parametrize("name", list(MAKE))
def test_the_loss_is_the_weighted_sum_of_what_each_part_says_alone(views, name):
    both = joint(name, weights={"avid": 2.0, name: 0.5}).eval()
    out = losses(both, views)
    assert out["loss"] == pytest.approx(2 * out["avid/loss"] + 0.5 * out[f"{name}/loss"], rel=1e-6)
    for part in ("avid", name):
        alone = losses(both.parts[part], views)
        assert out[f"{part}/loss"] == pytest.approx(alone["loss"], rel=1e-5)


@pytest.fixture
def partly_mute(views):
    """The views without the sound of two samples of six."""
    places = torch.tensor([0, 2, 3, 5])
    return replace(views, audio=(views.audio[0][places],), sounding=places)


def nce_of(avid, views, places):
    """InfoNCE of samples, float64, from the equation; draws as the objective does."""
    index = views.index[places]
    negatives = avid.negatives_for(index[:, None]).rows
    unit = lambda z: nn.functional.normalize(z.detach().double(), dim=1)  # noqa: E731
    video = unit(avid.encoders.video_head(avid.encoders.video(views.video[0][places])))
    audio = unit(avid.encoders.audio_head(avid.encoders.audio(views.audio[0][places])))
    total = 0.0
    for z, memory in ((video, avid.bank.audio.double()), (audio, avid.bank.video.double())):
        for i in range(len(places)):
            scores = [float(z[i] @ memory[j]) / avid.temperature for j in [index[i], *negatives[i]]]
            total -= scores[0] - math.log(sum(math.exp(score) for score in scores))
    return total / (2 * len(places))


def test_the_loss_of_a_partly_mute_batch_is_that_of_the_sounding_and_of_all(views, partly_mute):
    both = joint("simsiam", weights={"avid": 2.0, "simsiam": 0.5}).eval()
    out = losses(both, partly_mute)
    torch.manual_seed(1)
    avid = nce_of(both.parts["avid"], views, partly_mute.sounding)
    assert out["avid/loss"] == pytest.approx(avid, rel=1e-5)
    assert out["loss"] == pytest.approx(
        2 * avid + 0.5 * losses(both.parts["simsiam"], views)["loss"], rel=1e-5
    )


def test_samples_without_sound_have_no_place_in_the_memories(partly_mute):
    objective = joint("simsiam")
    bank = objective.parts["avid"].bank
    for remember in (objective, objective.fill_memory):
        before = bank.video.clone(), bank.audio.clone()
        remember(partly_mute)
        assert bank.seen.nonzero().flatten().tolist() == [0, 2, 3, 5]
        for old, new in zip(before, (bank.video, bank.audio), strict=True):
            changed = (old != new).any(dim=1).nonzero().flatten().tolist()
            assert changed == [0, 2, 3, 5]


def test_a_batch_without_sound_teaches_the_visual_parts_alone(views):
    mute = replace(views, audio=())
    objective = joint("simsiam", weights={"simsiam": 0.5})
    before = {name: value.clone() for name, value in objective.parts["avid"].bank.state_dict().items()}
    objective.fill_memory(mute)
    out = objective(mute)
    assert not any(name.startswith("avid/") for name in out)
    torch.testing.assert_close(out["loss"].detach(), 0.5 * out["simsiam/loss"])
    out["loss"].backward()
    assert all(p.grad is None for p in objective.encoders.audio.parameters())
    assert objective.encoders.video.conv2x.spt_conv1.weight.grad.any()
    assert all(torch.equal(before[k], v) for k, v in objective.parts["avid"].bank.state_dict().items())
    rising = joint("simsiam", weights={"simsiam": 0.0}, end_weights={"simsiam": 1.0})
    nothing = rising(mute)["loss"]
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert not rising.encoders.video.conv2x.spt_conv1.weight.grad.any()


class Counted(nn.Module):
    """A trunk that counts its forward passes."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.dim, self.passes = trunk, trunk.dim, 0

    def forward(self, x):
        self.passes += 1
        return self.trunk(x)


@pytest.mark.parametrize(
    ("names", "passes"), [([], 1), (["simsiam"], 2), (["simsiam", "barlow_twins"], 2), (["swav"], 2)]
)
def test_views_that_parts_share_go_through_the_trunk_once(views, names, passes):
    torch.manual_seed(0)
    encoders = DualEncoder.tiny()
    encoders.video = Counted(encoders.video)
    parts = {"avid": AVID(encoders, N, num_negatives=8)} | {name: MAKE[name](encoders) for name in names}
    Joint(encoders, parts)(views)
    assert encoders.video.passes == passes


def test_gradients_of_the_parts_add_up(views):
    objective = joint("simsiam", weights={"simsiam": 3.0}).train(False)
    weight = objective.encoders.video.conv2x.spt_conv1.weight
    torch.manual_seed(1)
    (total,) = torch.autograd.grad(objective(views)["loss"], weight)
    torch.manual_seed(1)
    (avid,) = torch.autograd.grad(objective.parts["avid"](views)["loss"], weight)
    (simsiam,) = torch.autograd.grad(objective.parts["simsiam"](views)["loss"], weight)
    torch.testing.assert_close(total, avid + 3 * simsiam, rtol=1e-4, atol=1e-6)


def test_weights_move_linearly_and_a_part_of_weight_zero_rests(views):
    objective = joint("simsiam", weights={"simsiam": 1.0}, end_weights={"simsiam": 0.0})
    seen = []
    for done in (0, 25, 100, 200):
        objective.set_progress(done, 100)
        seen.append(objective.weight("simsiam"))
    assert seen == [1.0, 0.75, 0.0, 0.0]
    assert objective.weight("avid") == 1.0
    assert "simsiam/loss" not in objective(views)


def test_every_parameter_is_in_one_group_and_exceptions_are_kept():
    objective = joint("simsiam", "byol")
    groups = objective.param_groups()
    listed = [p for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {p for p in objective.parameters() if p.requires_grad}
    fixed = [group for group in groups if group.get("fixed_lr")]
    assert {p for group in fixed for p in group["params"]} == set(
        objective.parts["simsiam"].predictor.parameters()
    )


def test_the_moments_reach_the_parts(views):
    torch.manual_seed(0)
    encoders = DualEncoder.tiny()
    parts = {"cma": CMA(encoders, N, num_negatives=8, num_positives=2), "byol": MAKE["byol"](encoders)}
    objective = Joint(encoders, parts)
    objective.name_instances(torch.arange(1, N + 1), torch.arange(N))
    assert torch.equal(objective.parts["cma"].bank.keys, torch.arange(1, N + 1))
    for _ in range(3):
        objective.fill_memory(views)
    assert objective.parts["cma"].bank.seen.sum() == 6
    numbers = objective.before_epoch(0)
    assert numbers["cma/instances_with_positives"] == 6
    objective.set_progress(0, 10)
    optimizer = torch.optim.SGD(objective.param_groups(), lr=0.1)
    objective(views)["loss"].backward()
    objective.before_step()
    optimizer.step()
    before = [p.clone() for p in objective.parts["byol"].teacher.parameters()]
    objective.after_step()
    after = list(objective.parts["byol"].teacher.parameters())
    assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_a_joint_stage_begins_from_avid_or_from_another_joint_stage(views):
    first = joint("simsiam")
    first(views)
    for state in (first.state_dict(), first.parts["avid"].state_dict()):
        second = joint("simsiam")
        with torch.no_grad():
            second.encoders.video.conv2x.spt_conv1.weight.zero_()
        assert second.start_from(state) == N
        assert torch.equal(second.parts["avid"].bank.video, first.parts["avid"].bank.video)
        name = "encoders.video.conv2x.spt_conv1.weight"
        assert torch.equal(second.state_dict()[name], first.state_dict()[name])


def test_state_dict_holds_the_whole_method(views):
    objective = joint("byol", "swav")
    objective(views)
    copy = joint("byol", "swav")
    copy.load_state_dict(objective.state_dict())
    assert losses(copy, views) == losses(objective, views)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"byol": 1.0}}, r"\['byol'\] belong to no part"),
        ({"weights": {"avid": -1.0}}, "at least 0 and not all 0"),
        ({"weights": {"avid": 0.0, "simsiam": 0.0}}, "at least 0 and not all 0"),
    ],
)
def test_impossible_weights_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        joint("simsiam", **settings)


def test_parts_with_other_encoders_are_refused():
    with pytest.raises(ValueError, match=r"parts \['simsiam'\] have encoders of their own"):
        Joint(DualEncoder.tiny(), {"simsiam": MAKE["simsiam"](DualEncoder.tiny())})


def test_the_part_that_mines_and_its_memories_are_found():
    encoders = DualEncoder.tiny()
    cma = CMA(encoders, N, num_negatives=8, num_positives=2)
    both = Joint(encoders, {"simsiam": MAKE["simsiam"](encoders), "audio_visual": cma})
    assert find_cma(both) is find_cma(cma) is cma
    assert find_cma(joint("simsiam")) is None
    found = memory_state(both.state_dict())
    assert found.keys() == cma.state_dict().keys()
    assert torch.equal(found["bank.video"], cma.bank.video)
    assert memory_state(MAKE["simsiam"](encoders).state_dict()) == {}


def test_exceptions_of_an_image_method_do_not_reach_the_shared_encoders():
    encoders = DualEncoder.tiny()
    parts = {"visual": MAKE["barlow_twins"](encoders), "avid": AVID(encoders, N, num_negatives=8)}
    shared = set(encoders.parameters())
    for group in Joint(encoders, parts).param_groups():
        if "adapt" in group:
            assert not shared & set(group["params"])
