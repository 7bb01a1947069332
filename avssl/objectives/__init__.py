"""Training objectives: plain modules from views to a loss."""

from avssl.objectives.avid import AVID
from avssl.objectives.barlow_twins import BarlowTwins, barlow_twins_loss
from avssl.objectives.base import Objective, TrunkOutputs
from avssl.objectives.byol import BYOL, byol_loss
from avssl.objectives.cma import CMA
from avssl.objectives.collapse import collapse_signs, embedding_health
from avssl.objectives.joint import Joint, find_cma, memory_state
from avssl.objectives.nce import Partition, nce_loss, softmax_loss
from avssl.objectives.simsiam import SimSiam, simsiam_loss
from avssl.objectives.sinkhorn import sinkhorn
from avssl.objectives.swav import SwAV, swav_loss

__all__ = [
    "AVID",
    "BYOL",
    "CMA",
    "BarlowTwins",
    "Joint",
    "Objective",
    "Partition",
    "SimSiam",
    "SwAV",
    "TrunkOutputs",
    "barlow_twins_loss",
    "byol_loss",
    "collapse_signs",
    "embedding_health",
    "find_cma",
    "memory_state",
    "nce_loss",
    "simsiam_loss",
    "sinkhorn",
    "softmax_loss",
    "swav_loss",
]
