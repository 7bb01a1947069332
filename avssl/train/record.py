"""``run.json``: what a run was trained on, with what, for how long, by which command."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import torch

from avssl import __version__, dist
from avssl.build import Config
from avssl.data import Manifest
from avssl.files import write_json


def seconds_so_far(folder: Path, resuming: bool) -> float:
    """Time that earlier sessions of the run took, as far as they lived to write it down."""
    path = folder / "run.json"
    return float(json.loads(path.read_text())["seconds"]) if resuming and path.exists() else 0.0


def write_record(
    folder: Path,
    config: Config,
    manifest: Manifest,
    whole: Manifest,
    device: torch.device,
    command: str,
    status: str,
    seconds: float,
) -> None:
    """Write ``run.json``: what was trained on, with what, by which command."""
    in_split = whole.select(split=config.data.split)
    seen, heard = (in_split.table[name].to_numpy() for name in ("has_video", "has_audio"))
    hears, drops = config.model.audio is not None, config.data.without_audio == "drop"
    missing = ~seen | (~heard & (hears and drops))
    left_out = [
        {
            "path": in_split.path(i),
            "stage": "audio" if seen[i] else "video",
            "reason": f"the file has no {'audio' if seen[i] else 'video'} stream",
        }
        for i in np.flatnonzero(missing).tolist()
    ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {os.cpu_count()} cores"
    versions = {
        "avssl": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "av": av.__version__,
    }
    content = {
        "status": status,
        "seconds": round(seconds, 1),
        "command": command,
        "device": name,
        "processes": dist.world_size(),
        "versions": versions,
        "manifest": {
            "rows": len(in_split),
            "used": len(manifest),
            "hash": manifest.hash,
            "left_out": left_out,
            "silenced": int((seen & ~heard).sum()) if hears and not drops else 0,
        },
        "settings": asdict(config.train),
    }
    write_json(folder / "run.json", content)
