"""Memory bank, negatives, nearest neighbours and agreement mining."""

from avssl.memory.agreement import Agreement, agreement_scores, mine_positives
from avssl.memory.bank import MemoryBank, Modality
from avssl.memory.nearest import nearest
from avssl.memory.negatives import draw_negatives

__all__ = [
    "Agreement",
    "MemoryBank",
    "Modality",
    "agreement_scores",
    "draw_negatives",
    "mine_positives",
    "nearest",
]
