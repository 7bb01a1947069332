"""PyAV, decord, torchcodec and torch in one process, in any order, and in forked workers."""

import subprocess
import sys
from pathlib import Path

import pytest
from media import write_media

from avssl.decode import open_reader
from avssl.errors import ConfigError

SCRIPT = """
import sys
from pathlib import Path

order, path, folder = sys.argv[1].split(","), sys.argv[2], Path(sys.argv[3])
sys.path.insert(0, sys.argv[4])
for name in order:
    if name in ("decord", "torchcodec", "pyav"):
        from avssl.decode import open_reader
        open_reader(name)
    else:
        __import__(name)

import torch
from torch.utils.data import DataLoader, Dataset
from avssl.decode import open_reader
from avssl.types import AudioWindow, VideoWindow
from media import frame_numbers, write_media

READERS = [open_reader(name) for name in ("pyav", "decord", "torchcodec") if name in order]

class Clips(Dataset):
    def __len__(self):
        return 6 * len(READERS)

    def __getitem__(self, index):
        start = index % 6 / 4
        reader = READERS[index // 6]
        return reader.read(path, VideoWindow(start, 4, 16), AudioWindow(start, 0.5, 24000))

def numbers(clips):
    return [frame_numbers(clip.frames) for clip in clips]

here = [Clips()[i] for i in range(len(Clips()))]
expected = [[4 * (i % 6) + n for n in range(4)] for i in range(len(here))]
assert numbers(here) == expected, numbers(here)
loader = DataLoader(Clips(), None, num_workers=2, multiprocessing_context="fork")
workers = list(loader)
assert numbers(workers) == expected, numbers(workers)
assert all(torch.equal(a.waveform, b.waveform) for a, b in zip(here, workers))
# What decord's libraries break when they are loaded for the whole process.
write_media(folder / "a.webm", seconds=0.5, codec="libvpx-vp9", audio_codec="libopus", sample_rate=48000)
print("done")
"""


@pytest.mark.parametrize(
    "order",
    [
        "decord,torch,pyav,torchcodec",
        "torch,torchcodec,pyav,decord",
    ],
)
def test_libraries_live_together_in_any_order_and_in_forked_workers(tmp_path, order):
    for name in ("decord", "torchcodec"):
        try:
            open_reader(name)
        except ConfigError as error:
            pytest.skip(str(error))
    path = write_media(tmp_path / "a.mp4", bframes=2)
    arguments = [order, str(path), str(tmp_path), str(Path(__file__).parents[1])]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
