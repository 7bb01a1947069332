"""What was skipped and why: one line a sample and reason in ``skipped.jsonl``, counted in every report."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from avssl.data.dataset import Failure
from avssl.data.measure import Skipped
from avssl.errors import ManifestError, TooManySkippedError

FIELDS = ("id", "path", "stage", "reason", "epoch")


class SkipLedger:
    """Record of failures that survives a resume.

    Each combination of sample, stage and reason is written once. Silent windows (stage ``"silent"``) are
    written too, but they say nothing about the health of a file and do not count against the limit.

    A record's ``id`` is that of the sample in the manifest. A file that a scan could not open has no sample
    and goes by the id it would have there: its path relative to what was scanned. ``path`` is absolute.

    Parameters
    ----------
    path : Path or None
        ``skipped.jsonl`` of the run, continued if it exists; a last line torn by a crash is dropped. None
        keeps the record in memory.

    Raises
    ------
    ManifestError
        When the existing file holds anything else than records.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.occurrences: Counter[str] = Counter()
        if path is not None and path.exists():
            self._resume(path)

    def _resume(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                self.records[record["id"], record["stage"], record["reason"]] = {k: record[k] for k in FIELDS}
            except (ValueError, KeyError, TypeError) as error:
                raise ManifestError(
                    f"{path}, line {number} is no record of a skipped sample; move the file away"
                ) from error
            self.occurrences[record["stage"]] += 1
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, failure: Failure, epoch: int) -> None:
        """Count a failure, and write it down if it is new."""
        self.occurrences[failure.stage] += 1
        key = (failure.id, failure.stage, failure.reason)
        if key in self.records:
            return
        record = {
            "id": failure.id,
            "path": failure.path,
            "stage": failure.stage,
            "reason": failure.reason,
            "epoch": epoch,
        }
        self.records[key] = record
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def add_unopened(self, skipped: Skipped, root: str | Path) -> None:
        """Write down a file below `root` that a scan could not open."""
        path = os.path.join(root, skipped.path)
        name = path.removeprefix(f"{root}/")
        self.add(Failure(-1, name, path, skipped.stage, skipped.reason), epoch=0)

    @property
    def failing(self) -> dict[str, dict[str, Any]]:
        """First record of each sample that could not be read (silent ones left out), by id."""
        first: dict[str, dict[str, Any]] = {}
        for record in self.records.values():
            if record["stage"] != "silent":
                first.setdefault(record["id"], record)
        return first

    def check(self, limit_share: float, num_rows: int) -> None:
        """Raise `TooManySkippedError` when more than `limit_share` of the samples could not be read.

        Parameters
        ----------
        limit_share : float in [0, 1]
            Largest share tolerated; 0 tolerates none.
        num_rows : int >= 1
            Samples of the manifest.
        """
        failing = self.failing
        share = len(failing) / num_rows
        if share <= limit_share:
            return
        reasons = "; ".join(f"{reason} ({count} x)" for reason, count in _commonest(failing))
        listed = "" if self.path is None else f" All are listed in {self.path}."
        raise TooManySkippedError(
            f"{len(failing)} of {num_rows} samples ({share:.1%}) could not be read; "
            f"at most {limit_share:.1%} may fail. Commonest reasons: {reasons}.{listed} Repair these files "
            f"or leave them out of the manifest, or allow more with data.max_skipped={_enough(share):g}"
        )

    def summary(self) -> dict[str, Any]:
        """Numbers for a report.

        Returns
        -------
        dict
            ``failing_samples``: distinct samples that could not be read; ``silent_samples``: distinct samples
            with silent windows; ``samples_by_stage``: distinct samples of each stage;
            ``occurrences_by_stage``: failures counted, those before a resume once a record;
            ``commonest_reasons``: up to three of [reason, samples]; ``ledger``: path of the file or None.
        """
        stages = Counter(stage for _, stage in {(name, stage) for name, stage, _ in self.records})
        return {
            "failing_samples": len(self.failing),
            "silent_samples": stages["silent"],
            "samples_by_stage": dict(sorted(stages.items())),
            "occurrences_by_stage": dict(sorted(self.occurrences.items())),
            "commonest_reasons": [list(item) for item in _commonest(self.failing)],
            "ledger": None if self.path is None else str(self.path),
        }


def _enough(share: float) -> float:
    """The next twentieth above a share, at most all: a limit with some room for files yet to fail."""
    return min(1.0, (math.floor(20 * share) + 1) / 20)


def _commonest(failing: dict[str, dict[str, Any]]) -> list[tuple[str, int]]:
    return Counter(f"{record['stage']}: {record['reason']}" for record in failing.values()).most_common(3)
