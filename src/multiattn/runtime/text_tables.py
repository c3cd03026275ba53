"""Tables of text, Markdown for pages and columns for a terminal; names in them are shown and never obeyed."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def printable(text: str, *, keep: str = "") -> str:
    """Text on one line: escapes such as `\\x1b` stand for control characters, line ends and bytes that are no UTF-8,
    unless they are to be kept."""
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode("ascii") for one in text
    )


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 file is` or `3 files are`: a number and the words that follow it, of a single noun with an s for many."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """`90 s`, `5 min` or `2.5 hours`, in the largest unit of which there are two."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, padded: bool = False) -> str:
    """A Markdown table; `padded` gives its columns an even width, for where it is also read in a terminal."""
    cells = [["---"] * len(header), *([markdown_text(str(cell)) for cell in row] for row in rows)]
    cells.insert(0, [markdown_text(name) for name in header])
    if padded:
        widths = _widths(cells)
        cells[1] = ["-" * width for width in widths]
        cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def markdown_text(text: str) -> str:
    """Text for Markdown, in a table's cell as well: no tag, link or picture begins in it, and no column ends."""
    text = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", printable(text))
    return text.replace("](", r"]\(").replace("|", r"\|")


def terminal_table(rows: Iterable[Sequence[Any]], *, right: Collection[int] = ()) -> str:
    """Columns two spaces apart, the numbers in `right` aligned to their right; the header is the first row."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = _widths(cells)
    lines = []
    for row in cells:
        numbered = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in numbered).rstrip())
    return "\n".join(lines)


def _widths(cells: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*cells, strict=True)]
