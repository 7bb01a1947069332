"""What is agreed on before a step: alone here; with another process see test_several_processes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch

from avssl.data import Failure
from avssl.data.batch import ClipBatch
from avssl.train.lockstep import _take, agree
from avssl.train.signals import StopRequest

FAILURE = Failure(3, "c", "c.mp4", "open", "no video")


def batch(count: int, failures=()) -> ClipBatch:
    frames = [torch.full((1, 2, 2, 3), i, dtype=torch.uint8) for i in range(count)]
    waveform = torch.arange(count).float().view(-1, 1, 1) if count else None
    return ClipBatch(frames, waveform, torch.arange(count), list(failures), epoch=2, batch=5)


def test_one_process_agrees_with_itself():
    agreed = agree([batch(4), batch(3, [FAILURE])], stop=15, save=True, fill=False)
    assert [len(part) for part in agreed.parts] == [4, 3]
    assert (agreed.clips, agreed.surplus, agreed.stop, agreed.save) == (7, 0, 15, True)
    assert agreed.failures == [(FAILURE, 2)]


@pytest.mark.parametrize("fill", [True, False])
def test_a_part_of_one_clip_or_none_is_skipped(fill):
    agreed = agree([batch(1), batch(2), batch(0)], stop=0, save=False, fill=fill)
    assert [len(part) for part in agreed.parts] == [2]
    assert (agreed.clips, agreed.surplus) == (2, 1)


def test_clips_are_cut_off_or_repeated_from_the_first_on():
    for count, rows in ((2, [0, 1]), (5, [0, 1, 2, 0, 1])):
        part = _take(batch(3), count, count)
        assert part.index.tolist() == rows
        assert part.waveform.flatten().tolist() == rows
        assert [int(frames[0, 0, 0, 0]) for frames in part.frames] == rows
        assert (part.epoch, part.batch) == (2, 5)


def some_mute(count: int, sounding: list[int]) -> ClipBatch:
    return replace(
        batch(count),
        waveform=torch.tensor(sounding).float().view(-1, 1, 1),
        sounding=torch.tensor(sounding),
    )


@pytest.mark.parametrize(
    ("count", "num_sounding", "rows"),
    [
        (5, 2, [1, 3, 0, 2, 4]),  # the third with sound takes part without
        (4, 3, [1, 3, 4, 0]),
        (5, 0, [0, 1, 2, 3, 4]),
        (7, 5, [1, 3, 4, 1, 3, 0, 2]),
    ],
)
def test_clips_with_sound_come_first_where_others_are_left_out_or_repeated(count, num_sounding, rows):
    part = _take(some_mute(5, [1, 3, 4]), count, num_sounding)
    assert part.index.tolist() == rows
    assert [int(frames[0, 0, 0, 0]) for frames in part.frames] == rows
    assert part.num_sounding == num_sounding
    if num_sounding:
        assert part.waveform.flatten().tolist() == part.index[part.sounding].tolist()


@pytest.mark.parametrize("fill", [True, False])
def test_a_part_of_one_clip_with_sound_takes_part_with_its_video_alone(fill):
    parts = [some_mute(5, [1, 3, 4]), some_mute(4, [2]), batch(2)]
    agreed = agree(parts, stop=0, save=False, fill=fill)
    assert agreed.parts[0] is parts[0]
    assert (len(agreed.parts[1]), agreed.parts[1].waveform, agreed.parts[1].sounding) == (4, None, None)
    assert agreed.parts[2] is parts[2]
    assert (agreed.clips, agreed.mute, agreed.surplus) == (11, 6, 0)


def test_a_second_interrupt_ends_at_once_and_a_second_sigterm_does_not():
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
