"""The tables between stages: columns, dtypes, keys and checks, and the one way to read and write them.

A table that breaks its contract raises one `ValueError` that names the file, the column, what was expected, what was
found, in how many rows, and the first three. Writing is atomic. `.csv` for what a person opens, `.parquet` for
millions of rows; in a CSV an empty cell of a text column is the empty string.

Ids and paths are joined to folders, in which files are then written and removed: each is a path below one, without
`..`. A row that is read whose path no file system takes costs itself alone: it is left out, and named.
"""

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from multiattn.config.choices import SplitName
from multiattn.runtime.files import atomic_path
from multiattn.runtime.paths import MAX_NAME_BYTES, MAX_PATH_BYTES, faulty_paths, name_fault, path_fault
from multiattn.runtime.text_tables import counted

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa
    from pandera.errors import SchemaErrors

logger = logging.getLogger(__name__)

FAKE, REAL, UNKNOWN = 1, 0, -1
SPLITS = get_args(SplitName)
LEFT_OUT = "left_out"
"""Attribute of a table that was read: the number of its rows that no file system takes, where there are any."""
BOX = ("x1", "y1", "x2", "y2")
LANDMARKS = tuple(f"lm{point}{axis}" for point in range(5) for axis in "xy")


@dataclass(frozen=True)
class Column:
    """One column of a table: the kind of its values, what they are in words, and a mask of those that are allowed."""

    kind: Literal["text", "int64", "float64"]
    description: str
    allows: "Callable[[pd.Series], pd.Series] | None" = None
    absent: float | str | None = None
    """Stands in every row of an older table, which lacks the column; NaN may stand in any row then. None: no table may
    lack it."""


@dataclass(frozen=True)
class Table:
    """One kind of table: its schema, its key, and how it is made."""

    name: str
    key: tuple[str, ...]
    columns: dict[str, Column]
    made_by: str
    """The command that makes it, or a sentence where none does."""

    @property
    def advice(self) -> str:
        """The next step after an error."""
        return f"Make it with `{self.made_by}`." if self.made_by.startswith("multiattn ") else f"{self.made_by}."

    def empty(self) -> "pd.DataFrame":
        """The table with no rows and the right dtypes."""
        import pandas as pd

        types = {name: "object" if column.kind == "text" else column.kind for name, column in self.columns.items()}
        return self.validate(pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()}), self.name)

    def validate(self, frame: "pd.DataFrame", source: str | Path) -> "pd.DataFrame":
        """The frame with this table's columns in order and their dtypes; raises `ValueError` where it is another."""
        absent = [name for name in self.columns if name not in frame.columns]
        missing = [name for name in absent if self.columns[name].absent is None]
        if missing:
            raise ValueError(
                f"{source}: not a {self.name} table: expected column {missing[0]!r} (of {', '.join(self.columns)}), "
                f"found columns {', '.join(map(str, frame.columns)) or 'none'}. {self.advice}"
            )
        from multiattn.runtime.table_files import coerced

        frame = frame.assign(**{name: self.columns[name].absent for name in absent})
        frame = frame[list(self.columns)].reset_index(drop=True)
        gaps = [name for name, column in self.columns.items() if isinstance(column.absent, float)]
        frame = frame.assign(**{name: frame[name].where(frame[name] != "", self.columns[name].absent) for name in gaps})
        frame = frame.assign(**{name: coerced(frame[name], column.kind) for name, column in self.columns.items()})
        if not self._is_right_already(frame):
            from pandera.errors import SchemaErrors

            try:
                frame = self._schema().validate(frame, lazy=True)
            except SchemaErrors as error:
                raise ValueError(f"{source}: {self._describe(error, len(frame))}") from error
        self._require_single_keys(frame, source)
        return frame

    def _is_right_already(self, frame: "pd.DataFrame") -> bool:
        """True where pandera would give the same frame back, for which it takes five times as long as this."""
        import pandas as pd

        text = pd.Series(dtype=str).dtype  # object before pandas 3
        for name, column in self.columns.items():
            values = frame[name]
            if values.dtype != (text if column.kind == "text" else column.kind):
                return False
            if values.dtype == object and pd.api.types.infer_dtype(values, skipna=False) not in ("string", "empty"):
                return False
            if values.hasnans and not isinstance(column.absent, float):
                return False
            if column.allows is not None and not column.allows(values.dropna()).all():
                return False
        return True

    def _schema(self) -> "pa.DataFrameSchema":
        import pandera.pandas as pa  # half a second, which reading options has no use for

        columns = {}
        for name, column in self.columns.items():
            checks = [pa.Check(column.allows)] if column.allows is not None else []
            kind = str if column.kind == "text" else column.kind
            columns[name] = pa.Column(kind, checks, nullable=isinstance(column.absent, float))
        return pa.DataFrameSchema(columns, coerce=True)

    def _require_single_keys(self, frame: "pd.DataFrame", source: str | Path) -> None:
        from multiattn.runtime.table_files import strictly_rising

        key = frame[list(self.key)]
        if strictly_rising(key):  # as every stage writes it; a search for equal rows anywhere takes ten times as long
            return
        repeated = key.duplicated(keep=False)
        if repeated.any():
            first = key[repeated].drop_duplicates().head(3).to_dict("records")
            raise ValueError(
                f"{source}: {self.name}: expected each ({', '.join(self.key)}) once, "
                f"found {int(repeated.sum())} rows that share theirs; the first: {first}."
            )

    def _describe(self, error: "SchemaErrors", num_rows: int) -> str:
        import pandas as pd

        cases = error.failure_cases
        first = cases.iloc[0]
        same = cases[(cases["column"] == first["column"]) & (cases["check"] == first["check"])]
        same = same.sort_values("index", kind="stable", key=lambda rows: pd.to_numeric(rows, errors="coerce"))
        column = self.columns.get(first["column"])
        expected = column.description if column is not None else first["check"]
        rows = [f"row {index}: {value!r}" for index, value in zip(same["index"], same["failure_case"], strict=True)]
        return (
            f"{self.name}: column {first['column']!r}: expected {expected}, "
            f"found something else in {len(same)} of {counted(num_rows, 'row')}; the first: {'; '.join(rows[:3])}."
        )

    def read(self, path: Path, *, allow_empty: bool = False) -> "pd.DataFrame":
        """Read and check the table; without `allow_empty` it has rows.

        Raises:
            FileNotFoundError: no such file; names the command that makes it.
            ValueError: not this table, or no rows in it (unless `allow_empty`).
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no {self.name} table here. {self.advice}")
        import pandas as pd

        from multiattn.runtime.table_files import read_csv

        try:
            frame = pd.read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
        except (csv.Error, OSError, ValueError) as error:
            raise ValueError(f"{path}: not a readable {self.name} table: {error}. {self.advice}") from error
        num_rows = len(frame)
        frame = self.validate(self._without_unnameable(frame, path), path)
        if frame.empty and not allow_empty:
            raise ValueError(f"{path}: the {self.name} table has no rows. {self.advice}")
        if len(frame) < num_rows:
            frame.attrs[LEFT_OUT] = num_rows - len(frame)
        return frame

    def _without_unnameable(self, frame: "pd.DataFrame", source: Path) -> "pd.DataFrame":
        """The rows whose paths a file system takes; the others are logged."""
        paths = [name for name, column in self.columns.items() if column.allows is _are_paths]
        for name in frame.columns.intersection(paths):
            texts = frame[name].astype(str)
            faulty = faulty_paths(texts, name_fault)
            for row, text in texts[faulty].items():
                short = f"{text[:60]!r}{'...' if len(text) > 60 else ''}"
                logger.warning("%s: row %s is left out: %s %s: %s", source, row, name, short, name_fault(text))
            frame = frame[~faulty]
        return frame

    def read_columns(self, path: Path, columns: Sequence[str]) -> "pd.DataFrame":
        """Some columns of a parquet table, the key's among them, read and checked piece by piece, so that millions of
        rows fit.

        Returns:
            The columns in the table's order, in half the memory: the key's first column as categories, numbers with a
            fraction as float32, which places a pixel of a frame to a thousandth. May be empty.

        Raises:
            FileNotFoundError, ValueError: as `read`; counts and rows in the message are those of the whole table.
        """
        import pyarrow
        from pandera.errors import SchemaError

        from multiattn.runtime.table_files import read_pieces

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no {self.name} table here. {self.advice}")
        part = replace(self, columns={name: self.columns[name] for name in self.columns if name in columns})
        compact = {"int64": "int64", "float64": "float32"}
        kinds = {name: compact.get(column.kind, "text") for name, column in part.columns.items()}
        try:
            frame = read_pieces(path, kinds, self.key[0], part._schema().validate)
            part._require_single_keys(frame, path)
        except (SchemaError, pyarrow.ArrowException, OSError, ValueError):
            # The whole at once says what is wrong with it.
            frame = part.read(path, allow_empty=True)
            frame = frame.astype({name: kind for name, kind in kinds.items() if kind == "float32"})
            frame = frame.astype({self.key[0]: "category"})
        return frame

    def write(self, frame: "pd.DataFrame", path: Path) -> None:
        """Check the table and write it atomically."""
        path = Path(path)
        frame = self.validate(frame, path)
        with atomic_path(path) as temporary:
            if path.suffix == ".parquet":
                frame.to_parquet(temporary, index=False)
            else:
                frame.to_csv(temporary, index=False, lineterminator="\n")


def _text(description: str, allows: "Callable[[pd.Series], pd.Series] | None" = None) -> Column:
    return Column("text", description, allows)


def _name(description: str) -> Column:
    return _text(f"{description}, not empty", lambda values: values != "")


def _are_paths(values: "pd.Series") -> "pd.Series":
    return ~faulty_paths(values, path_fault)


def _path(description: str) -> Column:
    parts = f"parts of 1 to {MAX_NAME_BYTES} bytes, none of them `.` or `..`, at most {MAX_PATH_BYTES} together"
    return _text(f"{description}, not empty, relative, with {parts}", _are_paths)


def _integer(minimum: int, description: str) -> Column:
    return Column("int64", f"{description}, a whole number from {minimum}", lambda values: values >= minimum)


def _number(description: str) -> Column:
    return Column("float64", description, lambda values: values.abs() < float("inf"))


def _probability() -> Column:
    return Column("float64", "P(fake) in [0, 1]", lambda values: values.between(0, 1))


def _label(*allowed: int) -> Column:
    description = f"a label of {sorted(allowed)} (1 = fake, 0 = real)"
    return Column("int64", description, lambda values: values.isin(allowed))


def _one_of(*allowed: str) -> Column:
    return _text(f"one of {list(allowed)}", lambda values: values.isin(allowed))


def left_out_lines(frame: "pd.DataFrame", source: Path) -> list[str]:
    """The closing line of a command where reading a table left out rows; else none."""
    if not (number := frame.attrs.get(LEFT_OUT, 0)):
        return []
    return [
        f"{source}: {counted(number, 'row is left out: the log names it', 'rows are left out: the log names them')}."
    ]


_video_id = _path("<dataset>/<path below the root without extension>")

VIDEOS = Table(
    name="videos",
    key=("video_id",),
    made_by="multiattn index",
    columns={
        "video_id": _video_id,
        "path": _path("the path below the data set's root"),
        "dataset": _name("a data set"),
        "label": _label(UNKNOWN, REAL, FAKE),
        "method": _text("the manipulation method, empty for real or unknown"),
        "compression": _text("the compression level, may be empty"),
        "split": _one_of(*SPLITS, ""),
        "part": _text("the part of the data set, may be empty"),
        "original": _text(
            "the video_id a fake was made from, may be empty", lambda values: (values == "") | _are_paths(values)
        ),
        "target_id": _text("may be empty"),
        "source_id": _text("may be empty"),
    },
)

FOLDS = Table(
    name="folds",
    key=("video_id",),
    made_by="multiattn folds",
    columns={
        "video_id": _video_id,
        "label": _label(REAL, FAKE),
        "group": _name("the group that never spans folds"),
        "fold": _integer(-1, "the fold that validates on the video (-1 = none)"),
        "label_source": Column(
            "text",
            "empty for a data set's own label, or `pseudo 0 1 2`, one that the models of these folds gave",
            lambda values: values.str.fullmatch(r"(pseudo( \d+)+)?"),
            absent="",
        ),
    },
)

FACES = Table(
    name="faces",
    key=("video_id", "frame_index", "track"),
    made_by="multiattn faces",
    columns={
        "video_id": _video_id,
        "frame_index": _integer(0, "the frame in decoding order"),
        "seconds": _number("presentation time in seconds"),
        "track": _integer(0, "the track of the face"),
        "crop": _path("the crop's path below the faces folder"),
        **{name: _number("pixels of the full frame") for name in BOX},
        "score": _probability(),
        **{name: _number("pixels of the full frame") for name in LANDMARKS},
    },
)

VIDEO_STATUS = Table(
    name="video_status",
    key=("video_id",),
    made_by="multiattn faces",
    columns={
        "video_id": _video_id,
        "status": _one_of("ok", "no_face", "unreadable"),
        "num_frames": _integer(0, "frames decoded"),
        "num_crops": _integer(0, "crops written"),
        "message": _text("the decoder's words, may be empty"),
    },
)

FRAME_PREDICTIONS = Table(
    name="frame_predictions",
    key=("model", "video_id", "frame_index", "track"),
    made_by="multiattn predict",
    columns={
        "model": _name("<experiment>/fold<k>"),
        "fold": _integer(-1, "the fold the model was validated on"),
        "video_id": _video_id,
        "frame_index": _integer(0, "the frame in decoding order"),
        "track": _integer(0, "the track of the face"),
        "logit": _number("logit of P(fake), finite"),
        "probability": _probability(),
        "distance": Column(
            "float64",
            "distance from the faces of the training, 1 = the 99th percentile of held-out ones; NaN: not measured",
            lambda values: values.abs() < float("inf"),
            absent=float("nan"),
        ),
        "distance_reason": Column("text", "words for a face that lies outside, may be empty", absent=""),
    },
)

OUT_OF_FOLD = Table(
    name="out-of-fold",
    key=("video_id",),
    made_by="`multiattn train` and `tune` make those of our models; for one of others write these columns",
    columns={
        "video_id": _video_id,
        "fold": _integer(0, "the fold whose model answers, which has not seen the video"),
        "label": _label(REAL, FAKE),
        "probability": _probability(),
    },
)

VIDEO_PREDICTIONS = Table(
    name="video_predictions",
    key=("video_id",),
    made_by="multiattn submit",
    columns={
        "video_id": _video_id,
        "probability": _probability(),
        "num_crops": _integer(0, "crops the probability rests on"),
        "status": _one_of("ok", "no_face", "unreadable", "missing", "failed", "late"),
        "message": _text("why it was not predicted, or which part of it was left out; may be empty"),
    },
)

SUBMISSION = Table(
    name="submission",
    key=("filename",),
    made_by="multiattn submit",
    columns={"filename": _name("a video's file name"), "label": _probability()},
)

SAMPLE = Table(
    name="sample submission",
    key=("filename",),
    made_by="Pass the competition's sample_submission.csv",
    columns={"filename": _name("a video's file name")},
)

LABELS = Table(
    name="labels",
    key=("filename",),
    made_by="Pass the labels that came with the videos",
    columns={"filename": _name("a video's file name"), "label": _label(REAL, FAKE)},
)
