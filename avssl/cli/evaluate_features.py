"""``avssl evaluate-features``: retrieval between two files of features, with intervals, for any model."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from avssl import __version__
from avssl.cli.pretrain import command_line
from avssl.errors import EvaluationError
from avssl.evaluate.checks import check_same_width, comparable_rows
from avssl.evaluate.feature_sets import FeatureSet, Matched, match_sets, read_features, read_labels
from avssl.evaluate.intervals import (
    LEVEL,
    RESAMPLES,
    Difference,
    Interval,
    bootstrap_intervals,
    compare_rankings,
)
from avssl.evaluate.pool import make_pool
from avssl.evaluate.ranking import DEPTHS, Ranking, Ties, rank_pool
from avssl.evaluate.ranking_file import load_ranking, save_ranking
from avssl.files import make_folder, write_json

Side = tuple[FeatureSet, NDArray[np.int64]]
DIRECTIONS = ("a2v", "v2a", "v2v", "a2a")
TITLES = {"median_rank": "median rank", "mean_rank": "mean rank", "map": "mAP"}
MIN_WIDTH = 120


@dataclass(frozen=True)
class Measured:
    """One direction with one kind of relevance."""

    direction: str
    ranking: Ranking
    intervals: dict[str, Interval]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.direction}_{self.ranking.relevance}"


@click.command(
    "evaluate-features",
    epilog="""\b
Examples:
  avssl evaluate-features video.npy audio.npy
  avssl evaluate-features video.parquet audio.parquet --labels label --directions a2v,v2a,v2v
  avssl evaluate-features new_v.npz new_a.npz --output results/new --against results/old
""",
)
@click.argument("video", type=click.Path(path_type=Path))
@click.argument("audio", type=click.Path(path_type=Path), required=False)
@click.option("--labels", metavar="FILE|COLUMN", help="Classes: a file, or a column of VIDEO or AUDIO.")
@click.option(
    "--directions",
    metavar="LIST",
    help="Of a2v, v2a, v2v, a2a (query to gallery).  [default: a2v,v2a; v2v without AUDIO]",
)
@click.option(
    "--ties",
    type=click.Choice(get_args(Ties)),
    default="mean",
    show_default=True,
    help="Rows of equal score: expectation over their orders, relevant ones first, or last.",
)
@click.option(
    "--depths", metavar="LIST", default=",".join(map(str, DEPTHS)), show_default=True, help="The k of R@k."
)
@click.option("--video-name", metavar="NAME", help="Array or column of VIDEO that holds features.")
@click.option("--audio-name", metavar="NAME", help="Array or column of AUDIO that holds features.")
@click.option(
    "--resamples",
    type=click.IntRange(min=100),
    default=RESAMPLES,
    show_default=True,
    help="Of the bootstrap.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder for one JSON a result, and its values."
)
@click.option("--against", type=click.Path(path_type=Path), help="Compare with the results in this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate_features(
    video: Path,
    audio: Path | None,
    labels: str | None,
    directions: str | None,
    ties: str,
    depths: str,
    video_name: str | None,
    audio_name: str | None,
    resamples: int,
    seed: int,
    output: Path | None,
    against: Path | None,
    as_json: bool,
) -> None:
    """Measure retrieval between the features in VIDEO and in AUDIO, whatever made them.

    A file is .npy (rows, dimensions), .npz, or .parquet with a column of lists; 'id' or 'ids' names the
    samples. With ids in both, samples are matched by them and those of one file alone are counted as
    excluded; without, row i of one file belongs to row i of the other.

    The match of a query is its own other half (instance); with --labels, also every row of its class (class).
    Within one modality (v2v, a2a) the query itself is left out, and labels are needed. Rows that are not
    finite, or a file whose rows are all the same, are an error that names the samples.

    Intervals are 95% bootstrap intervals over queries. --against compares with results of another model on
    the same samples: difference, interval and the p-value of a paired permutation test.
    """
    wanted = _directions(directions, audio is not None, labels is not None)
    ks = _depths(depths)
    sides, ids, excluded = _read(video, audio, video_name, audio_name)
    classes = None if labels is None else read_labels(labels, list(sides.values()), ids)
    if output is not None:
        make_folder(output)
    others = {} if against is None else _others(against, wanted)
    results = []
    for direction, by_class in wanted:
        asking, ranked = (one.features[rows] for one, rows in (sides[direction[0]], sides[direction[2]]))
        found = classes if by_class else None
        itself = _within(direction)
        pool = make_pool(ids, ids, found, found, exclude_self=itself, excluded=excluded)
        ranking = rank_pool(asking, ranked, pool, ks, cast(Ties, ties))
        results.append(Measured(direction, ranking, bootstrap_intervals(ranking, resamples, seed)))
    compared = {
        one.name: compare_rankings(one.ranking, others[one.name], resamples, seed)
        for one in results
        if others
    }
    contents = {one.name: _content(one, compared.get(one.name), resamples, seed) for one in results}
    if output is not None:
        for one in results:
            write_json(output / f"{one.name}.json", contents[one.name])
            save_ranking(output / f"{one.name}.npz", one.ranking)
    if as_json:
        click.echo(json.dumps(list(contents.values()), indent=1))
        return
    _print(results, compared)
    if output is not None:
        click.echo(f"results  {output}")


def _within(direction: str) -> bool:
    return direction[0] == direction[2]


def _directions(text: str | None, has_audio: bool, has_labels: bool) -> list[tuple[str, bool]]:
    """Directions, each with whether relevance is that of classes."""
    names = ("a2v,v2a" if has_audio else "v2v") if text is None else text
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in DIRECTIONS:
            raise EvaluationError(
                f"--directions {text}: {name!r} is no direction; each must be one of {', '.join(DIRECTIONS)}"
            )
        if "a" in name and not has_audio:
            raise EvaluationError(
                f"--directions {text}: {name} needs features of audio; give the file AUDIO too"
            )
        if _within(name) and not has_labels:
            raise EvaluationError(
                f"{name}: within one modality a sample's only match is itself; give --labels, or ask for a2v"
            )
    return [
        (name, by_class)
        for name in chosen
        for by_class in (False, True)
        if (has_labels if by_class else not _within(name))
    ]


def _depths(text: str) -> list[int]:
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = [0]
    if min(depths) < 1:
        raise EvaluationError(
            f"--depths {text}: must be whole numbers from 1, with commas between, as 1,5,10"
        )
    return depths


def _read(
    video: Path, audio: Path | None, video_name: str | None, audio_name: str | None
) -> tuple[dict[str, Side], NDArray[np.str_], dict[str, int]]:
    """Features and matched rows of each side, ids of the samples, and those that only one side has."""
    seen = read_features(video, video_name)
    if audio is None:
        rows = np.arange(len(seen.features))
        ids = rows.astype(np.str_) if seen.ids is None else seen.ids
        matched, sides = Matched(ids, rows, rows, {}), {"v": (seen, rows)}
    else:
        heard = read_features(audio, audio_name)
        matched = match_sets(seen, heard)
        sides = {"v": (seen, matched.video_rows), "a": (heard, matched.audio_rows)}
    # Here once for all, so that errors name the file rather than the part it plays.
    rows_of = [
        comparable_rows(one.features[rows], str(one.path), matched.ids) for one, rows in sides.values()
    ]
    check_same_width(rows_of[0], rows_of[-1], (str(video), str(audio)))
    return sides, matched.ids, matched.excluded


def _others(folder: Path, wanted: list[tuple[str, bool]]) -> dict[str, Ranking]:
    """Results to compare with, read before anything is computed."""
    names = [f"{direction}_{'class' if by_class else 'instance'}" for direction, by_class in wanted]
    return {name: load_ranking(folder / f"{name}.npz") for name in names}


def _content(
    one: Measured, compared: Mapping[str, Difference] | None, resamples: int, seed: int
) -> dict[str, Any]:
    """What the JSON of a result holds."""
    whole = one.ranking.as_dict()
    metrics, chance = whole.pop("metrics"), whole.pop("chance")
    content = {
        "direction": one.direction,
        **whole,
        "metrics": {name: asdict(one.intervals[name]) | {"chance": chance[name]} for name in metrics},
        "interval": {"level": LEVEL, "resamples": resamples, "seed": seed, "over": "queries"},
        "versions": {"avssl": __version__, "numpy": np.__version__, "python": platform.python_version()},
        "command": command_line(),
    }
    if compared is not None:
        content["against"] = {name: asdict(difference) for name, difference in compared.items()}
    return content


def _print(results: list[Measured], compared: Mapping[str, Mapping[str, Difference]]) -> None:
    """Metrics in rows, results in columns, and below how many samples they are of."""
    click.echo("95% intervals over queries in brackets; c: a random order")
    table = Table()
    table.add_column("metric")
    for one in results:
        table.add_column(
            f"{'→'.join(one.direction.upper().split('2'))} {one.ranking.relevance}", justify="right"
        )
    for name in dict.fromkeys(name for one in results for name in one.intervals):
        table.add_row(_title(name), *(_cell(one, name) for one in results))
    console = Console(width=max(Console().width, MIN_WIDTH))
    console.print(table)
    for one in results:
        ranking = one.ranking
        left_out = "; ".join(f"{number} {reason}" for reason, number in ranking.excluded.items()) or "none"
        click.echo(
            f"{one.name}: {ranking.queries} queries to {ranking.pool_size} rows, {ranking.tied_queries} tied "
            f"({ranking.ties}), excluded: {left_out}, pool {ranking.pool_hash[:12]}"
        )
    for name, differences in compared.items():
        table = Table(title=f"{name}: these features minus the others", title_justify="left")
        for heading in ("metric", "these", "others", "difference", "p"):
            table.add_column(heading, justify="left" if heading == "metric" else "right")
        for metric, d in differences.items():
            show = _format(metric)
            bounds = escape(f"{d.value:+{show}} [{d.low:+{show}}, {d.high:+{show}}]")
            table.add_row(
                _title(metric), f"{d.first:{show}}", f"{d.second:{show}}", bounds, f"{d.p_value:.3f}"
            )
        console.print(table)


def _cell(one: Measured, name: str) -> str:
    if name not in one.intervals:
        return ""
    interval, show = one.intervals[name], _format(name)
    bounds = f"[{interval.low:{show}}, {interval.high:{show}}]"
    return escape(f"{interval.value:{show}} {bounds} c {one.ranking.chance[name]:{show}}")


def _format(name: str) -> str:
    return ".1f" if "rank" in name else ".3f"


def _title(name: str) -> str:
    """``r5`` as R@5, ``ndcg10`` as nDCG@10."""
    kind = name.rstrip("0123456789")
    kinds = {"r": "R", "p": "P", "ndcg": "nDCG"}
    return f"{kinds[kind]}@{name[len(kind) :]}" if kind in kinds else TITLES[name]
