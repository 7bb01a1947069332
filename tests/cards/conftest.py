"""Miniature copies of data sets: a handful of tiny files, written once, under their real names."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from media import write_media
from PIL import Image

from avssl.cards import cards_folder
from avssl.cli.main import main


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """One file of each kind: by extension, without sound, of 3 s, and one that is no media file."""
    folder = tmp_path_factory.mktemp("originals")
    tiny = {"seconds": 1, "fps": 8, "size": (32, 32)}
    write_media(folder / "a.mp4", **tiny)
    write_media(folder / "long.mp4", **{**tiny, "seconds": 3})
    write_media(folder / "silent.mp4", audio=False, **tiny)
    write_media(folder / "a.avi", codec="mpeg4", audio=False, **tiny)
    with wave.open(str(folder / "a.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    Image.new("RGB", (32, 24), "red").save(folder / "a.jpg")
    (folder / "broken").write_bytes(b"no media " * 100)
    kinds = {"mp4": "a.mp4", "avi": "a.avi", "wav": "a.wav", "jpg": "a.jpg", "JPEG": "a.jpg"}
    kinds |= {"silent": "silent.mp4", "long": "long.mp4", "broken": "broken"}
    return {kind: folder / name for kind, name in kinds.items()}


class Miniature:
    """A folder that becomes a small copy of a data set."""

    def __init__(self, root: Path, originals: dict[str, Path]) -> None:
        self.root = root
        self.originals = originals
        root.mkdir(parents=True)

    def media(self, *names: str, kind: str | None = None) -> None:
        """Put media files, by default of the kind their extension says."""
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.originals[kind or name.rpartition(".")[2]], path)

    def text(self, name: str, *lines: str) -> None:
        """Put a label file."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def miniature(tmp_path, originals):
    return Miniature(tmp_path / "data", originals)


@pytest.fixture
def small_card(tmp_path):
    """Write a shipped card with the counts of a miniature, everything else as it is; returns its path."""

    def write(name: str, **changes: object) -> Path:
        content = yaml.safe_load((cards_folder() / f"{name}.yaml").read_text())
        path = tmp_path / "cards" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
        return path

    return write


def datasets(*arguments: object) -> tuple[int, str, str]:
    """Run ``avssl datasets``: status, standard output, errors."""
    result = CliRunner().invoke(main, ["datasets", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def run():
    return datasets
