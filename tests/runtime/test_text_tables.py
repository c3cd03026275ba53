"""Tables of text, against tables written by hand."""

import pytest

from multiattn.__main__ import main
from multiattn.command_line import results
from multiattn.runtime.text_tables import counted, markdown_table, markdown_text, printable, terminal_table

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


@pytest.mark.parametrize(
    ("text", "shown", "markdown"),
    [
        pytest.param("", "", "", id="empty"),
        pytest.param("Zoë, 3 < 5, a_b & c", "Zoë, 3 < 5, a_b & c", "Zoë, 3 < 5, a_b & c", id="plain words"),
        pytest.param("<script>x</script>", "<script>x</script>", "&lt;script>x&lt;/script>", id="a tag"),
        pytest.param("a|b", "a|b", r"a\|b", id="the end of a column"),
        pytest.param("![x](http://y)", "![x](http://y)", r"![x]\(http://y)", id="a picture from elsewhere"),
        pytest.param("a\nb\r\x1b[2J\0", r"a\nb\r\x1b[2J\x00", r"a\nb\r\x1b[2J\x00", id="control characters"),
        pytest.param("\u202egpj.exe", r"\u202egpj.exe", r"\u202egpj.exe", id="text from right to left"),
        pytest.param("caf\udce9", r"caf\udce9", r"caf\udce9", id="bytes that are no UTF-8"),
    ],
)
def test_odd_names_are_shown_and_not_obeyed(text, shown, markdown):
    assert printable(text) == shown
    assert markdown_text(text) == markdown
    header, _, row = markdown_table([text], [[text]]).splitlines()
    assert header == row == f"| {markdown} |"


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("file is", "files are"), "0 files are"),
        (1, ("file is", "files are"), "1 file is"),
        (2, ("file is", "files are"), "2 files are"),
        (1, ("row",), "1 row"),
        (12, ("row",), "12 rows"),
    ],
)
def test_a_number_and_what_follows_it_agree(number, words, text):
    assert counted(number, *words) == text
