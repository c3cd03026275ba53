"""Contact sheets of augmentation: a cell for every draw, words around them, marks on the original."""

import re

import cv2
import numpy as np
import pytest

from multiattn.figures.augment import DPI, SheetRow, augmentations_figure, draw_augmentations


def sheet_row(draws: int, *, kind: str = "real", differences: bool = False, marked: bool = False) -> SheetRow:
    crop = np.full((40, 40, 3), 90, np.uint8)
    return SheetRow(
        kind,
        "set/a_rather_long_folder/a_video_of_a_long_name",
        7,
        crop,
        [np.full_like(crop, 20 * number) for number in range(draws)],
        [np.full((40, 40), 30.0) for _ in range(draws)] if differences else [],
        landmarks=np.array([[10.0, 12.0], [28, 12]]) if marked else None,
        outline=np.array([[5.0, 5.0], [35, 5], [20, 60]]) if marked else None,
    )


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_every_row_shows_the_original_and_its_draws():
    figure = augmentations_figure([sheet_row(3), sheet_row(3, kind="fake")], "selim", note="First  place\nof DFDC.")
    assert len(figure.axes) == 2 * 4
    assert {"selim", "First place of DFDC.", "original", "1", "2", "3", "real", "fake"} <= set(words(figure))
    assert "4" not in words(figure)
    pictures = [axes.images[0].get_array() for axes in figure.axes[1:4]]
    assert [int(picture.max()) for picture in pictures] == [0, 20, 40]


def test_differences_stand_below_their_draws():
    figure = augmentations_figure([sheet_row(2, differences=True)], "sbi")
    assert len(figure.axes) == 3 + 2
    draw, difference = figure.axes[2].get_position(), figure.axes[4].get_position()
    assert difference.y1 < draw.y0 and draw.x0 < difference.x0 < difference.x1 < draw.x1
    np.testing.assert_allclose(figure.axes[4].images[0].get_array(), 4 * 30 / 255)


def test_landmarks_and_outline_are_marked_on_the_original_alone_and_do_not_stretch_it():
    figure = augmentations_figure([sheet_row(2, marked=True)], "selim")
    original, first, second = figure.axes
    assert len(original.lines) == 2 and not first.lines and not second.lines
    assert original.get_xlim() == (-0.5, 39.5) and original.get_ylim() == (39.5, -0.5)


def test_cells_do_not_overlap_and_lie_on_the_page():
    figure = augmentations_figure([sheet_row(4, differences=True), sheet_row(4)], "x", note="word " * 80)
    places = [axes.get_position() for axes in figure.axes]
    assert all(0 <= p.x0 < p.x1 <= 1 and 0 <= p.y0 < p.y1 <= 1 for p in places)
    for number, one in enumerate(places):
        for other in places[number + 1 :]:
            assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        pytest.param([], "no rows", id="empty"),
        pytest.param([sheet_row(2), sheet_row(3)], "[2, 3]", id="rows of different lengths"),
    ],
)
def test_what_is_no_grid_is_refused(rows, found):
    with pytest.raises(ValueError, match=f"one number of draws, found {re.escape(found)}"):
        augmentations_figure(rows, "x")


def test_no_draws_at_all_leaves_the_originals():
    assert len(augmentations_figure([sheet_row(0)], "x").axes) == 1


def test_the_picture_is_written_in_its_size(tmp_path):
    rows = [sheet_row(2, differences=True, marked=True)]
    draw_augmentations(rows, "sbi", tmp_path / "new" / "sbi.png")
    width, height = augmentations_figure(rows, "sbi").get_size_inches()
    assert cv2.imread(str(tmp_path / "new/sbi.png")).shape == (int(height * DPI), int(width * DPI), 3)
