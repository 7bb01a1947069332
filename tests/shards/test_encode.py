import io

import av
import numpy as np
import pytest

from avssl.decode import open_reader
from avssl.shards.encode import GOP, encode_video
from avssl.types import VideoWindow


def drifting_picture(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x + 2 * t) / 9) * np.cos((y - t) / 7) for t in range(num_frames)]
    picture = 127 + 100 * np.stack(waves)[..., None] * np.array([1.0, -0.6, 0.3])
    return picture.round().astype(np.uint8)


@pytest.mark.parametrize("fps", [16.0, 60_000 / 1001, 12.3456789, 1 / 3])
def test_any_rate_can_be_stored_and_each_frame_is_found_at_its_time(fps: float, tmp_path) -> None:
    frames = drifting_picture(20)
    content, count, width, height = encode_video([frames[:12], frames[12:]], fps)
    assert (count, width, height) == (20, 64, 48)
    (tmp_path / "a.mp4").write_bytes(content)
    found = open_reader().read(tmp_path / "a.mp4", VideoWindow(0.0, 20, fps)).frames
    assert found is not None
    errors = np.sqrt(((found.numpy()[:, None].astype(float) - frames[None]) ** 2).mean((2, 3, 4)))
    assert errors.argmin(1).tolist() == list(range(20))
    assert errors.diagonal().max() < 6  # grey levels, most of them for the halved resolution of colour


def test_key_frames_come_often_and_odd_edges_are_left_out() -> None:
    content, count, width, height = encode_video([drifting_picture(20, 35, 51)], 16.0)
    assert (count, width, height) == (20, 50, 34)
    with av.open(io.BytesIO(content)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys == [i % GOP == 0 for i in range(20)]
    assert encode_video([drifting_picture(20, 35, 51)], 16.0)[0] == content
