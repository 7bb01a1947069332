"""Values of single queries on disk, so that results can be compared later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from avssl.errors import EvaluationError
from avssl.evaluate.feature_sets import DAMAGES, read_npz
from avssl.evaluate.ranking import Ranking
from avssl.files import atomic_write

PLAIN = ("chance", "relevance", "ties", "pool_size", "pool_hash", "tied_queries", "excluded")


def save_ranking(path: Path, ranking: Ranking) -> None:
    """Write a ranking as ``.npz``: ``ids``, one array a metric, and the rest as JSON in ``about``."""
    about = json.dumps({name: getattr(ranking, name) for name in PLAIN})
    arrays: dict[str, Any] = {"ids": ranking.ids, "about": np.array(about), **ranking.per_query}
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def load_ranking(path: Path) -> Ranking:
    """Read what `save_ranking` wrote.

    Raises
    ------
    EvaluationError
        If it is missing, or something else.
    """
    if not path.is_file():
        raise EvaluationError(f"{path}: no such result; write it with `avssl evaluate-features --output`")
    try:
        arrays = read_npz(path)
        return Ranking(ids=arrays.pop("ids"), **json.loads(str(arrays.pop("about"))), per_query=arrays)
    except (*DAMAGES, TypeError) as error:
        raise EvaluationError(
            f"{path}: is not a result of retrieval: {error}; write it with `avssl evaluate-features --output`"
        ) from error
