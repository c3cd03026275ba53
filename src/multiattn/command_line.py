"""Typed command lines: a stage's options are a frozen dataclass, read by tyro."""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

Options = TypeVar("Options")
Positional = tyro.conf.Positional
Inline = Annotated[Options, tyro.conf.arg(name="")]
"""A nested dataclass whose options carry no prefix of their own: `--optim.lr`, not `--experiment.optim.lr`."""


@dataclass(frozen=True)
class NameOf:
    """Marks an option that takes a name of a registry, whatever it holds by then: `Annotated[str, NameOf(names)]`."""

    names: Callable[[], Iterable[str]]


def parse(options_class: Any, argv: list[str], *, stage: str, doc: str | None) -> Any:
    """Read a stage's options.

    Args:
        options_class: a dataclass, or a union of dataclasses for subcommands.
        doc: the stage's docstring, shown by `--help`.

    Raises:
        SystemExit: after `--help`, or after one message about a wrong option (exit code 2).
    """
    if dataclasses.is_dataclass(options_class):
        for option, hint in get_type_hints(options_class, include_extras=True).items():
            for mark in getattr(hint, "__metadata__", ()):
                if isinstance(mark, NameOf):
                    options_class.__annotations__[option] = Annotated[Literal[tuple(mark.names())], mark]
    return tyro.cli(
        options_class,
        args=argv,
        prog=f"multiattn {stage}",
        description=_keep_lines(doc or ""),
        config=(tyro.conf.FlagCreatePairsOff,) if hasattr(tyro.conf, "FlagCreatePairsOff") else (),
    )


def _keep_lines(doc: str) -> str:
    """tyro joins lines into paragraphs, unless they are indented; the linter takes the indent of a last paragraph."""
    return re.sub(r"^multiattn ", "    multiattn ", doc, flags=re.MULTILINE)


def results(*lines: str) -> None:
    """Print a stage's results to standard output; everything else goes to the log on standard error."""
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
