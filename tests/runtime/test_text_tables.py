"""Tables of text, against tables written by hand."""

import pytest

from multiattn.runtime.text_tables import markdown_table, terminal_table


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
