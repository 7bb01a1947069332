"""tools/ablation.py: its arithmetic, its tables, what it keeps and refuses, and a miniature run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import ablation  # noqa: E402
from ablation_data import write_data  # noqa: E402
from ablation_studies import STAGES, STUDIES  # noqa: E402
from ablation_table import as_markdown, estimate, paired_difference, summarise  # noqa: E402

from avssl.config import config_diff  # noqa: E402
from avssl.errors import ConfigError, TrainingError  # noqa: E402

MINIATURE = ("--files", "4", "2", "--avid-epochs", "2", "--cma-epochs", "1")
SMALL_BATCHES = ("--set", "train.batch_size=16", "objective.num_negatives=16")


def run(*words, cache=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "AVSSL_CACHE": str(cache)}
    command = [sys.executable, str(TOOLS / "ablation.py"), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def result(epochs=2, **metrics):
    return {
        "metrics": metrics,
        "seconds": 1.0,
        "date": "2026-01-02",
        "device": "CPU, threads: 1",
        "versions": {"avssl": "1.2.3", "torch": "2.11"},
        "files": [4, 2],
        "config": {"train": {"epochs": epochs}},
    }


def table(results, study="methods"):
    titles, parents = ({name: getattr(STAGES[name], of) for name in results} for of in ("title", "parent"))
    command = "python tools/ablation.py runs"
    content = summarise(study, "Small files", results, titles, parents, STUDIES[study], command)
    return content, as_markdown(content)


def row_of(text, title, occurrence=0):
    return [line for line in text.splitlines() if line.startswith(f"| {title} |")][occurrence]


def test_estimate_equals_the_t_interval_of_hand_numbers():
    found = estimate({0: 1.0, 1: 2.0, 2: 3.0})
    assert found["mean"] == 2.0
    assert found["n"] == 3
    # t(0.975, 2) = 4.30265, s = 1, so 4.30265 / sqrt(3)
    assert found["half_width"] == pytest.approx(2.48414, abs=1e-5)


def test_estimate_equals_scipy_interval():
    from scipy import stats

    values = [0.31, 0.42, 0.37, 0.55, 0.29]
    found = estimate(dict(enumerate(values)))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / 5, scale=stats.sem(values))
    assert found["mean"] - found["half_width"] == pytest.approx(low, abs=1e-12)
    assert found["mean"] + found["half_width"] == pytest.approx(high, abs=1e-12)


def test_estimate_of_one_seed_has_no_interval():
    assert estimate({4: 0.5}) == {"mean": 0.5, "half_width": None, "n": 1, "values": {4: 0.5}}


def test_paired_difference_is_taken_seed_by_seed_over_common_seeds():
    found = paired_difference({0: 1.5, 1: 2.75, 7: 100.0}, {1: 2.0, 0: 1.0, 2: 5.0})
    assert found["values"] == {0: 0.5, 1: 0.75}
    assert found["mean"] == 0.625
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_studies_put_parents_and_references_among_their_own_rows():
    for study, rows in STUDIES.items():
        names = list(rows)
        for name, reference in rows.items():
            parent = STAGES[name].parent
            assert parent is None or names.index(parent) < names.index(name), (study, name)
            assert reference is None or reference in rows, (study, name)
            assert parent is None or STAGES[parent].parent is None, "selected() looks one generation up"


def test_joint_stages_differ_from_their_reference_in_the_visual_part_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["tools/ablation.py", str(tmp_path)])
    options = ablation.parse()
    for name, reference in STUDIES["joint"].items():
        if reference is None:
            continue
        joint, alone = (ablation.recipe(STAGES[stage], 0, options) for stage in (name, reference))
        changed = {key for key in config_diff(alone, joint) if not key.startswith(("objective.", "views."))}
        assert changed == {"run.name"}
        assert joint.objective["parts"]["audio_visual"] == alone.objective
        assert alone.views.video == {"size": joint.views.video["size"]} | {
            key: joint.views.crops[0][key] for key in ("min_area", "jitter")
        }, "AVID sees the first view"
        assert (joint.views.spectrogram, joint.views.audio) == (alone.views.spectrogram, alone.views.audio)


def test_table_shows_means_intervals_and_marks_differences_that_exclude_zero():
    results = {
        "cross_avid": {s: result(knn_video=0.5 + 0.1 * s, a2v_r1=0.1 * s) for s in range(3)},
        "self_avid": {s: result(knn_video=0.4 + 0.1 * s, a2v_r1=0.1 * (2 - s)) for s in range(3)},
        "avid_longer": {s: result(epochs=7, knn_video=0.5) for s in range(2)},
    }
    content, text = table(results)
    assert "| 2 | 3 | 0.600 ± 0.248 | 0.100 ± 0.248 |" in row_of(text, "Cross-AVID")
    assert "| 2 + 7 | 2 | 0.500 ± 0.000 |  |" in row_of(text, "Cross-AVID, longer")
    assert "| Cross-AVID | 3 | -0.100 ± 0.000* | +0.000 ± 0.497 |" in row_of(text, "Self-AVID", 1)
    assert content["rows"][1]["differences"]["knn_video"]["n"] == 3
    for words in (
        "Seeds: 0, 1, 2",
        "2026-01-02",
        "avssl 1.2.3",
        "CPU, threads: 1",
        "Intervals over 3 seeds are wide",
    ):
        assert words in text
    assert "python tools/ablation.py runs" in text


def test_table_of_one_seed_says_that_there_are_no_intervals():
    text = table({"cross_avid": {5: result(knn_video=0.5)}})[1]
    assert "One seed: there are no intervals" in text
    assert "±" not in text


def test_table_shows_failed_and_missing_stages():
    failed = result() | {"failed": "the loss became nan"}
    del failed["metrics"], failed["seconds"]
    results = {"cross_avid": {0: result(knn_video=0.5)}, "self_avid": {0: failed}, "joint_avid": {}}
    text = table(results)[1]
    alone = table({"self_avid": {0: failed}})[1]
    assert len({line.count("|") for line in alone.splitlines() if line.startswith("|")}) == 1, "ragged"
    assert "| 0 | failed |" in row_of(text, "Self-AVID")
    assert "| 0 | not run |" in row_of(text, "Joint-AVID")
    assert "- Self-AVID, seed 0: failed: the loss became nan" in text


def test_table_of_the_partition_study_shows_losses_and_log_z():
    metrics = {"knn_video": 0.5, "first_loss": 7.25, "last_loss": 3.5, "log_z": 0.125}
    text = table({"nce_avid": {0: result(**metrics)}}, study="partition")[1]
    assert "| first loss | last loss | log Z |" in text
    assert "| 7.250 | 3.500 | 0.125 |" in row_of(text, "Cross-AVID, NCE")
    assert "log Z" not in table({"cross_avid": {0: result(**metrics)}}, study="contrast")[1]


def test_table_of_the_visual_study_shows_signs_of_collapse():
    metrics = {"knn_video": 0.5, "first_loss": 2.5, "last_loss": 0.75, "spread": 0.9, "effective_rank": 7.125}
    random, trained = result(knn_video=0.25), result(**metrics)
    del random["seconds"]
    text = table({"random_r2plus1d": {0: random}, "byol": {0: trained}}, study="visual")[1]
    assert "| kNN video | first loss | last loss | spread | effective rank |" in text
    assert "| 0.500 | 2.500 | 0.750 | 0.900 | 7.125 |" in row_of(text, "BYOL")
    assert "| BYOL | random init, R(2+1)D | 1 | +0.250 |" in text


def test_digits_are_split_by_the_seed_and_written_alike_again(tmp_path):
    first, other = (write_data("digits", tmp_path, 3, 2, seed) for seed in (0, 1))
    assert len(first) == 50
    assert first.classes == [str(digit) for digit in range(10)]
    assert (len(first.select(split="train")), len(first.select(split="test"))) == (30, 20)
    assert write_data("digits", tmp_path, 3, 2, 0).hash == first.hash != other.hash


def test_more_digits_than_there_are_is_refused_with_the_number_there_is(tmp_path):
    with pytest.raises(ConfigError, match="--files 170 17: must sum to at most 174"):
        write_data("digits", tmp_path, 170, 17, seed=0)


@pytest.fixture
def stubbed(monkeypatch, tmp_path):
    """The script in this process with nothing generated or trained; `outcomes` says what each stage does."""
    outcomes = {}

    class Listed:
        save = staticmethod(lambda path: None)

    def measured(stage, config):
        outcome = outcomes.get(stage.name, {"metrics": {"knn_video": 0.5}, "seconds": 1.0})
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(ablation, "write_data", lambda *args: Listed)
    monkeypatch.setattr(ablation, "measured", measured)

    def main(*words):
        monkeypatch.setattr(sys, "argv", ["tools/ablation.py", str(tmp_path / "runs"), *words])
        ablation.main()

    return main, outcomes, tmp_path / "runs"


def test_failing_stage_is_recorded_and_the_study_goes_on(stubbed, capsys):
    main, outcomes, folder = stubbed
    outcomes["cross_avid"] = TrainingError("the loss became nan by step 3")
    main("--seeds", "0")
    assert json.loads((folder / "seed0/cross_avid/result.json").read_text())["failed"].startswith("the loss")
    assert (folder / "seed0/joint_avid/result.json").exists()
    assert not (folder / "seed0/cma_union").exists(), "a stage whose parent failed has nothing to start from"
    out, err = capsys.readouterr()
    assert "| 0 | failed |" in row_of(out, "Cross-AVID")
    assert "left out: cross_avid, which it starts from, failed" in err


def test_interruption_keeps_finished_stages_and_the_next_call_does_the_rest(stubbed, capsys):
    main, outcomes, folder = stubbed
    outcomes["joint_avid"] = KeyboardInterrupt()
    with pytest.raises(SystemExit) as stop:
        main("--seeds", "0")
    assert stop.value.code == 130
    assert "finished stages are kept" in capsys.readouterr().err
    kept = folder / "seed0/self_avid/result.json"
    before = kept.stat().st_mtime_ns
    assert not (folder / "seed0/joint_avid/result.json").exists()
    del outcomes["joint_avid"]
    main("--seeds", "0")
    assert (folder / "seed0/joint_avid/result.json").exists()
    assert kept.stat().st_mtime_ns == before


def test_studies_share_stages_in_one_folder(stubbed, capsys):
    main, outcomes, _ = stubbed
    main("--seeds", "0", "--study", "methods")
    main("--seeds", "0", "--study", "partition", "--only", "cma_per_term")
    outcomes.update(dict.fromkeys(STAGES, AssertionError("trained twice")))
    main("--seeds", "0", "--study", "contrast")
    assert row_of(capsys.readouterr().out, "CMA, NCE, Z estimated anew, for each term")


def test_command_that_repeats_a_table_names_the_epochs_of_its_study_alone(stubbed, capsys):
    main, _, _ = stubbed
    main("--seeds", "0", "--study", "visual", "--only", "seer")
    main("--seeds", "0", "--study", "joint", "--only", "avid_byol")
    commands = [line for line in capsys.readouterr().out.splitlines() if "tools/ablation.py" in line]
    assert commands[0].endswith("--seeds 0 --files 80 17 --only seer")
    assert commands[1].endswith("--seeds 0 --files 80 17 --avid-epochs 60 --only avid_byol")


@pytest.mark.parametrize(
    "words, message",
    [
        (("--seeds", "0", "--avid-epochs", "9"), "made with other settings (train.epochs)"),
        (("--seeds", "0", "--files", "5", "2"), "made with other settings (--files)"),
        (("--seeds", "3", "--set", "train.epochs=5"), "--set train.epochs: the study sets it"),
        (("--seeds", "0", "--only", "nce_avid"), "--only names nce_avid; must be stages of --study methods"),
        (("--seeds", "8", "9", "--table-only"), "no result of study methods for seeds 8, 9"),
    ],
)
def test_unfit_options_are_refused_with_a_remedy(stubbed, capsys, words, message):
    main, _, _ = stubbed
    main("--seeds", "0", "--only", "cross_avid")
    with pytest.raises(SystemExit) as stop:
        main(*words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_table_only_without_results_is_an_error_without_traceback(tmp_path):
    done = run(tmp_path / "runs", "--table-only", cache=tmp_path)
    assert done.returncode == 2
    assert "no result of study methods" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_miniature_study_trains_judges_and_writes_table_and_numbers(tmp_path):
    page = tmp_path / "docs" / "table.md"
    words = (tmp_path / "runs", "--seeds", "0", *MINIATURE, *SMALL_BATCHES)
    words += ("--only", "random_init", "avid_longer", "cma_consensus", "--write", page)
    done = run(*words, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    text, content = page.read_text(), json.loads(page.with_suffix(".json").read_text())
    assert [row["name"] for row in content["rows"]] == [
        "random_init",
        "cross_avid",
        "avid_longer",
        "cma_consensus",
    ]
    assert "| 2 + 1 | 1 |" in row_of(text, "CMA, consensus")
    assert "| Cross-AVID, longer | 1 |" in row_of(text, "CMA, consensus", 1)
    assert "mined positives" in text
    results = {
        name: json.loads((tmp_path / "runs/seed0" / name / "result.json").read_text())
        for name in ("cross_avid", "avid_longer", "cma_consensus")
    }
    assert all(0 <= r["metrics"]["knn_video"] <= 1 and r["seconds"] > 0 for r in results.values())
    assert results["avid_longer"]["config"]["run"]["start_from"].endswith("seed0/cross_avid")
    assert results["avid_longer"]["config"]["optim"] == results["cma_consensus"]["config"]["optim"]
    first = {name: r["metrics"]["first_loss"] for name, r in results.items()}
    assert len(set(first.values())) == 3, "three different trainings"
    assert "log_z" not in results["cma_consensus"]["metrics"], "softmax has no partition constant"


def test_miniature_visual_study_judges_video_alone(tmp_path):
    words = (tmp_path / "runs", "--study", "visual", "--seeds", "0", "--files", "4", "2")
    words += ("--set", "train.epochs=1", "train.batch_size=16", "--only", "random_regnet", "seer", "simsiam")
    done = run(*words, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "| linear video | kNN video | first loss |" in done.stdout
    assert "audio" not in done.stdout
    assert "| SEER | random init, RegNetY | 1 |" in done.stdout
    found = {
        name: json.loads((tmp_path / "runs/seed0" / name / "result.json").read_text())
        for name in ("random_regnet", "seer", "simsiam")
    }
    assert found["random_regnet"]["config"]["model"] == found["seer"]["config"]["model"]
    assert "seconds" not in found["random_regnet"]
    assert found["simsiam"]["config"]["model"]["video"]["name"] == "R2Plus1D"
    assert found["simsiam"]["metrics"]["spread"] > 0
