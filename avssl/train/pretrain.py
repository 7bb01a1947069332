"""One stage of training from a configuration: what `avssl pretrain` and the demo run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avssl.build import (
    Config,
    build_device,
    build_optimizer,
    build_specs,
    build_views,
    epoch_notice,
    share_cores,
)
from avssl.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from avssl.config import config_to_dict, dump_config
from avssl.data import ClipDataset, Manifest, RunSampler, SkipLedger, make_loader
from avssl.decode import open_reader
from avssl.errors import ConfigError
from avssl.files import write_text
from avssl.optim import learning_rate_factor
from avssl.statistics import resolve_statistics
from avssl.train.log import MetricsLog
from avssl.train.mining_log import MiningObserver
from avssl.train.record import seconds_so_far, write_record
from avssl.train.start import (
    check_recipe,
    check_same_run,
    find_manifest,
    move_aside,
    resume_notice,
    start_objective,
)
from avssl.train.trainer import LoopSettings, Position, Trainer


def pretrain(
    config: Config,
    start_progress: Callable[[str, int, int], Any],
    restart: bool = False,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train a stage, or go on with it if its folder holds a checkpoint of the same recipe.

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
    size, parts = config.train.batch_size, config.train.accumulate
    if size % parts or size < 2 * parts:
        raise ConfigError(
            f"train.batch_size is {size} and train.accumulate {parts}; a batch must divide into parts of at "
            "least 2 clips; change one of them"
        )
    check_recipe(config)
    folder = Path(config.run.folder) / config.run.name
    if restart and folder.exists():
        move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = load_checkpoint(folder) if (folder / FILE_NAME).exists() else None
    ledger = SkipLedger(folder / "skipped.jsonl")
    whole = find_manifest(config, folder, checkpoint is not None, ledger, start_progress)
    manifest = whole.select(
        split=config.data.split, need_video=True, need_audio=config.model.audio is not None
    )
    config = resolve_statistics(config, manifest, folder, start_progress)
    if checkpoint is not None:
        check_same_run(checkpoint, config, manifest, folder)
    write_text(folder / "config.yaml", dump_config(config))
    for notice in (resume_notice(checkpoint, config, folder), epoch_notice(config, len(manifest))):
        if notice:
            say(notice)
    return _train(config, folder, manifest, whole, ledger, checkpoint, start_progress, command, say)


def _train(
    config: Config,
    folder: Path,
    manifest: Manifest,
    whole: Manifest,
    ledger: SkipLedger,
    checkpoint: dict[str, Any] | None,
    start_progress: Callable[[str, int, int], Any],
    command: str,
    say: Callable[[str], None],
) -> Path:
    began = time.monotonic() - seconds_so_far(folder, checkpoint is not None)
    device = build_device(config.train.device)
    workers = share_cores(config, device)
    torch.manual_seed(config.train.seed)
    objective = start_objective(config, manifest, checkpoint, say).to(device)
    optimizer = build_optimizer(config.optim, objective, config.train.batch_size)
    position = Position()
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        position = Position(**checkpoint["position"])
    sampler = _sampler(config, manifest, position)
    settings = _loop_settings(config, sampler.batches_per_epoch, len(manifest), device)
    epochs = config.train.epochs + config.train.memory_warmup_epochs
    total_steps = epochs * -(-sampler.batches_per_epoch // config.train.accumulate)
    record = partial(write_record, folder, config, manifest, whole, device, command)
    record(status="running", seconds=time.monotonic() - began)
    log = MetricsLog(folder, position.step)
    trainer = Trainer(
        objective,
        build_views(config, train=True).to(device),
        optimizer,
        make_loader(
            _dataset(config, manifest), sampler, num_workers=workers, pin_memory=device.type == "cuda"
        ),
        _rate(config),
        settings,
        lambda t: save_checkpoint(
            folder / FILE_NAME,
            t.state() | {"config": config_to_dict(config), "manifest_hash": manifest.hash},
        ),
        log,
        ledger,
        position,
        MiningObserver(log, position.step, manifest.label_indices()),
        say,
    )
    if checkpoint is not None:
        trainer.scaler.load_state_dict(checkpoint["scaler"])
    status = "stopped"
    try:
        if position.epoch < epochs:
            with start_progress(config.run.name, total_steps, position.step) as progress:
                trainer.fit(progress)
        status = "finished"
    finally:
        log.close()
        record(status=status, seconds=time.monotonic() - began)
    return folder


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
    )


def _sampler(config: Config, manifest: Manifest, position: Position) -> RunSampler:
    return RunSampler(
        len(manifest),
        config.train.batch_size // config.train.accumulate,
        config.train.seed,
        config.train.epochs + config.train.memory_warmup_epochs,
        repeats=config.data.clips_per_sample,
        start=(position.epoch, position.batch),
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


def _loop_settings(config: Config, batches_per_epoch: int, rows: int, device: torch.device) -> LoopSettings:
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return LoopSettings(
        epochs=config.train.epochs,
        warmup_epochs=config.train.memory_warmup_epochs,
        batches_per_epoch=batches_per_epoch,
        seed=config.train.seed,
        accumulate=config.train.accumulate,
        precision=getattr(torch, precision),
        clip_grad_norm=config.optim.clip_grad_norm,
        log_every=config.train.log_every,
        checkpoint_seconds=60 * config.train.checkpoint_minutes,
        max_skipped=config.data.max_skipped,
        num_rows=rows,
    )
