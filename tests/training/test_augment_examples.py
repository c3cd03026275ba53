"""Which crops of a faces folder are shown, and what is made of them."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from multiattn.tables import FACES, LANDMARKS, VIDEO_STATUS, VIDEOS
from multiattn.training.data.augment import PRESETS
from multiattn.training.data.augment.examples import FolderCrops
from multiattn.video.crops.recipe import TEMPLATE, CropRecipe, write_recipe

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
            points = dict(zip(LANDMARKS, (100 * landmarks).ravel(), strict=True))
            box = dict(zip(("x1", "y1", "x2", "y2"), (0.0, 0.0, 300.0, 300.0), strict=True))
            rows.append(
                {"video_id": video, "frame_index": frame, "seconds": frame / 30, "track": track, "crop": crop}
                | box
                | {"score": 1.0}
                | points
            )
    FACES.write(pd.DataFrame(rows)[list(FACES.columns)], folder / "faces.parquet")
    statuses = [(video, "ok", 4, 5, "") for video in labels]
    VIDEO_STATUS.write(pd.DataFrame(statuses, columns=list(VIDEO_STATUS.columns)), folder / "video_status.csv")
    empty = dict.fromkeys(VIDEOS.columns, "")
    videos = [
        empty | {"video_id": v, "path": f"{v}.mp4", "dataset": "d", "label": label, "method": "swap" * (v == "d/b")}
        for v, label in labels.items()
    ]
    VIDEOS.write(pd.DataFrame(videos), folder / "videos.csv")
    write_recipe(CropRecipe(num_frames=4, size=SIZE, **recipe), folder)
    return folder


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
    with pytest.raises(ValueError, match=f"expected crops of {what} videos, found none among 5 crops"):
        FolderCrops.of(tmp_path, count=2, real_only=what == "real")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_drawn_with_landmarks_where_they_lie(folder, preset):
    first, again = (FolderCrops.of(folder, count=2).through_preset(preset, draws=3) for _ in range(2))
    assert [example.kind for example in first] == ["real", "fake"]
    for example, same in zip(first, again, strict=True):
        assert [draw.shape for draw in example.draws] == [(SIZE, SIZE, 3)] * 3
        assert all(np.array_equal(a, b) for a, b in zip(example.draws, same.draws, strict=True))
        np.testing.assert_allclose(example.landmarks, TEMPLATE * SIZE, atol=0.01)
        assert example.differences == []


def test_another_size_and_seed_show_other_pictures(folder):
    chosen = FolderCrops.of(folder, count=1, size=48)
    one, other = (chosen.through_preset("selim", draws=4, seed=seed)[0] for seed in (0, 1))
    assert one.crop.shape == (48, 48, 3)
    assert any(not np.array_equal(a, b) for a, b in zip(one.draws, other.draws, strict=True))


def test_self_blended_images_come_with_what_they_differ_in(folder):
    examples = FolderCrops.of(folder, count=2, real_only=True).self_blended(draws=3)
    for example in examples:
        assert len(example.draws) == len(example.differences) == 3
        assert all(difference.shape == (SIZE, SIZE) and difference.max() > 0 for difference in example.differences)
        assert all(difference[:4].max() == 0 for difference in example.differences), "nothing at the crop's edge"


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
    example = chosen.through_preset("selim", draws=2)[0]
    assert example.landmarks is None and example.outline is None
    with pytest.raises(ValueError, match="self-blending needs landmarks"):
        chosen.self_blended(draws=1)
