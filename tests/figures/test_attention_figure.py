"""The attention figure: colours that say what they should, a picture of the right size, a page that stands alone."""

import cv2
import numpy as np
import pytest

from multiattn.figures import attention
from multiattn.figures.attention import (
    CELL,
    COLOR_WEIGHTS,
    COLORS,
    GAP,
    Row,
    RunMaps,
    attention_page,
    blend,
    color_bar,
    draw_attention,
    overlay,
)
from multiattn.inference.attention_maps import FaceMaps
from page_reader import Reader, picture_in

DPI = 50
STATISTICS = {"map_cosine": 0.25, "map_strongest_share": 0.5, "map_entropy": 0.75, "map_dead_share": 0.0}
ROWS = [Row("real", "ffpp/original/001", 7), Row("<Deep>fakes", "ffpp/fake/001_002", 12)]


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """A quarter of the resolution: a picture takes a second otherwise."""
    monkeypatch.setattr(attention, "DPI", DPI)


def make_run(label: str = "RIL", *, num_maps: int = 2, num_rows: int = 2, statistics: dict = STATISTICS) -> RunMaps:
    generator = np.random.default_rng(num_maps)
    crops = [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(num_rows)]
    faces = [FaceMaps(crop, generator.random((num_maps, 32, 32)), (row + 1) / 8) for row, crop in enumerate(crops)]
    return RunMaps(label, faces, statistics)


def test_no_attention_leaves_the_face_and_more_attention_is_brighter_on_a_dark_face():
    black = np.zeros((1, 5, 3), np.uint8)
    levels = overlay(black, np.array([[0, 0.5, 1, 2, 4]]), limit=2.0)[0]
    assert levels[-1].tolist() == levels[-2].tolist(), "above the limit nothing changes"
    assert (np.diff(levels.astype(int).sum(axis=-1))[:-1] > 0).all()
    white = overlay(np.full((1, 1, 3), 255, np.uint8), np.zeros((1, 1)), limit=1.0)
    assert white[0, 0] == pytest.approx(np.full(3, 255 * (1 - COLOR_WEIGHTS[0])), abs=2)


def test_the_brightest_colour_is_that_of_the_colour_map_by_hand():
    expected = (1 - COLOR_WEIGHTS[1]) * 0.5 + COLOR_WEIGHTS[1] * np.array(COLORS(1.0)[:3])
    assert blend(np.array([0.5]), np.array([1.0]))[0] == pytest.approx(255 * expected, abs=0.51)


def test_the_bar_shows_what_a_grey_face_would_and_rises_in_lightness():
    bar = color_bar(5)
    grey = overlay(np.full((1, 5, 3), 128, np.uint8), np.linspace(0, 1, 5)[None], limit=1.0)[0]
    assert np.abs(bar.astype(int) - grey).max() <= 1
    luma = color_bar().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert luma[-1] > 1.8 * luma[0]


def test_one_scale_serves_a_run_and_a_dead_map_stays_dark():
    crop = np.full((4, 4, 3), 100, np.uint8)
    maps = [np.stack([np.full((4, 4), 8.0), np.zeros((4, 4))]), np.stack([np.full((4, 4), 2.0), np.ones((4, 4))])]
    run = RunMaps("run", [FaceMaps(crop, one, 0.5) for one in maps], {})
    assert run.limits(0, "run").tolist() == run.limits(1, "run").tolist() == [8, 8]
    assert run.limits(0, "map").tolist() == [8, 1] and run.limits(1, "map").tolist() == [2, 1]
    for scale in ("run", "map"):
        assert run.pictures(0, scale)[1][0, 0].tolist() == overlay(crop, np.zeros((4, 4)), 1.0)[0, 0].tolist()


def test_one_hot_cell_is_seen_though_the_quantile_is_zero():
    maps = np.zeros((1, 32, 32))
    maps[0, 3, 3] = 5
    assert RunMaps("run", [FaceMaps(maps, maps, 0.5)], {}).limits(0, "run").tolist() == [5]


@pytest.mark.parametrize(
    "sizes",
    [pytest.param((1,), id="one map"), pytest.param((8,), id="eight maps"), pytest.param((2, 1, 2), id="three runs")],
)
def test_a_row_and_a_map_more_make_the_picture_larger_by_a_cell(tmp_path, sizes):
    path = tmp_path / "new" / "attention.png"
    runs = [make_run(f"run {number}", num_maps=size) for number, size in enumerate(sizes)]
    draw_attention(ROWS, runs, path, note="over nothing")
    height, width = cv2.imread(str(path)).shape[:2]
    cells = [make_run(num_maps=size, num_rows=1) for size in sizes]
    draw_attention(ROWS[:1], cells, path, note="over nothing")
    lower, same = cv2.imread(str(path)).shape[:2]
    assert width == same
    assert height - lower == pytest.approx(DPI * (CELL + GAP), abs=1)
    assert width > DPI * CELL * (1 + sum(sizes))


def test_every_map_stands_in_the_picture(tmp_path):
    """Maps that are all hot: as many cells of the brightest colour as there are maps."""
    crop = np.full((32, 32, 3), 128, np.uint8)
    run = RunMaps("run", [FaceMaps(crop, np.ones((3, 32, 32)), 0.5)] * 2, {})
    draw_attention(ROWS, [run], tmp_path / "a.png")
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "a.png")), cv2.COLOR_BGR2RGB)
    hot = (np.abs(picture.astype(int) - color_bar()[-1]) <= 1).all(axis=-1)
    counts = cv2.connectedComponentsWithStats(hot.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    assert (counts > 0.9 * (DPI * CELL) ** 2).sum() == 6


def test_the_page_holds_every_row_and_nothing_from_elsewhere():
    runs = [make_run("RIL & none", num_maps=2), make_run("RIL", num_maps=3, statistics={"map_entropy": 0.5})]
    page = attention_page("A <title>", ROWS, runs, note="Over 2 faces.")
    reader = Reader(page)
    text = " ".join(reader.words)
    assert reader.loaded == [] and "http" not in page
    assert len(reader.images) == 2 * (1 + 2 + 3)
    assert all(image["alt"] for image in reader.images)
    assert len({image["alt"] for image in reader.images}) == len(reader.images)
    for row in ROWS:
        assert row.title in text and row.video in text and f"frame {row.frame}" in text
    for words in ("A <title>", "RIL & none", "0.125", "0.250", "Over 2 faces.", "0.750", "none"):
        assert words in text
    assert "prefers-color-scheme: dark" in page


def test_the_pages_images_are_the_overlays():
    run = make_run(num_maps=1)
    found = picture_in(Reader(attention_page("t", ROWS, [run])).images[1])
    assert found.shape == (32, 32, 3)
    assert np.abs(found.mean(axis=(0, 1)) - run.pictures(0, "run")[0].mean(axis=(0, 1))).max() < 2


@pytest.mark.parametrize(("rows", "runs"), [([], [make_run(num_rows=0)]), (ROWS, [])], ids=["no faces", "no runs"])
def test_what_makes_no_grid_is_refused(tmp_path, rows, runs):
    with pytest.raises(ValueError, match="at least one face and one run"):
        draw_attention(rows, runs, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
