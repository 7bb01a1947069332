"""A room imports only rooms of the floors below; rooms on one floor do not import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import avssl

PACKAGE = Path(avssl.__file__).parent
REPOSITORY = PACKAGE.parent
FLOORS = {
    1: ["types", "errors", "dist", "config", "files", "checkpoint"],
    2: ["decode", "transforms", "models", "memory", "optim", "sounding_shapes"],
    3: ["data", "objectives", "schema"],
    4: ["build", "features", "statistics", "weights", "shards", "cards"],
    5: ["evaluate"],
    6: ["train", "retrieve", "report"],
    7: ["cli", "__main__"],
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
SHARED = {1, 7}  # on the ground and at the top, neighbours may meet
ALLOWED = {
    ("features", "build"),  # the encoders of a checkpoint are built from its recipe
    ("statistics", "build"),  # the front end too
    ("weights", "build"),  # official files hold no recipe: one is made for them
    ("weights", "features"),  # encoders are made in one place
}


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import, also those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    """Room of ``avssl.data.manifest.Manifest``; None for other packages and for avssl itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "avssl" and len(parts) > 1 and not parts[1].startswith("__") else None


def violations(source: str, room: str, package: str) -> list[str]:
    found = []
    for line, name in imports(source, package):
        other = room_of(name)
        if other is None or other == room or (room, other) in ALLOWED:
            continue
        if other not in FLOOR:
            found.append(f"line {line}: {name}: the room '{other}' has no floor in tests/test_floors.py")
        elif FLOOR[other] > FLOOR[room] or (FLOOR[other] == FLOOR[room] and FLOOR[room] not in SHARED):
            found.append(f"line {line}: {room} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[other]})")
    return found


def test_no_room_imports_upwards_or_sideways():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        assert parts[0] in FLOOR, f"{path}: give the room '{parts[0]}' a floor in tests/test_floors.py"
        package = ".".join(["avssl", *parts[:-1]])
        found += [f"{path}: {message}" for message in violations(path.read_text(), parts[0], package)]
    assert found == []


def test_package_itself_imports_no_room():
    names = [name for _, name in imports((PACKAGE / "__init__.py").read_text(), "avssl")]
    assert [name for name in names if name.startswith("avssl")] == []


@pytest.mark.parametrize(
    ("source", "room", "package"),
    [
        ("from avssl.train import trainer", "data", "avssl.data"),
        ("def f():\n    import avssl.objectives.avid", "models", "avssl.models"),
        ("from avssl.memory.bank import MemoryBank", "models", "avssl.models"),
        ("from ..report import page", "evaluate", "avssl.evaluate"),
        ("from avssl import build", "decode", "avssl.decode"),
        ("from avssl import features", "build", "avssl"),
        ("from avssl.attic import thing", "cli", "avssl.cli"),
    ],
)
def test_upward_sideways_and_unknown_imports_are_found(source, room, package):
    assert len(violations(source, room, package)) == 1


@pytest.mark.parametrize(
    ("source", "room", "package"),
    [
        ("from avssl.models import DualEncoder", "objectives", "avssl.objectives"),
        ("from .bank import MemoryBank", "memory", "avssl.memory"),
        ("from avssl import __version__\nimport torch", "config", "avssl.config"),
    ],
)
def test_downward_and_own_imports_are_allowed(source, room, package):
    assert violations(source, room, package) == []


def test_datasets_folder_is_not_importable_and_not_imported():
    assert list((REPOSITORY / "datasets").rglob("__init__.py")) == []
    ours = [
        path
        for folder in ("avssl", "tests", "tools", "datasets")
        for path in (REPOSITORY / folder).rglob("*.py")
    ]
    assert ours
    for path in ours:
        names = [name.split(".")[0] for _, name in imports(path.read_text(), "avssl")]
        assert "datasets" not in names, f"{path} imports the folder of data set cards"
