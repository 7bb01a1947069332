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
    build_objective,
    build_optimizer,
    build_specs,
    build_views,
    share_cores,
)
from avssl.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from avssl.config import config_diff, config_from_dict, config_to_dict, dump_config
from avssl.data import ClipDataset, Failure, Manifest, RunSampler, SkipLedger, Skipped, make_loader, scan
from avssl.decode import open_reader
from avssl.errors import CheckpointError, ConfigError
from avssl.files import write_text
from avssl.objectives import Objective
from avssl.optim import learning_rate_factor
from avssl.train.log import MetricsLog
from avssl.train.record import seconds_so_far, write_record
from avssl.train.trainer import LoopSettings, Position, Trainer

FREE_TO_CHANGE = ("run.", "data.num_workers", "data.max_skipped", "train.device", "train.threads",
                  "train.log_every", "train.checkpoint_minutes", "data.root", "data.manifest")  # fmt: skip
"""Keys that may differ when a run is resumed; what the data are is checked by the manifest's hash."""


def pretrain(
    config: Config,
    start_progress: Callable[[str, int, int], Any],
    restart: bool = False,
    command: str = "",
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

    Returns
    -------
    Path
        The run folder: ``config.yaml``, ``checkpoint.pt``, ``manifest.parquet``, ``metrics.jsonl``,
        ``skipped.jsonl``, ``run.json`` and ``tensorboard/``.

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
    folder = Path(config.run.folder) / config.run.name
    if restart and folder.exists():
        _move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = load_checkpoint(folder) if (folder / FILE_NAME).exists() else None
    ledger = SkipLedger(folder / "skipped.jsonl")
    whole = find_manifest(config, folder, checkpoint is not None, ledger, start_progress)
    manifest = whole.select(split=config.data.split, need_video=True, need_audio=True)
    if checkpoint is not None:
        _check_same_run(checkpoint, config, manifest, folder)
    write_text(folder / "config.yaml", dump_config(config))
    return _train(config, folder, manifest, whole, ledger, checkpoint, start_progress, command)


def _train(
    config: Config,
    folder: Path,
    manifest: Manifest,
    whole: Manifest,
    ledger: SkipLedger,
    checkpoint: dict[str, Any] | None,
    start_progress: Callable[[str, int, int], Any],
    command: str,
) -> Path:
    began = time.monotonic() - seconds_so_far(folder, checkpoint is not None)
    device = build_device(config.train.device)
    workers = share_cores(config, device)
    torch.manual_seed(config.train.seed)
    objective = _start_objective(config, manifest, checkpoint).to(device)
    optimizer = build_optimizer(config.optim, objective)
    position = Position()
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        position = Position(**checkpoint["position"])
    sampler = _sampler(config, manifest, position)
    settings = _loop_settings(config, sampler.batches_per_epoch, len(manifest), device)
    total_steps = config.train.epochs * -(-sampler.batches_per_epoch // config.train.accumulate)
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
    )
    if checkpoint is not None:
        trainer.scaler.load_state_dict(checkpoint["scaler"])
    status = "stopped"
    try:
        if position.epoch < config.train.epochs:
            with start_progress(config.run.name, total_steps, position.step) as progress:
                trainer.fit(progress)
        status = "finished"
    finally:
        log.close()
        record(status=status, seconds=time.monotonic() - began)
    return folder


def find_manifest(
    config: Config,
    folder: Path,
    resuming: bool,
    ledger: SkipLedger,
    start_progress: Callable[[str, int, int], Any],
) -> Manifest:
    """The manifest of the run: the one it began with, the one the recipe names, or a fresh scan.

    Files a scan cannot open are entered in the ledger.
    """
    saved = folder / "manifest.parquet"
    if resuming and saved.exists():
        moved = config.data.root is not None and Path(config.data.root).is_dir()
        return Manifest.load(saved, root=config.data.root if moved else None)
    if (config.data.root is None) == (config.data.manifest is None):
        raise ConfigError(
            f"data.root is {config.data.root!r} and data.manifest is {config.data.manifest!r}; give exactly "
            "one: data.root=FOLDER to scan a folder of videos, or data.manifest=FILE from `avssl prepare`"
        )
    if config.data.manifest is not None:
        manifest = Manifest.load(config.data.manifest)
    else:
        assert config.data.root is not None
        with start_progress("scan", 0, 0) as progress:
            result = scan(
                config.data.root,
                val_share=config.data.val_share,
                progress=lambda done, total: progress.update(done, total=total),
            )
        manifest = result.manifest
        for skipped in result.skipped:
            ledger.add(_failure(skipped), epoch=0)
        ledger.check(config.data.max_skipped, len(manifest) + len(result.skipped))
    manifest.save(saved)
    return manifest


def _failure(skipped: Skipped) -> Failure:
    return Failure(-1, skipped.path, skipped.path, skipped.stage, skipped.reason)


def _start_objective(config: Config, manifest: Manifest, checkpoint: dict[str, Any] | None) -> Objective:
    objective = build_objective(config, len(manifest))
    if checkpoint is not None:
        objective.load_state_dict(checkpoint["objective"])
    elif config.run.start_from is not None:
        before = load_checkpoint(config.run.start_from)
        if before["manifest_hash"] != manifest.hash:
            raise CheckpointError(
                f"{config.run.start_from}: its memories belong to other data (manifest "
                f"{before['manifest_hash'][:12]}, now {manifest.hash[:12]}); use the same data in both stages"
            )
        try:
            objective.start_from(before["objective"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{config.run.start_from}: does not fit this recipe: {str(error).splitlines()[0]}; "
                "use the same model section and the same data in both stages"
            ) from error
    return objective


def _dataset(config: Config, manifest: Manifest) -> ClipDataset:
    video, audio = build_specs(config.data)
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
        config.train.epochs,
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
    )


def _loop_settings(config: Config, batches_per_epoch: int, rows: int, device: torch.device) -> LoopSettings:
    precision = config.train.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return LoopSettings(
        epochs=config.train.epochs,
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


def _check_same_run(checkpoint: dict[str, Any], config: Config, manifest: Manifest, folder: Path) -> None:
    before = config_from_dict(checkpoint["config"], Config, str(folder))
    differing = [key for key in config_diff(before, config) if not key.startswith(FREE_TO_CHANGE)]
    if differing:
        raise CheckpointError(
            f"{folder}: holds a run with other settings ({', '.join(differing)}); choose another name with "
            "run.name=, or give --restart to move that run aside and begin anew"
        )
    if checkpoint["manifest_hash"] != manifest.hash:
        raise CheckpointError(
            f"{folder}: its checkpoint belongs to other data (manifest {checkpoint['manifest_hash'][:12]}, "
            f"now {manifest.hash[:12]}); choose another name with run.name=, or give --restart"
        )


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(aside)
