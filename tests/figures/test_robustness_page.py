"""The curves and the page of a sweep: every level and both sides drawn, every figure in words, nothing loaded."""

import numpy as np
import pandas as pd
import pytest

from multiattn.evaluation.distortions import DISTORTIONS, VIDEO_DISTORTIONS
from multiattn.evaluation.robustness import Robustness
from multiattn.evaluation.robustness_table import BESIDE_COLUMNS, COLUMNS
from multiattn.figures.page import BLUE, ORANGE
from multiattn.figures.robustness import robustness_figure, robustness_page
from page_reader import Reader


def sweep(names: list[str], *, beside: str = "", warnings: tuple[str, ...] = ()) -> Robustness:
    """Made figures of all levels of some distortions."""
    draws = np.random.default_rng(0)
    levels = {name: one.levels for name, one in DISTORTIONS.items()}
    levels |= {name: one[1] for name, one in VIDEO_DISTORTIONS.items()}
    places = [("clean", "as they are", "", ""), ("clean", "as they are", "", "brightness 3 to 60")]
    places += [("videos" if name in VIDEO_DISTORTIONS else "crops", name, f"{level:g}", "")
               for name in names for level in levels[name]]  # fmt: skip
    places += [("mean", "mean of cells", "", "brightness 3 to 60"), ("mean", "mean of cells", "", "")] if names else []
    columns = [*COLUMNS, *(BESIDE_COLUMNS if beside else ())]
    cells = pd.DataFrame(draws.uniform(0.2, 0.9, (len(places), len(columns))), columns=columns)
    cells[["kind", "distortion", "level", "part"]] = places
    cells[["num_real", "num_fake"]] = 20
    return Robustness("run<a>", beside, cells, {}, warnings)


@pytest.mark.parametrize(
    ("names", "beside"),
    [
        pytest.param([*DISTORTIONS, *VIDEO_DISTORTIONS], "run_b", id="all, of two"),
        pytest.param(["flip"], "", id="a single level"),
        pytest.param([], "", id="none"),
    ],
)
def test_the_page_says_every_cell_and_the_picture_draws_it(names, beside):
    found = sweep(names, beside=beside, warnings=("gamma 1: beware",))
    read = Reader(robustness_page(found))
    assert read.loaded == [] and len(read.images) == 1 and read.images[0]["alt"]
    assert "Robustness of run<a>" in read.text and "gamma 1: beware" in read.text
    assert f"{found.cells['log_loss'].iloc[-1]:.4f}" in read.text
    assert all(name in read.text for name in names)
    assert ("Beside run_b" in read.text) == bool(beside)
    figure = robustness_figure(found)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == names
    for name in names:
        rows = found.cells[found.cells["distortion"] == name]
        curves = {line.get_color(): line for line in panels[name].lines if line.get_marker() == "o"}
        assert set(curves) == ({BLUE, ORANGE} if beside else {BLUE})
        np.testing.assert_allclose(curves[BLUE].get_ydata(), rows["log_loss"])
        if beside:
            np.testing.assert_allclose(curves[ORANGE].get_ydata(), rows["beside_log_loss"])
        assert [label.get_text() for label in panels[name].get_xticklabels()] == rows["level"].tolist()
