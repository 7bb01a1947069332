"""Where a run begins: its data, its objective, and whether it is the run its folder already holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.build import Config, build_objective, learning_rate
from avssl.data import Manifest, SkipLedger, scan
from avssl.data.remote import is_url
from avssl.errors import CheckpointError, ConfigError
from avssl.memory import instance_keys
from avssl.objectives import Joint, Objective, find_cma
from avssl.train.log import check_wandb
from avssl.train.resume import carry_over
from avssl.weights import find_weights, read_checkpoint


def check_recipe(config: Config) -> None:
    """Raise for what is wrong with a recipe whatever the data are, before anything long begins."""
    check_wandb(config.run.wandb)
    best = config.train.keep_best
    if best is not None and best.startswith("held_out_") and not config.train.held_out_every:
        raise ConfigError(
            f"train.keep_best is {best!r}, but nothing is measured on held-out data; set "
            "train.held_out_every, the steps between two measurements"
        )
    if config.run.start_from is not None:
        find_weights(config.run.start_from)
    learning_rate(config.optim, config.train.batch_size)
    if config.data.without_audio == "silence" and config.data.silent == "skip":
        raise ConfigError(
            "data.without_audio is 'silence' and data.silent is 'skip', which skips it again; give "
            "data.silent=keep too, or data.without_audio=drop"
        )
    try:
        with torch.device("meta"):  # shapes without numbers: networks of any size are built in no time
            _check_video_only(config, build_objective(config, num_instances=10**6))
    except (NotImplementedError, RuntimeError):
        return  # a class from elsewhere that needs the numbers: its mistakes show when it is built in earnest


def _check_video_only(config: Config, objective: Objective) -> None:
    """Raise `ConfigError` where files without sound would teach nothing, or those with sound nothing more."""
    if config.data.without_audio != "video_only":
        return
    parts = {"": objective}
    if isinstance(objective, Joint):
        weights = objective.weights, objective.end_weights
        parts = {name: part for name, part in objective.objectives.items() if any(w[name] for w in weights)}
    hears = {part.needs_audio for part in parts.values()}
    if hears != {True, False}:
        lacking = "video alone" if True in hears else "sound"
        raise ConfigError(
            f"data.without_audio is 'video_only', but nothing in the objective learns from {lacking}; it "
            "needs a Joint objective with a part that learns from sound and one that does not, each of a "
            "weight above 0, such as in configs/joint/; use one, or data.without_audio=drop"
        )


def mute_notice(config: Config, whole: Manifest) -> str | None:
    """How many files have no sound and what becomes of them; None without any, or if the model is deaf."""
    if config.model.audio is None:
        return None
    in_split = whole.select(split=config.data.split, need_video=True)
    mute = len(in_split) - int(in_split.table["has_audio"].to_numpy().sum())
    if mute == 0:
        return None
    fate = {
        "drop": "are left out",
        "silence": "take part with silence in its place",
        "video_only": "take part with their video alone",
    }
    return (
        f"{mute:,} of {len(in_split):,} samples have no sound and {fate[config.data.without_audio]} "
        f"(data.without_audio={config.data.without_audio})"
    )


def find_manifest(
    config: Config,
    folder: Path,
    resuming: bool,
    ledger: SkipLedger,
    start_progress: Callable[[str, int, int], Any],
) -> Manifest:
    """The manifest of the run: the one it began with, the one the recipe names, or a fresh scan.

    A run that goes on keeps to the files it found when it began, but for a manifest that the recipe names and
    that is there. Files a scan cannot open are entered in the ledger.
    """
    saved = folder / "manifest.parquet"
    is_named = config.data.manifest is not None and (
        is_url(config.data.manifest) or Path(config.data.manifest).exists()
    )
    if resuming and saved.exists() and not is_named:
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
                images=config.data.num_frames == 1 and config.model.audio is None,
                progress=lambda done, total: progress.update(done, total=total),
            )
        manifest = result.manifest
        for skipped in result.skipped:
            ledger.add_unopened(skipped, manifest.root)
        ledger.check(config.data.max_skipped, len(manifest) + len(result.skipped))
    return manifest


def start_objective(
    config: Config,
    manifest: Manifest,
    checkpoint: dict[str, Any] | None,
    say: Callable[[str], None],
) -> Objective:
    """Objective of the recipe: as the checkpoint left it, or fresh, or begun from an earlier stage."""
    objective = build_objective(config, len(manifest))
    _check_video_only(config, objective)
    objective.name_instances(instance_keys(manifest.ids), torch.from_numpy(manifest.copies()))
    if checkpoint is not None:
        carry_over(objective, checkpoint, checkpoint["manifest_hash"] == manifest.hash, config.run.name)
    elif config.run.start_from is not None:
        _start_from_stage(objective, config, manifest, say)
    return objective


def _start_from_stage(
    objective: Objective, config: Config, manifest: Manifest, say: Callable[[str], None]
) -> None:
    """Take over encoders, heads and, instance by instance, memories of an earlier stage, and say which."""
    source = str(config.run.start_from)
    before = read_checkpoint(source)
    state: dict[str, Tensor] = before["objective"]
    official = "source" in before
    if official:  # the banks of the release belong to its authors' files, in an order nobody knows
        state = {key: value for key, value in state.items() if not key.startswith(("bank.", "positive_set"))}
    released = before.get("heads", {})
    state |= {f"{name}.{key}": value for name, head in released.items() for key, value in head.items()}
    try:
        carried = objective.start_from(state)
    except (RuntimeError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{source}: does not fit this recipe: {' '.join(str(error).split())[:300]}; "
            "use the same model section in both stages"
        ) from error
    if notice := _heads_notice(objective.heads_in(state), released):
        say(f"{source}: {notice}")
    if carried and carried < len(manifest):
        say(f"{source}: memories of {carried:,} of the {len(manifest):,} samples were carried over")
    if find_cma(objective) is not None and not carried and not config.train.memory_warmup_epochs:
        why = "the release's memories belong to its authors' files" if official else "it holds none of them"
        raise CheckpointError(
            f"{source}: has no memories of these {len(manifest):,} samples ({why}), and CMA mines its "
            "positives in them; set train.memory_warmup_epochs=1 to fill them by a pass over the data first"
        )


def _heads_notice(heads: dict[str, str | None], released: Mapping[str, Any]) -> str:
    """What became of the objective's heads, and which of a release's are not used; "" without any."""
    taken = [name for name, misfit in heads.items() if misfit is None]
    fresh = [f"{name} ({misfit})" for name, misfit in heads.items() if misfit is not None]
    known = {name.rpartition(".")[2] for name in heads}
    unused = [name for name in released if name not in known]
    parts = {"heads taken over": taken, "begun afresh": fresh, "not used": unused}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)
