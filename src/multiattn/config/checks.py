"""How a settings dataclass refuses a value."""

import typing
from typing import Any, Literal


def require_choices(owner: Any) -> None:
    """Refuse a value that a `Literal` field does not list; Python itself does not look."""
    for name, hint in typing.get_type_hints(type(owner)).items():
        if typing.get_origin(hint) is Literal:
            options = typing.get_args(hint)
            require(getattr(owner, name) in options, owner, name, f"one of {', '.join(options)}")


def require(condition: bool, owner: object, name: str, expected: str) -> None:
    """Raise `ValueError` with the setting, what was expected and what was found, unless the condition holds."""
    if not condition:
        found = getattr(owner, name)
        raise ValueError(f"{type(owner).__name__}.{name}: expected {expected}, found {found!r}.")
