"""Tables of text, against tables written by hand."""

import pytest

from multiattn.__main__ import main
from multiattn.command_line import results
from multiattn.runtime.text_tables import markdown_table, terminal_table

ODD = "a\x1b[2Jb\nc\x07\u202e\udcff\x9b.mp4"
"""A name that clears a terminal, starts a line, rings, reverses what follows, and is not UTF-8."""
SHOWN = r"a\x1b[2Jb\nc\x07\u202e\udcff\x9b.mp4"


@pytest.mark.parametrize(
    ("rows", "padded", "table"),
    [
        pytest.param([], False, "| a | long |\n| --- | --- |", id="no rows"),
        pytest.param([["b", 1]], False, "| a | long |\n| --- | --- |\n| b | 1 |", id="a row"),
        pytest.param([["word", ""]], True, "| a    | long |\n| ---- | ---- |\n| word |      |", id="padded"),
    ],
)
def test_markdown(rows, padded, table):
    assert markdown_table(["a", "long"], rows, padded=padded) == table


@pytest.mark.parametrize(
    ("rows", "right", "table"),
    [
        pytest.param([], (), "", id="empty"),
        pytest.param([["a", "n"], ["bb", 10]], (1,), "a    n\nbb  10", id="numbers to the right"),
        pytest.param([["a", "n"], ["bb", ""]], (), "a   n\nbb", id="no blanks at the end"),
    ],
)
def test_columns_of_a_terminal(rows, right, table):
    assert terminal_table(rows, right=right) == table


def test_a_name_with_control_characters_is_one_harmless_cell():
    assert terminal_table([["file", "n"], [ODD, 1]]).splitlines()[1] == f"{SHOWN}  1"


def test_results_and_messages_show_control_characters_as_escapes(tmp_path, capsys):
    results("two\nlines", ODD.replace("\n", ""))
    assert main(["folds", "--videos", str(tmp_path / ODD.replace("\n", "")), "--out", str(tmp_path / "x.csv")]) == 2
    out, err = capsys.readouterr()
    shown = SHOWN.replace(r"\n", "")
    assert out == f"two\nlines\n{shown}\n"
    assert f"{shown}: no videos table here" in err
