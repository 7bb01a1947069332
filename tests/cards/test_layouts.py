"""Each layout in miniature, checked and made a manifest of as a user does it, with the card that ships."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from avssl.data import Manifest


def kinetics(data):
    data.text(
        "annotations/train.csv",
        "label,youtube_id,time_start,time_end,split",
        "riding a bike,-3B32lodo2M,59,69,train",
        '"shaking hands",abcdefghijk,8,18,train',
        "shaking hands,replaced_01,0,10,train",
    )
    data.text(
        "annotations/val.csv",
        "label,youtube_id,time_start,time_end,split",
        "riding a bike,Val_ue-0001,120,130,validate",
    )
    data.text("annotations/test.csv", "youtube_id,time_start,time_end,split", "tttttttttt1,1,11,test")
    data.media("train/-3B32lodo2M_000059_000069.mp4", "train/shaking hands/abcdefghijk_000008_000018.mp4")
    data.media("train/replaced_01_000000_000010.mp4", kind="broken")
    data.media("replacement/replacement_for_corrupted_k400/replaced_01_000000_000010.mp4")
    data.media("val/Val_ue-0001_000120_000130.mp4", "test/tttttttttt1_000001_000011.mp4")
    return {
        "-3B32lodo2M_000059_000069": ("riding a bike", "train"),
        "abcdefghijk_000008_000018": ("shaking hands", "train"),
        "replaced_01_000000_000010": ("shaking hands", "train"),
        "Val_ue-0001_000120_000130": ("riding a bike", "val"),
        "tttttttttt1_000001_000011": (None, "test"),
    }


def audioset_labels(data):
    data.text(
        "csv/class_labels_indices.csv",
        "index,mid,display_name",
        '0,/m/09x0r,"Speech"',
        '1,/m/05zppz,"Male speech, man speaking"',
        "2,/m/04rlf,Music",
    )


def audioset_list(data, name, *rows):
    data.text(
        f"csv/{name}_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        "# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4",
        "# YTID, start_seconds, end_seconds, positive_labels",
        *rows,
    )


def audioset(data):
    audioset_labels(data)
    audioset_list(
        data,
        "unbalanced_train",
        '---1_cCGK4M, 0.000, 10.000, "/m/09x0r,/m/05zppz"',
        '--BfvyPmVMo, 20.000, 30.000, "/m/04rlf"',
    )
    audioset_list(data, "balanced_train", '--PJHxphWEs, 30.000, 40.000, "/m/04rlf"')
    audioset_list(data, "eval", '-0RWZT-miFs, 420.000, 430.000, "/m/04rlf,/m/09x0r"')
    data.media("unbalanced_train_segments/video/---1_cCGK4M_0_10000.mp4", "video/--BfvyPmVMo_20.mp4")
    data.media("audio/Y--PJHxphWEs.wav", "eval/-0RWZT-miFs.mp4", "audio/-0RWZT-miFs.wav")
    return {
        "---1_cCGK4M_0_10000": ("Speech;Male speech, man speaking", "train"),
        "--BfvyPmVMo_20000_30000": ("Music", "train"),
        "--PJHxphWEs_30000_40000": ("Music", "balanced"),
        "-0RWZT-miFs_420000_430000": ("Music;Speech", "test"),
    }


def audioset_balanced(data):
    return {
        name: (label, "train" if split == "balanced" else split)
        for name, (label, split) in audioset(data).items()
        if name.startswith(("--P", "-0"))
    }


def audioset100k(data):
    all_of_it = audioset(data)
    data.text("csv/unbalanced_train-100k.txt", "--BfvyPmVMo_20000_30000.mp4")
    return {name: all_of_it[name] for name in ("--BfvyPmVMo_20000_30000", "-0RWZT-miFs_420000_430000")}


def vggsound(data):
    data.text(
        "vggsound.csv",
        "---g-f_I2yQ,1,people marching,test",
        '--0PQM4-hqg,30,"engine accelerating, revving, vroom",train',
    )
    data.media("video/---g-f_I2yQ_000001.mp4", "video/--0PQM4-hqg_000030.mp4")
    return {
        "---g-f_I2yQ_000001": ("people marching", "test"),
        "--0PQM4-hqg_000030": ("engine accelerating, revving, vroom", "train"),
    }


def ave(data):
    head = "Category&VideoID&Quality&StartTime&EndTime"
    data.text("Annotations.txt", head, "Church bell&RUhOCu3LNXM&good&0&10", "Bark&RUhOCu3LNXM&good&4&9")
    data.text("trainSet.txt", head, "Church bell&RUhOCu3LNXM&good&0&10", "Bark&RUhOCu3LNXM&good&4&9")
    data.text("valSet.txt", "Male speech, man speaking&-5nFFFBHrgE&good&1&8")
    data.text("testSet.txt", "Bark&8CWZmbCdtNo&good&2&10")
    data.media(*(f"AVE/{name}.mp4" for name in ("RUhOCu3LNXM", "-5nFFFBHrgE", "8CWZmbCdtNo")))
    return {
        "RUhOCu3LNXM_0_10": ("Church bell", "train"),
        "RUhOCu3LNXM_4_9": ("Bark", "train"),
        "-5nFFFBHrgE_1_8": ("Male speech, man speaking", "val"),
        "8CWZmbCdtNo_2_10": ("Bark", "test"),
    }


def ucf101(data):
    clips = [f"{c}/v_{c}_g{g:02d}_c01" for c in ("ApplyEyeMakeup", "YoYo") for g in (1, 2, 3)]
    folder = "ucfTrainTestlist"
    data.text(f"{folder}/classInd.txt", "1 ApplyEyeMakeup", "2 YoYo")
    for fold in (1, 2, 3):
        test = [clip for clip in clips if f"_g{fold:02d}_" in clip]
        data.text(f"{folder}/testlist{fold:02d}.txt", *(f"{clip}.avi" for clip in test))
        train = [f"{clip}.avi {1 + clip.startswith('Y')}" for clip in clips if clip not in test]
        data.text(f"{folder}/trainlist{fold:02d}.txt", *train)
    data.media(*(f"UCF-101/{clip}.avi" for clip in clips))
    return {clip: (clip.split("/")[0], "test" if "_g01_" in clip else "train") for clip in clips}


def hmdb51(data):
    odd = "#20_Rhythm_clap_u_nm_np1_fr_goo_0"
    rows = {"brush_hair": ["a_b_f_cm_0", "c;d_1", "e'f_2"], "clap": [odd, '20"x_1', "g(h)_2"]}
    expected = {}
    for label, names in rows.items():
        for fold in (1, 2, 3):
            marks = [names[(i + fold - 1) % 3] for i in range(3)]
            lines = [f"{name}.avi {mark} " for mark, name in zip((1, 2, 0), marks, strict=True)]
            data.text(f"testTrainMulti_7030_splits/{label}_test_split{fold}.txt", *lines)
        data.media(*(f"{label}/{name}.avi" for name in names))
        expected |= {names[0]: (label, "train"), names[1]: (label, "test")}
    return expected


def esc50(data):
    rows = [f"{fold}-100{fold}-A-0.wav" for fold in range(1, 6)]
    lines = [f"{name},{name[0]},0,dog,True,100{name[0]},A" for name in rows]
    data.text("meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take", *lines)
    data.media(*(f"audio/{name}" for name in rows))
    return {name[:-4]: ("dog", "test" if name[0] == "1" else "train") for name in rows}


def dcase2014(data):
    data.media("scenes_stereo/scenes_stereo/bus01.wav", "scenes_stereo/scenes_stereo/tubestation10.wav")
    data.media("scenes_stereo_testset/bus01.wav", "scenes_stereo_testset/openairmarket02.wav")
    return {
        "bus01": ("bus", "train"),
        "tubestation10": ("tubestation", "train"),
        "scenes_stereo_testset/bus01": ("bus", "test"),
        "scenes_stereo_testset/openairmarket02": ("openairmarket", "test"),
    }


def imagenet(data):
    data.media("ILSVRC/train/n01440764/n01440764_10026.JPEG", "ILSVRC/train/n01443537/n01443537_2.JPEG")
    data.media("ILSVRC/val/n01443537/ILSVRC2012_val_00000236.JPEG", "ILSVRC/test/ILSVRC2012_test_1.JPEG")
    return {
        "n01440764_10026": ("n01440764", "train"),
        "n01443537_2": ("n01443537", "train"),
        "ILSVRC2012_val_00000236": ("n01443537", "val"),
    }


def imagenet_flat(data):
    data.media("Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG")
    data.media("Data/CLS-LOC/val/ILSVRC2012_val_00000236.JPEG")
    data.text(
        "LOC_val_solution.csv",
        "ImageId,PredictionString",
        "ILSVRC2012_val_00000236,n01443537 85 1 499 272 n01443537 131 0 499 254 ",
    )
    return {
        "n01440764_10026": ("n01440764", "train"),
        "ILSVRC2012_val_00000236": ("n01443537", "val"),
    }


def places205(data):
    lists = "trainvalsplit_places205"
    data.text(f"{lists}/train_places205.csv", "a/abbey/gsun_00.jpg 0", "a/apartment/outdoor/gsun_00.jpg 5")
    data.text(f"{lists}/val_places205.csv", "a/abbey/gsun_01.jpg 0")
    images = "data/vision/torralba/deeplearning/images256"
    data.media(
        *(f"{images}/a/{n}.jpg" for n in ("abbey/gsun_00", "apartment/outdoor/gsun_00", "abbey/gsun_01"))
    )
    return {
        "a/abbey/gsun_00": ("abbey", "train"),
        "a/apartment/outdoor/gsun_00": ("apartment/outdoor", "train"),
        "a/abbey/gsun_01": ("abbey", "val"),
    }


def inaturalist18(data):
    for split, number in (("train", 7), ("val", 8)):
        content = {
            "images": [{"id": number, "file_name": f"train_val2018/Insecta/1455/0{number}.jpg"}],
            "annotations": [{"id": number, "image_id": number, "category_id": 1455}],
            "categories": [{"id": 1455, "name": "1455", "supercategory": "Insecta"}],
        }
        data.text(f"{split}2018.json", json.dumps(content))
        data.media(f"train_val2018/Insecta/1455/0{number}.jpg")
    names = {split: f"train_val2018/Insecta/1455/0{n}" for split, n in (("train", 7), ("val", 8))}
    return {name: ("1455", split) for split, name in names.items()}


def sounding_shapes(data):
    data.media("train/rain/0000.mp4", "test/rain/0000.mp4")
    data.text("dataset.json", "{}")
    return {"train/rain/0000": ("rain", "train"), "test/rain/0000": ("rain", "test")}


def folder(data):
    data.media("train/dog/a.mp4", "test/cat/b.mp4")
    return {"train/dog/a.mp4": ("dog", "train"), "test/cat/b.mp4": ("cat", "test")}


LAYOUTS = {
    "kinetics400": kinetics,
    "kinetics600": kinetics,
    "kinetics700": kinetics,
    "audioset": audioset,
    "audioset_balanced": audioset_balanced,
    "audioset100k": audioset100k,
    "vggsound": vggsound,
    "ave": ave,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "esc50": esc50,
    "dcase2014": dcase2014,
    "imagenet": imagenet,
    "imagenet (flat)": imagenet_flat,
    "places205": places205,
    "inaturalist18": inaturalist18,
    "sounding_shapes": sounding_shapes,
    "folder": folder,
}
# Counts of the miniatures, one for each fold.
FOLDS = {
    "ucf101": {"train": [4, 4, 4], "test": [2, 2, 2]},
    "hmdb51": {"train": [2, 2, 2], "test": [2, 2, 2], "unused": [2, 2, 2]},
    "esc50": {"train": [4] * 5, "test": [1] * 5},
}


def counts(name, samples):
    """What the card of a miniature expects."""
    if name == "folder":
        return {}
    splits = [split for _, split in samples.values()]
    classes = {label for label, _ in samples.values() if label}
    numbers = FOLDS.get(name, {split: splits.count(split) for split in dict.fromkeys(splits)})
    return {"classes": len(classes), "splits": numbers}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_miniature_passes_and_becomes_the_manifest_of_its_data_set(
    layout, miniature, small_card, run, tmp_path
):
    name = layout.split()[0]
    samples = LAYOUTS[layout](miniature)
    card = small_card(name, expected=counts(name, samples))
    code, account, errors = run("check", card, "--root", miniature.root)
    assert (code, account.splitlines()[-1]) == (0, "passed"), account + errors
    assert "missing of" not in account
    assert "undecodable: 0" in account

    output = tmp_path / "m.parquet"
    code, _, errors = run("manifest", card, "--root", miniature.root, "-o", output)
    assert code == 0, errors
    manifest = Manifest.load(output)
    labels, splits = manifest.labels, manifest.table["split"].to_pylist()
    assert dict(zip(manifest.ids, zip(labels, splits, strict=True), strict=True)) == samples
    assert manifest.root == miniature.root
    assert all(manifest.table["duration_seconds"].to_numpy() > 0)


@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if name in FOLDS or name in ("imagenet", "places205")]
)
def test_miniature_is_not_whole_by_the_shipped_card(name, miniature, run):
    LAYOUTS[name](miniature)
    code, account, _ = run("check", name, "--root", miniature.root, "--no-probe")
    assert code == 1
    assert "by the card" in account or "missing or unreadable" in account
    assert account.splitlines()[-1].startswith("failed: ")


@pytest.mark.parametrize("name", FOLDS)
def test_each_fold_has_its_own_test_set(name, miniature, small_card, run, tmp_path):
    samples = LAYOUTS[name](miniature)
    card = small_card(name, expected=counts(name, samples))
    seen = []
    for fold in range(1, len(FOLDS[name]["test"]) + 1):
        output = tmp_path / f"{fold}.csv"
        option = "--fold" if name == "esc50" else "--split"
        code, _, errors = run("manifest", card, "--root", miniature.root, option, fold, "-o", output)
        assert code == 0, errors
        test = Manifest.load(output).select("test")
        assert len(test) == FOLDS[name]["test"][0]
        seen += test.ids
    assert len(seen) == len(set(seen)), "test sets overlap"
    assert set(samples) <= set(seen)


@pytest.mark.parametrize(("name", "folds"), [("ucf101", 3), ("esc50", 5)])
def test_fold_that_does_not_exist_is_refused(name, folds, miniature, run, tmp_path):
    LAYOUTS[name](miniature)
    code, _, errors = run("manifest", name, "--root", miniature.root, "--fold", 6, "-o", tmp_path / "m.csv")
    assert code == 2
    assert f"has official splits 1 to {folds}; got 6" in errors


def test_kinetics_without_label_files_is_read_from_class_folders_with_the_same_ids(
    miniature, small_card, run, tmp_path
):
    miniature.media("train/riding a bike/-3B32lodo2M_000059_000069.mp4")
    miniature.media("val_256/shaking hands/abcdefghijk_000008_000018.mp4")
    output = tmp_path / "m.parquet"
    code, _, errors = run("manifest", "kinetics400", "--root", miniature.root, "-o", output)
    assert code == 0, errors
    manifest = Manifest.load(output)
    assert manifest.ids == ["-3B32lodo2M_000059_000069", "abcdefghijk_000008_000018"]
    assert manifest.labels == ["riding a bike", "shaking hands"]
    assert manifest.splits == {"train": 1, "val": 1}


def test_flat_copies_of_class_folders_are_found(miniature, run, tmp_path):
    samples = ucf101(miniature)
    for path in sorted(miniature.root.glob("UCF-101/*/*.avi")):
        path.rename(miniature.root / "UCF-101" / path.name)
    output = tmp_path / "m.csv"
    code, _, errors = run("manifest", "ucf101", "--root", miniature.root, "-o", output)
    assert code == 0, errors
    assert set(Manifest.load(output).ids) == set(samples)


def test_list_of_the_users_own_is_checked_and_becomes_a_manifest(miniature, run, tmp_path):
    miniature.media("clips/a.mp4", "clips/b.mp4")
    miniature.media("clips/c.mp4", kind="broken")
    miniature.text("list.csv", "path,label", "clips/a.mp4,dog", "clips/b.mp4,cat", "clips/c.mp4,cat")
    code, account, _ = run("check", "csv", "--root", miniature.root / "list.csv")
    assert code == 1
    assert "undecodable: 1\n  clips/c.mp4: open: " in account
    output = tmp_path / "m.csv"
    assert run("manifest", "csv", "--root", miniature.root / "list.csv", "-o", output)[0] == 0
    assert Manifest.load(output).labels == ["dog", "cat"]


def test_segments_take_the_listed_seconds_of_each_file(miniature, run, tmp_path):
    miniature.text("trainSet.txt", "Church bell&RUhOCu3LNXM&good&0&2", "Bark&RUhOCu3LNXM&good&1&3")
    miniature.text("valSet.txt", "Bark&-5nFFFBHrgE&good&7&9")
    miniature.text("testSet.txt", "Bark&8CWZmbCdtNo&good&0&10")
    miniature.media(*(f"AVE/{n}.mp4" for n in ("RUhOCu3LNXM", "-5nFFFBHrgE", "8CWZmbCdtNo")), kind="long")
    output = tmp_path / "m.csv"
    arguments = ("manifest", "ave", "--root", miniature.root, "-o", output)
    code, account, errors = run(*arguments, "--segments")
    assert code == 0, errors
    manifest = Manifest.load(output)
    assert manifest.ids == ["8CWZmbCdtNo_0_10", "RUhOCu3LNXM_0_2", "RUhOCu3LNXM_1_3"]
    assert manifest.table["start_seconds"].to_pylist() == [0, 0, 1]
    assert manifest.table["end_seconds"].to_pylist() == pytest.approx([3, 2, 3], abs=0.1)
    assert "1 x open: 7.0 s to 3" in account, "an event outside its file is written down"
    assert run(*arguments, "--overwrite")[0] == 0
    manifest = Manifest.load(output)
    assert manifest.table["end_seconds"].to_pylist() == pytest.approx([3, 3, 3, 3], abs=0.1)


def test_shards_are_checked_and_become_a_manifest(miniature, originals, run, tmp_path):
    with tarfile.open(miniature.root / "shard-000000.tar", "w") as shard:
        for key, kind, label in (("a", "mp4", "dog"), ("b", "broken", "cat"), ("c", "silent", "cat")):
            shard.add(originals[kind], f"{key}.mp4")
            text = tarfile.TarInfo(f"{key}.cls")
            text.size = len(label)
            shard.addfile(text, io.BytesIO(label.encode()))
    code, account, errors = run("check", "webdataset", "--root", miniature.root)
    assert code == 1, errors
    assert "undecodable: 1\n" in account
    assert "without sound: 1 (" in account
    output = tmp_path / "m.parquet"
    assert run("manifest", "webdataset", "--root", miniature.root, "-o", output)[0] == 0
    assert Manifest.load(output).labels == ["dog", "cat"]
