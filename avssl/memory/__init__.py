"""Memory bank, negatives, nearest neighbours and agreement mining."""

from avssl.memory.agreement import Agreement, Method, Mining, agreement_scores, mine_positives
from avssl.memory.bank import BankDtype, MemoryBank, Modality, instance_keys
from avssl.memory.diagnostics import Diagnosis, Histogram, diagnose
from avssl.memory.nearest import nearest
from avssl.memory.negatives import Pool, draw_negatives, draw_pool

__all__ = [
    "Agreement",
    "BankDtype",
    "Diagnosis",
    "Histogram",
    "MemoryBank",
    "Method",
    "Mining",
    "Modality",
    "Pool",
    "agreement_scores",
    "diagnose",
    "draw_negatives",
    "draw_pool",
    "instance_keys",
    "mine_positives",
    "nearest",
]
