"""Read a YAML file with its `base:` chain and ``key=value`` overrides into a typed configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from avssl.config.annotations import is_mapping, mentions, parameters, section_type
from avssl.config.check import COMMAND_LINE, Checker, join, nearest
from avssl.errors import ConfigError

T = TypeVar("T")
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")


def load_config(path: str | Path, overrides: Sequence[str] = (), *, schema: type[T]) -> T:
    """Read a configuration file, apply overrides, check everything.

    Parameters
    ----------
    path : str or Path
        YAML file. A key ``base: other.yaml`` at the top, relative to this file, names a file whose keys it
        inherits; lists replace, sections merge. A layer that gives a free-form section (a ``dict`` field)
        another ``name`` drops the arguments written for the old name.
    overrides : sequence of str
        ``"optim.lr=1e-3"``: dotted key, value in YAML; read as plain text where the schema wants text.
    schema : dataclass type
        Fields, annotations and limits (``Annotated[int, pydantic.Field(ge=1)]``); nested dataclasses are
        sections; ``dict[str, Any]`` fields become free-form `Section`s on top of their ``default_factory``,
        checked when something is built from them.

    Raises
    ------
    ConfigError
        For everything that is wrong at once, one line each: file or ``command line``, key, rule, value.
    """
    layers = _read_chain(Path(path))
    layers.append((COMMAND_LINE, _read_overrides(overrides, schema)))
    config = OmegaConf.create({})
    sources: dict[str, str] = {}
    for source, layer in layers:
        _forget_renamed(config, layer, schema)
        sources.update(dict.fromkeys((key for key, _ in _flatten(_plain(layer), sections=True)), source))
        try:
            config = cast(DictConfig, OmegaConf.merge(config, layer))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{source}: {_first_line(error)}") from error
    return _checked(_resolved(config, sources, str(path)), schema, sources, str(path))


def config_from_dict(data: Mapping[str, Any], schema: type[T], source: str = "") -> T:
    """Check a configuration that is already a mapping, such as the one in a checkpoint.

    Parameters
    ----------
    data : Mapping
        As `config_to_dict` returns it.
    schema : dataclass type
        See `load_config`.
    source : str
        What to call the place in messages.
    """
    return _checked(data, schema, {}, source)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into plain dicts, lists, numbers, texts, as YAML and checkpoints keep it."""
    plain: dict[str, Any] = _plain(config)
    return plain


def dump_config(config: Any) -> str:
    """Write a configuration as YAML, all defaults included; `load_config` reads it back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def config_diff(a: Any, b: Any) -> list[str]:
    """Dotted keys in which two configurations differ, in the order of `a`; for the question "same run?"."""
    old, new = dict(_flatten(config_to_dict(a))), dict(_flatten(config_to_dict(b)))
    absent = object()
    return [key for key in {**old, **new} if old.get(key, absent) != new.get(key, absent)]


def _resolved(config: DictConfig, sources: Mapping[str, str], source: str) -> Any:
    """Plain containers, with ``${section.key}`` replaced by the value it names."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        place = sources.get(key, source)
        raise ConfigError(": ".join(filter(None, (place, key, _first_line(error))))) from error


def _checked(data: Any, schema: type[T], sources: Mapping[str, str], source: str) -> T:
    checker = Checker(_known_keys(schema), sources, source)
    result: T = checker.section(schema, data, "")
    checker.raise_errors()
    return result


def _read_chain(path: Path) -> list[tuple[str, DictConfig]]:
    """Files of the `base:` chain, the root first, each with the name to call it by."""
    layers: list[tuple[str, DictConfig]] = []
    seen: list[Path] = []
    asked_by = ""
    while True:
        name = os.path.normpath(path)
        if path.resolve() in seen:
            chain = " -> ".join([*(layer_name for layer_name, _ in reversed(layers)), name])
            raise ConfigError(f"{asked_by}the chain of base files runs in a circle: {chain}")
        seen.append(path.resolve())
        layer = _read_yaml(path, asked_by)
        layers.insert(0, (name, layer))
        base = layer.pop("base", None)
        if base is None:
            return layers
        if not isinstance(base, str):
            raise ConfigError(f"{name}: base: must be the path of one YAML file; got {_plain(base)!r}")
        path, asked_by = path.parent / base, f"{name}: base: "


def _read_yaml(path: Path, asked_by: str) -> DictConfig:
    name = os.path.normpath(path)
    if not path.is_file():
        beside = {other.stem: other for other in sorted(path.parent.glob("*.y*ml"))}
        close = nearest(path.stem, beside)
        hint = f"; did you mean '{os.path.normpath(beside[close])}'?" if close else ""
        kind = "is a folder, not a YAML file" if path.is_dir() else "no such file"
        raise ConfigError(f"{asked_by}{name}: {kind}{hint}")
    try:
        config = OmegaConf.create(path.read_text(encoding="utf-8") or "{}")
    except yaml.MarkedYAMLError as error:
        line = f"{error.problem_mark.line + 1}: " if error.problem_mark else " "
        raise ConfigError(f"{name}:{line}not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{name}: cannot be read as YAML: {_first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{name}: must hold sections of 'key: value' lines; got a list")
    return config


def _read_overrides(overrides: Sequence[str], schema: type) -> DictConfig:
    """One layer from all overrides; those that cannot be read are reported together."""
    layer = OmegaConf.create({})
    errors = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not _KEY.fullmatch(key):
            errors.append(f"{COMMAND_LINE}: '{override}': must be key=value, such as optim.lr=1e-3")
            continue
        try:
            value = _read_value(text, as_text=_holds_text(_annotation_at(schema, key)))
            OmegaConf.update(layer, key, value, force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            errors.append(f"{COMMAND_LINE}: {key}: not a YAML value: {text} ({_first_line(error)})")
    if errors:
        raise ConfigError("\n".join(errors))
    return layer


def _read_value(text: str, as_text: bool) -> Any:
    """Value of an override; `as_text` keeps what is neither text nor null in YAML as it was written."""
    try:
        value = _plain(OmegaConf.create(f"value: {text}"))["value"]
    except yaml.YAMLError:
        if as_text:
            return text
        raise
    return text if as_text and not isinstance(value, str | None) else value


def _holds_text(annotation: Any) -> bool:
    """Whether an annotation holds text and nothing else: ``run.name=1e3`` is a name, not a number."""
    if annotation in (None, Any):
        return False
    return mentions(annotation, str, Path) and not mentions(annotation, bool, int, float, list, tuple, dict)


def _annotation_at(schema: type, path: str) -> Any:
    """Annotation of a dotted key: `Any` inside a free-form section, None where there is no such key."""
    annotation: Any = schema
    for key in path.split(".") if path else []:
        inner = section_type(annotation)
        if inner is None:
            return Any if annotation is Any or is_mapping(annotation) else None
        if key not in parameters(inner):
            return None
        annotation = parameters(inner)[key].annotation
    return annotation


def _forget_renamed(config: DictConfig, layer: DictConfig, schema: type, path: str = "") -> None:
    """Drop from `config` the free-form sections to which `layer` gives another ``name``."""
    for key in list(layer):
        old, new = OmegaConf.select(config, str(key)), layer._get_node(key)
        if not isinstance(old, DictConfig) or not isinstance(new, DictConfig):
            continue
        where = join(path, key)
        annotation = _annotation_at(schema, where)
        free = annotation is Any or is_mapping(annotation)
        if free and "name" in old and "name" in new and old["name"] != new["name"]:
            config.pop(key)
        else:
            _forget_renamed(old, new, schema, where)


def _known_keys(schema: type, path: str = "") -> Iterator[str]:
    """Dotted keys of all sections and fields, in order."""
    for name, parameter in parameters(schema).items():
        yield join(path, name)
        inner = section_type(parameter.annotation)
        if inner is not None:
            yield from _known_keys(inner, join(path, name))


def _flatten(data: Mapping[str, Any], path: str = "", sections: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping, with `sections` those of the sections too."""
    for key, value in data.items():
        inside = isinstance(value, Mapping) and len(value) > 0
        if sections or not inside:
            yield join(path, key), value
        if inside:
            yield from _flatten(value, join(path, key), sections)


def _plain(value: Any) -> Any:
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=False)
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value.value if isinstance(value, Enum) else value


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
