"""Check plain values against annotations: those of a dataclass's fields or of a constructor's parameters.

pydantic converts and checks each value. This module walks the sections, finds unknown and missing keys,
and words every complaint the same way: ``source: key: rule; got value``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import pydantic

from avssl.config.annotations import describe, mentions, parameters, section_type
from avssl.errors import ConfigError

COMMAND_LINE = "command line"
_NONE: AbstractSet[str] = frozenset()


def join(path: str, key: object) -> str:
    """Dotted key of `key` inside `path` (``""`` is the top)."""
    return f"{path}.{key}" if path else str(key)


def nearest(word: object, choices: Iterable[str]) -> str | None:
    """The choice that looks most like `word`, whatever the case; None if none does."""
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


class Section(dict[str, Any]):
    """A free-form section of a configuration, such as ``objective``; remembers where each key was written.

    Parameters
    ----------
    values : Mapping
        The keys and values; mappings inside become sections too.
    path : str
        Dotted key of the section.
    sources : Mapping of str to str
        Full dotted key to the file, or ``"command line"``, that set it last.
    """

    def __init__(self, values: Mapping[str, Any], path: str, sources: Mapping[str, str]) -> None:
        super().__init__(
            (key, Section(value, join(path, key), sources) if isinstance(value, Mapping) else value)
            for key, value in values.items()
        )
        self.path = path
        self.sources = {key: source for key, source in sources.items() if f"{key}.".startswith(f"{path}.")}

    def source(self, key: str) -> str:
        """Place that set `key`, or else the section; ``""`` if unknown."""
        return self.sources.get(join(self.path, key), self.sources.get(self.path, ""))

    def blamed(self, complaint: str) -> str:
        """Place that set a key the complaint names, first of all the command line; else that of the name."""
        places = [self.source(key) for key in self if re.search(rf"\b{re.escape(str(key))}\b", complaint)]
        return COMMAND_LINE if COMMAND_LINE in places else next(iter(places), self.source("name"))

    def __reduce__(self) -> tuple[type[Section], tuple[dict[str, Any], str, dict[str, str]]]:
        """Pickle by constructor arguments: configurations cross to worker processes."""
        return type(self), (dict(self), self.path, self.sources)


class Checker:
    """Converts values by annotation and collects what is wrong with them, one line a complaint.

    Parameters
    ----------
    known : iterable of str
        Dotted keys that exist, for suggestions.
    sources : Mapping of str to str
        Dotted key to the place that set it.
    source : str
        Place to name for keys that `sources` does not have, such as missing ones; ``""`` for none.
    """

    def __init__(self, known: Iterable[str], sources: Mapping[str, str], source: str = "") -> None:
        self.known = list(known)
        self.sources = sources
        self.source = source
        self.errors: list[str] = []

    def complain(self, path: str, message: str) -> None:
        """Add one line: where the key was set, the key, the message."""
        place = self.sources.get(path, self.source)
        self.errors.append(": ".join(part for part in (place, path, message) if part))

    def raise_errors(self) -> None:
        """Raise all complaints as one `ConfigError`, if there are any."""
        if self.errors:
            raise ConfigError("\n".join(self.errors))

    def section(self, target: Callable[..., Any], data: Any, path: str) -> Any:
        """Build the dataclass `target` from a mapping; None when something in it is wrong."""
        if not isinstance(data, Mapping):
            keys = ", ".join(parameters(target))
            self.complain(path, f"must be a section with keys of {keys}; got {data!r}")
            return None
        before = len(self.errors)
        values = self.arguments(target, data, path)
        if len(self.errors) > before:
            return None
        try:
            return target(**values)
        except pydantic.ValidationError as error:
            for item in error.errors():
                where = join(path, ".".join(map(str, item["loc"])))
                self.complain(where, f"{item['msg']}; got {item['input']!r}")
        except (ValueError, ConfigError) as error:
            self.complain(path, str(error))
        return None

    def arguments(
        self,
        target: Callable[..., Any],
        data: Mapping[str, Any],
        path: str,
        provided: AbstractSet[str] = _NONE,
    ) -> dict[str, Any]:
        """Check the arguments of a call, all but the `provided` ones; return them converted."""
        signature = parameters(target)
        values = {}
        for key, value in data.items():
            where = join(path, key)
            if key in provided:
                self.complain(where, "is set by the program; remove it")
            elif key not in signature:
                self.complain(where, self._unknown(where))
            else:
                value = _over(signature[key].start, value)
                values[key] = self.value(signature[key].annotation, value, where)
        for name, parameter in signature.items():
            if parameter.required and name not in data and name not in provided:
                values[name] = self._absent(parameter.annotation, join(path, name))
        return values

    def value(self, annotation: Any, value: Any, path: str) -> Any:
        """Convert one value; after a complaint the result is meaningless."""
        inner = section_type(annotation)
        if inner is not None and value is None and mentions(annotation, type(None)):
            return None
        if inner is not None:
            return self.section(inner, {} if value is None else value, path)
        if annotation is None or isinstance(annotation, str):
            self.complain(path, f"has no usable type annotation, so {value!r} cannot be checked; annotate it")
            return None
        try:
            if _holds_bool(value) and not mentions(annotation, bool):
                raise TypeError("pydantic would take true and false for 1 and 0")
            converted = _adapter(annotation).validate_python(value)
        except (pydantic.ValidationError, TypeError) as error:
            self._refuse(annotation, value, path, error)
            return None
        return Section(converted, path, self.sources) if isinstance(converted, dict) else converted

    def _refuse(self, annotation: Any, value: Any, path: str, error: Exception) -> None:
        details = error.errors() if isinstance(error, pydantic.ValidationError) else []
        own = [str(item["ctx"]["error"]) for item in details if "error" in item.get("ctx", {})]
        rule = "; ".join(own) or f"must be {describe(annotation)}"
        hint = ""
        if mentions(annotation, str) and isinstance(value, bool):
            hint = "; YAML reads yes, no, on and off as true and false: put the word in quotes"
        elif mentions(annotation, str) and isinstance(value, int | float):
            hint = "; put it in quotes"
        self.complain(path, f"{rule}; got {value!r}{hint}")

    def _absent(self, annotation: Any, path: str) -> Any:
        """Complain about a missing key; a missing section is checked as an empty one."""
        inner = section_type(annotation)
        if inner is not None:
            return self.section(inner, {}, path)
        self.complain(path, f"missing; must be {describe(annotation)}")
        return None

    def _unknown(self, path: str) -> str:
        """Word an unknown key: a near one beside it, else one of that name elsewhere, else all beside it."""
        parent, _, name = path.rpartition(".")
        beside = {key.rpartition(".")[2]: key for key in self.known if key.rpartition(".")[0] == parent}
        elsewhere = {key.rpartition(".")[2]: key for key in reversed(self.known)}
        for choices in (beside, elsewhere):
            close = nearest(name, choices)
            if close is not None:
                return f"no such key; did you mean '{choices[close]}'?"
        return f"no such key; known here: {', '.join(beside) or 'none'}"


def _over(start: Mapping[str, Any] | None, value: Any) -> Any:
    """Keys of a free-form section over those it starts from; another name starts from nothing."""
    if start is None or not isinstance(value, Mapping):
        return value
    renamed = value.get("name", start.get("name")) != start.get("name")
    return value if renamed else {**start, **value}


def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return pydantic.TypeAdapter(annotation, config=config)


def _holds_bool(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_bool, value))
    return isinstance(value, bool)
