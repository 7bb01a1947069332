"""Released weights of the image methods as a checkpoint of this package."""

from __future__ import annotations

from typing import Any

from avssl import __version__
from avssl.build import Config, DataConfig, ModelConfig, RunConfig, ViewsConfig
from avssl.config import config_to_dict
from avssl.models import read_visual_weights

SIZES = {"SEER": 160}
"""Pixels a side of the frames a release was trained on, where they are not 224."""
OBJECTIVES = {
    "SwAV": "SwAV",
    "SEER": "SwAV",
    "SimSiam": "SimSiam",
    "Barlow Twins": "BarlowTwins",
    "BYOL": "BYOL",
}


def from_visual_release(content: dict[Any, Any]) -> dict[str, Any]:
    """Turn a file that `avssl.models.recognise` knows into a checkpoint of the trunk alone.

    Parameters
    ----------
    content : dict
        What the file holds.

    Returns
    -------
    dict
        As `avssl.checkpoint.load_checkpoint`: ``"objective"`` has ``encoders.video.*``; the heads lie apart
        under ``"heads"`` (by part, in the release's own names), and ``"notes"`` says what was not used. An
        image is a clip of one frame.

    Raises
    ------
    CheckpointError
        When keys are missing, unexpected or misshapen.
    """
    found = read_visual_weights(content)
    size = SIZES.get(found.release, 224)
    config = Config(
        data=DataConfig(num_frames=1, fps=1.0, short_side=int(size / 0.875)),
        views=ViewsConfig(video={"size": size}),
        model=ModelConfig(video={"name": found.trunk_class.__name__, **found.arguments}, audio=None),
        objective={"name": OBJECTIVES.get(found.release, "SimSiam")},
        run=RunConfig(name=f"official_{found.release.lower().replace(' ', '_')}"),
    )
    return {
        "avssl_version": __version__,
        "source": f"official {found.release}",
        "objective": {f"encoders.video.{key}": value for key, value in found.trunk.items()},
        "heads": found.heads,
        "notes": found.notes,
        "config": config_to_dict(config),
        "manifest_hash": "",
        "position": {"step": 0, "epoch": 0, "batch": 0},
    }
