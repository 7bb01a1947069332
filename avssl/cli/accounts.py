"""What became of every file, as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from avssl.data import Manifest, ScanResult, Skipped

LISTED = 10
"""Reasons that are printed; the file of skipped samples has all."""


def account(result: ScanResult, output: Path, ledger: Path) -> list[str]:
    """Account of a manifest written to `output`, with what was skipped in `ledger`."""
    manifest = result.manifest
    return [
        f"{output}: {len(manifest)} samples of {count_files(manifest)} files, hash {manifest.hash[:12]}",
        *describe(manifest, result.ignored),
        *describe_skipped(result.skipped, ledger),
    ]


def count_files(manifest: Manifest) -> int:
    """Number of files the samples lie in."""
    return len(set(manifest.table["path"].to_pylist()))


def describe(manifest: Manifest, ignored: Mapping[str, int]) -> list[str]:
    """Streams, splits and classes; files of a folder that are no media."""
    lines = [
        f"  streams: {_streams(manifest)}",
        f"  splits:  {_counts(manifest.splits)}",
        f"  classes: {len(manifest.classes) or 'none (the files have no labels)'}",
    ]
    return [*lines, f"  not media: {_counts(ignored)}"] if ignored else lines


def describe_skipped(skipped: Sequence[Skipped], ledger: Path) -> list[str]:
    """Number of skipped files or samples by reason; nothing when there are none."""
    if not skipped:
        return []
    reasons = Counter(f"{item.stage}: {item.reason}" for item in skipped)
    lines = [f"{len(skipped)} skipped, listed in {ledger}:"]
    lines += [f"  {count} x {reason}" for reason, count in reasons.most_common(LISTED)]
    if len(reasons) > LISTED:
        lines.append(f"  and {len(reasons) - LISTED} other reasons")
    return lines


def _streams(manifest: Manifest) -> str:
    names = {(True, True): "video and audio", (True, False): "video only", (False, True): "audio only"}
    kinds = zip(manifest.table["has_video"].to_pylist(), manifest.table["has_audio"].to_pylist(), strict=True)
    return _counts(Counter(names[kind] for kind in kinds))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
