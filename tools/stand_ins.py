"""Modules in the place of libraries that are not installed, for tools that need nothing of what is in them.

A machine with a GPU often has torch and little else. What `avssl` imports on the way to a training step, but
no step on a GPU uses, need not be installed there.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types

NOT_NEEDED = ("av", "llvmlite", "numba", "omegaconf", "pyarrow", "pydantic", "yaml")
"""Libraries that modules on the way to a step import, but no step on a GPU uses."""


class Missing(type):
    """Stands for everything in a library that is not there; what would check values lets them pass."""

    def __getattr__(cls, name):
        """Stand for what is in it, too."""
        if name.startswith("__"):
            raise AttributeError(name)
        return (lambda value: value) if name == "validate_python" else cls

    def __call__(cls, *args, **kwargs):
        """Stand for what it makes."""
        return cls

    def __getitem__(cls, key):
        """Stand for a generic type."""
        return cls

    def __iter__(cls):
        """Hold nothing."""
        return iter(())


class StandIns:
    """Finder of modules in the place of libraries that are not installed."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        """As `importlib.abc.MetaPathFinder`."""
        here = name.split(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if here else None

    def create_module(self, spec):
        """As `importlib.abc.Loader`."""
        module = types.ModuleType(spec.name)
        module.__getattr__ = Missing("Missing", (), {}).__getattr__
        return module

    def exec_module(self, module):
        """Run nothing."""


MISSING = [name for name in NOT_NEEDED if importlib.util.find_spec(name) is None]


def stand_in() -> None:
    """Let libraries in `MISSING` be imported from now on."""
    sys.meta_path.append(StandIns(MISSING))
