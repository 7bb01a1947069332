"""``mining.jsonl``, scalars and histograms of each mining."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from avssl.memory import MemoryBank
from avssl.memory.diagnostics import diagnose
from avssl.report import write_report
from avssl.train.log import MetricsLog
from avssl.train.mining_log import MiningObserver

LABELS = torch.arange(24) % 3


@pytest.fixture
def objective():
    """What an objective has just mined, on a bank that knows three classes."""
    generator = torch.Generator().manual_seed(0)
    bank = MemoryBank(24, 8)
    for vectors in (bank.video, bank.audio):
        centres = torch.randn(3, 8, generator=generator)[LABELS]
        vectors.copy_(F.normalize(centres + torch.randn(24, 8, generator=generator), dim=1))
    bank.seen.fill_(True)
    sets = (torch.arange(24)[:, None] + torch.tensor([1, 3, 6])) % 24
    return SimpleNamespace(
        bank=bank,
        positive_set=sets.sort(dim=1).values.int(),
        previous_positive_set=None,
        groups=torch.arange(24),
        last_mining=None,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def test_each_mining_is_one_line_with_everything(tmp_path, objective):
    log = MetricsLog(tmp_path)
    observer = MiningObserver(log, labels=LABELS)
    observer(objective, epoch=0, step=0)
    objective.previous_positive_set = objective.positive_set
    observer(objective, epoch=2, step=10)
    log.close()
    first, second = lines(tmp_path / "mining.jsonl")
    assert (first["step"], first["epoch"], first["num_positives"]) == (0, 0, 3)
    assert (second["step"], second["epoch"]) == (10, 2)
    assert (first["kept_share"], second["kept_share"]) == (None, 1.0)
    bank = objective.bank
    expected = diagnose(bank.video, bank.audio, objective.positive_set, labels=LABELS, seed=0)
    assert {name: first[name] for name in expected.record()} == expected.record()
    assert first["precision"]["used"] == pytest.approx(2 / 3)


def test_scalars_are_in_the_metrics_and_in_tensorboard_and_histograms_too(tmp_path, objective):
    log = MetricsLog(tmp_path)
    diagnosis = MiningObserver(log, labels=LABELS)(objective, epoch=1, step=5)
    log.close()
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert (line["step"], line["epoch"]) == (5, 1)
    assert line["positives/precision_consensus"] == diagnosis.precision["consensus"]
    assert line["positives/gini"] == diagnosis.gini
    written = events(tmp_path)
    (scalar,) = written.Scalars("positives/precision_used")
    assert (scalar.step, scalar.value) == (5, pytest.approx(2 / 3))
    names = {"in_degree", *(f"similarity_{pairs}" for pairs in diagnosis.similarity)}
    assert set(written.Tags()["histograms"]) == {f"positives/{name}" for name in names}
    assert len(names) == 5
    (histogram,) = written.Histograms("positives/similarity_video_positives")
    value = histogram.histogram_value
    assert value.num == 24 * 3
    assert value.sum / value.num == pytest.approx(diagnosis.similarity["video_positives"].mean)
    assert list(value.bucket) == diagnosis.similarity["video_positives"].counts


def test_a_resumed_run_drops_minings_that_are_done_again(tmp_path, objective):
    log = MetricsLog(tmp_path)
    observer = MiningObserver(log)
    for step in (0, 10, 20):
        observer(objective, epoch=step // 10, step=step)
    log.close()
    before = lines(tmp_path / "mining.jsonl")
    with (tmp_path / "mining.jsonl").open("a") as file:
        file.write('{"step": 30, "pre')  # killed while writing
    log = MetricsLog(tmp_path, step=15)
    MiningObserver(log, step=15)
    log.close()
    assert [line["step"] for line in lines(tmp_path / "mining.jsonl")] == [0, 10]
    log = MetricsLog(tmp_path, step=10)  # the end of an epoch: the mining at step 10 comes next
    observer = MiningObserver(log, step=10)
    assert [line["step"] for line in lines(tmp_path / "mining.jsonl")] == [0]
    observer(objective, epoch=1, step=10)
    log.close()
    assert lines(tmp_path / "mining.jsonl") == before[:2]


def test_a_run_that_does_not_mine_leaves_no_file(tmp_path):
    log = MetricsLog(tmp_path)
    MiningObserver(log, labels=LABELS)
    log.close()
    assert not (tmp_path / "mining.jsonl").exists()


@pytest.mark.parametrize("labels", [None, torch.full((24,), -1), torch.zeros(24, dtype=torch.long)])
def test_fewer_than_two_classes_judge_nothing(tmp_path, objective, labels):
    log = MetricsLog(tmp_path)
    diagnosis = MiningObserver(log, labels=labels)(objective, epoch=0, step=0)
    log.close()
    assert diagnosis.precision == {}
    assert lines(tmp_path / "mining.jsonl")[0]["precision"] == {}


def test_the_report_reads_what_was_logged(tmp_path, objective):
    log = MetricsLog(tmp_path)
    observer = MiningObserver(log, labels=LABELS.numpy())
    observer(objective, epoch=0, step=0)
    objective.previous_positive_set = objective.positive_set
    observer(objective, epoch=1, step=10)
    log.close()
    text = write_report(tmp_path).read_text()
    for part in (
        "Precision of positives",
        "Overlap with",
        "Similarity of audio",
        "mined 2 times",
        "Times chosen",
    ):
        assert part in text
    assert "Damaged files" not in text
