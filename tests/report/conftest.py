"""The run folder all tests of the report share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_run import write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A whole run; tests only read it and write pages elsewhere."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo")
