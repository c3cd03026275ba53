"""The basis of all pages: style, tables, thumbnails."""

import re

import cv2
import numpy as np
import pytest

from multiattn.figures import attention as attention_page
from multiattn.figures import faces
from multiattn.figures import score as score_page
from multiattn.figures.page import SECTION_STYLE, STYLE, crop_figure, figures_table, whole_page
from page_reader import Reader, picture_in


def rules(style: str) -> dict[str, str]:
    """Selector -> declarations, of CSS without nesting but for `@media`."""
    return {selector.strip(): body for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", style)}


def test_no_page_sets_the_size_of_pictures_that_are_not_its_own():
    """A rule for the attention page's squares once squeezed the leaderboard's picture into one."""
    everyones = rules(STYLE)
    assert everyones["img"].split() == ["display:", "block;", "max-width:", "100%;"]
    for style in (attention_page.STYLE, SECTION_STYLE, faces.SHEET_STYLE, score_page.STYLE):
        assert not {"img", "table", "td", "body"} & set(rules(style))


def test_a_page_is_closed_and_loads_nothing():
    reader = Reader(whole_page("<A & B>", "<p>words</p>\n"))
    assert reader.loaded == [] and reader.text.count("<A & B>") == 2


@pytest.mark.parametrize("rows", [[], [["a<b", "1"]], [["a", "1"], ["b", ""]]], ids=["none", "escaped", "two"])
def test_a_tables_first_column_names_the_row(rows):
    page = figures_table(["name", "value"], rows)
    reader = Reader(page)
    assert page.count('<th scope="row">') == page.count("<td>") == len(rows)
    assert [word for word in reader.words if word.strip()] == [
        word for row in [["name", "value"], *rows] for word in row if word
    ]


@pytest.mark.parametrize(("side", "shown"), [(40, 40), (200, 88)], ids=["small", "large"])
def test_a_thumbnail_is_small_and_a_missing_one_says_so(side, shown, tmp_path):
    path = tmp_path / "x.jpg"
    assert "no crop x.jpg" in Reader(crop_figure(path, "<caption>", "alt")).text
    cv2.imwrite(str(path), np.full((side, side, 3), 127, np.uint8))
    reader = Reader(crop_figure(path, "<caption>", "alt"))
    assert reader.text == "<caption>" and [image["alt"] for image in reader.images] == ["alt"]
    picture = picture_in(reader.images[0])
    assert picture.shape == (shown, shown, 3) and abs(picture.mean() - 127) < 2
