"""The Python blocks of docs/visual.md run as they stand, on small tensors and with small numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "visual.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SETUP, LOOPS = BLOCKS[0], BLOCKS[1:]
NAMES = ["SwAV", "SEER", "BYOL", "SimSiam", "BarlowTwins", "Joint"]
# Only numbers and sizes are made smaller.
SMALLER = {
    "epochs, batch = 100": "epochs, batch = 2",
    '"resnet50"': '"resnet18"',
    '"regnet_y_32gf"': "stages_as=[(1, 8, 8), (1, 16, 8)]",
    "presets.swav()": "presets.swav(32, 16, 2)",
    "presets.seer()": "presets.seer(32, 16, 2)",
    "presets.byol()": "presets.byol(32)",
    "presets.simsiam()": "presets.simsiam(32)",
    "presets.simsiam(112)": "presets.simsiam(32)",
    "presets.barlow_twins()": "presets.barlow_twins(32)",
    "DualEncoder.official()": "DualEncoder.tiny()",
    "AVID(encoders, ": "AVID(encoders, num_negatives=4, ",
    "warmup_epochs=10": "warmup_epochs=0.5",
    "queue_length=3840, freeze_prototypes_steps=5005": "queue_length=8, freeze_prototypes_steps=2",
    "num_prototypes=16000, head_dims=(4096, 4096, 256)": "num_prototypes=20, head_dims=(32, 32, 16)",
    "freeze_prototypes_steps=313": "freeze_prototypes_steps=1",
    "8192": "32",
}


def smaller(code: str) -> str:
    for written, small in SMALLER.items():
        code = code.replace(written, small)
    return code


def batches(num_frames: int) -> list[list[torch.Tensor]]:
    sizes = [(40, 48), (44, 40), (36, 60), (40, 40)]
    return [
        [torch.randint(256, (num_frames, *size, 3), dtype=torch.uint8) for size in sizes] for _ in range(2)
    ]


def test_every_number_made_smaller_is_on_the_page():
    text = "".join(BLOCKS)
    assert [written for written in SMALLER if written not in text] == []
    assert len(LOOPS) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_loop_of_the_page_trains(name):
    code = LOOPS[NAMES.index(name)]
    torch.manual_seed(0)
    loader = batches(1)
    names = {"loader": loader, "dataset": range(30)}
    if name == "Joint":
        names["loader"] = [
            (frames, torch.randn(4, 1, 64, 64), torch.arange(4) + 4 * i)
            for i, frames in enumerate(batches(4))
        ]
    begin, marker, rest = smaller(code).partition("for step")
    exec(smaller(SETUP), names)
    exec(begin, names)
    objective = names["objective"]
    assert type(objective).__name__ == {"SEER": "SwAV"}.get(name, name)
    before = {key: p.detach().clone() for key, p in objective.named_parameters()}
    exec(marker + rest, names)

    one_pass = name in ("SEER", "Joint")
    assert names["step"] == (1 if one_pass else 3)
    after = dict(objective.named_parameters())
    assert all(torch.isfinite(p).all() for p in after.values())
    moved = {key for key, p in after.items() if not torch.equal(p, before[key])}
    assert any(key.startswith("encoders.video") for key in moved)
    assert {key.partition(".")[0] for key in after} == {key.partition(".")[0] for key in moved}


@pytest.mark.parametrize("name", NAMES[:5])
def test_loop_of_the_page_is_short(name):
    lines = LOOPS[NAMES.index(name)].strip().splitlines()
    assert len(lines) <= (16 if name == "SEER" else 10)
    assert all(len(line) <= 120 for line in lines)
