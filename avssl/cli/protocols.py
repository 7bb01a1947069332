"""``avssl evaluate RUN PROTOCOL``: published protocols on frozen features, extracted once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from avssl import __version__
from avssl.build import Config, share_cores
from avssl.cli.pretrain import command_line
from avssl.cli.progress import progress_bar
from avssl.data import Manifest
from avssl.errors import EvaluationError
from avssl.evaluate.audio_svm import audio_svm, folds_of
from avssl.evaluate.block_probe import block_probe
from avssl.evaluate.blocks import POOL, block_names
from avssl.evaluate.clip_features import ClipFeatures
from avssl.evaluate.feature_cache import FOLDER, cached_features
from avssl.evaluate.few_shot import few_shot
from avssl.files import write_json
from avssl.models import DualEncoder, VisualEncoder

PROTOCOLS = ("blocks", "audio-svm", "few-shot")
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what.

    Parameters
    ----------
    encoders, config
        The networks and their recipe.
    whole : Manifest
        All samples.
    train_split, test_split : str
    modality : {"video", "audio"}
    num_clips : int >= 1
        Clips a file.
    folder : Path
        Takes the features and the results.
    device : torch.device
    """

    encoders: DualEncoder | VisualEncoder
    config: Config
    whole: Manifest
    train_split: str
    test_split: str
    modality: str
    num_clips: int
    folder: Path
    device: torch.device

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the features of all blocks, from the first to the last."""
        return tuple(f"{self.modality}.{name}" for name in block_names(getattr(self.encoders, self.modality)))

    def samples(self, split: str | None) -> Manifest:
        """Those of a split (None: of all) that can be seen, or heard."""
        return self.whole.select(
            split=split, need_video=self.modality == "video", need_audio=self.modality == "audio"
        )

    def features(self, manifest: Manifest, names: tuple[str, ...]) -> ClipFeatures:
        """Features of these names, from the folder if they are there."""
        with progress_bar(f"features of {len(manifest)} files", None, unit="clips") as bar:
            return cached_features(
                self.folder / FOLDER,
                self.encoders,
                self.config,
                manifest,
                names=names,
                num_clips=self.num_clips,
                num_workers=share_cores(self.config, self.device),
                device=self.device,
                progress=lambda done, total: bar.update(done, total=total),
                say=lambda reason: click.echo(f"avssl: warning: {reason}", err=True),
            )


def run_protocol(name: str, subject: Subject, source: str) -> None:
    """Run a protocol, print its table and write ``PROTOCOL_MODALITY.json``.

    Raises
    ------
    EvaluationError
        When the model has no network for the modality, or the data do not suit the protocol.
    """
    if getattr(subject.encoders, subject.modality, None) is None:
        raise EvaluationError(
            f"{source} has no network for {subject.modality}, which {name} asks for; choose another with "
            "--modality, or another checkpoint"
        )
    rows, used = _RUNS[name](subject)
    content = {
        "protocol": name,
        "modality": subject.modality,
        "checkpoint": source,
        "weights": _weights_hash(subject.encoders),
        "rows": rows,
        "clips_per_file": subject.num_clips,
        "manifests": {split: {"hash": part.hash, "files": len(part)} for split, part in used.items()},
        "avssl_version": __version__,
        "torch_version": torch.__version__,
        "command": command_line(),
    }
    path = subject.folder / f"{name.replace('-', '_')}_{subject.modality}.json"
    write_json(path, content)
    _print(f"{name}, {subject.modality}", rows)
    click.echo(f"results {path}")


def _blocks(subject: Subject) -> tuple[list[Row], dict[str, Manifest]]:
    """A linear classifier on each block, as the release of AVID measures them."""
    train, test = (subject.samples(split) for split in (subject.train_split, subject.test_split))
    ours, theirs = subject.features(train, subject.blocks), subject.features(test, subject.blocks)
    rows = []
    for name in subject.blocks:
        with progress_bar(name, None, unit="epochs") as bar:
            result = block_probe(
                ours.labelled(name, train),
                theirs.labelled(name, test),
                device=subject.device,
                progress=lambda done, total, bar=bar: bar.update(done, total=total),  # type: ignore[misc]
            )
        rows.append(
            {
                "block": name,
                "accuracy": result.accuracy,
                "clip accuracy": result.clip_accuracy,
                "top 5": result.top5,
                "learning rate": result.learning_rate,
                "train files": result.num_train,
                "test files": len(result.predictions.rows),
            }
        )
    return rows, {"train": train, "test": test}


def _audio_svm(subject: Subject) -> tuple[list[Row], dict[str, Manifest]]:
    """A linear support vector machine on each block, over the folds the data have."""
    whole = subject.samples(None)
    folds = folds_of(whole)
    features = subject.features(whole, subject.blocks)
    rows = []
    for name in subject.blocks:
        result = audio_svm(features.labelled(name, whole), folds)
        each = {fold.name: fold.predictions.accuracy for fold in result.folds}
        rows.append({"block": name, "accuracy": result.accuracy, **(each if len(each) > 1 else {})})
    return rows, {"all": whole}


def _few_shot(subject: Subject) -> tuple[list[Row], dict[str, Manifest]]:
    """Linear probes on few samples a class."""
    train, test = (subject.samples(split) for split in (subject.train_split, subject.test_split))
    name = f"{subject.modality}.{POOL}"
    ours, theirs = subject.features(train, (name,)), subject.features(test, (name,))
    result = few_shot(ours.labelled(name, train), theirs.labelled(name, test))
    for shots in result.left_out:
        click.echo(f"avssl: warning: {shots} shots left out: the smallest class has fewer samples", err=True)
    rows = [
        {
            "shots": one.shots,
            "accuracy": one.mean,
            "from": one.interval[0],
            "to": one.interval[1],
            "draws": len(one.draws),
            "test files": result.num_test,
        }
        for one in result.results
    ]
    return rows, {"train": train, "test": test}


_RUNS: dict[str, Callable[[Subject], tuple[list[Row], dict[str, Manifest]]]] = dict(
    zip(PROTOCOLS, (_blocks, _audio_svm, _few_shot), strict=True)
)


def _weights_hash(encoders: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(encoders.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _print(title: str, rows: list[Row]) -> None:
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "block" else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=max(Console().width, 100)).print(table)
