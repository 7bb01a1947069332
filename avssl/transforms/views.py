"""From a batch of clips to what an objective sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avssl.transforms.audio import AudioAugment, LogSpectrogram
from avssl.types import Views


class ViewMaker(nn.Module):
    """Video views and one audio view of each clip.

    Parameters
    ----------
    video : nn.Module or None
        `VideoAugment` (one view) or `MultiView` for training, `VideoEval` for evaluation; None for runs
        without video.
    spectrogram : LogSpectrogram or None
        Audio front end; None for runs without audio.
    audio : AudioAugment, optional
        Augmentation of the waveform before the spectrogram; leave it out in evaluation.
    """

    def __init__(
        self,
        video: nn.Module | None,
        spectrogram: LogSpectrogram | None,
        audio: AudioAugment | None = None,
    ) -> None:
        super().__init__()
        if audio is not None and spectrogram is None:
            raise ValueError(
                "an audio augmentation needs a spectrogram after it; give one or leave audio None"
            )
        self.video = video
        self.spectrogram = spectrogram
        self.audio = audio

    def forward(
        self,
        frames: Sequence[Tensor] | None,
        waveform: Tensor | None,
        index: Tensor,
        generator: torch.Generator | None = None,
        sounding: Tensor | None = None,
    ) -> Views:
        """Make the views of a batch.

        Parameters
        ----------
        frames : sequence of B Tensors, each uint8 (T, H, W, 3), or None
            None or an empty sequence gives ``Views.video == ()``.
        waveform : Tensor, (A, 1, samples), or None
            Of the A = B clips or of those in `sounding`; None or an empty tensor gives ``Views.audio == ()``.
        index : Tensor, (B,), int64
            Instance numbers.
        generator : torch.Generator, optional
            Source of all random numbers, video first; best on the CPU.
        sounding : Tensor, (A,), int64, optional
            Places in the batch of the clips that have sound, see `Views`; all by default.

        Returns
        -------
        Views
            On the device of the module (`index` and `sounding` too, where there is a view).

        Raises
        ------
        ValueError
            When the modalities and the index do not have the same number of clips.
        """
        video: tuple[Tensor, ...] = ()
        audio: tuple[Tensor, ...] = ()
        if self.video is not None and frames is not None and len(frames) > 0:
            _check_count("frames", len(frames), "index", index)
            made = self.video(frames, generator)
            video = made if isinstance(made, tuple) else (made,)
        if self.spectrogram is not None and waveform is not None and waveform.numel() > 0:
            places = ("index", index) if sounding is None else ("sounding", sounding)
            _check_count("waveform", len(waveform), *places)
            if self.audio is not None:
                waveform = self.audio(waveform, generator)
            audio = (self.spectrogram(waveform),)
        for view in video + audio:
            index = index.to(view.device, non_blocking=True)
            sounding = None if sounding is None else sounding.to(view.device, non_blocking=True)
        return Views(video, audio, index, sounding)


def _check_count(name: str, count: int, other: str, index: Tensor) -> None:
    if count != len(index):
        raise ValueError(f"{name} has {count} clips but {other} has {len(index)}; they must agree")
