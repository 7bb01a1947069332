"""Metrics on arrays of features: probes, retrieval, agreement of mined positives, collapse."""

from avssl.evaluate.agreement import collapse, positive_precision
from avssl.evaluate.intervals import Difference, Interval, bootstrap_intervals, compare_rankings
from avssl.evaluate.knn import knn_accuracy
from avssl.evaluate.linear import LinearResult, linear_probe
from avssl.evaluate.pool import Pool, make_pool
from avssl.evaluate.ranking import Ranking, rank_pool
from avssl.evaluate.ranking_file import load_ranking, save_ranking
from avssl.evaluate.retrieval import RetrievalResult, class_precision, retrieval_metrics

__all__ = [
    "Difference",
    "Interval",
    "LinearResult",
    "Pool",
    "Ranking",
    "RetrievalResult",
    "bootstrap_intervals",
    "class_precision",
    "collapse",
    "compare_rankings",
    "knn_accuracy",
    "linear_probe",
    "load_ranking",
    "make_pool",
    "positive_precision",
    "rank_pool",
    "retrieval_metrics",
    "save_ranking",
]
