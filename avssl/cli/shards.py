"""The part of ``avssl prepare`` that writes shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from avssl.build import Config
from avssl.cli.accounts import count_files, describe, describe_skipped
from avssl.cli.progress import progress_bar
from avssl.config import load_config
from avssl.data import ScanResult
from avssl.errors import PrepareError
from avssl.shards import (
    Account,
    ShardJob,
    ShardSettings,
    SkipLimit,
    Store,
    make_shards,
    order_of,
    remove_shards,
    verify,
)
from avssl.shards.store import SKIPPED

GO_ON = "finished samples are kept; the same command goes on with the others"


class LimitType(click.ParamType):
    """``20`` is a number of samples, ``0.05`` and ``5%`` a share of them."""

    name = "limit"

    def convert(self, value: Any, param: Any, ctx: Any) -> SkipLimit:
        """Parse the value of the option."""
        if isinstance(value, SkipLimit):
            return value
        text = str(value)
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = -1.0
        is_share = text.endswith("%") or ("." in text and number <= 1)
        number = number / 100 if text.endswith("%") else number
        if number < 0 or (is_share and number > 1) or (not is_share and number != int(number)):
            self.fail(f"{value!r} is no limit; give a number such as 20, or a share such as 0.05", param, ctx)
        return SkipLimit(number, is_share)


class SizeType(click.ParamType):
    """A number of pixels, or ``keep``."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        """Parse the value of the option."""
        if value == "keep":
            return "keep"
        if not str(value).isdigit():
            self.fail(f"{value!r} is no size; give a number of pixels, or keep", param, ctx)
        return int(value)


def shard_settings(
    recipe: Path | None,
    short_side: int | str | None,
    fps: float | None,
    sample_rate: int | None,
    **others: Any,
) -> ShardSettings:
    """Settings from the command line, else from the recipe, else those a recipe has by default."""
    data = load_config(recipe, schema=Config).data if recipe is not None else Config().data
    side = data.short_side if short_side is None else short_side
    return ShardSettings(
        short_side=None if side == "keep" else side,  # type: ignore[arg-type]
        fps=data.fps if fps is None else fps,
        sample_rate=data.sample_rate if sample_rate is None else sample_rate,
        **{name: value for name, value in others.items() if value is not None},
    )


def prepare_shards(
    source: Path,
    find: Callable[[], ScanResult],
    output: Path,
    settings: ShardSettings,
    *,
    limit: SkipLimit | None,
    workers: int | None,
    ray_address: str | None,
    overwrite: bool,
) -> None:
    """Scan, write shards to a folder, and print what became of every sample."""
    if source.resolve() == output.resolve() or output.resolve() in source.resolve().parents:
        raise PrepareError(f"{output} is or holds the source; give another folder for the shards")
    found = find()
    if overwrite:
        remove_shards(output)
    store = Store(output, order_of(found.manifest, settings))
    if store.is_complete:
        click.echo(f"{output}: complete already; nothing to do (--overwrite prepares it again)")
        return
    try:
        job = ShardJob(
            found.manifest,
            found.skipped,
            store,
            settings,
            limit=limit,
            workers=workers or os.cpu_count() or 1,
            ray_address=ray_address,
        )
        account = make_shards(job, progress_bar)
    except KeyboardInterrupt:
        click.echo(f"\navssl: {GO_ON}", err=True)
        raise
    finally:
        store.close()
    click.echo("\n".join(_account(account, found, output)))


def verify_shards(output: Path) -> None:
    """Compare shards with their hashes, and say so."""
    with progress_bar("verify", unit="shards") as progress:
        number = verify(output, progress.update)
    click.echo(f"{output}: {number} shards, all as they were written")


def _account(account: Account, found: ScanResult, output: Path) -> list[str]:
    manifest, shards = account.manifest, account.shards
    size = sum(shard.num_bytes for shard in shards)
    hours = float(manifest.table["duration_seconds"].to_numpy().sum()) / 3600
    return [
        f"{output}: {len(manifest)} samples in {len(shards)} shards, {size / 1e6:.4g} MB, {hours:.3g} hours, "
        f"hash {manifest.hash[:12]}",
        f"  read:    {len(found.manifest)} samples of {count_files(found.manifest)} files",
        *describe(manifest, found.ignored),
        *describe_skipped(account.skipped, output / SKIPPED),
    ]
