"""The basis of all pages: style, tables, thumbnails."""

import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import multiattn
from browser import OPTIONS, find_chromium
from multiattn.evaluation.measures import TextTable
from multiattn.figures import attention as attention_page
from multiattn.figures import faces
from multiattn.figures import score as score_page
from multiattn.figures.page import (
    SECTION_STYLE,
    STYLE,
    bullets,
    crop_figure,
    drawing,
    escape,
    figures_table,
    new_figure,
    png_tag,
    section_table,
    whole_page,
    write_png,
)
from multiattn.runtime.text_tables import printable
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


SOURCE = Path(multiattn.__file__).parent
ODD = ["$\\frac{$", "$x$", "<script>", "a\x1b[2J\0b", "\udce9"]


@pytest.mark.parametrize("name", ODD)
def test_a_picture_shows_any_name(name, tmp_path):
    """As title, tick, legend and plain text, and with a layout that measures them."""
    figure = new_figure(4, 3, dpi=50, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], label=name)
    axes.set_title(name)
    axes.set_xticks([0, 1], [printable(name), "b"])
    figure.legend()
    figure.text(0.5, 0.5, name)
    write_png(figure, tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png")).std() > 10
    assert Reader(f'<p title="{escape(name)}">{escape(name)}</p>').text == printable(name)


def test_figures_and_html_are_made_in_one_place():
    """So that each of them shows any name."""
    for pattern in (r"Figure\(|pyplot", r"^(from|import) html"):
        made = [path.name for path in SOURCE.rglob("*.py") if re.search(pattern, path.read_text(), re.MULTILINE)]
        assert made == ["page.py"]


def test_a_page_fits_a_telephone(tmp_path):
    """All that pages are made of, with long words, in 420 pixels: tables and drawings scroll inside of it."""
    long = "a_word_without_an_end_" * 8
    table = TextTable(long, pd.DataFrame({f"{name} of the files": [long, "1"] for name in "abcdef"}), (long,))
    cv2.imwrite(str(tmp_path / "x.jpg"), np.full((99, 99, 3), 127, np.uint8))
    crops = "".join(crop_figure(tmp_path / "x.jpg", f"{number}.00 s t0 · 0.90", "crop") for number in range(9))
    body = f"{section_table(table)}{drawing(png_tag(new_figure(12, 4, dpi=100), long))}<h2>{long}</h2>"
    body += f'<article><small>{long}</small><div class="strip">{crops}</div></article>{bullets([long], "warnings")}'
    measure = "<script>onload = () => { parent.document.title = document.documentElement.scrollWidth }</script>"
    page = whole_page(long, body + measure, style=SECTION_STYLE)
    frame = f'<iframe style="width: 420px" srcdoc="{escape(page)}"></iframe>'.replace("\\n", "\n")
    (tmp_path / "frame.html").write_text(f"<!doctype html><title>none</title>{frame}")
    command = [find_chromium(), *OPTIONS, "--dump-dom", "--virtual-time-budget=2000"]
    found = subprocess.run([*command, str(tmp_path / "frame.html")], capture_output=True, text=True, check=True).stdout
    assert int(re.search(r"<title>(\w+)</title>", found)[1]) <= 420
