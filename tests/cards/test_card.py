"""The cards that ship: complete, shown, listed in the README, and found by an installed package."""

from __future__ import annotations

import configparser
import re
import shutil
from pathlib import Path

import pytest

import avssl
from avssl.cards import card_names, cards_folder, load_card
from avssl.errors import ManifestError

REPOSITORY = Path(avssl.__file__).parents[1]
GENERIC = {"folder", "csv", "webdataset"}


def test_every_data_set_asked_for_has_a_card():
    assert set(card_names()) == GENERIC | {
        *("kinetics400", "kinetics600", "kinetics700", "audioset", "audioset_balanced", "audioset100k"),
        *("vggsound", "ave", "ucf101", "hmdb51", "esc50", "dcase2014", "imagenet", "places205"),
        *("inaturalist18", "sounding_shapes"),
    }


@pytest.mark.parametrize("name", card_names())
def test_card_is_complete(name, run):
    card = load_card(name)
    layout = card.layout
    assert card.name == name
    assert all((card.title, card.content, card.source, card.licence, card.citation, card.obtain, layout.tree))
    for pattern in (*layout.paths.values(), layout.label_pattern, layout.prefer, layout.skip_lines):
        re.compile(pattern or "")
    if layout.kind in ("table", "coco"):
        assert layout.lists
    if layout.kind == "table":
        assert {"key", "path"} & set(layout.columns)
    if name not in GENERIC:
        assert card.expected.classes
        assert name == "sounding_shapes" or (card.expected.source and card.expected.splits)
    code, text, _ = run("show", name)
    assert code == 0
    assert text.startswith(f"{name}: {card.title}\n")
    for word in ("content:", "source:", "licence:", "citation:", "obtain:", "samples:", "layout:"):
        assert word in text
    assert layout.tree.splitlines()[0] in text


def test_list_names_every_card_with_its_counts(run):
    code, text, _ = run("list")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()[1:]] == card_names()
    assert re.search(r"^ucf101 +UCF101 +101  train 9,537, test 3,783, 3 official splits$", text, re.M)
    assert re.search(r"^vggsound .* about train 184,000, test 15,500$", text, re.M)


def test_readme_lists_every_card_with_its_title():
    text = (REPOSITORY / "datasets" / "README.md").read_text()
    rows = dict(re.findall(r"^\| \[(\w+)\]\(\1\.yaml\) \| ([^|]+?) \|", text, re.M))
    assert rows == {name: load_card(name).title for name in card_names()}


def test_each_fold_of_a_data_set_splits_the_same_samples():
    for name, folds, total in (("ucf101", 3, 13320), ("hmdb51", 3, 6766), ("esc50", 5, 2000)):
        card = load_card(name)
        assert card.folds == folds
        assert {sum(card.counts(fold).values()) for fold in range(1, folds + 1)} == {total}


def test_installation_ships_the_cards():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    files = setup["options.data_files"]
    shipped = [path for line in files["share/avssl/datasets"].split() for path in REPOSITORY.glob(line)]
    assert sorted(path.stem for path in shipped) == card_names()


@pytest.mark.parametrize(
    "package", ["lib/python3.11/site-packages/avssl", "Lib/site-packages/avssl", "avssl"]
)
def test_installed_package_finds_the_cards_and_not_a_library_called_datasets(package, tmp_path):
    (tmp_path / package).mkdir(parents=True)
    (tmp_path / package).with_name("datasets").mkdir()
    shipped = tmp_path / "share" / "avssl" / "datasets"
    with pytest.raises(ManifestError, match="the data set cards are not installed"):
        cards_folder(tmp_path / package)
    shutil.copytree(cards_folder(), shipped)
    assert cards_folder(tmp_path / package) == shipped


def test_wrong_card_is_answered_with_every_key_that_is_wrong(tmp_path, run):
    card = tmp_path / "mine.yaml"
    card.write_text("title: Mine\nlicense: MIT\nlayout: {kind: tables, media: [video], tree: x}\n")
    code, _, errors = run("show", card)
    assert code == 2
    assert f"{card}: license: Unexpected keyword argument" in errors
    assert f"{card}: source: Field required" in errors
    assert f"{card}: layout.kind: Input should be 'table', 'coco', 'paths' or 'scan'" in errors


@pytest.mark.parametrize(
    ("content", "answer"),
    [("- a", "holds no keys"), ("a: [", "is no readable YAML file"), (None, "there is no card")],
)
def test_file_that_is_no_card_is_refused(content, answer, tmp_path, run):
    card = tmp_path / "mine.yaml"
    if content is not None:
        card.write_text(content)
    code, _, errors = run("show", card)
    assert code == 2
    assert answer in errors
