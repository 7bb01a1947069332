"""Sections that name a class: ``objective: {name: AVID, num_negatives: 1024}``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

from avssl.config.annotations import parameters
from avssl.config.check import Checker, Section, join, nearest
from avssl.errors import ConfigError


def check_arguments(
    where: str,
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    provided: AbstractSet[str] = frozenset(),
) -> dict[str, Any]:
    """Check a section against the annotated signature of what it configures.

    Parameters
    ----------
    where : str
        Dotted key of the section, for messages.
    target : class or function
        What will be called; its annotations are the schema. ``*args`` and ``**kwargs`` cannot be set.
    arguments : Mapping
        The keys and values. The key ``name`` of a `Section` names the target and is left out.
    provided : set of str
        Parameters the caller passes itself; a section must not hold them.

    Returns
    -------
    dict
        The arguments, converted: text ``"1e-3"`` to float, lists to tuples.

    Raises
    ------
    ConfigError
        For all unknown keys, unfit values and missing arguments at once, one line each.
    """
    sources = arguments.sources if isinstance(arguments, Section) else {}
    known = [join(where, name) for name in parameters(target) if name not in provided]
    checker = Checker(known, sources, sources.get(where, ""))
    given = {k: v for k, v in arguments.items() if not (isinstance(arguments, Section) and k == "name")}
    values = checker.arguments(target, given, where, provided)
    checker.raise_errors()
    return values


def resolve_name(name: Any, table: Mapping[str, Callable[..., Any]], where: str) -> Callable[..., Any]:
    """Find the class or function a configuration names.

    Parameters
    ----------
    name : str
        A key of `table`, or ``my.package:Class`` for anything that can be imported.
    table : Mapping of str to callable
        The short names.
    where : str
        Dotted key of the section, for messages.

    Raises
    ------
    ConfigError
        If there is no such name; lists the choices and the nearest.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    if isinstance(name, str) and ":" in name:
        return _import(name, where)
    close = nearest(name, table)
    hint = f"; did you mean '{close}'?" if close else ""
    choices = f"one of {', '.join(sorted(table))}, or my.package:Class"
    raise ConfigError(f"{join(where, 'name')}: must be {choices}; got {name!r}{hint}")


def _import(name: str, where: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    key = join(where, "name")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}: cannot import '{module_name}' of '{name}': {error}") from error
    found = getattr(module, attribute, None)
    if callable(found):
        return found
    close = nearest(attribute, [other for other in dir(module) if callable(getattr(module, other))])
    hint = f"; did you mean '{module_name}:{close}'?" if close else ""
    raise ConfigError(f"{key}: '{module_name}' has no class or function '{attribute}'{hint}")


def resolve_section(
    where: str,
    section: Mapping[str, Any],
    table: Mapping[str, Callable[..., Any]],
    provided: AbstractSet[str] = frozenset(),
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Turn ``{name: AVID, num_negatives: 1024}`` into the class and its checked arguments.

    Parameters and errors are those of `resolve_name` and `check_arguments`.
    """
    arguments: Mapping[str, Any]
    if isinstance(section, Section):
        source, arguments = section.source("name"), section
    else:
        source, arguments = "", {key: value for key, value in section.items() if key != "name"}
    target = resolve_name(section.get("name"), table, f"{source}: {where}" if source else where)
    return target, check_arguments(where, target, arguments, provided)


def build_section(
    where: str, section: Mapping[str, Any], table: Mapping[str, Callable[..., Any]], **provided: Any
) -> Any:
    """Build what ``{name: AVID, num_negatives: 1024}`` names, from its arguments and the `provided` ones.

    Raises
    ------
    ConfigError
        As `resolve_section`, and for what the constructor refuses.
    """
    target, arguments = resolve_section(where, section, table, provided.keys())
    with blaming(where, section):
        return target(**arguments, **provided)


@contextmanager
def blaming(where: str, section: Mapping[str, Any]) -> Iterator[None]:
    """Say of a value that a constructor refuses where it was written.

    Raises
    ------
    ConfigError
        In place of a ``ValueError`` or `ConfigError` inside, whose text names value and rule.
    """
    try:
        yield
    except (ValueError, ConfigError) as error:
        place = section.blamed(str(error)) if isinstance(section, Section) else ""
        raise ConfigError(": ".join(filter(None, (place, where, str(error))))) from error
