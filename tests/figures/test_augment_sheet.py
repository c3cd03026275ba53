"""Contact sheets of augmentation: which crops are shown and what is made of them; cells, words and marks."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from drawn_faces import write_faces_folder
from multiattn.figures.augment import FolderCrops, SheetRow, augmentations_figure
from multiattn.tables import LANDMARKS
from multiattn.training.data.augment import PRESETS
from multiattn.video.crops.recipe import TEMPLATE, CropRecipe


def sheet_row(draws: int, *, kind: str = "real", differences: bool = False, marked: bool = False) -> SheetRow:
    crop = np.full((40, 40, 3), 90, np.uint8)
    return SheetRow(
        kind,
        "set/a_rather_long_folder/a_video_of_a_long_name",
        7,
        crop,
        [np.full_like(crop, 20 * number) for number in range(draws)],
        [np.full((40, 40), 30.0) for _ in range(draws)] if differences else [],
        landmarks=40 * TEMPLATE if marked else None,
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


def test_no_draws_at_all_leaves_the_originals():
    assert len(augmentations_figure([sheet_row(0)], "x").axes) == 1


SIZE = 64
LABELS = {"d/a": 1, "d/b": 1, "d/c": 1, "d/r": 0, "d/s": 0, "d/u": -1}


def make_folder(folder: Path, labels: dict[str, int], *, landmarks: np.ndarray = 3 * TEMPLATE, **recipe) -> Path:
    """Four frames of each video; frame 0 also has a second face."""
    numbers = np.random.default_rng(0)
    rows = []
    for video in labels:
        for frame, track in ((0, 0), (0, 1), (10, 0), (20, 0), (30, 0)):
            crop = f"crops/{video}/{frame}_{track}.png"
            (folder / crop).parent.mkdir(parents=True, exist_ok=True)
            picture = cv2.resize(numbers.uniform(30, 220, (8, 8, 3)).astype(np.float32), (SIZE, SIZE))
            cv2.imwrite(str(folder / crop), picture.astype(np.uint8))
            rows.append({"video_id": video, "frame_index": frame, "seconds": frame / 30, "track": track, "crop": crop})
    points = dict(zip(LANDMARKS, (100 * landmarks).ravel(), strict=True))
    faces = pd.DataFrame(rows).assign(x1=0.0, y1=0.0, x2=300.0, y2=300.0, score=1.0, **points)
    recipe = CropRecipe(num_frames=4, size=SIZE, **recipe)
    return write_faces_folder(folder, faces, labels, recipe, methods={"d/b": "swap"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("faces"), LABELS)


def test_real_and_fake_videos_take_turns_and_real_ones_are_shown_first(folder):
    chosen = FolderCrops.of(folder, count=4)
    assert chosen.rows["video_id"].tolist() == ["d/r", "d/s", "d/a", "d/b"]
    assert chosen.rows["kind"].tolist() == ["real", "real", "fake", "swap"]
    assert set(chosen.rows["frame_index"]) == {20} and set(chosen.rows["track"]) == {0}


@pytest.mark.parametrize(("count", "shown"), [(1, ["d/r"]), (5, ["d/r", "d/s", "d/a", "d/b", "d/c"]), (50, None)])
def test_as_many_videos_as_asked_for_or_all_that_are_labelled(folder, count, shown):
    rows = FolderCrops.of(folder, count=count).rows
    assert rows["video_id"].tolist() == (shown or ["d/r", "d/s", "d/a", "d/b", "d/c"])


def test_real_ones_only_for_self_blending(folder):
    assert FolderCrops.of(folder, count=9, real_only=True).rows["video_id"].tolist() == ["d/r", "d/s"]


@pytest.mark.parametrize(("labels", "what"), [({"d/u": -1}, "labelled"), ({"d/a": 1}, "real")])
def test_a_folder_without_such_crops_is_refused(labels, what, tmp_path):
    make_folder(tmp_path, labels)
    advice = {"labelled": "Labels come from", "real": "Leave sbi out of --presets"}[what]
    with pytest.raises(ValueError, match=rf"expected crops of {what} videos, found none among 5 crops\. {advice}"):
        FolderCrops.of(tmp_path, count=2, real_only=what == "real")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_drawn_with_landmarks_where_they_lie(folder, preset):
    first, again = (FolderCrops.of(folder, count=2).through_preset(preset, draws=3) for _ in range(2))
    assert [row.kind for row in first] == ["real", "fake"]
    for row, same in zip(first, again, strict=True):
        assert [draw.shape for draw in row.draws] == [(SIZE, SIZE, 3)] * 3
        assert all(np.array_equal(a, b) for a, b in zip(row.draws, same.draws, strict=True))
        np.testing.assert_allclose(row.landmarks, TEMPLATE * SIZE, atol=0.01)
        assert row.differences == []


def test_another_size_and_seed_show_other_pictures(folder):
    chosen = FolderCrops.of(folder, count=1, size=48)
    one, other = (chosen.through_preset("selim", draws=4, seed=seed)[0] for seed in (0, 1))
    assert one.crop.shape == (48, 48, 3)
    assert any(not np.array_equal(a, b) for a, b in zip(one.draws, other.draws, strict=True))


def test_no_strength_shows_wild_moved_alone(folder):
    chosen = FolderCrops.of(folder, count=1)
    (strong,), (none,) = (chosen.through_preset("wild", draws=8, strength=strength) for strength in (1.0, 0.0))
    differ = [not np.array_equal(a, b) for a, b in zip(strong.draws, none.draws, strict=True)]
    assert 0 < sum(differ) < 8, "some are degraded, and with no strength none of them"


def test_a_size_above_the_folders_is_refused(folder):
    with pytest.raises(ValueError, match=r"--size: expected at most 64, the side of the crops in .*, found 65"):
        FolderCrops.of(folder, count=1, size=65)


def test_self_blended_images_come_with_what_they_differ_in(folder):
    for row in FolderCrops.of(folder, count=2, real_only=True).self_blended(draws=3):
        assert len(row.draws) == len(row.differences) == 3
        assert all(difference.shape == (SIZE, SIZE) and difference.max() > 0 for difference in row.differences)
        assert all(difference[:4].max() == 0 for difference in row.differences), "nothing at the crop's edge"


@pytest.mark.parametrize(
    ("landmarks", "recipe"),
    [
        pytest.param(0 * TEMPLATE, {}, id="no landmarks stored"),
        pytest.param(3 * TEMPLATE, {"template": "another program's"}, id="crops of another program"),
    ],
)
def test_without_landmarks_presets_are_drawn_and_self_blending_is_refused(landmarks, recipe, tmp_path):
    make_folder(tmp_path, {"d/r": 0}, landmarks=landmarks, **recipe)
    chosen = FolderCrops.of(tmp_path, count=1)
    row = chosen.through_preset("selim", draws=2)[0]
    assert row.landmarks is None
    with pytest.raises(ValueError, match=r"self-blending needs landmarks.* Leave sbi out of --presets"):
        chosen.self_blended(draws=1)
