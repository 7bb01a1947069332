"""Retrieved clips beside their queries, with each distinct media file put into the page once."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avssl.report.reading import Record, number, records

# The whole page has to open in a browser on a phone.
MAX_MEDIA_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Picture:
    """A clip on the page.

    Parameters
    ----------
    title, label : str
        Its id, and its class ("" without one).
    media : str or None
        Key of its bytes in the page; None if it cannot be shown.
    verdict : {"query", "hit", "miss", "unknown"}
        A match is a hit if it is the query itself or of its class, unknown without classes.
    is_self : bool
        It is the query's own other half.
    score : float or None
        Cosine with the query.
    """

    title: str
    label: str
    media: str | None
    verdict: Literal["query", "hit", "miss", "unknown"]
    is_self: bool = False
    score: float | None = None


@dataclass(frozen=True)
class Section:
    """One direction of retrieval: its title, and each query followed by its matches, best first."""

    title: str
    queries: list[list[Picture]]


class MediaStore:
    """Base64 text of the media files of a run folder, each distinct content once.

    Parameters
    ----------
    folder : Path
        The run folder; files outside it are refused.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.encoded: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._bytes = 0

    def key(self, media: Any) -> str | None:
        """Key of the file `media` (relative to the run folder), or None, with the reason in `refused`."""
        if not isinstance(media, str) or media in self.refused:
            return None
        if media not in self._keys:
            reason = self._refusal(media)
            if reason:
                self.refused[media] = reason
                return None
            content = (self.folder / media).read_bytes()
            key = hashlib.sha256(content).hexdigest()[:16]
            if key not in self.encoded:
                self.encoded[key] = base64.b64encode(content).decode("ascii")
                self._bytes += len(content)
            self._keys[media] = key
        return self._keys[media]

    def _refusal(self, media: str) -> str | None:
        path = (self.folder / media).resolve()
        if not path.is_relative_to(self.folder):
            return "lies outside the run folder"
        if not path.is_file():
            return "not found"
        if self._bytes + path.stat().st_size > MAX_MEDIA_BYTES:
            return f"the page already holds {self._bytes / 2**20:.0f} MiB of media"
        return None


def gallery_sections(gallery: Record, store: MediaStore) -> list[Section]:
    """Sections of ``gallery.json``; their media go into `store`."""
    sections = []
    for section in records(gallery.get("sections")):
        queries = [_pictures(query, store) for query in records(section.get("queries"))]
        sections.append(Section(str(section.get("title", "Retrieval")), queries))
    return sections


def _pictures(query: Record, store: MediaStore) -> list[Picture]:
    pictures = [_picture(query, "query", store)]
    for match in records(query.get("matches")):
        same_class = match.get("same_class")
        if match.get("is_self") or same_class:
            verdict: Literal["hit", "miss", "unknown"] = "hit"
        else:
            verdict = "unknown" if same_class is None else "miss"
        pictures.append(_picture(match, verdict, store))
    return pictures


def _picture(item: Record, verdict: Literal["query", "hit", "miss", "unknown"], store: MediaStore) -> Picture:
    label = item.get("label")
    return Picture(
        title=str(item.get("id", "unnamed")),
        label="" if label is None else str(label),
        media=store.key(item.get("media")),
        verdict=verdict,
        is_self=bool(item.get("is_self")),
        score=number(item.get("score")),
    )
