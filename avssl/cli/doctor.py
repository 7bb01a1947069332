"""``avssl doctor``: is this installation able to do the work?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict

import click

from avssl.cli.checks import CHECKS, Finding


@click.command(
    epilog="""\b
Examples:
  avssl doctor
  avssl doctor --json > installation.json
"""
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON, for a bug report.")
def doctor(as_json: bool) -> None:
    """Check this installation: versions, decoders, search and GPU.

    Writes a tiny video with sound into a temporary folder, reads it back, searches with FAISS and computes
    with torch. Exit status 1 if something that is needed FAILs; a WARN costs speed or an optional part.
    """
    findings = []
    for finding in diagnose():
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.status == "FAIL" for finding in findings):
        raise click.exceptions.Exit(1)


def _show(finding: Finding) -> None:
    colour = {"OK": "green", "WARN": "yellow", "FAIL": "red"}[finding.status]
    click.echo(f"{click.style(f'{finding.status:4}', fg=colour)}  {finding.name:11} {finding.detail}")
    if finding.remedy:
        click.echo(f"{'':18}-> {finding.remedy}")


def diagnose() -> Iterator[Finding]:
    """All findings, one check after the other; a check that breaks is itself a finding."""
    for name, check in CHECKS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of third parties; the findings say what matters
                finding = check()
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            finding = Finding(
                name,
                "FAIL",
                reason,
                "install this package and what it needs again: pip install --force-reinstall -e .",
            )
        yield finding
