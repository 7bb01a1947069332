"""What `avssl doctor` looks at: each check returns one finding."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import requires, version
from pathlib import Path
from typing import Literal

import avssl
from avssl.errors import AvsslError
from avssl.types import Clip

Status = Literal["OK", "WARN", "FAIL"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` says what to do when the status is not OK."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


# ---- the machine


def check_python() -> Finding:
    """Versions of Python and of this package."""
    return Finding("python", "OK", f"{platform.python_version()}, avssl {avssl.__version__}")


def check_machine() -> Finding:
    """Processors, memory, and the shared memory through which loader workers pass clips."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    detail = f"{cores} cores, {memory:.0f} GiB memory"
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm").total / GIB
        detail += f", {shared:.1f} GiB /dev/shm"
        if shared < 1:
            remedy = "loader workers may crash: start the container with --shm-size=8g or --ipc=host"
            return Finding("machine", "WARN", detail, remedy)
    return Finding("machine", "OK", detail)


def check_gpu() -> Finding:
    """Names and memory of the GPUs torch can use, or what torch says against using them."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Finding(
            "gpu", "OK", ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus)
        )
    build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
    if caught:
        remedy = "update the driver of the GPU, or install torch for the CUDA it has (https://pytorch.org)"
        return Finding("gpu", "WARN", f"{build}, but: {str(caught[0].message).splitlines()[0]}", remedy)
    return Finding(
        "gpu", "WARN", f"none; {build}", "training runs on the CPU: fine for the demo, slow beyond"
    )


# ---- libraries


def check_torch() -> Finding:
    """Whether torch, torchvision and torchaudio belong together and load together."""
    names = ("torch", "torchvision", "torchaudio")
    ours = re.compile(rf"({'|'.join(names)})\b")
    found = {name: str(importlib.import_module(name).__version__) for name in names}
    detail = ", ".join(f"{name} {number}" for name, number in found.items())
    wanted = [line.split(";")[0].strip() for line in requires("avssl") or [] if ours.match(line)]
    builds = {number.partition("+")[2] for number in found.values() if "+" in number}
    if len(builds) > 1 or not all(_fits(found, requirement) for requirement in wanted):
        return Finding(
            "torch", "FAIL", f"{detail} do not match", f"pip install {' '.join(map(repr, wanted))}"
        )
    return Finding("torch", "OK", detail)


def _fits(found: dict[str, str], requirement: str) -> bool:
    """Whether an installed version fits a requirement such as ``torch==2.11.*``."""
    name, _, number = requirement.partition("==")
    return found[name.strip()].startswith(number.strip().removesuffix("*"))


def check_codecs() -> Finding:
    """Codecs in the FFmpeg libraries of PyAV: what videos have, and what the demo and `prepare` write."""
    import av

    libraries = ", ".join(
        f"{name} {'.'.join(map(str, number))}"
        for name, number in av.library_versions.items()
        if name in ("libavcodec", "libavformat")
    )
    detail = f"av {av.__version__} with {libraries}"
    wanted: dict[Literal["r", "w"], tuple[str, ...]] = {"r": ("h264", "aac"), "w": ("h264", "aac", "mpeg4")}
    missing = {
        mode: [codec for codec in names if not _has_codec(codec, mode)] for mode, names in wanted.items()
    }
    if missing["r"]:
        remedy = "pip install --force-reinstall --only-binary :all: av"
        return Finding("codecs", "FAIL", f"{detail}; cannot decode {' and '.join(missing['r'])}", remedy)
    if missing["w"]:
        remedy = "for the demo and prepare; pip install --force-reinstall --only-binary :all: av"
        return Finding("codecs", "WARN", f"{detail}; cannot encode {' and '.join(missing['w'])}", remedy)
    return Finding("codecs", "OK", f"{detail}; reads h264 and aac, writes these and mpeg4")


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.Codec(name, mode)
    except av.FFmpegError:
        return False
    return True


def check_librosa() -> Finding:
    """The library of the mel filters."""
    librosa = importlib.import_module("librosa")
    bank = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=64)
    if bank.shape != (64, 513):
        return Finding(
            "librosa",
            "FAIL",
            f"{librosa.__version__} made mel filters of shape {bank.shape}",
            "pip install -U librosa",
        )
    return Finding("librosa", "OK", librosa.__version__)


# ---- trials


def check_decode() -> Finding:
    """Write 2 s of H.264 and AAC, and read them back with the reader of this package."""
    from avssl.decode import open_reader, try_reader

    try:
        clip = try_reader(open_reader("pyav"))
    except AvsslError as error:
        return Finding("decode", "FAIL", str(error), "report this with the output of: avssl doctor --json")
    return Finding("decode", "OK", f"pyav read {_contents(clip)}")


def _contents(clip: Clip) -> str:
    frames, waveform = clip.frames, clip.waveform
    assert frames is not None
    assert waveform is not None
    return f"{len(frames)} frames and {waveform.shape[-1]} samples of sound"


def check_decord() -> Finding:
    """The second decoder; whatever is wrong with it is a warning."""
    return _check_other_decoder("decord", "optional; the pyav reader does without it")


def check_torchcodec() -> Finding:
    """The third decoder, an extra; whatever is wrong with it is a warning."""
    return _check_other_decoder(
        "torchcodec", "optional; it needs FFmpeg on the system and: pip install 'avssl[torchcodec]'"
    )


def _check_other_decoder(name: str, remedy: str) -> Finding:
    from avssl.decode import open_reader, try_reader

    try:
        clip = try_reader(open_reader(name))
        return Finding(name, "OK", f"{version(name)} read {_contents(clip)}")
    except AvsslError as error:
        return Finding(name, "WARN", f"not usable: {error}".splitlines()[0], remedy)


def check_faiss() -> Finding:
    """A search whose answer is known; whether FAISS can use the GPUs."""
    import faiss
    import numpy as np

    vectors = np.eye(16, dtype=np.float32)
    index = faiss.IndexFlatIP(16)
    index.add(vectors)
    found = index.search(vectors, 1)[1][:, 0]
    on_gpu = hasattr(faiss, "StandardGpuResources")
    gpus = faiss.get_num_gpus() if on_gpu else 0
    detail = f"{faiss.__version__}, {f'GPU build, {gpus} GPUs' if on_gpu else 'CPU build'}"
    if not np.array_equal(found, np.arange(16)):
        return Finding(
            "faiss",
            "FAIL",
            f"{detail}: found {found.tolist()}; must be 0 to 15 in order",
            "pip install -U faiss-cpu",
        )
    if gpus == 0 and _num_cuda_devices() > 0:
        return Finding(
            "faiss", "WARN", f"{detail}, though torch sees a GPU", "for searches on it: pip install faiss-gpu"
        )
    return Finding("faiss", "OK", f"{detail}; search works")


def _num_cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_compute() -> Finding:
    """A 3D convolution with a known answer, on the CPU and on every GPU."""
    import torch

    devices = ["cpu", *(f"cuda:{i}" for i in range(_num_cuda_devices()))]
    for device in devices:
        ones = torch.ones(1, 3, 4, 8, 8, device=device)
        result = torch.nn.functional.conv3d(ones, torch.ones(2, 3, 3, 3, 3, device=device))
        if not torch.allclose(result, torch.full_like(result, 81.0), rtol=1e-3):
            return Finding(
                "compute", "FAIL", f"conv3d on {device} is wrong", "reinstall torch; check the driver"
            )
    return Finding("compute", "OK", f"conv3d on {', '.join(devices)}")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "machine": check_machine,
    "torch": check_torch,
    "gpu": check_gpu,
    "compute": check_compute,
    "codecs": check_codecs,
    "decode": check_decode,
    "decord": check_decord,
    "torchcodec": check_torchcodec,
    "librosa": check_librosa,
    "faiss": check_faiss,
}
