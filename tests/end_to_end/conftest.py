"""The command as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ENVIRONMENT = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def avssl():
    def call(*arguments, cwd=None, timeout=300):
        return subprocess.run(
            [sys.executable, "-m", "avssl", *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd, env=ENVIRONMENT,
        )  # fmt: skip

    return call


@pytest.fixture(scope="session")
def start_avssl():
    def start(*arguments, cwd=None):
        return subprocess.Popen(
            [sys.executable, "-m", "avssl", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=ENVIRONMENT,
        )  # fmt: skip

    return start
