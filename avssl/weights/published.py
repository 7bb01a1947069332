"""The weights the authors published, by name, and where this package looks for files."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import NamedTuple

from avssl.checkpoint import FILE_NAME
from avssl.errors import CheckpointError

OFFICIAL_FILE_NAME = "checkpoint.pth.tar"
FOLDER_VARIABLE = "AVSSL_WEIGHTS"


class Published(NamedTuple):
    """Weights the authors published; accuracies in percent are those of the release's README.

    Parameters
    ----------
    method, data : str
        Of the pretraining.
    num_instances : int
        Videos N, so rows of each memory.
    folder : str
        Where the release's ``download_checkpoints.sh`` puts the folder of the model.
    ucf101, hmdb51 : float
        Accuracy after finetuning.
    kinetics_linear : float
        Accuracy of a linear probe.
    """

    method: str
    data: str
    num_instances: int
    folder: str
    ucf101: float
    hmdb51: float
    kinetics_linear: float


PUBLISHED = {
    "avid-kinetics400": Published(
        "AVID", "Kinetics-400", 232_067, "checkpoints/AVID/Kinetics", 86.9, 59.9, 43.0
    ),
    "avid-cma-kinetics400": Published(
        "AVID + CMA", "Kinetics-400", 232_067, "checkpoints/AVID-CMA/Kinetics", 87.5, 60.8, 44.4
    ),
    "avid-audioset": Published("AVID", "AudioSet", 1_784_108, "checkpoints/AVID/Audioset", 91.0, 64.1, 46.5),
    "avid-cma-audioset": Published(
        "AVID + CMA", "AudioSet", 1_784_108, "checkpoints/AVID-CMA/Audioset", 91.5, 64.7, 48.9
    ),
}


def weights_folder() -> Path:
    """Folder of published weights: ``$AVSSL_WEIGHTS``, or ``~/.cache/avssl/weights``."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "avssl" / "weights")


def published_file(name: str) -> Path:
    """Where the published weights of this name belong, whether they are there or not."""
    return weights_folder() / name / OFFICIAL_FILE_NAME


def find_weights(path: str | Path) -> Path:
    """File that a path or a name stands for.

    Parameters
    ----------
    path : str or Path
        A file; a folder with ``checkpoint.pt`` or ``checkpoint.pth.tar``; or a name in `PUBLISHED`, which
        stands for ``NAME/checkpoint.pth.tar`` in `weights_folder`.

    Raises
    ------
    CheckpointError
        When there is none; says where it was looked for.
    """
    given, name = Path(path), str(path)
    if given.is_file():
        return given
    if given.is_dir():
        for file_name in (FILE_NAME, OFFICIAL_FILE_NAME):
            if (given / file_name).is_file():
                return given / file_name
        raise CheckpointError(
            f"{given}: a folder without a checkpoint; give one that holds {FILE_NAME} (a run folder) or "
            f"{OFFICIAL_FILE_NAME}"
        )
    if name in PUBLISHED:
        place = published_file(name)
        if place.is_file():
            return place
        raise CheckpointError(
            f"{name}: not on this machine; fetch {PUBLISHED[name].folder}/.../{OFFICIAL_FILE_NAME} with the "
            f"release's download_checkpoints.sh and put it at {place}, or give the path of the file"
        )
    close = difflib.get_close_matches(name.lower(), PUBLISHED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"names are {', '.join(PUBLISHED)}"
    raise CheckpointError(f"{path}: no such checkpoint; give a run folder, a file or a name; {hint}")
