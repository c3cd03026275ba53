"""Typed command lines: a stage's options are a frozen dataclass, read by tyro."""

import re
import sys
from typing import Annotated, Any, TypeVar

import tyro

Options = TypeVar("Options")
Positional = tyro.conf.Positional
Inline = Annotated[Options, tyro.conf.arg(name="")]
"""A nested dataclass whose options carry no prefix of their own: `--optim.lr`, not `--experiment.optim.lr`."""


def parse(options_class: Any, argv: list[str], *, stage: str, doc: str | None) -> Any:
    """Read a stage's options.

    Args:
        options_class: a dataclass, or a union of dataclasses for subcommands.
        doc: the stage's docstring, shown by `--help`.

    Raises:
        SystemExit: after `--help`, or after one message about a wrong option (exit code 2).
    """
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
