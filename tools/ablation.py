"""Compare AVID, CMA, visual methods and their variants on small data sets, over several seeds.

OMP_NUM_THREADS=1 python tools/ablation.py OUTPUT --study methods --write docs/ablation_methods.md

A study is a list of stages; each is trained, judged on the held-out files and written down in
OUTPUT/seed<S>/<stage>/result.json. What is written down is not done again, and an interrupted stage goes on
where it stopped. Studies share stages, so one OUTPUT serves them all. A process keeps to one core: seeds can
run side by side, each in a process with its own --seeds, before --table-only puts them into one table.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from ablation_data import DESCRIPTIONS, write_data
from ablation_studies import STAGES, STUDIES, Stage
from ablation_table import LAST_STEP, as_markdown, summarise

from avssl import __version__
from avssl.build import Config, build_device
from avssl.checkpoint import load_checkpoint
from avssl.cli.evaluate import judge, random_encoders
from avssl.cli.pretrain import show_progress
from avssl.config import config_diff, config_from_dict, config_to_dict, load_config
from avssl.data import Manifest
from avssl.errors import AvsslError, ConfigError, EvaluationError, Interrupted, TrainingError
from avssl.features import load_encoders
from avssl.files import write_json, write_text
from avssl.train import pretrain
from avssl.train.resume import FREE_TO_CHANGE

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    options = parse()
    try:
        if not options.table_only:
            for seed in options.seeds:
                run_seed(seed, options)
        publish(options)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"ablation: {stop or 'stopped'}; finished stages are kept", file=sys.stderr)
        raise SystemExit(130) from stop
    except AvsslError as error:
        print(f"ablation: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("output", type=Path, help="folder of all runs")
    add("--study", choices=STUDIES, default="methods")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of data, initialisation and training")
    add("--files", type=int, nargs=2, metavar=("TRAIN", "TEST"), help="files of a class; 80 17")
    add("--avid-epochs", type=int, help="60")
    add("--cma-epochs", type=int, help="of CMA and of the longer AVID; 24")
    add("--fixed-z", type=float, default=1.0, help="Z of the stage cma_fixed; 1")
    add("--quick", action="store_true", help="other defaults: --files 24 8 --avid-epochs 30 --cma-epochs 10")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="in the recipes of all stages",
    )
    add("--only", nargs="+", metavar="NAME", choices=STAGES, help="these stages and what they start from")
    cache = Path(os.environ.get("AVSSL_CACHE", "~/.cache/avssl"))
    add(
        "--cache",
        type=Path,
        default=cache,
        help="folder of the data; $AVSSL_CACHE or ~/.cache/avssl",
    )
    add("--table-only", action="store_true", help="train nothing")
    add("--write", type=Path, metavar="FILE.md", help="write the table here and its numbers to FILE.json")
    options = parser.parse_args()
    files, avid, cma = ((24, 8), 30, 10) if options.quick else ((80, 17), 60, 24)
    options.files = tuple(options.files or files)
    options.avid_epochs = options.avid_epochs or avid
    options.cma_epochs = options.cma_epochs or cma
    options.seeds = sorted(set(options.seeds))
    return options


def selected(options: argparse.Namespace) -> list[Stage]:
    """Stages of the study, parents first; with --only the named ones and their ancestors."""
    study = STUDIES[options.study]
    wanted = set(options.only or study)
    if not wanted <= study.keys():
        raise ConfigError(
            f"--only names {', '.join(sorted(wanted - study.keys()))}; must be stages of --study "
            f"{options.study}: {', '.join(study)}"
        )
    wanted |= {parent for name in wanted if (parent := STAGES[name].parent)}  # no parent has a parent itself
    return [STAGES[name] for name in study if name in wanted]


def recipe(stage: Stage, seed: int, options: argparse.Namespace) -> Config:
    """Configuration of a stage: its recipe, --set, what makes the stage, its place and seed."""
    folder = options.output / f"seed{seed}"
    own = [
        *(override.format(fixed_z=options.fixed_z) for override in stage.overrides),
        f"data.manifest={folder / stage.data}.parquet",
        *([f"train.epochs={getattr(options, f'{stage.length}_epochs')}"] if stage.length else []),
        f"train.seed={seed}",
        f"run.folder={folder}",
        f"run.name={stage.name}",
        *([f"run.start_from={folder / stage.parent}"] if stage.parent else []),
    ]
    clash = {text.partition("=")[0] for text in own} & {text.partition("=")[0] for text in options.set}
    if clash:
        raise ConfigError(
            f"--set {', '.join(sorted(clash))}: the study sets it; use an option, or leave it out"
        )
    one_core = ["data.num_workers=0", "train.threads=1"]
    return load_config(REPOSITORY / stage.recipe, [*one_core, *options.set, *own], schema=Config)


def run_seed(seed: int, options: argparse.Namespace) -> None:
    """Train and judge all stages of a seed that have no result yet."""
    stages = selected(options)
    missing = [stage for stage in stages if read_result(stage, seed, options) is None]
    if not missing:
        return
    for data in sorted({stage.data for stage in missing}):
        manifest = write_data(data, options.cache.expanduser(), *options.files, seed)
        manifest.save(options.output / f"seed{seed}" / f"{data}.parquet")
    for number, stage in enumerate(missing, 1):
        print(f"seed {seed}, stage {number} of {len(missing)}: {stage.name}", file=sys.stderr, flush=True)
        parent = read_result(STAGES[stage.parent], seed, options) if stage.parent else None
        if parent is not None and "failed" in parent:
            print(f"  left out: {stage.parent}, which it starts from, failed", file=sys.stderr)
            continue
        config = recipe(stage, seed, options)
        began = datetime.now(timezone.utc)
        try:
            outcome = measured(stage, config)
        except (TrainingError, EvaluationError) as error:  # deterministic: another attempt fails alike
            outcome = {"failed": str(error)}
            print(f"  failed: {error}", file=sys.stderr)
        write_json(result_path(stage, seed, options), outcome | about(config, options, began))


def measured(stage: Stage, config: Config) -> dict[str, Any]:
    """Train a stage and judge it: its metrics, the ends of its log and its seconds of training."""
    device = build_device(config.train.device)
    assert config.data.manifest is not None
    whole = Manifest.load(config.data.manifest)
    hears = config.model.audio is not None
    train, test = (whole.select(split=s, need_video=True, need_audio=hears) for s in ("train", "test"))
    if not stage.trained:
        judged = judge(stage.name, random_encoders(config), config, train, test, 2, device)
        return {"metrics": judged.metrics}
    folder = pretrain(config, show_progress, command=command_line())
    state = load_checkpoint(folder)
    encoders, _ = load_encoders(state, folder)
    judged = judge(stage.name, encoders, config, train, test, 2, device, state, train)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    curve = {"first_loss": steps[0]["loss"], "last_loss": steps[-1]["loss"]}
    curve |= {key: steps[-1][key] for key in LAST_STEP if key in steps[-1]}
    seconds = json.loads((folder / "run.json").read_text())["seconds"]
    return {"metrics": judged.metrics | curve, "seconds": seconds}


def about(config: Config, options: argparse.Namespace, began: datetime) -> dict[str, Any]:
    """What a result was made with."""
    device = build_device(config.train.device)
    on_gpu, threads = device.type == "cuda", config.train.threads
    versions = {"avssl": __version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    return {
        "date": f"{began:%Y-%m-%d}",
        "command": command_line(),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, threads: {threads}",
        "versions": versions,
        "files": list(options.files),
        "config": config_to_dict(config),
    }


def command_line() -> str:
    """What the user typed."""
    return shlex.join(["python", *sys.argv])


def result_path(stage: Stage, seed: int, options: argparse.Namespace) -> Path:
    return options.output / f"seed{seed}" / stage.name / "result.json"


def read_result(stage: Stage, seed: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """Result of a stage, None if there is none yet; refuses one of another recipe."""
    path = result_path(stage, seed, options)
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    before = config_from_dict(result["config"], Config, str(path))
    changed = config_diff(before, recipe(stage, seed, options))
    differing = [key for key in changed if not key.startswith(FREE_TO_CHANGE)]
    differing += ["--files"] if tuple(result["files"]) != options.files else []
    if differing:
        raise ConfigError(
            f"{path}: made with other settings ({', '.join(differing)}); give the same options, "
            "choose another OUTPUT, or remove the folder of the stage to run it again"
        )
    return result


def publish(options: argparse.Namespace) -> None:
    """Print the table of what is there, or write it with its numbers beside it."""
    stages = selected(options)
    results = {
        stage.name: {s: r for s in options.seeds if (r := read_result(stage, s, options)) is not None}
        for stage in stages
    }
    if not any(results.values()):
        raise ConfigError(
            f"{options.output}: no result of study {options.study} for seeds "
            f"{', '.join(map(str, options.seeds))}; run the same command without --table-only first"
        )
    titles = {stage.name: stage.title.format(fixed_z=options.fixed_z) for stage in stages}
    parents = {stage.name: stage.parent for stage in stages}
    references, data = STUDIES[options.study], DESCRIPTIONS[stages[0].data]
    content = summarise(options.study, data, results, titles, parents, references, reproduce(options))
    text = as_markdown(content)
    if options.write is None:
        print(text)
        return
    write_json(options.write.with_suffix(".json"), content)
    write_text(options.write, text)
    print(f"table   {options.write}")


def reproduce(options: argparse.Namespace) -> str:
    """The command that makes this table from nothing; `read_result` has seen to it that its options hold."""
    words = ["python", "tools/ablation.py", options.output.name, "--study", options.study, "--seeds"]
    words += [*map(str, options.seeds), "--files", *map(str, options.files)]
    for length in dict.fromkeys(STAGES[name].length for name in STUDIES[options.study]):
        words += [f"--{length}-epochs", str(getattr(options, f"{length}_epochs"))] if length else []
    words += ["--fixed-z", str(options.fixed_z)] if options.study == "partition" else []
    words += ["--set", *options.set] if options.set else []
    words += ["--only", *options.only] if options.only else []
    return "OMP_NUM_THREADS=1 " + shlex.join(words)


if __name__ == "__main__":
    main()
