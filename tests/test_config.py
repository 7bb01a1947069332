from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import Field

from avssl.config import (
    Section,
    blaming,
    build_section,
    check_arguments,
    config_diff,
    config_from_dict,
    config_to_dict,
    dump_config,
    load_config,
    resolve_name,
    resolve_section,
)
from avssl.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Optim:
    lr: Annotated[float, Field(gt=0)] = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    kind: Literal["sgd", "adam", "off"] = "sgd"
    nesterov: bool = False


@dataclass(frozen=True)
class Train:
    epochs: Annotated[int, Field(ge=1)]
    milestones: list[int] = field(default_factory=list)
    optim: Optim = field(default_factory=Optim)
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.warmup > self.epochs:
            raise ValueError(f"warmup must be at most epochs ({self.epochs}); got {self.warmup}")


@dataclass(frozen=True)
class Run:
    train: Train
    objective: dict[str, Any]
    name: str = "run"
    output: Path | None = None
    probe: Optim | None = None
    model: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=lambda: {"name": "MLP", "dims": [512, 128]})


class Avid:
    def __init__(
        self,
        encoders: Tensor,
        num_negatives: Annotated[int, Field(ge=1)] = 1024,
        temperature: float | None = 0.07,
        dims: tuple[int, ...] = (512, 128),
        kind: Literal["cross", "joint"] = "cross",
        z: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        self.arguments = (num_negatives, temperature, dims, kind, z)


class Cma:
    def __init__(self, positives: int, hook: Callable[[int], int] | None = None, untyped=3) -> None:
        if positives < 1:
            raise ValueError(f"positives must be >= 1; got {positives}")
        self.positives = positives


GOOD = "train: {epochs: 10}\nobjective: {name: AVID, num_negatives: 64}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a file of the current folder; messages then hold short relative paths."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "x.yaml") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
        return name

    return write_file


def complaints(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, schema=Run)
    return str(caught.value).splitlines()


def arguments_complaints(arguments: dict[str, Any], target: Any = Avid) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_arguments("objective", target, arguments, {"encoders"})
    return str(caught.value).splitlines()


# ---- files


def test_file_becomes_typed_configuration(write):
    config = load_config(
        write(GOOD + "output: runs/a\nprobe: {lr: 1e-3}\nmodel: {video: {name: R, depth: 18}}"), schema=Run
    )
    assert config.train == Train(10, [], Optim(), 0)
    assert config.objective == {"name": "AVID", "num_negatives": 64}
    assert config.output == Path("runs/a")
    assert config.probe == Optim(lr=0.001)
    assert config.model["video"]["depth"] == 18


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {epochs: ten}", "x.yaml: train.epochs: must be an integer >= 1; got 'ten'"),
        ("train: {epochs: 0}", "x.yaml: train.epochs: must be an integer >= 1; got 0"),
        ("train: {epochs: 1.5}", "x.yaml: train.epochs: must be an integer >= 1; got 1.5"),
        ("train: {epochs: yes}", "x.yaml: train.epochs: must be an integer >= 1; got True"),
        ("train: {epochs: null}", "x.yaml: train.epochs: must be an integer >= 1; got None"),
        ("train: {epoch: 3, epochs: 3}", "x.yaml: train.epoch: no such key; did you mean 'train.epochs'?"),
        (
            "train: {epochs: 3, milestones: [a]}",
            "x.yaml: train.milestones: must be a list of integers; got ['a']",
        ),
        ("train: {epochs: 3, milestones: 7}", "x.yaml: train.milestones: must be a list of integers; got 7"),
        ("train: {}", "x.yaml: train.epochs: missing; must be an integer >= 1"),
        ("train:", "x.yaml: train.epochs: missing; must be an integer >= 1"),
        ("name: n", "x.yaml: train.epochs: missing; must be an integer >= 1"),
        (
            "train: 5",
            "x.yaml: train: must be a section with keys of epochs, milestones, optim, warmup; got 5",
        ),
        ("train: {epochs: 3, warmup: 4}", "x.yaml: train: warmup must be at most epochs (3); got 4"),
        ("name: 7", "x.yaml: name: must be text; got 7; put it in quotes"),
        ("objective: AVID", "x.yaml: objective: must be a section; got 'AVID'"),
        ("trian: {epochs: 3}", "x.yaml: trian: no such key; did you mean 'train'?"),
        (
            "zzz: 1",
            "x.yaml: zzz: no such key; known here: train, objective, name, output, probe, model, head",
        ),
        ("epochs: 3", "x.yaml: epochs: no such key; did you mean 'train.epochs'?"),
        ("probe: {lr: -1}", "x.yaml: probe.lr: must be a number > 0; got -1"),
        ("probe: {betas: [1]}", "x.yaml: probe.betas: must be a list of 2 numbers; got [1]"),
        ("probe: {clip_norm: x}", "x.yaml: probe.clip_norm: must be a number or null; got 'x'"),
        (
            "probe: {kind: off}",
            "x.yaml: probe.kind: must be one of 'sgd', 'adam', 'off'; got False; "
            "YAML reads yes, no, on and off as true and false: put the word in quotes",
        ),
    ],
)
def test_wrong_file_is_answered_by_key_rule_and_value(write, text, line):
    assert line in complaints(write(text))


def test_all_complaints_come_at_once(write):
    path = write("train: {epochs: ten, optim: {lrr: 1, lr: 0}}\nobjectiv: {}\nname: no")
    lines = complaints(path, "train.warmup=x")
    assert [re.sub(r"must.*|no such.*|missing.*", "", line) for line in lines] == [
        "x.yaml: train.epochs: ",
        "x.yaml: train.optim.lrr: ",
        "x.yaml: train.optim.lr: ",
        "command line: train.warmup: ",
        "x.yaml: objectiv: ",
        "x.yaml: name: ",
        "x.yaml: objective: ",
    ]


def test_missing_file_names_a_near_one(write):
    write(GOOD, "configs/avid.yaml")
    assert complaints("configs/avid.yml") == [
        "configs/avid.yml: no such file; did you mean 'configs/avid.yaml'?"
    ]
    assert complaints("nowhere/avid.yml") == ["nowhere/avid.yml: no such file"]
    assert complaints("configs") == ["configs: is a folder, not a YAML file"]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("train:\n  epochs: [1, 2\nname: x\n", "x.yaml:3: not valid YAML: "),
        ("name: a\nname: b\n", "x.yaml:2: not valid YAML: found duplicate key name"),
        ("- a\n- b\n", "x.yaml: must hold sections of 'key: value' lines"),
        ("name: ${nowhere}\n", "x.yaml: name: Interpolation key 'nowhere' not found"),
    ],
)
def test_bad_yaml_says_where(write, text, start):
    (line,) = complaints(write(text))
    assert line.startswith(start)


def test_binary_file_is_refused_in_one_line(write, tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (line,) = complaints("x.yaml")
    assert line.startswith("x.yaml: cannot be read as YAML: ")


# ---- base


def test_base_is_inherited_relative_to_the_file(write):
    write(GOOD + "name: root", "base/root.yaml")
    write("base: root.yaml\ntrain: {epochs: 20, milestones: [1, 2]}", "base/middle.yaml")
    config = load_config(write("base: base/middle.yaml\ntrain: {milestones: [3]}"), schema=Run)
    assert (config.train.epochs, config.train.milestones, config.name) == (20, [3], "root")


def test_complaint_names_the_file_of_the_chain_that_set_the_value(write):
    write(GOOD.replace("10", "ten") + "probe: {lr: -1, clip_norm: a}", "base.yaml")
    lines = complaints(write("base: base.yaml\nprobe: {lr: -2}"), "probe.betas=[x,1]")
    assert lines == [
        "base.yaml: train.epochs: must be an integer >= 1; got 'ten'",
        "x.yaml: probe.lr: must be a number > 0; got -2",
        "base.yaml: probe.clip_norm: must be a number or null; got 'a'",
        "command line: probe.betas: must be a list of 2 numbers; got ['x', 1]",
    ]


def test_circle_of_bases_is_refused(write):
    write("base: b.yaml", "a.yaml")
    write("base: a.yaml", "b.yaml")
    assert complaints("a.yaml") == [
        "b.yaml: base: the chain of base files runs in a circle: a.yaml -> b.yaml -> a.yaml"
    ]


def test_missing_base_names_who_asked(write):
    assert complaints(write("base: bsae.yaml")) == ["x.yaml: base: bsae.yaml: no such file"]
    assert complaints(write("base: [a, b]")) == [
        "x.yaml: base: must be the path of one YAML file; got ['a', 'b']"
    ]


def test_another_name_drops_the_arguments_of_the_old_one(write):
    write(GOOD + "model: {video: {name: R, depth: 18}, audio: {name: A, width: 8}}", "base.yaml")
    path = write("base: base.yaml\nmodel: {video: {name: T}}\nobjective: {num_negatives: 8}")
    config = load_config(path, ["objective.name=CMA"], schema=Run)
    assert config.model == {"video": {"name": "T"}, "audio": {"name": "A", "width": 8}}
    assert config.objective == {"name": "CMA"}
    assert load_config(path, ["objective.name=AVID"], schema=Run).objective["num_negatives"] == 8


def test_free_section_starts_from_its_default_unless_renamed(write):
    path = write(GOOD)
    assert load_config(path, schema=Run).head == {"name": "MLP", "dims": [512, 128]}
    assert load_config(path, ["head.depth=2"], schema=Run).head == {
        "name": "MLP",
        "dims": [512, 128],
        "depth": 2,
    }
    assert load_config(path, ["head.dims=[4]"], schema=Run).head == {"name": "MLP", "dims": [4]}
    assert load_config(path, ["head.name=Linear"], schema=Run).head == {"name": "Linear"}


def test_another_run_name_drops_nothing(write):
    config = load_config(write(GOOD + "name: a\noutput: o"), ["name=b"], schema=Run)
    assert (config.name, config.output, config.train.epochs) == ("b", Path("o"), 10)


# ---- overrides


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("train.optim.lr=1e-3", lambda c: c.train.optim.lr, 0.001),
        ("train.epochs=3", lambda c: c.train.epochs, 3),
        ("train.milestones=[1, 2]", lambda c: c.train.milestones, [1, 2]),
        ("train.optim.betas=[0,1]", lambda c: c.train.optim.betas, (0.0, 1.0)),
        ("train.optim.nesterov=yes", lambda c: c.train.optim.nesterov, True),
        ("train.optim.kind=off", lambda c: c.train.optim.kind, "off"),
        ("probe.clip_norm=null", lambda c: c.probe.clip_norm, None),
        ("name=1e3", lambda c: c.name, "1e3"),
        ("name=a=b: c", lambda c: c.name, "a=b: c"),
        ("output=7", lambda c: c.output, Path("7")),
        ("objective.num_negatives=5", lambda c: c.objective["num_negatives"], 5),
        ("model.video.depth=18", lambda c: c.model, {"video": {"depth": 18}}),
        ("name=${objective.name}", lambda c: c.name, "AVID"),
    ],
)
def test_override_is_typed_by_the_schema(write, override, read, expected):
    value = read(load_config(write(GOOD), [override], schema=Run))
    assert value == expected
    assert type(value) is type(expected) or isinstance(value, dict)


def test_last_override_wins_and_the_command_line_beats_the_file(write):
    config = load_config(write(GOOD), ["train.epochs=2", "train.epochs=4"], schema=Run)
    assert config.train.epochs == 4


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.optim.lrr=1", "command line: train.optim.lrr: no such key; did you mean 'train.optim.lr'?"),
        ("optim.lr=1", "command line: optim: no such key; did you mean 'train.optim'?"),
        ("train.epochs=ten", "command line: train.epochs: must be an integer >= 1; got 'ten'"),
        ("train.epochs", "command line: 'train.epochs': must be key=value, such as optim.lr=1e-3"),
        ("=3", "command line: '=3': must be key=value, such as optim.lr=1e-3"),
        ("--lr=3", "command line: '--lr=3': must be key=value, such as optim.lr=1e-3"),
        ("train.epochs=", "command line: train.epochs: must be an integer >= 1; got None"),
        ("train.optim=3", "command line: train.optim: must be a section with keys of"),
        ("train.milestones=[1,", "command line: train.milestones: not a YAML value: [1,"),
    ],
)
def test_wrong_override_is_answered(write, override, line):
    (answer,) = complaints(write(GOOD), override)
    assert answer.startswith(line)


# ---- writing and comparing


def test_dump_reads_back_to_an_equal_configuration(write):
    text = (
        GOOD
        + 'name: "1e-3"\noutput: o\nprobe: {lr: 1e-7, clip_norm: .inf}\nmodel: {a: {b: [1, x, null, "no"]}}'
    )
    config = load_config(write(text), schema=Run)
    again = load_config(write(dump_config(config), "again.yaml"), schema=Run)
    assert again == config
    assert again.name == "1e-3"
    assert config_from_dict(config_to_dict(config), Run) == config


def test_dict_form_is_plain(write):
    plain = config_to_dict(load_config(write(GOOD + "output: o"), schema=Run))
    assert type(plain["objective"]) is dict
    assert plain["output"] == "o"
    assert plain["train"]["optim"]["betas"] == [0.9, 0.999]


def test_dict_with_unknown_key_is_refused_with_its_source():
    data = {"train": {"epochs": 1}, "objective": {}, "old": 1}
    with pytest.raises(ConfigError, match=r"^checkpoint\.pt: old: no such key"):
        config_from_dict(data, Run, "checkpoint.pt")


def test_diff_names_the_keys_that_differ(write):
    a = load_config(write(GOOD), schema=Run)
    b = load_config(
        write(GOOD),
        ["train.optim.lr=0.2", "objective.num_negatives=1", "objective.extra=1", "name=b"],
        schema=Run,
    )
    assert config_diff(a, a) == []
    assert config_diff(a, b) == ["train.optim.lr", "objective.num_negatives", "name", "objective.extra"]


# ---- sections that name a class


def test_arguments_are_converted_by_annotation():
    arguments = check_arguments(
        "objective", Avid, {"temperature": "1e-3", "dims": [4, 2], "kind": "joint"}, {"encoders"}
    )
    assert arguments == {"temperature": 0.001, "dims": (4, 2), "kind": "joint"}
    assert isinstance(arguments["dims"], tuple)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"num_negativs": 3}, "num_negativs: no such key; did you mean 'objective.num_negatives'?"),
        ({"num_negatives": 0}, "num_negatives: must be an integer >= 1; got 0"),
        ({"num_negatives": "big"}, "num_negatives: must be an integer >= 1; got 'big'"),
        ({"dims": [1, "a"]}, "dims: must be a list of integers; got [1, 'a']"),
        ({"dims": [True]}, "dims: must be a list of integers; got [True]"),
        ({"kind": "crss"}, "kind: must be one of 'cross', 'joint'; got 'crss'"),
        ({"z": 1}, "z: must be a number >= 0 and < 1; got 1"),
        ({"encoders": 1}, "encoders: is set by the program; remove it"),
        ({"name": "AVID"}, "name: no such key; known here: num_negatives, temperature, dims, kind, z"),
    ],
)
def test_wrong_argument_is_answered(arguments, line):
    assert arguments_complaints(arguments) == [f"objective.{line}"]


def test_wrong_arguments_come_all_at_once():
    assert len(arguments_complaints({"z": 2, "kind": 3, "foo": 1})) == 3


def test_missing_and_untyped_arguments_are_answered():
    assert arguments_complaints({"untyped": 4}, Cma) == [
        "objective.untyped: has no usable type annotation, so 4 cannot be checked; annotate it",
        "objective.positives: missing; must be an integer",
    ]


def test_function_and_dataclass_are_targets_too():
    def schedule(base: float, *rest: int, steps: int = 3, **more: int) -> None: ...

    assert check_arguments("s", schedule, {"base": "1e-2", "steps": 2}) == {"base": 0.01, "steps": 2}
    with pytest.raises(ConfigError, match=r"s\.more: no such key"):
        check_arguments("s", schedule, {"base": 1, "more": 2})
    assert check_arguments("t", Train, {"epochs": 2, "optim": {"lr": 1}})["optim"] == Optim(lr=1.0)


def test_section_remembers_who_set_its_keys(write):
    write(GOOD, "base.yaml")
    path = write("base: base.yaml\nobjective: {dims: x}")
    config = load_config(path, ["objective.kind=1", "objective.num_negatives=0"], schema=Run)
    with pytest.raises(ConfigError) as caught:
        resolve_section("objective", config.objective, {"AVID": Avid}, {"encoders"})
    assert str(caught.value).splitlines() == [
        "command line: objective.num_negatives: must be an integer >= 1; got 0",
        "x.yaml: objective.dims: must be a list of integers; got 'x'",
        "command line: objective.kind: must be one of 'cross', 'joint'; got 1; put it in quotes",
    ]


def test_section_resolves_to_class_and_arguments(write):
    config = load_config(write(GOOD), schema=Run)
    target, arguments = resolve_section("objective", config.objective, {"AVID": Avid}, {"encoders"})
    assert target is Avid
    assert arguments == {"num_negatives": 64}
    assert resolve_section("o", {"name": "CMA", "positives": 2}, {"CMA": Cma}) == (Cma, {"positives": 2})


def test_section_is_built_with_what_the_program_provides(write):
    config = load_config(write(GOOD), schema=Run)
    built = build_section("objective", config.objective, {"AVID": Avid}, encoders=None)
    assert built.arguments == (64, 0.07, (512, 128), "cross", 0.0)


def test_rule_of_a_constructor_is_a_complaint_too(write):
    with pytest.raises(ConfigError, match=r"^o: positives must be >= 1; got 0$"):
        build_section("o", {"name": "CMA", "positives": 0}, {"CMA": Cma})
    config = load_config(write(GOOD + "head: {name: CMA, positives: 0}"), schema=Run)
    with pytest.raises(ConfigError, match=r"^x\.yaml: head: positives must be >= 1; got 0$"):
        build_section("head", config.head, {"CMA": Cma})


def test_a_refused_value_of_the_command_line_is_blamed_on_it(write):
    path = write(GOOD + "head: {name: CMA, positives: 1}")
    config = load_config(path, ["head.positives=0"], schema=Run)
    with pytest.raises(ConfigError, match=r"^command line: head: positives must be >= 1; got 0$"):
        build_section("head", config.head, {"CMA": Cma})
    config = load_config(path, ["objective.num_negatives=7"], schema=Run)
    with (
        pytest.raises(ConfigError, match=r"^x\.yaml: head: positives is 1; it must be prime$"),
        blaming("head", config.head),
    ):
        raise ConfigError("positives is 1; it must be prime")


def test_section_survives_pickling(write):
    section = load_config(write(GOOD), schema=Run).objective
    again = pickle.loads(pickle.dumps(section))
    assert isinstance(again, Section)
    assert (again, again.sources) == (section, section.sources)


def test_unknown_name_lists_choices_and_file(write):
    config = load_config(write(GOOD.replace("AVID", "AVDI")), schema=Run)
    with pytest.raises(ConfigError) as caught:
        resolve_section("objective", config.objective, {"AVID": Avid, "CMA": Cma})
    assert str(caught.value) == (
        "x.yaml: objective.name: must be one of AVID, CMA, or my.package:Class; got 'AVDI'; "
        "did you mean 'AVID'?"
    )
    with pytest.raises(ConfigError, match=r"objective\.name: must be one of AVID.*got None$"):
        resolve_name(None, {"AVID": Avid}, "objective")


def test_name_with_colon_imports_anybodys_class():
    assert resolve_name("pathlib:Path", {}, "model") is Path
    with pytest.raises(
        ConfigError, match=r"'pathlib' has no class or function 'Pth'; did you mean 'pathlib:Path'\?"
    ):
        resolve_name("pathlib:Pth", {}, "model")
    with pytest.raises(ConfigError, match=r"model\.name: cannot import 'no_such_package' of"):
        resolve_name("no_such_package:Class", {}, "model")
