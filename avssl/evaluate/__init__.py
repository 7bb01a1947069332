"""Metrics on arrays of features: probes, retrieval, agreement of mined positives, collapse."""

from avssl.evaluate.agreement import collapse, positive_precision
from avssl.evaluate.knn import knn_accuracy
from avssl.evaluate.linear import LinearResult, linear_probe
from avssl.evaluate.retrieval import RetrievalResult, class_precision, retrieval_metrics

__all__ = [
    "LinearResult",
    "RetrievalResult",
    "class_precision",
    "collapse",
    "knn_accuracy",
    "linear_probe",
    "positive_precision",
    "retrieval_metrics",
]
