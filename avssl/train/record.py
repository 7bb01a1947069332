"""``run.json``: what a run was trained on, with what, for how long, by which command."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import av
import numpy as np
import torch

from avssl import __version__, dist
from avssl.build import Config
from avssl.data import Manifest
from avssl.files import write_json


def so_far(folder: Path, resuming: bool) -> tuple[str | None, float]:
    """When a run began (None: not written down) and the seconds its earlier sessions lived to write down."""
    path = folder / "run.json"
    if not resuming or not path.exists():
        return datetime.now().astimezone().isoformat(timespec="seconds"), 0.0
    record = json.loads(path.read_text())
    return record.get("started"), float(record["seconds"])


def write_record(
    folder: Path,
    config: Config,
    manifest: Manifest,
    whole: Manifest,
    device: torch.device,
    command: str,
    total_steps: int,
    started: str | None,
    status: str,
    seconds: float,
) -> None:
    """Write ``run.json``: what was trained on, with what, by which command."""
    in_split = whole.select(split=config.data.split)
    seen, heard = (in_split.table[name].to_numpy() for name in ("has_video", "has_audio"))
    policy = config.data.without_audio if config.model.audio is not None else None
    missing = ~seen | (~heard & (policy == "drop"))
    mute = int((seen & ~heard).sum())
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
        "started": started,
        "total_steps": total_steps,
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
            "silenced": mute if policy == "silence" else 0,
            "video_only": mute if policy == "video_only" else 0,
        },
        "settings": asdict(config.train),
    }
    write_json(folder / "run.json", content)
