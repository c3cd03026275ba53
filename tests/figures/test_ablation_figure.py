"""The dot plot: every kind of row can be drawn, and what is measured or quoted is seen."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from multiattn.evaluation.ablation_table import AblationTable
from multiattn.evaluation.ablations import CELEB, HQ, get_ablation
from multiattn.figures.comparisons import OURS, PAPER, draw_ablation


def figures(accuracy: float) -> dict:
    return {("held-out", "accuracy"): accuracy, ("held-out", "auc"): 99.0, ("cross", "auc"): 66.0 + accuracy / 100}


def drawn_pixels(path: Path, color: str) -> int:
    """Pixels of the picture in that colour."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    rgb = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)])
    return int((np.abs(image.astype(int) - rgb).max(axis=2) <= 2).sum())


@pytest.mark.parametrize(
    ("name", "seeds", "ours", "paper"),
    [
        pytest.param("demo", 0, False, False, id="nothing yet, and no paper"),
        pytest.param("1", 0, False, True, id="the paper alone"),
        pytest.param("5", 1, True, True, id="one seed has no spread"),
        pytest.param("6", 3, True, True, id="three seeds"),
        pytest.param("2", 2, True, True, id="many columns and a quoted row"),
        pytest.param("demo", 2, True, False, id="ours alone"),
    ],
)
def test_a_table_is_drawn_with_what_it_has(tmp_path, name, seeds, ours, paper):
    table = AblationTable(get_ablation(name), HQ, CELEB)
    for number, cell in enumerate(table.ablation.cells):
        for seed in range(seeds if cell.experiment is not None else 0):
            table.add(cell, figures(95.0 + 0.4 * number + 0.3 * seed))
    path = tmp_path / "table.png"
    draw_ablation(table, path)
    assert (drawn_pixels(path, OURS) > 0) == ours
    assert (drawn_pixels(path, PAPER) > 0) == paper


def test_a_failed_cell_draws_no_figure_of_its_own(tmp_path):
    table = AblationTable(get_ablation("demo"), HQ)
    path = tmp_path / "table.png"
    table.fail(table.ablation.cells[0], "no weights")
    draw_ablation(table, path)
    assert drawn_pixels(path, OURS) == 0
    table.add(table.ablation.cells[1], figures(90.0))
    draw_ablation(table, path)
    assert drawn_pixels(path, OURS) > 0
