"""One stage of training from a configuration: what `avssl pretrain` and the demo run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from avssl.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from avssl.config import config_to_dict, dump_config
from avssl.data import ClipDataset, Manifest, RunSampler, ShardOrder, SkipLedger, make_loader
from avssl.decode import open_reader
from avssl.files import write_text
from avssl.optim import learning_rate_factor
from avssl.statistics import resolve_statistics
from avssl.train.log import MetricsLog
from avssl.train.mining_log import MiningObserver
from avssl.train.parallel import check_batch, no_progress, place, process_device, replicate
from avssl.train.position import LoopSettings, Position
from avssl.train.record import so_far, write_record
from avssl.train.sharding import load_optimizer
from avssl.train.start import (
    check_recipe,
    check_same_run,
    find_manifest,
    move_aside,
    mute_notice,
    resume_notice,
    start_objective,
)
from avssl.train.trainer import Trainer


def pretrain(
    config: Config,
    start_progress: Callable[[str, int, int], Any],
    restart: bool = False,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
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

    Returns
    -------
    Path
        The run folder: ``config.yaml``, ``checkpoint.pt``, ``manifest.parquet``, ``metrics.jsonl``,
        ``skipped.jsonl``, ``run.json``, ``tensorboard/`` and, where they apply, ``statistics.json`` and
        ``mining.jsonl``.

    Raises
    ------
    AvsslError
        With a message for the user; `Interrupted` after a requested stop.
    """
    check_batch(config, dist.world_size())
    if dist.rank() > 0:
        start_progress, say = no_progress, _say_nothing
    folder = Path(config.run.folder) / config.run.name
    config, whole = dist.from_first(lambda: _prepare(config, folder, restart, start_progress, say))
    manifest = _select(whole, config)
    checkpoint = load_checkpoint(folder) if (folder / FILE_NAME).exists() else None
    device = process_device(config.train.device)
    workers = share_cores(config, device)
    torch.manual_seed(config.train.seed)
    objective = start_objective(config, manifest, checkpoint, say)
    objective = place(objective, config, device, _precision(config, device))
    optimizer = build_optimizer(config.optim, objective, config.train.batch_size)
    position = Position()
    if checkpoint is not None:
        load_optimizer(optimizer, checkpoint["optimizer"])
        position = Position(**checkpoint["position"])
    sampler = _sampler(config, manifest, position)
    settings = _loop_settings(config, sampler, len(manifest), device)
    loader = make_loader(
        _dataset(config, manifest), sampler, num_workers=workers, pin_memory=device.type == "cuda"
    )

    def save(trainer: Trainer) -> None:
        state = trainer.state() | {"config": config_to_dict(config), "manifest_hash": manifest.hash}
        if dist.rank() == 0:
            save_checkpoint(folder / FILE_NAME, state)
        dist.wait_for_all()  # none ends, or goes on to break an exchange, while it is being written

    steps = position.step, settings.total_steps
    with _written_down(folder, config, manifest, whole, device, command, *steps) as log:
        trainer = Trainer(
            objective,
            build_views(config, train=True).to(device),
            optimizer,
            loader,
            _rate(config),
            settings,
            save,
            log,
            SkipLedger(None if log is None else folder / "skipped.jsonl"),
            position,
            MiningObserver(log, position.step, manifest.label_indices()),
            say,
            replicate(objective, config),
        )
        if checkpoint is not None:
            trainer.scaler.load_state_dict(checkpoint["scaler"])
        if position.epoch < config.train.epochs + config.train.memory_warmup_epochs:
            with start_progress(config.run.name, settings.total_steps, position.step) as progress:
                trainer.fit(progress)
    return folder


def _prepare(
    config: Config,
    folder: Path,
    restart: bool,
    start_progress: Callable[[str, int, int], Any],
    say: Callable[[str], None],
) -> tuple[Config, Manifest]:
    """Make or check the run folder; the recipe with its statistics, and all samples of the data."""
    check_recipe(config)
    if restart and folder.exists():
        move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = load_checkpoint(folder) if (folder / FILE_NAME).exists() else None
    ledger = SkipLedger(folder / "skipped.jsonl")
    whole = find_manifest(config, folder, checkpoint is not None, ledger, start_progress)
    manifest = heard = _select(whole, config)
    if config.data.without_audio == "video_only":
        heard = manifest.select(need_video=True, need_audio=True)  # raises if no file at all has sound
    config = resolve_statistics(config, heard, folder, start_progress)
    if checkpoint is not None:
        check_same_run(checkpoint, config, manifest, folder)
    write_text(folder / "config.yaml", dump_config(config))
    notices = [resume_notice(checkpoint, config, folder), mute_notice(config, whole)]
    for notice in [*notices, epoch_notice(config, len(manifest))]:
        if notice:
            say(notice)
    return config, whole


def _select(whole: Manifest, config: Config) -> Manifest:
    need_audio = config.model.audio is not None and config.data.without_audio == "drop"
    return whole.select(split=config.data.split, need_video=True, need_audio=need_audio)


def _say_nothing(line: str) -> None:
    """Leave it to the first process."""


@contextmanager
def _written_down(
    folder: Path,
    config: Config,
    manifest: Manifest,
    whole: Manifest,
    device: torch.device,
    command: str,
    step: int,
    total_steps: int,
) -> Iterator[MetricsLog | None]:
    """Log of the run, and its record, kept up to date; None in all processes but the first."""
    if dist.rank() > 0:
        yield None
        return
    started, seconds = so_far(folder, (folder / FILE_NAME).exists())
    began = time.monotonic() - seconds
    record = partial(write_record, folder, config, manifest, whole, device, command, total_steps, started)
    record(status="running", seconds=time.monotonic() - began)
    log = MetricsLog(folder, step)
    status = "stopped"
    try:
        yield log
        status = "finished"
    finally:
        log.close()
        record(status=status, seconds=time.monotonic() - began)


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


def _loop_settings(config: Config, sampler: RunSampler, rows: int, device: torch.device) -> LoopSettings:
    return LoopSettings(
        epochs=config.train.epochs,
        batches_per_epoch=sampler.batches_per_epoch,
        warmup_epochs=config.train.memory_warmup_epochs,
        batches_per_warmup_epoch=sampler.batches_per_warmup_epoch,
        seed=config.train.seed,
        accumulate=config.train.accumulate,
        precision=_precision(config, device),
        clip_grad_norm=config.optim.clip_grad_norm,
        log_every=config.train.log_every,
        checkpoint_seconds=60 * config.train.checkpoint_minutes,
        max_skipped=config.data.max_skipped,
        num_rows=rows,
    )
