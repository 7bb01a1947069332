"""One stage of training from a configuration: what `avssl pretrain` and the demo run."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avssl import dist
from avssl.build import (
    Config,
    build_optimizer,
    build_specs,
    build_views,
    epoch_notice,
    share_cores,
)
from avssl.checkpoint import FILE_NAME, load_checkpoint
from avssl.config import dump_config
from avssl.data import ClipDataset, Manifest, RunSampler, ShardOrder, SkipLedger, make_loader
from avssl.decode import open_reader
from avssl.files import make_folder, write_text
from avssl.optim import learning_rate_factor
from avssl.statistics import resolve_statistics
from avssl.train.checkpoints import newest_whole
from avssl.train.held_out import HeldOut, find_held_out
from avssl.train.parallel import check_batch, no_progress, place, process_device, replicate, reproducible
from avssl.train.position import LoopSettings, Position
from avssl.train.resume import (
    alone_in,
    changes,
    move_aside,
    note_changes,
    place_in,
    refuse_changes,
    resume_notice,
)
from avssl.train.sharding import load_optimizer
from avssl.train.speed import check_compiler, quicken
from avssl.train.start import check_recipe, find_manifest, mute_notice, start_objective
from avssl.train.trainer import Trainer
from avssl.train.watchers import watched


def pretrain(
    config: Config,
    start_progress: Callable[[str, int, int], Any],
    restart: bool = False,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
    allow_changes: bool = False,
) -> Path:
    """Train a stage, or go on with it if its folder holds a checkpoint of the same recipe.

    In a process group (`avssl.dist.process_group`) every process calls it, with the same arguments. They all
    must see the run folder and the data; the first alone scans, writes, shows progress and says anything.

    Parameters
    ----------
    config : Config
        The recipe.
    start_progress : callable
        ``start_progress(description, total, completed)`` gives a context manager of a `Progress`.
    restart : bool
        Move an earlier run of that name aside and begin anew.
    command : str
        What the user typed, for the record.
    say : callable
        Takes a line the user should read, such as what an epoch means.
    allow_changes : bool
        Go on though recipe or data are not those the run began with.

    Returns
    -------
    Path
        The run folder: ``config.yaml``, ``checkpoint.pt``, ``checkpoints/``, ``manifest.parquet``,
        ``metrics.jsonl``, ``skipped.jsonl``, ``run.json``, ``tensorboard/`` and, where they apply,
        ``statistics.json``, ``mining.jsonl``, ``nonfinite.jsonl`` and ``changes.jsonl``.

    Raises
    ------
    AvsslError
        With a message for the user; `Interrupted` after a requested stop.
    """
    check_batch(config, dist.world_size())
    if dist.rank() > 0:
        start_progress, say = no_progress, _say_nothing
    folder = Path(config.run.folder) / config.run.name
    with ExitStack() as stack:
        prepare = partial(_prepare, config, folder, restart, allow_changes, start_progress, say, stack)
        config, whole = dist.from_first(prepare)
        _train(config, folder, whole, command, start_progress, say)
    return folder


def _train(
    config: Config,
    folder: Path,
    whole: Manifest,
    command: str,
    start_progress: Callable[[str, int, int], Any],
    say: Callable[[str], None],
) -> None:
    """Train in a prepared folder, from the checkpoint in it if there is one."""
    manifest = _select(whole, config)
    checkpoint = load_checkpoint(folder) if (folder / FILE_NAME).exists() else None
    device = process_device(config.train.device)
    workers = share_cores(config, device)
    with reproducible(config.train.deterministic, device):
        torch.manual_seed(config.train.seed)
        objective = start_objective(config, manifest, checkpoint, say)
        objective = place(objective, config, device, _precision(config, device))
        quicken(objective, config.train, device)
        optimizer = build_optimizer(config.optim, objective, config.train.batch_size)
        settings = _loop_settings(config, _sampler(config, manifest, Position()), device)
        position = Position()
        if checkpoint is not None:
            load_optimizer(optimizer, checkpoint["optimizer"])
            position = place_in(checkpoint, settings, checkpoint["manifest_hash"] == manifest.hash)
        loader = make_loader(
            _dataset(config, manifest),
            _sampler(config, manifest, position),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            stall_seconds=config.data.stall_seconds,
        )
        steps = position.step, position.step + settings.steps_after(position)
        held_out = None
        if config.train.held_out_every:
            held_out = HeldOut(config, whole, device, workers, settings.precision)
        about = config, folder, manifest, whole, objective, held_out, device, command, say
        with watched(*about, *steps) as watchers:
            views = build_views(config, train=True).to(device)
            model = replicate(objective, config)
            trainer = Trainer(
                objective, views, optimizer, loader, _rate(config), settings, watchers, position, model
            )
            if checkpoint is not None:
                trainer.load_scales(checkpoint)
            if steps[0] < steps[1]:
                with start_progress(config.run.name, steps[1], steps[0]) as progress:
                    trainer.fit(progress)


def _prepare(
    config: Config,
    folder: Path,
    restart: bool,
    allow_changes: bool,
    start_progress: Callable[[str, int, int], Any],
    say: Callable[[str], None],
    stack: ExitStack,
) -> tuple[Config, Manifest]:
    """Make or check the run folder; the recipe with its statistics, and all samples of the data.

    What `stack` is given, the hold of the folder, lasts until the training ends.
    """
    check_recipe(config)
    if config.train.compile:
        check_compiler(process_device(config.train.device))
    is_first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if restart and is_first_start and folder.exists():
        with alone_in(folder):
            move_aside(folder)
    make_folder(folder)
    stack.enter_context(alone_in(folder))
    checkpoint = newest_whole(folder, say)
    ledger = SkipLedger(folder / "skipped.jsonl")
    whole = find_manifest(config, folder, checkpoint is not None, ledger, start_progress)
    manifest = heard = _select(whole, config)
    if config.data.without_audio == "video_only":
        heard = manifest.select(need_video=True, need_audio=True)  # raises if no file at all has sound
    if config.train.held_out_every:
        find_held_out(config, whole)
    config = resolve_statistics(config, heard, folder, start_progress)
    saved = folder / "manifest.parquet"
    notices: list[str | None] = []
    if checkpoint is not None:
        before = _select(Manifest.load(saved), config) if saved.exists() else manifest
        found = changes(checkpoint, config, before, manifest, folder)
        refuse_changes(found, folder, allow_changes)
        note_changes(folder, checkpoint["position"]["step"], found)
        notices = [f"{folder}: goes on with a change: {change}" for change in found]
    whole.save(saved)
    write_text(folder / "config.yaml", dump_config(config))
    notices += [resume_notice(checkpoint, config, folder), mute_notice(config, whole)]
    for notice in [*notices, epoch_notice(config, len(manifest))]:
        if notice:
            say(notice)
    return config, whole


def _select(whole: Manifest, config: Config) -> Manifest:
    need_audio = config.model.audio is not None and config.data.without_audio == "drop"
    return whole.select(split=config.data.split, need_video=True, need_audio=need_audio)


def _say_nothing(line: str) -> None:
    """Leave it to the first process."""


def _dataset(config: Config, manifest: Manifest) -> ClipDataset:
    video, audio = build_specs(config)
    return ClipDataset(
        manifest,
        open_reader(config.data.decoder),
        video,
        audio,
        seed=config.train.seed,
        max_offset_seconds=config.data.max_offset_seconds,
        silent=config.data.silent,
        without_audio=config.data.without_audio,
    )


def _sampler(config: Config, manifest: Manifest, position: Position) -> RunSampler:
    video_only = config.data.without_audio == "video_only"
    return RunSampler(
        len(manifest),
        config.train.batch_size // config.train.accumulate,
        config.train.seed,
        config.train.epochs + config.train.memory_warmup_epochs,
        repeats=config.data.clips_per_sample,
        start=(position.epoch, position.batch),
        warmup_epochs=config.train.memory_warmup_epochs,
        rank=dist.rank(),
        world_size=dist.world_size(),
        draw=ShardOrder.of(manifest),
        has_sound=manifest.table["has_audio"].to_numpy() if video_only else None,
    )


def _rate(config: Config) -> Callable[[float], float]:
    return partial(
        learning_rate_factor,
        epochs=config.train.epochs,
        schedule=config.optim.schedule,
        warmup_epochs=config.optim.warmup_epochs,
        milestones=config.optim.milestones,
        gamma=config.optim.gamma,
        warmup_start=config.optim.warmup_start,
        end_factor=config.optim.end_factor,
    )


def _precision(config: Config, device: torch.device) -> torch.dtype:
    name = config.train.precision
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    precision: torch.dtype = getattr(torch, name)
    return precision


def _loop_settings(config: Config, sampler: RunSampler, device: torch.device) -> LoopSettings:
    return LoopSettings(
        epochs=config.train.epochs,
        batches_per_epoch=sampler.batches_per_epoch,
        warmup_epochs=config.train.memory_warmup_epochs,
        batches_per_warmup_epoch=sampler.batches_per_warmup_epoch,
        seed=config.train.seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        precision=_precision(config, device),
        clip_grad_norm=config.optim.clip_grad_norm,
        log_every=config.train.log_every,
        held_out_every=config.train.held_out_every,
        checkpoint_seconds=60 * config.train.checkpoint_minutes,
    )
