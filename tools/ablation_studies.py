"""The stages and studies of `ablation.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One training: what it is called in tables, its recipe, what it starts from and what it changes."""

    name: str
    title: str
    recipe: str  # a file, from the root of the repository
    parent: str | None = None
    overrides: tuple[str, ...] = ()
    length: str | None = "avid"  # its epochs are those of --avid-epochs or --cma-epochs; None: the recipe's
    trained: bool = True  # False: judged as it is initialised
    data: str = "videos"  # of `ablation_data.py`


_DEMO_AVID, _DEMO_CMA = "avssl/cli/demo_avid.yaml", "avssl/cli/demo_cma.yaml"
_CMA = tuple(
    Stage(f"cma_{rule}", f"CMA, {rule}", _DEMO_CMA, "cross_avid", (f"objective.agreement={rule}",), "cma")
    for rule in ("consensus", "union", "video", "audio")
)
_NCE = tuple(
    Stage(
        f"cma_{name}",
        f"CMA, NCE, {title}",
        _DEMO_CMA,
        "nce_avid",
        ("objective.contrast=nce", f"objective.{rule}"),
        "cma",
    )
    for name, title, rule in (
        ("first_batch", "Z of the AVID stage", "partition=first_batch"),
        ("start_of_stage", "Z estimated anew", "partition=start_of_stage"),
        ("per_term", "Z estimated anew, for each term", "partition=per_term"),
        ("fixed", "Z = {fixed_z:g}", "partition={fixed_z}"),
    )
)
_METHODS = {
    "swav": "SwAV",
    "seer": "SEER",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "barlow_twins": "Barlow Twins",
}
# Alone they learn from images: in the videos they first find the light of the background, which all views of
# a clip share, and minutes do not take them far beyond it.
_VISUAL = tuple(
    Stage(
        name,
        title,
        f"configs/visual/{method}_small.yaml",
        overrides=("data.num_frames=1",),
        length=None,
        trained=name == method,
        data="digits",
    )
    for name, title, method in (
        ("random_r2plus1d", "random init, R(2+1)D", "swav"),
        ("random_regnet", "random init, RegNetY", "seer"),
        *((method, title, method) for method, title in _METHODS.items()),
    )
)
_JOINT = tuple(
    Stage(f"avid_{method}", f"Cross-AVID + {title}", f"configs/joint/avid_{method}_small.yaml")
    for method, title in _METHODS.items()
    if method != "seer"  # SwAV on frames: a clip network has no part in it
)
STAGES = {
    stage.name: stage
    for stage in (
        Stage("random_init", "random init", _DEMO_AVID, trained=False),
        Stage("self_avid", "Self-AVID", _DEMO_AVID, None, ("objective.cross=0", "objective.within=1")),
        Stage("joint_avid", "Joint-AVID", _DEMO_AVID, None, ("objective.cross=1", "objective.within=1")),
        Stage("cross_avid", "Cross-AVID", _DEMO_AVID),
        # The control of CMA: as many more epochs of the same schedule, so that its gain is not that alone.
        Stage("avid_longer", "Cross-AVID, longer", _DEMO_AVID, "cross_avid", length="cma"),
        *_CMA,
        Stage("nce_avid", "Cross-AVID, NCE", _DEMO_AVID, None, ("objective.contrast=nce",)),
        *_NCE,
        *_VISUAL,
        *_JOINT,
    )
}
# Rows of each study, parents before children, with the row each is compared with.
STUDIES: dict[str, dict[str, str | None]] = {
    "methods": {
        "random_init": None,
        "self_avid": "cross_avid",
        "joint_avid": "cross_avid",
        "cross_avid": None,
        "avid_longer": "cross_avid",
        **{stage.name: "avid_longer" for stage in _CMA},
    },
    "partition": {
        "nce_avid": None,
        "cma_first_batch": None,
        "cma_start_of_stage": "cma_first_batch",
        "cma_per_term": "cma_first_batch",
        "cma_fixed": "cma_first_batch",
    },
    "contrast": {
        "cross_avid": None,
        "nce_avid": "cross_avid",
        "cma_consensus": None,
        "cma_per_term": "cma_consensus",
    },
    "visual": {
        "random_r2plus1d": None,
        "random_regnet": None,
        **{method: "random_regnet" if method == "seer" else "random_r2plus1d" for method in _METHODS},
    },
    "joint": {"cross_avid": None, **{stage.name: "cross_avid" for stage in _JOINT}},
}
