"""Memory bank, negatives, nearest neighbours and agreement mining."""

from avssl.memory.agreement import (
    Agreement,
    Method,
    Mining,
    agreement_scores,
    check_streamed,
    mine_positives,
)
from avssl.memory.bank import BankDtype, BankStorage, MemoryBank, Modality
from avssl.memory.diagnostics import Diagnosis, Histogram, diagnose
from avssl.memory.instances import instance_keys
from avssl.memory.lookup import ShardedRows, Vectors, lookup, take
from avssl.memory.nearest import nearest
from avssl.memory.negatives import Pool, draw_negatives, draw_pool

__all__ = [
    "Agreement",
    "BankDtype",
    "BankStorage",
    "Diagnosis",
    "Histogram",
    "MemoryBank",
    "Method",
    "Mining",
    "Modality",
    "Pool",
    "ShardedRows",
    "Vectors",
    "agreement_scores",
    "check_streamed",
    "diagnose",
    "draw_negatives",
    "draw_pool",
    "instance_keys",
    "lookup",
    "mine_positives",
    "nearest",
    "take",
]
