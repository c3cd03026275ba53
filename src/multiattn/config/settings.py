"""How a settings dataclass refuses a value.

Settings as JSON, and back.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")
Entry = TypeVar("Entry")


def require_choices(owner: Any) -> None:
    """Refuse a value that a `Literal` field does not list; Python itself does not look."""
    for name, hint in typing.get_type_hints(type(owner)).items():
        if typing.get_origin(hint) is Literal:
            options = typing.get_args(hint)
            require(getattr(owner, name) in options, owner, name, f"one of {', '.join(options)}")


def choices(owner: type, name: str) -> tuple[str, ...]:
    """The names that the `Literal` field `name` of a settings dataclass lists."""
    return typing.get_args(typing.get_type_hints(owner)[name])


def registry(owner: type, name: str, entries: dict[str, Entry]) -> dict[str, Entry]:
    """`entries`, checked when its module is imported: one for each name that the `Literal` field lists, and no other.

    The field is the list of names, from which options, help, checks and messages derive; the entries are what the
    names stand for, in the package that implements them. A new one is a name there and an entry here.
    """
    if set(entries) != set(choices(owner, name)):
        listed, found = ", ".join(choices(owner, name)), ", ".join(entries)
        raise TypeError(f"{owner.__name__}.{name} lists {listed}; its entries are {found}.")
    return entries


def require(condition: bool, owner: object, name: str, expected: str) -> None:
    """Raise `ValueError` with the setting, what was expected and what was found, unless the condition holds."""
    if not condition:
        found = getattr(owner, name)
        raise ValueError(f"{type(owner).__name__}.{name}: expected {expected}, found {found!r}.")


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON types, nested as its dataclasses are."""
    values = dataclasses.asdict(config)
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """Tuples as lists, as they come back from a file."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def from_json(config_class: type[Config], values: dict[str, Any], *, source: str = "config") -> Config:
    """Rebuild a config from `to_json`'s output.

    Args:
        source: where the values come from (a path), for the message of an error.

    Raises:
        ValueError: a key the class does not have (with its nearest neighbour), or a value it refuses.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected an object for {config_class.__name__}, found {type(values).__name__}.")
    hints = typing.get_type_hints(config_class)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{source}: {config_class.__name__} has no setting {unknown[0]!r}.{hint} It has {sorted(hints)}."
        )
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_json(hints[name], value, source=source)
        elif typing.get_origin(hints[name]) is tuple and isinstance(value, list):
            value = _tuple_from_json(hints[name], value, f"{source}: {config_class.__name__}.{name}")
        elif not _is_instance(value, hints[name]):
            raise ValueError(f"{source}: {config_class.__name__}.{name}: expected {hints[name]}, found {value!r}.")
        arguments[name] = value
    try:
        return config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _tuple_from_json(hint: Any, values: list, source: str) -> tuple:
    entry, *others = typing.get_args(hint)
    if dataclasses.is_dataclass(entry):
        return tuple(from_json(entry, value, source=source) for value in values)
    fixed = others != [Ellipsis]
    if (fixed and len(values) != 1 + len(others)) or not all(_is_instance(value, entry) for value in values):
        raise ValueError(f"{source}: expected {hint}, found {values!r}.")
    return tuple(values)


def _is_instance(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_instance(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
