"""Audio-visual self-supervised learning."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``avssl.load``, see `avssl.weights.load`; imported when it is asked for, as it needs torch."""
    if name == "load":
        return importlib.import_module("avssl.weights").load
    raise AttributeError(f"module 'avssl' has no attribute {name!r}")
