"""Read the annotations of a signature, and say in words what one accepts."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union


@dataclass(frozen=True)
class Parameter:
    """One parameter of a signature.

    Parameters
    ----------
    annotation : type or None
        None if there is none; text if only type checkers can evaluate it.
    required : bool
        Whether it must be given.
    start : Mapping or None
        What the field of a dataclass that holds a free-form section starts from.
    """

    annotation: Any
    required: bool
    start: Mapping[str, Any] | None = None


def parameters(target: Callable[..., Any]) -> dict[str, Parameter]:
    """Parameters of a dataclass, class or function that can be given by name, in their order."""
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            annotation = None if parameter.annotation is parameter.empty else parameter.annotation
            found[name] = Parameter(annotation, parameter.default is parameter.empty)
    starts: dict[str, Any] = {}
    if is_dataclass(target):
        hints = typing.get_type_hints(target, include_extras=True)
        factories = {
            item.name: item.default_factory for item in fields(target) if is_mapping(hints[item.name])
        }
        starts = {name: factory() for name, factory in factories.items() if callable(factory)}
    else:
        hints = _evaluated(target, {name: parameter.annotation for name, parameter in found.items()})
    return {
        name: Parameter(hints.get(name), parameter.required, starts.get(name))
        for name, parameter in found.items()
    }


def _evaluated(target: Callable[..., Any], annotations: dict[str, Any]) -> dict[str, Any]:
    """Turn postponed annotations into types; one that only type checkers can see stays text."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    namespace = getattr(function, "__globals__", {})
    for name, annotation in annotations.items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            if annotation is not None:
                annotations[name] = typing.get_type_hints(holder, namespace, include_extras=True)[name]
        except NameError:
            annotations[name] = annotation
    return annotations


def section_type(annotation: Any) -> type | None:
    """Return the dataclass of ``Section`` or ``Section | None``; None for any other annotation."""
    if typing.get_origin(annotation) is Annotated:
        return section_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return section_type(members[0]) if len(members) == 1 else None
    return annotation if isinstance(annotation, type) and is_dataclass(annotation) else None


def is_mapping(annotation: Any) -> bool:
    """Whether an annotation is a free-form section: ``dict[str, Any]`` or another mapping."""
    origin = typing.get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Mapping)


def mentions(annotation: Any, *wanted: Any) -> bool:
    """Whether one of the types `wanted` occurs anywhere in the annotation (`Any` and `object` hold all)."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return any(type(choice) in wanted for choice in typing.get_args(annotation))
    if annotation in (*wanted, Any, object) or origin in wanted:
        return True
    return any(mentions(argument, *wanted) for argument in typing.get_args(annotation))


_NOUNS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    dict: "a section",
    Path: "a path",
}
_PLURALS: dict[Any, str] = {int: "integers", float: "numbers", str: "texts"}
_LIMITS = {
    "gt": "> {}",
    "ge": ">= {}",
    "lt": "< {}",
    "le": "<= {}",
    "multiple_of": "divisible by {}",
    "min_length": "of length >= {}",
    "max_length": "of length <= {}",
    "pattern": "like {}",
}


def describe(annotation: Any) -> str:
    """Say in words what an annotation accepts: ``Annotated[int, Ge(1)]`` is ``an integer >= 1``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _NOUNS:
        return _NOUNS[annotation]
    if origin is Annotated:
        return describe(arguments[0]) + _limits(arguments[1:])
    if origin is Literal:
        return f"{'one of ' if len(arguments) > 1 else ''}{', '.join(map(repr, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if is_mapping(annotation) or section_type(annotation):
        return "a section"
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return _describe_list(arguments, fixed=origin is tuple and Ellipsis not in arguments)
    return getattr(annotation, "__name__", str(annotation))


def _describe_list(arguments: tuple[Any, ...], fixed: bool) -> str:
    items = [argument for argument in arguments if argument is not Ellipsis]
    if any(item != items[0] for item in items):
        return f"a list of {', '.join(map(describe, items))}"
    base, *metadata = typing.get_args(items[0]) if typing.get_origin(items[0]) is Annotated else items[:1]
    noun = _PLURALS.get(base, f"values, each {describe(base)}")
    return f"a list of {f'{len(items)} ' if fixed else ''}{noun}{_limits(metadata)}"


def _limits(metadata: Iterable[Any]) -> str:
    """Constraints of ``Annotated``, whether written as ``pydantic.Field(ge=1)`` or as ``Ge(1)``."""
    parts = [part for item in metadata for part in getattr(item, "metadata", [item])]
    limits = [
        text.format(getattr(part, name))
        for part in parts
        for name, text in _LIMITS.items()
        if getattr(part, name, None) is not None
    ]
    return f" {' and '.join(limits)}" if limits else ""
