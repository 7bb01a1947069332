"""Call ``avssl prepare`` as a user does, and look at what it wrote."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from avssl.cli.main import main


def prepare(*arguments) -> tuple[int, str, str]:
    """Status, standard output and standard error."""
    result = CliRunner().invoke(main, ["prepare", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
