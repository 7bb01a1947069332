"""The page of a run: complete, self-contained, honest about what is missing, safe against its content."""

import json
import os
import shutil
import time
from datetime import datetime
from html.parser import HTMLParser

import pytest
from fake_run import metric_lines, mining_lines, results_record, write_lines

from avssl.errors import AvsslError
from avssl.report import gallery as gallery_module
from avssl.report import write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}
SECTIONS = (
    "What was run",
    "Comparison",
    "Held-out data",
    "Losses",
    "Other curves",
    "Mined agreements",
    "What was left out",
    "Gallery",
    "Configuration",
    "Versions",
    "Commands",
)


class _Page(HTMLParser):
    """Elements with their attributes and text; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.titles = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, kind=None):
        found = [element for element in self.elements if element["tag"] == tag]
        return [e for e in found if kind is None or kind in (e.get("class") or "").split()]

    def section(self, name):
        return next(e["text"] for e in self.all("section") if e.get("aria-labelledby") == f"{name}-title")

    def rows(self, start):
        return [row["text"] for row in self.all("tr") if row["text"].startswith(start)]


def _write(folder, output):
    return _Page(write_report(folder, output).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory):
    return _write(finished_run, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_page_has_every_section_and_is_labelled(page):
    assert [heading["text"] for heading in page.all("h2")] == list(SECTIONS)
    assert [heading["text"] for heading in page.all("h1")] == ["demo"]
    assert page.all("html")[0]["lang"] == "en"
    ids = {element["id"] for element in page.elements if "id" in element}
    assert {link["href"].removeprefix("#") for link in page.all("a")} <= ids
    assert all(element["aria-labelledby"] in ids for element in page.elements if "aria-labelledby" in element)
    assert all(e.get("aria-label") for e in page.elements if e.get("role") == "img" or e["tag"] == "video")


def test_page_asks_for_nothing_outside_itself(page):
    for element in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (element.get(name) or "#").startswith("#")
    styles = "".join(style["text"] for style in page.all("style"))
    assert "url(" not in styles
    assert "@import" not in styles
    assert "default-src 'none'" in page.all("meta")[3]["content"]


def test_page_holds_each_media_file_once(page):
    stored = [script for script in page.all("script") if script.get("id", "").startswith("media-")]
    assert len(stored) == 3
    assert {video["data-media"] for video in page.all("video")} == {
        s["id"].removeprefix("media-") for s in stored
    }
    assert len(page.all("video")) == 2 * 3 * 4


def test_page_stores_copies_of_one_clip_once(finished_run, tmp_path):
    folder = tmp_path / "copies"
    shutil.copytree(finished_run, folder)
    for number in (1, 2):
        shutil.copy(folder / "media" / "0.mp4", folder / "media" / f"{number}.mp4")
    page = _write(folder, "report.html")
    assert len([script for script in page.all("script") if "id" in script]) == 1


def test_page_says_what_was_run(page):
    text = page.section("run")
    assert "The run has 2 stages: avid, cma." in text
    assert "Trained on 800 of 803 samples of manifest 9f2ce17ab04d (avid, cma)." in text
    assert "Training took 19 min 30 s on cpu." in text


def test_comparison_marks_the_best_of_each_column_and_shows_chance(page):
    bold = [cell["text"] for cell in page.all("strong")]
    assert len(bold) == 7 + 3 + 2 + 1
    assert "10.5" in bold
    assert "100.5" not in bold
    (chance,) = page.rows("chance")
    assert chance == "chance8.3 %8.3 %8.3 %8.3 %0.5 %2.5 %5.0 %100.50.5 %2.5 %5.0 %100.58.2 %"
    (random_init,) = page.rows("random init")
    assert random_init.endswith("90–")
    headings = [cell["text"] for cell in page.all("th") if cell.get("scope") == "colgroup"]
    assert headings == ["Linear probe", "kNN", "Audio to video", "Video to audio", "Mined positives"]
    (columns,) = page.rows("Model")
    assert columns == "Modelvideoaudiovideoaudio" + 2 * "R@1R@5R@10median rank" + "precision"


def test_comparison_marks_equal_values_alike_and_names_what_was_not_evaluated(run):
    rows = [
        {"name": name, "metrics": {"knn_video": 0.5, "a2v_median_rank": rank, "knn_audio": None}}
        for name, rank in (("a", 3), ("b", 2))
    ]
    (run / "results.json").write_text(json.dumps({"rows": rows}))
    page = _write(run, "report.html")
    assert [cell["text"] for cell in page.all("strong")] == ["50.0 %", "50.0 %", "2"]
    assert "Not evaluated for any model: knn_audio." in page.section("comparison")


def test_comparison_orders_recalls_by_depth_before_other_columns_and_ranks(run):
    names = (
        "a2v_mean_rank",
        "a2v_median_rank",
        "a2v_r10",
        "a2v_class_precision",
        "a2v_r5",
        "effective_rank",
        "std",
        "a2v_r1",
    )
    rows = [{"name": "a", "metrics": dict.fromkeys(names, 0.5)}]
    (run / "results.json").write_text(json.dumps({"rows": rows}))
    page = _write(run, "report.html")
    assert page.rows("Model") == ["ModelR@1R@5R@10class precisionmedian rankstdeffective rank"]
    assert page.rows("a") == ["a50.0 %50.0 %50.0 %50.0 %0.50.50.5"]


def test_comparison_of_a_single_row_marks_nothing(run):
    (run / "results.json").write_text(json.dumps({"rows": results_record()["rows"][:1]}))
    assert not _write(run, "report.html").all("strong")


def test_curves_have_a_chart_a_stage_and_family(page):
    titles = [caption["text"] for caption in page.all("figcaption")]
    others = [
        "Mean norm of embeddings",
        "Log Z",
        "Learning rate",
        "Share of time waiting for data",
        "Clips a second",
    ]
    mined = [
        "Precision of positives",
        "Overlap with the positives before",
        "Similarity of video",
        "Similarity of audio",
    ]
    held_out = ["kNN accuracy", "Retrieval: R@1", "Samples held out"]
    assert titles == held_out + 2 * ["Loss", "Loss terms"] + 2 * others + mined
    legends = [entry["text"].split()[0] for entry in page.all("li") if entry["text"].startswith("loss")]
    assert legends == 2 * ["loss", "loss_v2a", "loss_a2v"]


def test_held_out_data_have_a_section_of_their_own(page):
    text = page.section("held-out")
    entries = [entry["text"] for entry in page.all("li") if entry["text"].startswith("held_out_")]
    assert entries == [
        "held_out_knn_video 0.4801",
        "held_out_knn_audio 0.6908",
        "held_out_a2v_r1 0.2608",
        "held_out_v2a_r1 0.2175",
        "held_out_pool 200",
        "held_out_skipped 3",
    ]
    assert "Not drawn: 1 without a finite value." in text
    assert "Nothing was measured on held-out data while training; train.held_out_every=STEPS does." in text
    (row,) = page.rows("avid")
    assert "1.092" in row  # the last loss, though the last line has none


def test_curves_of_a_joint_objective_share_charts_with_their_kind(run):
    names = [
        "loss", "avid/loss", "avid/loss_cross", "swav/loss", "avid/spread_video", "swav/spread",
        "swav/loss_over_ln_k", "avid/effective_rank_audio", "swav/prototypes_used", "grad_norm", "memory_gb",
        "swav/temperature",
    ]  # fmt: skip
    write_lines(run / "metrics.jsonl", [{"step": 1, **dict.fromkeys(names, 0.5)}])
    page = _write(run, "report.html")
    titles = [caption["text"] for caption in page.all("figcaption")]
    assert titles == [
        "Loss", "Loss terms", "Spread of embeddings", "Effective rank of embeddings",
        "Share of prototypes used", "Loss over ln K", "Norm of the gradient", "Memory in GB",
        "Swav/temperature",
    ]  # fmt: skip
    legends = [entry["text"].split()[0] for entry in page.all("li")]
    assert legends[:6] == [*names[:4], "avid/spread_video", "swav/spread"]


@pytest.mark.parametrize(
    ("status", "age_seconds", "sentence"),
    [
        ("running", 0, "run is running: step 50 of 200 (25%)."),
        ("running", 10000, "run was running and then wrote nothing more: it was killed, or hangs."),
        ("stopped", 0, "run was stopped: step 50 of 200 (25%). The same command goes on with it."),
    ],
)
def test_page_says_where_a_run_stands_and_when_it_wrote_last(run, status, age_seconds, sentence):
    write_lines(run / "metrics.jsonl", metric_lines(50, 3.0))
    (run / "run.json").write_text(json.dumps({"status": status, "total_steps": 200, "device": "a GPU"}))
    then = time.time() - age_seconds
    for name in ("metrics.jsonl", "run.json"):
        os.utime(run / name, (then, then))
    page = _write(run, "report.html")
    assert sentence in page.section("run")
    assert "Trained on a GPU." in page.section("run")
    (row,) = page.rows("run")
    assert datetime.fromtimestamp(then).strftime("%Y-%m-%d %H:%M:%S") in row
    assert "50 of 200" in row


def test_curves_take_the_later_line_of_a_step_that_was_run_again(run):
    write_lines(
        run / "metrics.jsonl",
        [{"step": s, "loss": v} for s, v in ((10, 9.0), (20, 8.0), (20, 2.0), (30, 1.0))],
    )
    tips = [title["text"] for title in _write(run, "report.html").all("title")[1:]]
    assert tips == ["loss 9 at 10", "loss 2 at 20", "loss 1 at 30"]


def test_curves_keep_the_loss_of_a_step_after_which_positives_were_mined(run):
    lines = [{"step": 10, "loss": 3.0}, {"step": 10, "kept": 0.5}, {"step": 20, "loss": 1.0}]
    write_lines(run / "metrics.jsonl", lines)
    tips = [title["text"] for title in _write(run, "report.html").all("title")[1:]]
    assert tips == ["loss 3 at 10", "loss 1 at 20", "kept 0.5 at 10"]


def test_curves_draw_any_numeric_key_and_pass_over_text(run):
    lines = [{"step": 1, "epoch": 0, "knn_audio": 0.5, "phase": "warm", "done": True}]
    write_lines(run / "metrics.jsonl", [*lines, {"step": 2, "knn_audio": 0.75}])
    page = _write(run, "report.html")
    assert [caption["text"] for caption in page.all("figcaption")] == ["Knn audio"]
    assert "No loss was logged yet." in page.section("losses")


def test_curves_break_at_null_which_stands_for_nan_in_a_log(run):
    write_lines(run / "metrics.jsonl", [{"step": s, "loss": v} for s, v in enumerate((3.0, 2.0, None, 2.5))])
    page = _write(run, "report.html")
    assert len(page.all("polyline")) == 2
    assert "Not drawn: 1 without a finite value." in page.section("losses")


def test_mined_agreements_compare_kinds_of_agreement_with_chance(page):
    text = page.section("mined")
    assert "Positives were mined 3 times, last before epoch 2, 8 for each instance." in text
    assert "on 800 instances mined anew" in text
    entries = [entry["text"] for entry in page.all("li")]
    for entry in ("used 0.58", "video 0.5", "chance 0.08", "old positives kept 0.8", "Jaccard index 0.7"):
        assert entry in entries
    tips = [title["text"] for title in page.all("title")]
    assert "consensus 0.34 at 0" in tips
    assert "old positives kept 0.7 at 1" in tips
    assert "old positives kept 0.6 at 0" not in tips


def test_mined_agreements_show_the_last_similarities_and_in_degree(page):
    (video,) = [f for f in page.all("figure") if f["text"].startswith("Similarity of video")]
    assert "positives mean 0.6" in video["text"]
    assert "random pairs mean 0" in video["text"]
    text = page.section("mined")
    assert (
        "2.6 times on average; at most 7 times; never: 3.3 % of the instances; Gini coefficient 0.31" in text
    )
    assert page.rows("2 to 3") == ["2 to 32,00083.3 %"]
    assert page.rows("4 to 7") == ["4 to 72008.3 %"]


def test_mined_agreements_without_classes_say_why_there_is_no_precision(run):
    write_lines(run / "metrics.jsonl", metric_lines(50, 3.0))
    write_lines(run / "mining.jsonl", mining_lines(labelled=False)[:1])
    page = _write(run, "report.html")
    text = page.section("mined")
    assert "precision is unknown: judging it takes a manifest that labels at least two classes" in text
    assert "no overlap to show before positives have been mined twice" in text
    assert "Positives were mined once" in text
    assert "Precision of positives" not in text


def test_mined_agreements_are_not_among_the_other_curves_again(run):
    scalars = {"positives/gini": 0.5, "mining_recall": 1.0, "instances_with_positives": 9.0}
    scalars["cma/mining_seconds"] = 2.0
    write_lines(run / "metrics.jsonl", [{"step": 1, "loss": 1.0, "kept": 1.0}, {"step": 1, **scalars}])
    curves = _write(run, "report.html").section("curves")
    for title in ("Positives/gini", "Mining recall", "Instances with positives", "Cma/mining seconds"):
        assert title in curves
    search = {"method": "ivf", "agreement": "consensus", "mining_recall": 0.975, "mining_seconds": 3.25}
    write_lines(run / "mining.jsonl", [line | {"mining": search} for line in mining_lines()])
    page = _write(run, "report.html")
    assert [caption["text"] for caption in page.all("figcaption")][:2] == ["Loss", "Kept"]
    for word in ("gini", "ining", "nstances"):
        assert word not in page.section("curves")
    assert "The last search (ivf, consensus) took 3.25 s and found 97.5 % of the best" in page.section(
        "mined"
    )


def test_two_numbers_on_mined_positives_are_told_apart(page, run):
    assert "that the evaluation mined anew in the memories as training left them" in page.section(
        "comparison"
    )
    write_lines(run / "metrics.jsonl", metric_lines(50, 3.0))
    (run / "results.json").write_text(json.dumps(results_record()))
    assert "mined anew" not in _write(run, "report.html").section("comparison")


def test_a_stage_that_started_from_another_run_says_so(run):
    write_lines(run / "metrics.jsonl", metric_lines(50, 3.0))
    assert "started from" not in _write(run, "report.html").section("run")
    (run / "config.yaml").write_text("run: {start_from: runs/avid <1>}")
    text = _write(run, "report.html").section("run")
    assert "The run has one stage: run. run started from runs/avid <1>." in text
    (run / "config.yaml").write_text("run: {start_from")
    assert "config.yaml: cannot be read" in _write(run, "report.html").all("section", "problems")[0]["text"]


@pytest.mark.parametrize(
    "damage",
    [
        {"precision": 3, "similarity": [], "in_degree": {"edges": [0, 1], "counts": []}, "epoch": "x"},
        {"precision": {"used": "high"}, "similarity": {"video_positives": {"edges": [1, 0], "counts": [1]}}},
        {
            "in_degree": {"edges": [0, 1, 2], "counts": [0, 0]},
            "gini": [],
            "num_positives": None,
            "kept_share": {},
        },
        {"in_degree": {"edges": [0, 1], "counts": [5]}, "similarity": {"audio_random": {"edges": [None]}}},
    ],
)
def test_mined_agreements_survive_damage(run, damage):
    write_lines(run / "metrics.jsonl", metric_lines(50, 3.0))
    write_lines(run / "mining.jsonl", [{"step": 0} | damage])
    with (run / "mining.jsonl").open("a") as file:
        file.write('{"step": 60, "pre')
    page = _write(run, "report.html")
    assert "Positives were mined once" in page.section("mined")
    assert "mining.jsonl: 1 damaged line left out" in page.all("section", "problems")[0]["text"]
    assert "Similarity" not in page.section("mined")


def test_left_out_counts_reasons_and_names_each_file_once(page):
    text = page.section("left-out")
    assert "4 files were left out" in text
    assert page.rows("openinvalid data") == ["openinvalid data2"]
    assert page.rows("clips/late.mp4") == ["clips/late.mp4videono frame decodedtraining avid"]
    assert page.rows("clips/mute.mp4") == ["clips/mute.mp4audiono audio streammanifest"]


def test_left_out_lists_fifty_files_and_counts_the_rest(run):
    entries = [{"path": f"{n:03}.mp4", "stage": "open", "reason": f"reason {n % 30:02}"} for n in range(70)]
    (run / "run.json").write_text(json.dumps({"manifest": {"left_out": entries}}))
    page = _write(run, "report.html")
    assert len(page.rows("0")) == 50
    assert "and 20 more\n" in page.section("left-out")
    assert "and 10 more reasons" in page.section("left-out")
    assert "70 files were left out" in page.section("left-out")


def test_left_out_does_not_claim_that_nothing_was_left_out_when_it_cannot_know(run):
    write_lines(run / "metrics.jsonl", metric_lines(50, 3.0))
    text = _write(run, "report.html").section("left-out")
    assert "run: which files the manifest left out is not recorded" in text


def test_gallery_frames_hits_and_misses_and_stars_the_query_itself(page):
    clips = page.all("li", "clip")
    verdicts = [clip["class"].split()[1] for clip in clips[:4]]
    assert verdicts == ["query", "hit", "miss", "miss"]
    assert [len(page.all("li", kind)) for kind in ("query", "hit", "miss")] == [6, 6, 12]
    assert len(page.all("svg", "star")) == 6
    assert "1. hit" in clips[1]["text"]
    assert "0.900" in clips[1]["text"]


def test_gallery_says_which_clips_it_cannot_show(finished_run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    content = (folder / "gallery.json").read_text()
    content = content.replace("media/0.mp4", "../secret.mp4").replace("media/1.mp4", "media/gone.mp4")
    (folder / "gallery.json").write_text(content)
    page = _write(folder, "report.html")
    assert "Not shown: ../secret.mp4 (lies outside the run folder)." in page.section("gallery")
    assert "Not shown: media/gone.mp4 (not found)." in page.section("gallery")
    assert len(page.all("video")) == 2 * 4
    monkeypatch.setattr(gallery_module, "MAX_MEDIA_BYTES", 10)
    assert "Not shown: media/2.mp4 (the page already holds 0 MiB" in _write(folder, "report.html").section(
        "gallery"
    )


def test_gallery_without_classes_gives_no_verdict(run):
    query = {"id": "a", "matches": [{"id": "b", "score": 0.5}]}
    (run / "gallery.json").write_text(
        json.dumps({"sections": [{"title": "Audio to video", "queries": [query]}]})
    )
    page = _write(run, "report.html")
    assert "class unknown" in page.section("gallery")
    assert len(page.all("li", "unknown")) == 1


def test_page_of_a_run_that_is_still_going(run):
    write_lines(run / "metrics.jsonl", metric_lines(50, 3.0))
    (run / "run.json").write_text('{"status": "running", "seconds": 0.0}')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')
    page = _write(run, "report.html")
    assert "run is running: step 50." in page.section("run")
    assert "not finished" in page.section("run")
    assert "metrics.jsonl: 1 damaged line left out" in page.all("section", "problems")[0]["text"]
    assert len(page.all("figure")) == 7
    assert "Nothing was mined here" in page.section("mined")
    for name in ("comparison", "gallery"):
        assert "Not evaluated" in page.section(name)
    for name in ("configuration", "versions", "commands"):
        assert "Not recorded" in page.section(name)


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "gallery.json", "skipped.jsonl", "run.json"])
def test_page_is_written_from_any_single_file(run, name):
    (run / name).write_text("{}")
    assert len(_write(run, "report.html").all("h2")) >= len(SECTIONS)


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '{"rows": 3, "sections": {"a": 1}, "manifest": [], "versions": 1}']
)
def test_page_survives_damaged_files(run, content):
    for name in ("results.json", "gallery.json", "run.json"):
        (run / name).write_text(content)
    (run / "metrics.jsonl").write_bytes(
        b'\xff\xfe\n{"step": "a"}\n{"step": NaN, "loss": 1}\n[1]\n\n{"step": 1, "loss": NaN}\n'
    )
    page = _write(run, "report.html")
    problems = page.all("section", "problems")[0]["text"]
    assert "metrics.jsonl: 2 damaged lines left out" in problems
    assert ("results.json" in problems) == (not content.startswith('{"rows"'))
    assert "No finite value was logged." in page.section("losses")


def test_page_shows_hostile_text_as_text(run):
    evil = "</script><script>alert(1)</script><b>\"'&"
    (run / "config.yaml").write_text(evil)
    metrics = {"knn_video": 0.5, evil: 1.0}
    (run / "results.json").write_text(
        json.dumps({"rows": [{"name": evil, "metrics": metrics}], "command": evil})
    )
    query = {"id": evil, "label": evil, "media": evil, "matches": []}
    (run / "gallery.json").write_text(json.dumps({"sections": [{"title": evil, "queries": [query]}]}))
    write_lines(run / "metrics.jsonl", [{"step": 1, "loss": 1.0, evil: 2.0}])
    left_out = [{"path": evil, "stage": evil, "reason": evil}]
    record = {"manifest": {"left_out": left_out, "hash": evil}, "versions": {evil: evil}, "device": evil}
    (run / "run.json").write_text(json.dumps(record | {"command": [evil, "x"]}))
    page = _write(run, "report.html")
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert page.all("pre")[0]["text"] == evil
    assert evil in page.section("left-out")


def test_report_is_replaced_in_one_move_and_is_the_same_each_time(finished_run, tmp_path):
    first = write_report(finished_run, tmp_path / "new" / "page.html")
    content = first.read_bytes()
    assert write_report(str(finished_run), str(first)) == first
    assert first.read_bytes() == content
    assert list(first.parent.iterdir()) == [first]


def test_report_takes_a_relative_output_from_the_run_folder(run):
    (run / "config.yaml").write_text("seed: 1\n")
    assert write_report(run) == run / "report.html"
    assert write_report(run, "pages/one.html").is_file()
    assert "seed: 1" in (run / "pages" / "one.html").read_text()


def test_report_needs_a_run_folder(run, tmp_path):
    with pytest.raises(AvsslError, match="is no folder; a report needs the folder of a run"):
        write_report(tmp_path / "nowhere")
    (run / "notes.txt").write_text("nothing of a run")
    with pytest.raises(AvsslError, match=r"holds none of metrics\.jsonl"):
        write_report(run)
