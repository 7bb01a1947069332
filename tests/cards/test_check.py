"""What `avssl datasets check` says of copies that are not whole, or no copies."""

from __future__ import annotations

import json

import pytest

from avssl.data import Manifest

HEAD = "label,youtube_id,time_start,time_end,split"


@pytest.fixture
def kinetics(miniature):
    """Five training clips listed: three there, of which one is broken and one silent; a file nobody lists."""
    rows = [f"dancing,aaaaaaaaaa{i},{i},{i + 10},train" for i in range(5)]
    miniature.text("train.csv", HEAD, *rows)
    miniature.text("val.csv", HEAD, "dancing,vvvvvvvvvvv,0,10,val")
    miniature.media("train/aaaaaaaaaa0_000000_000010.mp4", "train/unlisted000_000001_000011.mp4")
    miniature.media("train/aaaaaaaaaa1_000001_000011.mp4", kind="silent")
    miniature.media("train/aaaaaaaaaa2_000002_000012.mp4", kind="broken")
    miniature.text("train/readme.txt", "not media")
    return miniature.root


def test_account_names_what_is_missing_extra_undecodable_and_silent(kinetics, run):
    code, account, progress = run("check", "kinetics400", "--root", kinetics)
    lines = account.splitlines()
    assert code == 1
    assert lines[0] == f"Kinetics-400 in {kinetics}"
    assert lines[1] == "label files: train.csv, val.csv"
    assert "split          by card      listed       found   missing" in lines
    assert "train         ~246,500           5           3         2" in lines
    assert "missing of train: aaaaaaaaaa3_000003_000013, aaaaaaaaaa4_000004_000014" in lines
    assert "val: nothing of it is here; left out" in lines
    assert "no samples of the data set: 1 files (train/unlisted000_000001_000011.mp4)" in lines
    assert "undecodable: 1" in lines
    assert any(line.startswith("  train/aaaaaaaaaa2_000002_000012.mp4: open: ") for line in lines)
    assert "without sound: 1 (aaaaaaaaaa1_000001_000011)" in lines
    assert "without picture: 0" in lines
    assert "note: no label file of test (test.csv): left out" in lines
    assert lines[-1] == "failed: 60.00% of the samples are missing or unreadable, 30.00% would be tolerated"
    assert progress.startswith("check 3/3 (100%)")


def test_vanished_videos_pass_up_to_the_limit(kinetics, run):
    assert run("check", "kinetics400", "--root", kinetics, "--tolerate", "0.6")[0] == 0
    assert run("check", "kinetics400", "--root", kinetics, "--tolerate", "0.5")[0] == 1


def test_names_are_compared_without_opening_files(kinetics, run):
    code, account, progress = run(
        "check", "kinetics400", "--root", kinetics, "--no-probe", "--tolerate", "0.4"
    )
    assert (code, progress) == (0, "")
    assert "files were not opened\n" in account
    assert "undecodable" not in account
    assert account.endswith("passed\n")


def test_report_holds_all_names(kinetics, run, tmp_path):
    report = tmp_path / "new" / "report.json"
    code, account, _ = run("check", "kinetics400", "--root", kinetics, "--report", report)
    content = json.loads(report.read_text())
    assert code == 1
    assert f"all names: {report}\n" in account
    assert content["data_set"] == "kinetics400"
    assert content["splits"]["train"]["missing"] == ["aaaaaaaaaa3_000003_000013", "aaaaaaaaaa4_000004_000014"]
    assert content["splits"]["train"]["found"] == 3
    assert content["extra"] == ["train/unlisted000_000001_000011.mp4"]
    assert [item["path"] for item in content["undecodable"]] == [
        f"{kinetics}/train/aaaaaaaaaa2_000002_000012.mp4"
    ]
    assert content["without_audio"] == ["aaaaaaaaaa1_000001_000011"]
    assert content["tolerated"] == 0.3
    assert len(content["failures"]) == 1


def test_manifest_of_an_incomplete_copy_has_what_can_be_read(kinetics, run, tmp_path):
    output = tmp_path / "m.parquet"
    code, account, _ = run("manifest", "kinetics400", "--root", kinetics, "-o", output)
    manifest = Manifest.load(output)
    assert code == 0
    assert manifest.ids == ["aaaaaaaaaa0_000000_000010", "aaaaaaaaaa1_000001_000011"]
    assert manifest.table["has_audio"].to_pylist() == [True, False]
    assert "train: 2 of 5 samples are not there\n" in account
    assert "1 skipped, listed in" in account
    (skipped,) = map(json.loads, (tmp_path / "m.skipped.jsonl").read_text().splitlines())
    assert skipped["path"].endswith("aaaaaaaaaa2_000002_000012.mp4")


def test_ids_do_not_depend_on_what_is_there(kinetics, run, tmp_path, miniature):
    run("manifest", "kinetics400", "--root", kinetics, "-o", tmp_path / "before.csv")
    miniature.media("train/aaaaaaaaaa3_000003_000013.mp4")
    run("manifest", "kinetics400", "--root", kinetics, "-o", tmp_path / "after.csv")
    before, after = (Manifest.load(tmp_path / f"{name}.csv") for name in ("before", "after"))
    assert after.ids == [*before.ids, "aaaaaaaaaa3_000003_000013"]


def test_existing_manifest_is_kept_without_overwrite(kinetics, run, tmp_path):
    output = tmp_path / "m.csv"
    output.write_text("mine")
    code, _, errors = run("manifest", "kinetics400", "--root", kinetics, "-o", output)
    assert code == 2
    assert "exists already; give another name, or --overwrite to replace it" in errors
    assert output.read_text() == "mine"


# ---- no copies


def test_wrong_folder_is_answered_with_the_layout_expected_and_what_is_there(miniature, run):
    miniature.media("holiday/beach.mp4")
    miniature.text("notes.txt", "mine")
    code, out, errors = run("check", "ucf101", "--root", miniature.root)
    assert (code, out) == (2, "")
    assert (
        f"{miniature.root} is no copy of UCF101: label files are not there: trainlist01.txt, testlist01.txt"
        in errors
    )
    assert "ucfTrainTestlist/{trainlist,testlist}0{1,2,3}.txt" in errors
    assert "UCF-101/<class>/v_<class>_g<group>_c<clip>.avi" in errors
    assert "found: holiday/, notes.txt" in errors
    assert "--lists label files from elsewhere" in errors


def test_label_files_without_any_of_their_videos_are_refused(miniature, run):
    miniature.text("vggsound.csv", "---g-f_I2yQ,1,people marching,test")
    miniature.media("other/beach.mp4")
    code, _, errors = run("check", "vggsound", "--root", miniature.root)
    assert code == 2
    assert (
        "none of the files of the 1 samples in the label files is there (names like ---g-f_I2yQ_000001, "
        in errors
    )
    assert "below the root: 1 media files, such as other/beach.mp4" in errors


def test_card_of_names_alone_refuses_a_folder_without_such_names(miniature, run):
    miniature.media("somewhere/noise.wav")
    code, _, errors = run("check", "dcase2014", "--root", miniature.root)
    assert code == 2
    assert "is no copy of DCASE2014: no file lies as its files do" in errors


def test_label_files_from_elsewhere_are_taken(miniature, run, tmp_path):
    miniature.media("video/---g-f_I2yQ_000001.mp4")
    labels = tmp_path / "labels" / "vggsound.csv"
    labels.parent.mkdir()
    labels.write_text("---g-f_I2yQ,1,people marching,test\n")
    for given in (labels, labels.parent):
        code, account, errors = run("check", "vggsound", "--root", miniature.root, "--lists", given)
        assert code == 0, errors
        assert f"label files: {labels}\n" in account


def test_subset_needs_its_list_and_names_unknown_in_it(miniature, run, tmp_path):
    miniature.text("class_labels_indices.csv", "index,mid,display_name", "0,/m/04rlf,Music")
    rows = [f'{name}, 30.000, 40.000, "/m/04rlf"' for name in ("aaaaaaaaaaa", "bbbbbbbbbbb")]
    miniature.text("unbalanced_train_segments.csv", "# head", *rows)
    miniature.media("aaaaaaaaaaa_30000_40000.mp4", "bbbbbbbbbbb_30000_40000.mp4")
    code, _, errors = run("check", "audioset100k", "--root", miniature.root)
    assert code == 2
    assert "the list of the samples of train is not there: unbalanced_train-100k.txt" in errors

    subset = tmp_path / "unbalanced_train-100k.txt"
    subset.write_text("bbbbbbbbbbb_30000_40000.mp4\nzzzzzzzzzzz_0_10000.mp4\n")
    arguments = ("audioset100k", "--root", miniature.root, "--lists", subset)
    code, account, _ = run("check", *arguments)
    assert code == 1
    assert "train         ~100,000           1           1         0" in account
    assert (
        "failed: 1 names of unbalanced_train-100k.txt are in no label file of train: zzzzzzzzzzz_0_10000"
        in account
    )


def test_two_label_files_of_one_name_are_a_question(miniature, run):
    for folder in ("k400", "k600"):
        miniature.text(f"{folder}/train.csv", HEAD, "dancing,aaaaaaaaaaa,0,10,train")
    code, _, errors = run("check", "kinetics400", "--root", miniature.root)
    assert code == 2
    assert f"which train.csv is meant, {miniature.root}/k400/train.csv or" in errors
    assert "Name it with --lists" in errors


@pytest.mark.parametrize(
    ("card", "name", "lines", "answer"),
    [
        (
            "kinetics400",
            "train.csv",
            ["a/b.mp4 3", "a/c.mp4 3"],
            "train.csv, line 2: no key of a sample in column",
        ),
        (
            "kinetics400",
            "train.csv",
            [HEAD, "dance,aaaaaaaaaaa,soon,10,train"],
            "line 2: 'soon' must be a time in",
        ),
        ("hmdb51", "wave_test_split1.txt", ["a.avi 1", "b.avi 7"], "line 2: split '7' is none of 1, 2, 0"),
        (
            "places205",
            "train_places205.csv",
            ["abbey.jpg 0"],
            "line 1: no class in 'abbey.jpg'; it must match",
        ),
        (
            "audioset",
            "eval_segments.csv",
            ["# c", 'aaaaaaaaaaa, 0, 10, "/m/1"'],
            "line 2: class '/m/1' is not in",
        ),
        ("inaturalist18", "train2018.json", ["[]"], "train2018.json is no JSON list of images"),
        ("vggsound", "vggsound.csv", ["\x00,1,a,test"], "no key of a sample"),
    ],
)
def test_damaged_label_file_is_named_with_its_line(card, name, lines, answer, miniature, run):
    miniature.text("class_labels_indices.csv", "index,mid,display_name", "0,/m/04rlf,Music")
    miniature.text(name, *(line.replace("\x00", "") for line in lines))
    code, _, errors = run("check", card, "--root", miniature.root)
    assert code == 2
    assert answer in errors


def test_label_file_that_is_no_text_is_refused(miniature, run):
    (miniature.root / "vggsound.csv").write_bytes(b"\xff\xfe\x00,1\n")
    code, _, errors = run("check", "vggsound", "--root", miniature.root)
    assert code == 2
    assert "vggsound.csv is no readable UTF-8 table" in errors


def test_missing_table_of_class_names_is_named(miniature, run):
    miniature.text("eval_segments.csv", 'aaaaaaaaaaa, 0, 10, "/m/1"')
    code, _, errors = run("check", "audioset", "--root", miniature.root)
    assert code == 2
    assert "the table of class names is not there: class_labels_indices.csv" in errors


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["check", "vggsound", "--root", "{0}/nothing"], "nothing does not exist; --root takes the folder"),
        (["check", "vggsound", "--root", "{0}/a.mp4"], "a.mp4 is a file; --root takes the folder"),
        (
            ["check", "vggsound", "--root", "{0}", "--lists", "{0}/no.csv"],
            "no.csv does not exist; --lists takes",
        ),
        (["check", "vggsound"], "Missing option '--root'"),
        (
            ["check", "vgsound", "--root", "{0}"],
            "no data set 'vgsound'; did you mean 'vggsound'? There are: audioset,",
        ),
        (
            ["check", "folder", "--root", "{0}", "--no-probe"],
            "folder has no label files to compare names with",
        ),
        (["check", "vggsound", "--root", "{0}", "--tolerate", "2"], "2.0 is not in the range 0<=x<=1"),
        (
            ["manifest", "vggsound", "--root", "{0}", "-o", "{0}/m.txt"],
            "give a name that ends in .parquet or .csv",
        ),
        (
            ["manifest", "vggsound", "--root", "{0}", "-o", "{0}/m.csv", "--split", "2"],
            "has one official split; got 2",
        ),
    ],
)
def test_impossible_wish_is_refused_with_status_2(arguments, answer, miniature, run):
    miniature.media("a.mp4")
    code, _, errors = run(*(argument.format(miniature.root) for argument in arguments))
    assert code == 2
    assert answer in errors


def test_copy_in_which_nothing_can_be_read_makes_no_manifest(miniature, run, tmp_path):
    miniature.text("vggsound.csv", "---g-f_I2yQ,1,people marching,test")
    miniature.media("---g-f_I2yQ_000001.mp4", kind="broken")
    code, _, errors = run("manifest", "vggsound", "--root", miniature.root, "-o", tmp_path / "m.csv")
    assert code == 2
    assert "none of the 1 files found can be read; the first: " in errors
    assert not (tmp_path / "m.csv").exists()


def test_sample_listed_twice_counts_once(miniature, run):
    miniature.text(
        "vggsound.csv", "---g-f_I2yQ,1,people marching,test", "---g-f_I2yQ,1,people marching,train"
    )
    miniature.media("---g-f_I2yQ_000001.mp4")
    code, account, _ = run("check", "vggsound", "--root", miniature.root)
    assert code == 0
    assert "note: listed more than once, the first counts: 1 (---g-f_I2yQ_000001)" in account
