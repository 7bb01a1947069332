"""One way through for trained weights: `read_checkpoint` for programs, `load` for people."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avssl.build import Config, build_spectrogram
from avssl.checkpoint import read_tensors
from avssl.errors import CheckpointError
from avssl.features import load_encoders
from avssl.models import DualEncoder, VisualEncoder, recognise
from avssl.objectives import memory_state
from avssl.weights.published import find_weights
from avssl.weights.release import Variant, from_release
from avssl.weights.visual import from_visual_release

ACCEPTED = (
    "give a run folder, a checkpoint of avssl or of a release (.pt, .pth, .pth.tar, .torch), or a name that "
    "`avssl weights` lists"
)


class Memories(NamedTuple):
    """Unit vectors of the training samples, (N, D) each."""

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Pretrained:
    """Encoders with all that is known of them.

    Parameters
    ----------
    encoders : DualEncoder or VisualEncoder
        In evaluation mode, on the device asked for.
    config : Config
        Model, and what clips and spectrograms must be like. For an official file, which holds no recipe, it
        is the paper's, and the sections on training mean nothing.
    source : str
        ``"official AVID"``, ``"official CMA"``, ``"official SwAV"`` and so on, or the version of
        this package that trained it.
    epoch : int
        Epochs done.
    memories : Memories or None
        On the CPU; rows are samples of the data the model was trained on.
    log_z : list of float
        Logarithm of NCE's constant Z, or of that of each term; empty when it was not estimated.
    positive_set : Tensor or None
        Mined positives, (N, k), int32, on the CPU.
    heads : dict
        State dicts of the heads of an image method's release, by part; empty of all else.
    notes : list of str
        What of such a release was not used, and why.
    """

    encoders: DualEncoder | VisualEncoder
    config: Config
    source: str
    epoch: int
    memories: Memories | None
    log_z: list[float]
    positive_set: Tensor | None
    heads: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """What `describe` says, in numbers and texts that JSON can hold."""
        model, data = self.config.model, self.config.data
        return {
            "source": self.source,
            "epoch": self.epoch,
            "parameters": _count(self.encoders),
            "video": {**model.video, "parameters": _count(self.encoders.video)},
            **self._sound(),
            "memories": None if self.memories is None else list(self.memories.video.shape),
            "z": [math.exp(z) for z in self.log_z],
            "positives": None if self.positive_set is None else self.positive_set.shape[1],
            "frames": [data.num_frames, self.config.views.video.get("size")],
            "fps": data.fps,
            "heads": {part: sum(x.numel() for x in state.values()) for part, state in self.heads.items()},
            "notes": self.notes,
        }

    def _sound(self) -> dict[str, Any]:
        """What concerns the audio encoder and the common space; nothing without one."""
        model, data = self.config.model, self.config.data
        if model.audio is None or self.encoders.audio is None:
            return {}
        spectrogram = build_spectrogram(self.config)
        num_frames = spectrogram.num_frames(round(data.audio_seconds * data.sample_rate))
        return {
            "audio": {**model.audio, "parameters": _count(self.encoders.audio)},
            "projection": list(model.projection),
            "batch_norm": model.batch_norm,
            "audio_seconds": data.audio_seconds,
            "sample_rate": data.sample_rate,
            "n_fft": spectrogram.n_fft,
            "bins": spectrogram.bins,
            "spectrogram": [num_frames, spectrogram.num_bins],
        }

    def describe(self) -> list[str]:
        """Lines for a reader: where it is from, networks, what it remembers, what it takes in."""
        said = self.summary()
        lines = {
            "source": f"{said['source']}, {said['epoch']} epochs",
            "parameters": f"{said['parameters']:,}",
            "video": _network(said["video"]),
            "frames": "{} of {} pixels".format(*said["frames"]) + f", {said['fps']:g} a second",
        }
        if "audio" in said:
            lines |= {
                "audio": _network(said["audio"]),
                "heads": "-".join(map(str, said["projection"]))
                + (", batch norm" if said["batch_norm"] else ""),
                "sound": f"{said['audio_seconds']:g} s at {said['sample_rate']:,} Hz",
                "spectrogram": "{} x {}".format(*said["spectrogram"])
                + f" {said['bins']} bins, n_fft {said['n_fft']}",
                "memories": "{:,} x {} for video and audio".format(*said["memories"])
                if said["memories"]
                else "none",
                "Z": ", ".join(f"{z:.6g}" for z in said["z"]) or "not estimated",
                "positives": f"{said['positives']} an instance" if said["positives"] else "none",
            }
        lines |= {f"head {part}": f"{count:,} parameters" for part, count in said["heads"].items()}
        return [*(f"{name:12} {text}" for name, text in lines.items()), *self.notes]


def load(path: str | Path, variant: Variant = "released", device: torch.device | str = "cpu") -> Pretrained:
    """Load trained encoders; ``avssl.load`` is this function.

    Parameters
    ----------
    path, variant
        As for `read_checkpoint`.
    device : torch.device or str
        For the encoders.

    Raises
    ------
    CheckpointError
        When there is no such file or it cannot be used.

    Examples
    --------
    >>> model = avssl.load("runs/avid")  # or "avid-kinetics400", or a file
    >>> features = extract_features(model.encoders, model.config, manifest)  # of avssl.features
    """
    state = read_checkpoint(path, variant)
    encoders, config = load_encoders(state, path)
    objective = memory_state(state["objective"])
    memories = (
        Memories(objective["bank.video"], objective["bank.audio"]) if "bank.video" in objective else None
    )
    log_z = [float(z) for z in objective.get("partition.log_z", torch.tensor(math.nan)).flatten()]
    return Pretrained(
        encoders.to(device).eval(),
        config,
        state.get("source", f"avssl {state['avssl_version']}"),
        int(state["position"]["epoch"]),
        memories,
        [] if any(map(math.isnan, log_z)) else log_z,
        objective.get("positive_set"),
        state.get("heads", {}),
        state.get("notes", []),
    )


def read_checkpoint(path: str | Path, variant: Variant = "released") -> dict[str, Any]:
    """Read a checkpoint of this package or of the release, onto the CPU, as one of this package.

    Of an official file, ``"objective"`` holds ``encoders.*``, ``bank.video``, ``bank.audio``, ``bank.seen``
    (all True), ``partition.log_z`` (float64, so that Z comes back exactly; nan when not estimated) and, for
    CMA, ``positive_set``; without a ``train_criterion`` the encoders alone. ``"config"`` is the paper's clip
    format around the networks that the weights show. The release normalises each spectrogram bin by
    statistics that are in none of its checkpoints: here all bins take their average, mean -28.5 and std
    19.7 dB, whatever the variant. Better are statistics of your own data, see `avssl.statistics`.

    Parameters
    ----------
    path : str or Path
        Run folder, file, or a name of published weights; see `find_weights`.
    variant : {"released", "small"}
        What official weights cannot tell; for them only. ``"small"`` is the authors' model of 112 pixel
        frames and 100 x 129 spectrograms: no pool after the video stem, stride 1 in the first audio block.

    Returns
    -------
    dict
        As `avssl.checkpoint.load_checkpoint`; of an official file with ``"source"``, ``"official AVID"`` or
        ``"official CMA"``, and an empty ``"manifest_hash"``, for its data are not known.

    Raises
    ------
    CheckpointError
        When there is no such file, it is damaged, or keys are missing, unexpected or misshapen.
    ConfigError
        For another variant.
    """
    place = find_weights(path)
    _refuse_other_files(place)
    content = read_tensors(place)
    if {"avssl_version", "objective"} <= content.keys():
        missing = sorted({"config", "manifest_hash", "position"} - content.keys())
        if missing:
            raise CheckpointError(f"{place}: a checkpoint without {', '.join(missing)}; {ACCEPTED}")
        return content
    if recognise(content) is not None:
        try:
            return from_visual_release(content)
        except CheckpointError as error:
            raise CheckpointError(f"{place}: {error}") from error
    if "state_dict" in content:
        raise CheckpointError(
            f"{place}: a finetuned classifier (it has 'state_dict'), without sound and memories; give the "
            "checkpoint of the pretraining, which has 'model' and 'train_criterion'"
        )
    if not isinstance(content.get("model"), Mapping):
        raise CheckpointError(
            f"{place}: not a checkpoint of avssl, which has 'objective', nor of the release, which has "
            f"'model'; it has {', '.join(map(repr, list(content)[:4])) or 'nothing'}; {ACCEPTED}"
        )
    try:
        return from_release(content, variant)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error


def _refuse_other_files(path: Path) -> None:
    """Raise `CheckpointError` for a file that `torch.save` cannot have written, and say what it is."""
    with path.open("rb") as file:
        start = file.read(1024)
    kind = ""
    if not start:
        kind = "an empty file"
    elif zipfile.is_zipfile(path):  # what torch has written since 1.6, with its tensors in data.pkl
        with zipfile.ZipFile(path) as archive:
            whole = any(PurePosixPath(name).name == "data.pkl" for name in archive.namelist())
        kind = "" if whole else "a zip archive without tensors"
    elif not start.startswith((b"PK", b"\x80")):  # nor a damaged archive, nor a pickle, as torch wrote before
        kind = "a file of another kind" if b"\0" in start else "a text file"
    if kind:
        raise CheckpointError(f"{path}: {kind}, not a checkpoint; {ACCEPTED}")


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _network(section: Mapping[str, Any]) -> str:
    """``"R2Plus1D, depth 18, width 64, 15,379,136 parameters"``."""
    arguments = [f"{key} {value}" for key, value in section.items() if key not in ("name", "parameters")]
    return ", ".join([section["name"], *arguments, f"{section['parameters']:,} parameters"])
