"""Every table's contract: what is refused and how the message reads, and what survives a round trip."""

import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest

from multiattn import tables
from multiattn.runtime import table_files
from multiattn.tables import (
    FACES,
    FOLDS,
    FRAME_PREDICTIONS,
    LABELS,
    LANDMARKS,
    SUBMISSION,
    VIDEO_PREDICTIONS,
    VIDEO_STATUS,
    VIDEOS,
    Table,
    left_out_lines,
)

TABLES = {table.name: table for table in vars(tables).values() if isinstance(table, Table)}
HARD_FLOATS = (0.1, 1 / 3, 5e-324, 1 - 2**-53, 0.0, 1.0)
VIDEO_ROW = dict.fromkeys(VIDEOS.columns, "") | {"video_id": "a/b", "path": "b.mp4", "dataset": "a", "label": 1}
FACE_ROW = {
    "video_id": "a/b",
    "frame_index": 3,
    "seconds": 0.1,
    "track": 0,
    "crop": "crops/a/b/000003_0.jpg",
    **dict.fromkeys(("x1", "y1", "x2", "y2", *LANDMARKS), -1.5),
    "score": 1 / 3,
}
GOOD_ROWS = {
    "videos": VIDEO_ROW,
    "folds": {"video_id": "a/b", "label": 1, "group": "a/b", "fold": -1, "label_source": ""},
    "faces": FACE_ROW,
    "video_status": {"video_id": "a/b", "status": "no_face", "num_frames": 0, "num_crops": 0, "message": ""},
    "frame_predictions": {
        "model": "demo/fold0",
        "fold": 0,
        "video_id": "a/b",
        "frame_index": 0,
        "track": 0,
        "logit": -0.1,
        "probability": 0.475,
        "distance": float("nan"),
        "distance_reason": "",
    },
    "out-of-fold": {"video_id": "a/b", "fold": 0, "label": 1, "probability": 0.475},
    "video_predictions": {"video_id": "a/b", "probability": 0.5, "num_crops": 0, "status": "missing", "message": "x"},
    "submission": {"filename": "b.mp4", "label": 0.5},
    "sample submission": {"filename": "b.mp4"},
    "labels": {"filename": "b.mp4", "label": 0},
}


def good(table: Table, num_rows: int = 1, **changes) -> pd.DataFrame:
    """`num_rows` good rows whose keys differ, with columns changed."""
    frame = pd.DataFrame([GOOD_ROWS[table.name]] * num_rows)
    key = table.key[0]
    frame[key] = [f"{value}{number}" if number else value for number, value in enumerate(frame[key])]
    return frame.assign(**changes)


def test_the_good_rows_cover_every_table():
    assert set(GOOD_ROWS) == set(TABLES)


@pytest.mark.parametrize("num_rows", [0, 3], ids=["empty", "three rows"])
@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_table_that_is_right_already_is_seen_as_such_and_is_what_pandera_gives(table, num_rows, monkeypatch):
    frame = table.validate(good(table, num_rows), "made here") if num_rows else table.empty()
    by_pandera = table._schema().validate(frame, lazy=True)
    monkeypatch.setattr(Table, "_schema", None)
    pd.testing.assert_frame_equal(table.validate(frame, "made here"), by_pandera, check_exact=True)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("num_rows", [0, 1, 3], ids=["empty", "one row", "three rows"])
@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_round_trip_into_new_folders_changes_neither_dtype_nor_value(table, num_rows, suffix, tmp_path):
    frame = table.validate(good(table, num_rows), "made here") if num_rows else table.empty()
    path = tmp_path / "new" / "folder" / f"table{suffix}"
    table.write(frame, path)
    read = table.read(path, allow_empty=True)
    pd.testing.assert_frame_equal(read, frame, check_exact=True)
    assert list(read.columns) == list(table.columns)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_floats_come_back_to_the_last_bit(suffix, tmp_path):
    frame = good(VIDEO_PREDICTIONS, len(HARD_FLOATS), probability=HARD_FLOATS)
    VIDEO_PREDICTIONS.write(frame, tmp_path / f"t{suffix}")
    read = VIDEO_PREDICTIONS.read(tmp_path / f"t{suffix}")["probability"]
    assert read.tolist() == list(HARD_FLOATS)
    values = np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-250, 250)
    frame = good(FRAME_PREDICTIONS, 500, logit=values)
    FRAME_PREDICTIONS.write(frame, tmp_path / f"l{suffix}")
    assert FRAME_PREDICTIONS.read(tmp_path / f"l{suffix}")["logit"].tolist() == values.tolist()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("NA", id="NA is a word"),
        pytest.param("null", id="null is a word"),
        pytest.param("007", id="digits stay text"),
        pytest.param('a,"b"\nc\r\nd\re', id="quotes, commas, line ends"),
        pytest.param("  spaces\t", id="spaces"),
        pytest.param("Grüße 顔 🙂", id="not ascii"),
    ],
)
def test_text_comes_back_as_it_was(text, suffix, tmp_path):
    frame = good(VIDEO_STATUS, 2, message=["before", text])
    VIDEO_STATUS.write(frame, tmp_path / f"t{suffix}")
    assert VIDEO_STATUS.read(tmp_path / f"t{suffix}")["message"].tolist() == ["before", text]


def test_extra_columns_are_left_out_the_order_is_the_contracts_and_rows_are_numbered_anew():
    frame = good(FOLDS, 3).assign(extra=1)[["fold", "extra", "video_id", "group", "label"]].iloc[[2, 0]]
    found = FOLDS.validate(frame, "x")
    assert list(found.columns) == ["video_id", "label", "group", "fold", "label_source"]
    assert found.index.tolist() == [0, 1]


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_missing_column_is_named_with_what_was_found_and_the_command(table):
    for column, described in table.columns.items():
        frame = good(table).drop(columns=column)
        if described.absent is not None:  # an older table
            pd.testing.assert_frame_equal(table.validate(frame, "some/file.csv"), table.validate(good(table), "x"))
            continue
        with pytest.raises(ValueError) as caught:
            table.validate(frame, "some/file.csv")
        message = str(caught.value)
        assert message.startswith(f"some/file.csv: not a {table.name} table: expected column {column!r}")
        assert table.advice in message
        assert str(([*frame.columns] or ["none"])[0]) in message.split("found columns")[1]
    with pytest.raises(ValueError, match="found columns none"):
        table.validate(pd.DataFrame(), "some/file.csv")


WRONG = [
    (VIDEOS, "not empty", [("video_id", ""), ("path", ""), ("dataset", "")]),
    (VIDEOS, "a label of", [("label", 2), ("label", "fake"), ("label", np.nan), ("label", 0.5)]),
    (VIDEOS, "one of", [("split", "training")]),
    (VIDEOS, "may be empty", [("original", None)]),
    (FOLDS, "a label of", [("label", -1)]),
    (FOLDS, "not empty", [("group", ""), ("group", None)]),
    (FOLDS, "whole number from -1", [("fold", -2), ("fold", "one"), ("fold", 0.5)]),
    (FOLDS, "empty for a data set's own label", [("label_source", "pseudo"), ("label_source", "guess 1")]),
    (FACES, "whole number from 0", [("frame_index", -1), ("track", -1)]),
    (FACES, "seconds", [("seconds", np.nan), ("seconds", np.inf)]),
    (FACES, "not empty", [("crop", "")]),
    (FACES, "pixels", [("x1", np.nan), ("lm4y", -np.inf)]),
    (FACES, "[0, 1]", [("score", 1.0001)]),
    (VIDEO_STATUS, "one of", [("status", "broken")]),
    (VIDEO_STATUS, "whole number from 0", [("num_crops", -1)]),
    (FRAME_PREDICTIONS, "not empty", [("model", "")]),
    (FRAME_PREDICTIONS, "finite", [("logit", np.inf), ("logit", np.nan)]),
    (FRAME_PREDICTIONS, "[0, 1]", [("probability", -1e-9), ("probability", np.nan)]),
    (VIDEO_PREDICTIONS, "one of", [("status", "")]),
    (SUBMISSION, "[0, 1]", [("label", 1.5), ("label", "")]),
    (SUBMISSION, "not empty", [("filename", "")]),
    (LABELS, "a label of", [("label", -1), ("label", "0.3")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "column", "value", "expected"),
    [(table, *cell, expected) for table, expected, cells in WRONG for cell in cells],
    ids=lambda value: value.name if isinstance(value, Table) else repr(value),
)
def test_a_wrong_value_is_named_with_file_column_expectation_and_rows(table, column, value, expected):
    frame = good(table, 3).astype({column: object})
    frame.loc[1, column] = value
    with pytest.raises(ValueError) as caught:
        table.validate(frame, "some/file.csv")
    message = str(caught.value)
    assert message.startswith(f"some/file.csv: {table.name}: column {column!r}: expected ")
    assert expected in message
    assert "in 1 of 3 rows; the first: row 1: " in message


@pytest.mark.skipif(pd.Series(dtype=str).dtype == object, reason="before pandas 3 text holds any character")
def test_text_that_no_encoding_takes_is_refused_with_the_file_and_the_column_named():
    frame = good(VIDEOS, 3).astype({"method": object})
    frame.loc[1, "method"] = "\udcff"
    with pytest.raises(ValueError, match=r"^some/file\.csv: videos: column 'method': expected the manipulation method"):
        VIDEOS.validate(frame, "some/file.csv")


ODD_PLACES = {"absolute": "/etc/passwd", "climbs": "a/../../b", "empty part": "a//b", "a dot": "a/./b", "folder": "a/"}
ODD_NAMES = {"a NUL": "a/b\0c", "256 bytes": f"a/{'n' * 256}", "256 bytes of 128 letters": f"{'ü' * 128}/a"}
ODD_NAMES["longer than a path may be"] = "/".join(["n" * 50] * 80)
PATHS = [(VIDEOS, "video_id"), (VIDEOS, "path"), (VIDEOS, "original"), (FOLDS, "video_id"), (FACES, "video_id")]
PATHS += [(FACES, "crop"), *((table, "video_id") for table in (VIDEO_STATUS, FRAME_PREDICTIONS, VIDEO_PREDICTIONS))]


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *((*PATHS[0], value) for value in (ODD_PLACES | ODD_NAMES).values()),
        *((*path, ODD_PLACES["climbs"]) for path in PATHS[1:]),
    ],
    ids=lambda value: value.name if isinstance(value, Table) else repr(value)[:20],
)
def test_an_id_or_path_that_would_not_lie_below_its_folder_is_refused(table, column, value):
    frame = good(table, 3)
    frame.loc[1, column] = value
    with pytest.raises(ValueError, match=rf"column '{column}': .* in 1 of 3 rows; the first: row 1: "):
        table.validate(frame, "some/file.csv")


@pytest.mark.parametrize(
    "value", ["..a/b..c/...", "n" * 255, "ü" * 127, "/".join(["n" * 49] * 70), "a\n/b", "-", " ", "a:b\\c"], ids=repr
)
def test_odd_names_that_lie_below_their_folder_are_taken(value):
    assert VIDEOS.validate(good(VIDEOS, video_id=value, path=value, original=value), "x")["path"].tolist() == [value]


@pytest.mark.parametrize("value", ODD_NAMES.values(), ids=list(ODD_NAMES))
def test_a_row_whose_path_no_file_system_takes_costs_itself_alone_and_is_named(value, tmp_path, caplog):
    frame = good(VIDEOS, 3)
    frame.loc[1, "video_id"] = value
    frame.to_csv(tmp_path / "videos.csv", index=False)
    frame = VIDEOS.read(tmp_path / "videos.csv")
    assert frame["video_id"].tolist() == ["a/b", "a/b2"]
    assert left_out_lines(frame, "videos.csv") == ["videos.csv: 1 row is left out: the log names it."]
    assert left_out_lines(VIDEOS.empty(), "videos.csv") == []
    assert f"videos.csv: row 1 is left out: video_id {value[:5]!r}"[:-1] in caplog.text


@pytest.mark.parametrize("value", (ODD_PLACES | ODD_NAMES).values(), ids=list(ODD_PLACES | ODD_NAMES))
def test_a_submission_answers_rows_whose_names_are_no_files(value, tmp_path):
    good(SUBMISSION, 2, filename=["a.mp4", value]).to_csv(tmp_path / "sample.csv", index=False)
    assert SUBMISSION.read(tmp_path / "sample.csv")["filename"].tolist() == ["a.mp4", value]


def test_only_the_first_three_of_many_wrong_rows_are_listed():
    with pytest.raises(ValueError, match="in 5 of 6 rows") as caught:
        FOLDS.validate(good(FOLDS, 6, fold=[-2, 0, -3, -4, -5, -6]), "x")
    assert "row 0: -2; row 2: -3; row 3: -4." in str(caught.value)


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_key_that_appears_twice_is_named(table):
    frame = pd.concat([good(table, 3), good(table)], ignore_index=True)
    with pytest.raises(ValueError, match="found 2 rows that share theirs") as caught:
        table.validate(frame, "some/file.csv")
    assert str(caught.value).startswith(f"some/file.csv: {table.name}: expected each ({', '.join(table.key)}) once")
    assert str(frame[table.key[0]].iloc[0]) in str(caught.value)


def test_a_key_of_several_columns_may_repeat_in_some_of_them():
    frame = pd.DataFrame([FACE_ROW, FACE_ROW | {"track": 1}, FACE_ROW | {"frame_index": 4}])
    assert len(FACES.validate(frame, "x")) == 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_missing_file_names_the_command_that_makes_it(table, suffix, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / f"nothing{suffix}", tmp_path / "folder"):
        with pytest.raises(FileNotFoundError, match=f"no {table.name} table here") as caught:
            table.read(path)
        assert str(path) in str(caught.value)
        assert table.advice in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_rows_is_read_only_when_that_is_allowed(suffix, tmp_path):
    FOLDS.write(FOLDS.empty(), tmp_path / f"t{suffix}")
    with pytest.raises(ValueError, match=r"no rows.*multiattn folds"):
        FOLDS.read(tmp_path / f"t{suffix}")
    assert FOLDS.read(tmp_path / f"t{suffix}", allow_empty=True).empty


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("t.csv", b"", id="empty csv"),
        pytest.param("t.csv", b"\x80\x81\xfe,\xff\n\x80", id="csv not utf-8"),
        pytest.param("t.csv", b"PK\x03\x04 this is a zip", id="csv is a zip"),
        pytest.param("t.csv", b'filename,label\n"a.mp4,0.5\n', id="csv with an open quote"),
        pytest.param("t.csv", b"filename,label\na.mp4,0.5\nb.mp4,0.5,9\n", id="csv with one row too long"),
        pytest.param("t.csv", b"filename,label\na.mp4,1,0\n", id="csv with every row too long"),
        pytest.param("t.csv", b"<html><body>Not found</body></html>\n", id="csv is a web page"),
        pytest.param("t.parquet", b"", id="empty parquet"),
        pytest.param("t.parquet", b"PAR1 garbage PAR1", id="parquet garbage"),
        pytest.param("t.parquet", b"filename,label\na.mp4,0.5\n", id="parquet is a csv"),
    ],
)
def test_garbage_is_refused_with_the_file_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="submission table") as caught:
        SUBMISSION.read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_csv_cut_off_inside_its_last_row_is_refused_even_where_the_lost_cells_may_be_empty(tmp_path):
    path = tmp_path / "videos.csv"
    VIDEOS.write(good(VIDEOS, 2, original="a/original", split="train"), path)
    text = path.read_text()
    path.write_text(text[: text.rindex("train") + len("train")])
    with pytest.raises(ValueError, match=r"videos\.csv"):
        VIDEOS.read(path)


def test_a_parquet_cut_off_anywhere_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    FOLDS.write(good(FOLDS, 50), path)
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match="not a readable folds table"):
            FOLDS.read(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "sample.csv").write_bytes("\ufefffilename,label\r\na.mp4,0.5\r\n".encode())
    assert SUBMISSION.read(tmp_path / "sample.csv").to_dict("records") == [{"filename": "a.mp4", "label": 0.5}]


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param([["a/1", "0"], ["a/2", "1"]], id="ordinary"),
        pytest.param([["NA", "0"], ["null", "1"], ["nan", "0"], ["1e5", "1"]], id="words that look like values"),
        pytest.param([["007", "0"], ["1.0", "1"], ["true", "0"], ["2020-01-01", "1"]], id="other types"),
        pytest.param([["  spaces ", "0"], ["tab\there", "1"], ["#comment", "0"], ["back\\slash'", "1"]], id="marks"),
        pytest.param([["Grüße 顔 🙂", "0"], ["\x85 \u2028", "1"]], id="not ascii, line ends of Unicode"),
        pytest.param([["x" * 100_000, "0"], ["b", "1"]], id="a long cell"),
    ],
)
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"], ids=["", "byte order mark", "empty lines"])
def test_a_csv_reads_the_same_with_and_without_quotes(start, cells, tmp_path):
    """Files without a quote take a quicker way."""
    rows = [["filename", "label"], *cells]
    plain, quoted = tmp_path / "plain.csv", tmp_path / "quoted.csv"
    plain.write_text(start + "".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    quoted.write_text(start + "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows), encoding="utf-8")
    frame = LABELS.read(plain)
    assert frame["filename"].tolist() == [row[0] for row in cells]
    pd.testing.assert_frame_equal(frame, LABELS.read(quoted), check_exact=True)


@pytest.mark.parametrize("quote", ["", '"'], ids=["plain", "quoted"])
@pytest.mark.parametrize(
    ("row", "found"), [("{q}a{q}", "found 1"), ("{q}a{q},1,{q}{q}", "found 3")], ids=["too short", "too long"]
)
def test_a_row_of_another_length_is_named_the_same_with_and_without_quotes(row, found, quote, tmp_path):
    text = "filename,label\n{q}b{q},0\n" + row + "\n"
    (tmp_path / "t.csv").write_text(text.format(q=quote))
    with pytest.raises(ValueError, match=f"row 1: expected 2 cells, {found}"):
        LABELS.read(tmp_path / "t.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_is_refused_leaves_the_old_file(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"
    FOLDS.write(good(FOLDS, 2), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="column 'fold'"):
        FOLDS.write(good(FOLDS, 2, fold=-7), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"
    FOLDS.write(good(FOLDS, 2), path)
    before = path.read_bytes()
    script = f"""
        import resource, signal, sys
        import numpy as np, pandas as pd
        from multiattn.tables import FOLDS
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        names = [f"a/{{value}}" for value in np.random.default_rng(0).permutation(20_000)]
        frame = pd.DataFrame({{"video_id": names, "label": 1, "group": names, "fold": 0}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            FOLDS.write(frame, {str(path)!r})
        except OSError:
            sys.exit(42)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 42, result.stderr
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


KEY_AND_CROP = ("video_id", "frame_index", "track", "crop")


@pytest.mark.parametrize("at_once", [2, 100])
@pytest.mark.parametrize("num_rows", [0, 1, 5], ids=["empty", "one row", "five rows"])
@pytest.mark.parametrize("columns", [KEY_AND_CROP, (*KEY_AND_CROP, "x1", "score"), tuple(FACES.columns)], ids=len)
def test_columns_read_in_pieces_are_those_of_the_whole_table(columns, num_rows, at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "ROWS_AT_ONCE", at_once)
    frame = FACES.validate(good(FACES, num_rows), "made here") if num_rows else FACES.empty()
    FACES.write(frame, tmp_path / "faces.parquet")
    monkeypatch.setattr(Table, "read", None)  # which reads the whole at once
    found = FACES.read_columns(tmp_path / "faces.parquet", columns[::-1])  # in any order
    expected = frame[list(columns)]
    floats = [name for name in columns if expected[name].dtype == "float64"]
    expected = expected.astype(dict.fromkeys(floats, "float32"))
    assert found["video_id"].dtype == "category"
    pd.testing.assert_frame_equal(found.astype({"video_id": expected["video_id"].dtype}), expected)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        pytest.param(
            good(FACES, 9, frame_index=[0, 1, 2, 3, -4, 5, 6, -7, 8]),
            r"column 'frame_index': expected .* in 2 of 9 rows; the first: row 4: -4; row 7: -7",
            id="values out of range, rows counted in the whole",
        ),
        pytest.param(good(FACES, 2, frame_index=[0.0, 0.5]), "column 'frame_index'", id="a fraction"),
        pytest.param(good(FACES, 2, x1=[0.0, np.nan]), "column 'x1'", id="no number"),
        pytest.param(good(FACES, 2, crop=["a", ""]), "column 'crop'", id="an empty name"),
        pytest.param(
            good(FACES, 3, video_id="a"), r"each \(video_id, frame_index, track\) once, found 3", id="repeated"
        ),
        pytest.param(
            good(FACES, 4, video_id=["b", "a", "c", "a"]), r"once, found 2 rows that share", id="repeated, far apart"
        ),
        pytest.param(good(FACES, 2).drop(columns="track"), "expected column 'track'", id="a column is missing"),
    ],
)
def test_columns_that_break_the_contract_are_refused_as_the_whole_table_is(frame, message, tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "ROWS_AT_ONCE", 3)
    frame.to_parquet(tmp_path / "faces.parquet", index=False)
    with pytest.raises(ValueError, match=message) as caught:
        FACES.read_columns(tmp_path / "faces.parquet", (*KEY_AND_CROP, "x1"))
    assert str(tmp_path / "faces.parquet") in str(caught.value)


def test_columns_of_other_types_are_turned_into_the_right_ones_all_the_same(tmp_path):
    frame = good(FACES, 2, frame_index=[3.0, 4.0]).assign(video_id=[7, 8])
    frame.to_parquet(tmp_path / "faces.parquet", index=False)
    found = FACES.read_columns(tmp_path / "faces.parquet", (*KEY_AND_CROP, "x1"))
    assert found["frame_index"].tolist() == [3, 4]
    assert found["video_id"].tolist() == ["7", "8"]
    assert found.dtypes.astype(str)[["frame_index", "x1", "video_id"]].tolist() == ["int64", "float32", "category"]


def test_columns_that_are_not_there_or_not_parquet_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no faces table here"):
        FACES.read_columns(tmp_path / "faces.parquet", KEY_AND_CROP)
    (tmp_path / "faces.parquet").write_bytes(b"text")
    with pytest.raises(ValueError, match="not a readable faces table"):
        FACES.read_columns(tmp_path / "faces.parquet", KEY_AND_CROP)
