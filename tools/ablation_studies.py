"""The stages and studies of `ablation.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One training: what it is called in tables, its demo recipe, what it starts from and what it changes."""

    name: str
    title: str
    recipe: str  # "avid" or "cma"
    parent: str | None = None
    overrides: tuple[str, ...] = ()


RANDOM = "random_init"  # judged without training
_CMA = tuple(
    Stage(f"cma_{rule}", f"CMA, {rule}", "cma", "cross_avid", (f"objective.agreement={rule}",))
    for rule in ("consensus", "union", "video", "audio")
)
_NCE = tuple(
    Stage(
        f"cma_{name}",
        f"CMA, NCE, {title}",
        "cma",
        "nce_avid",
        ("objective.contrast=nce", f"objective.{rule}"),
    )
    for name, title, rule in (
        ("first_batch", "Z of the AVID stage", "partition=first_batch"),
        ("start_of_stage", "Z estimated anew", "partition=start_of_stage"),
        ("per_term", "Z estimated anew, for each term", "partition=per_term"),
        ("fixed", "Z = {fixed_z:g}", "partition={fixed_z}"),
    )
)
STAGES = {
    stage.name: stage
    for stage in (
        Stage(RANDOM, "random init", "avid"),
        Stage("self_avid", "Self-AVID", "avid", None, ("objective.cross=0", "objective.within=1")),
        Stage("joint_avid", "Joint-AVID", "avid", None, ("objective.cross=1", "objective.within=1")),
        Stage("cross_avid", "Cross-AVID", "avid"),
        # The control of CMA: as many more epochs of the same schedule, so that its gain is not that alone.
        Stage("avid_longer", "Cross-AVID, longer", "avid", "cross_avid"),
        *_CMA,
        Stage("nce_avid", "Cross-AVID, NCE", "avid", None, ("objective.contrast=nce",)),
        *_NCE,
    )
}
# Rows of each study, parents before children, with the row each is compared with.
STUDIES: dict[str, dict[str, str | None]] = {
    "methods": {
        RANDOM: None,
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
}
