"""Tables as files hold them: the cells of a CSV as text, columns of a parquet file piece by piece."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.csv
import pyarrow.parquet

ROWS_AT_ONCE = 1 << 17
"""Rows of one piece of a table that is read piece by piece."""


def read_csv(path: Path) -> pd.DataFrame:
    """All cells as text; every row has as many as the header (pandas would pad a short row and shift a long one).

    The message of an error does not name the file.
    """
    plain = _read_plain_csv(path)
    if plain is not None:
        return plain
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = [row for row in csv.reader(file, strict=True) if row] or [None]
    if header is None:
        raise ValueError("the file is empty")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(f"the column {twice[0]!r} stands {twice.count(twice[0])} times")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {number}: expected {len(header)} cells, found {len(row)}")
    return pd.DataFrame(rows, columns=header, dtype=str)


def _read_plain_csv(path: Path) -> pd.DataFrame | None:
    """The same of a file without quotes, which Arrow reads ten times as fast: all of DFDC in 0.05 s instead of 0.5 s.

    None where the file is not that plain, or not in order: reading it row by row says what is wrong.
    """
    content = path.read_bytes()
    header = content[: content.find(b"\n")].removeprefix(b"\xef\xbb\xbf")
    if not header or any(byte in content for byte in (b'"', b"\r", b"\0")):
        return None
    try:
        names = header.decode().split(",")
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(content),
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string())),
        )
    except (pyarrow.ArrowException, UnicodeDecodeError):
        return None
    in_order = table.num_rows > 0 and table.column_names == names and len(set(names)) == len(names)
    return table.to_pandas() if in_order else None


def read_history(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """The epochs.csv of a fold: a row a validation, with the column `epochs_done`.

    Tables of earlier versions have a row an epoch and no such column; it is then `epoch` + 1.

    Raises:
        ValueError: not the table `multiattn train` writes, or one without a needed column.
    """
    advice = "Put back what `multiattn train` wrote, or take it away."
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a table of epochs, found something else: {error}. {advice}") from error
    missing = [name for name in needed if name not in table]
    text = table.drop(columns=["phase", "candidate"], errors="ignore").select_dtypes(exclude="number")
    if missing or table.empty or not text.empty:
        found = f"no {', '.join(missing)}" if missing else "no rows" if table.empty else f"text in {', '.join(text)}"
        raise ValueError(f"{path}: expected {', '.join(needed)} in a row a validation, found {found}. {advice}")
    if "epochs_done" not in table:
        table["epochs_done"] = table["epoch"] + 1
    return table


def read_pieces(
    path: Path, kinds: dict[str, str], key: str, check: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """Columns of a parquet table, read and checked piece by piece.

    Args:
        kinds: column -> int64, float32 or text.
        key: a text column that repeats itself; it comes as categories.
        check: gives a piece as it should be, or raises.

    Raises:
        ValueError: also where the file holds another kind, which reading the whole may turn into the right one.
    """
    texts = [name for name, kind in kinds.items() if kind == "text"]
    start, words = 0, []
    # With pre_buffer the whole file would wait in memory.
    with pyarrow.parquet.ParquetFile(path, read_dictionary=[key], pre_buffer=False) as file:
        found = {field.name: field.type for field in file.schema_arrow}
        if not all(name in found and _is_kind(found[name], kind) for name, kind in kinds.items()):
            raise ValueError(f"{path}: other columns than {kinds}")
        values = {name: np.empty(file.metadata.num_rows, kind) for name, kind in kinds.items() if kind != "text"}
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(kinds), use_threads=False):
            piece = check(batch.to_pandas()[list(kinds)])
            for name, column in values.items():
                column[start : start + len(piece)] = piece[name]
            words.append(batch.select(texts))
            start += len(piece)
        empty = file.schema_arrow.empty_table().select(texts)
    text = (pyarrow.Table.from_batches(words).unify_dictionaries() if words else empty).to_pandas()
    words.clear()
    pyarrow.default_memory_pool().release_unused()  # 200 MB after 4 million rows
    columns = {name: values[name] if name in values else text[name] for name in kinds}
    return pd.DataFrame(columns, copy=False).astype({key: "category"})


def _is_kind(found: pyarrow.DataType, kind: str) -> bool:
    types = pyarrow.types
    if kind == "text":
        found = found.value_type if types.is_dictionary(found) else found
        return types.is_string(found) or types.is_large_string(found)  # as pandas 2 and pandas 3 write it
    return types.is_integer(found) if kind == "int64" else types.is_floating(found)


def strictly_rising(key: pd.DataFrame) -> bool:
    """True where each row comes after the one before it, by the first column and within equal ones by the next."""
    equal = True
    rising = np.zeros(max(0, len(key) - 1), dtype=bool)
    for name in key:
        values = key[name].array
        if isinstance(values, pd.Categorical):
            if not values.categories.is_monotonic_increasing:
                return False
            values = values.codes
        rising |= equal & np.asarray(values[1:] > values[:-1], dtype=bool)
        equal = equal & np.asarray(values[1:] == values[:-1], dtype=bool)
    return bool(rising.all())


def coerced(values: pd.Series, kind: str) -> pd.Series:
    """The values as `text`, `int64` or `float64`, by the cast that pandera coerces with; as they are where one is
    something else, which pandera names."""
    if kind == "text":
        is_text = values.dtype == object and pd.api.types.infer_dtype(values, skipna=False) in ("string", "empty")
        if not is_text:
            return values
    if values.dtype == kind:
        return values
    if kind == "int64":
        values = keep_fractions(values)
    try:
        return values.astype(str if kind == "text" else kind)
    except (ValueError, TypeError, OverflowError):
        return values


def keep_fractions(values: pd.Series) -> pd.Series:
    """Whole numbers as they are, fractions as text, so that coercion refuses them instead of cutting 0.5 to 0."""
    if values.dtype.kind not in "fO":
        return values
    fraction = pd.to_numeric(values, errors="coerce") % 1 > 0
    return values.astype(object).where(~fraction, values.astype(str))
