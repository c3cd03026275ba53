"""Checks of settings, and settings as JSON: one mechanism for experiments, crop recipes and scoring rules.

Settings are frozen dataclasses. Their `__post_init__` calls `require` and `require_fields`; `to_json` and `from_json`
carry them to a file and back.
"""

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")
Entry = TypeVar("Entry")
MOST = 1_000_000
"""Upper bound of counts that have none of their own: above any use, and below what fills the memory."""


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


def require_at_least(owner: object, low: float, *names: str) -> None:
    """Refuse settings below a bound, and whole numbers above `MOST`; None passes."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value >= low, owner, name, f"at least {low}")
        require(not isinstance(value, int) or value <= MOST, owner, name, f"at most {MOST}")


def require_fields(owner: Any, **registries: Collection[str]) -> None:
    """Refuse numbers that are not finite, and values that the setting's `Literal` or registry does not list."""
    for field in dataclasses.fields(owner):
        values = getattr(owner, field.name)
        for value in values if isinstance(values, tuple) else (values,):
            require(not isinstance(value, float) or math.isfinite(value), owner, field.name, "finite numbers")
    hints = typing.get_type_hints(type(owner)).items()
    listed = {name: typing.get_args(hint) for name, hint in hints if typing.get_origin(hint) is Literal}
    for name, options in (listed | registries).items():
        require(getattr(owner, name) in options, owner, name, f"one of {', '.join(options)}")


def did_you_mean(name: str, names: Iterable[str], *, count: int = 1) -> str:
    """` Did you mean 'x'?` with the names nearest to a mistyped one, or the empty string."""
    near = difflib.get_close_matches(name, names, n=count)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def look_up(entries: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of that name; where there is none, the error names the nearest, and all."""
    if name not in entries:
        raise ValueError(f"no {kind} {name!r}.{did_you_mean(name, entries)} There are: {', '.join(entries)}.")
    return entries[name]


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON types, nested as its dataclasses are."""
    return _plain(dataclasses.asdict(config))


def differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings with two values, of two configs as `to_json` gives them: `group.name` -> both values, in order."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, value in one.items():
        if isinstance(value, dict) and isinstance(other[name], dict):
            found |= differences(value, other[name], f"{prefix}{name}.")
        elif value != other[name]:
            found[f"{prefix}{name}"] = (value, other[name])
    return found


def _plain(value: Any) -> Any:
    """Tuples as lists, as they come back from a file."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def from_json(
    config_class: type[Config], values: dict[str, Any], *, source: str = "config", complete: bool = False
) -> Config:
    """Rebuild a config from `to_json`'s output.

    Args:
        source: where the values come from (a path), for the message of an error.
        complete: refuse values that leave out a setting; else it has its default.

    Raises:
        ValueError: a key the class does not have (with its nearest neighbour), or a value it refuses.
    """
    name = config_class.__name__
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected an object for {name}, found {type(values).__name__}.")
    hints = typing.get_type_hints(config_class)
    for key in sorted(set(values) - set(hints)):
        hint = did_you_mean(key, hints)
        raise ValueError(f"{source}: {name} has no setting {key!r}.{hint} It has {', '.join(sorted(hints))}.")
    if complete and (missing := [key for key in hints if key not in values]):
        raise ValueError(f"{source}: expected all settings of {name}, found no {', '.join(missing)}.")
    arguments = {key: _converted(value, hints[key], source, f"{name}.{key}", complete) for key, value in values.items()}
    try:
        return config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _converted(value: Any, hint: Any, source: str, setting: str, complete: bool) -> Any:
    """A JSON value as its type hint has it: a dataclass, `X | None`, a tuple, a dict, a `Literal` or a plain type."""
    origin, parts, is_right = typing.get_origin(hint), typing.get_args(hint), False
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, source=source, complete=complete)
    if origin in (typing.Union, types.UnionType):
        other = next(part for part in parts if part is not types.NoneType)
        return None if value is None else _converted(value, other, source, setting, complete)
    if origin is tuple and isinstance(value, list):
        entries = parts[:1] * len(value) if parts[1:] == (Ellipsis,) else parts
        if len(entries) == len(value):
            return tuple(
                _converted(one, entry, source, setting, complete) for one, entry in zip(value, entries, strict=True)
            )
    elif origin is dict and isinstance(value, dict):
        return {key: _converted(one, parts[1], source, setting, complete) for key, one in value.items()}
    elif origin is Literal:
        is_right = value in parts
    elif origin is None:
        kinds = (int, float) if hint is float else hint
        is_right = isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
        is_right = is_right and (hint is not float or abs(value) <= sys.float_info.max)
    if is_right:
        return value
    expected = f"one of {', '.join(parts)}" if origin is Literal else hint.__name__ if origin is None else hint
    raise ValueError(f"{source}: {setting}: expected {expected}, found {value!r}.")
