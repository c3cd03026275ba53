"""What a visit shows: landmarks where the face is, earlier crops of the same face, real crops turned into fakes."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from multiattn.config import DataConfig
from multiattn.tables import LANDMARKS
from multiattn.training.data.augment import EARLIER_CROPS, CropContext, blend_target, self_blend
from multiattn.training.data.crops import FoldCrops, TrainingCrops, training_loader
from multiattn.training.data.sampling import Visit
from multiattn.video.crops.recipe import CropRecipe, align_crop, write_recipe

FACE = np.array([[140, 120], [185, 112], [165, 150], [150, 180], [190, 175]], dtype=np.float64)
"""Eyes, nose and mouth corners in a frame of 320 x 300 pixels: a face that tilts."""


def make_folder(folder: Path, size: int, videos: dict[str, tuple[int, list[tuple[int, int]]]]) -> FoldCrops:
    """video -> (label, [(frame, track)]): each crop shows a dot at each landmark, and its row in the first pixel."""
    rows, faces = [], []
    for video, (label, places) in videos.items():
        for frame, track in places:
            points = FACE + (frame, track)
            image = np.full((300, 320, 3), 60, np.uint8)
            for x, y in points:
                cv2.circle(image, (round(16 * x), round(16 * y)), 16 * 2, (255, 255, 255), -1, cv2.LINE_AA, 4)
            crop = align_crop(image, points, size)
            crop[:2, :2] = len(rows)
            rows.append((video, frame, track, f"{video}_{frame}_{track}.png", label, len(rows)))
            faces.append(points.reshape(-1))
            cv2.imwrite(str(folder / rows[-1][3]), crop)
    write_recipe(CropRecipe(size=size), folder)
    table = pd.DataFrame(rows, columns=["video_id", "frame_index", "track", "crop", "label", "face"])
    return FoldCrops(folder, table, table, table, pd.DataFrame(faces, columns=list(LANDMARKS), dtype="float32"))


def make_dataset(crops: FoldCrops, **settings) -> TrainingCrops:
    return TrainingCrops(crops.folder, crops.training, crops.faces, DataConfig(**settings))


class Watcher:
    """Stands where the augmentation stands, and keeps what it is given."""

    needs_landmarks = needs_clip = True

    def __call__(self, crop: np.ndarray, seed: int, context: CropContext, *, geometry_seed: int | None) -> np.ndarray:
        self.crop, self.seed, self.context, self.geometry_seed = crop, seed, context, geometry_seed
        return crop


def look(dataset: TrainingCrops, visit: Visit) -> tuple[Watcher, np.ndarray, int]:
    watcher = dataset.augmentation = Watcher()
    out = np.zeros((dataset.size, dataset.size, 3), np.uint8)
    label = dataset.fill(visit, out)
    return watcher, out, label


@pytest.mark.parametrize(("stored", "size"), [(96, 96), (96, 64), (128, 64), (200, 50)], ids=str)
def test_landmarks_lie_where_the_crop_shows_them(stored, size, tmp_path):
    crops = make_folder(tmp_path, stored, {"r": (0, [(0, 0)]), "f": (1, [(7, 3)])})
    dataset = make_dataset(crops, image_size=size, augmentation="selim")
    for row in (0, 1):
        watcher, out, _ = look(dataset, Visit(row, 5))
        assert (watcher.context.landmarks.shape, watcher.context.landmarks.dtype) == ((5, 2), np.float32)
        bright = np.clip(out[..., 0].astype(float) - 70, 0, None)
        bright[:3, :3] = 0
        y, x = np.mgrid[:size, :size]
        reach = size / 12
        for point in watcher.context.landmarks:
            near = bright * (np.hypot(x - point[0], y - point[1]) < reach)
            centre = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
            assert np.abs(centre - point).max() < 0.35


def test_a_clip_is_the_earlier_crops_of_the_same_face_oldest_first(tmp_path):
    places = [(frame, track) for frame in range(6) for track in (0, 1)]
    crops = make_folder(tmp_path, 96, {"a": (0, places), "b": (1, [(0, 0), (1, 0)])})
    dataset = make_dataset(crops, image_size=96, augmentation="ntech")

    def earlier(row: int) -> list[tuple]:
        watcher, out, _ = look(dataset, Visit(row, 5))
        assert int(out[0, 0, 0]) == row
        rows = [int(crop[0, 0, 0]) for crop in watcher.context.clip()]
        return list(crops.training.loc[rows, ["video_id", "frame_index", "track"]].itertuples(index=False, name=None))

    assert earlier(0) == []
    assert earlier(1) == []
    assert earlier(4) == [("a", 0, 0), ("a", 1, 0)]
    assert earlier(11) == [("a", frame, 1) for frame in range(5 - EARLIER_CROPS, 5)]
    assert earlier(12) == []
    assert earlier(13) == [("b", 0, 0)]


def test_seeds_reach_the_augmentation(tmp_path):
    dataset = make_dataset(make_folder(tmp_path, 96, {"r": (0, [(0, 0)])}), image_size=96, augmentation="selim")
    for visit in (Visit(0, 11), Visit(0, 11, 3)):
        watcher, *_ = look(dataset, visit)
        assert (watcher.seed, watcher.geometry_seed) == (11, visit.geometry_seed)


def test_a_preset_without_landmarks_is_given_none_and_reads_none(tmp_path):
    crops = make_folder(tmp_path, 96, {"r": (0, [(0, 0)])})
    (tmp_path / "faces.json").unlink()
    dataset = TrainingCrops(tmp_path, crops.training, None, DataConfig(image_size=96, augmentation="paper"))
    watcher, *_ = look(dataset, Visit(0, 1))
    assert watcher.context.landmarks is None
    assert dataset.landmarks is None


# --- self-blended images --------------------------------------------------------------------------------------------


@pytest.fixture
def blended(tmp_path) -> TrainingCrops:
    """One real and one fake crop, the real one shown as a self-blended fake in half of its visits."""
    crops = make_folder(tmp_path, 96, {"r": (0, [(0, 0)]), "f": (1, [(0, 0)])})
    return make_dataset(crops, image_size=96, augmentation="none", sbi=0.5)


def show(dataset: TrainingCrops, row: int, seed: int) -> tuple[np.ndarray, int]:
    out = np.zeros((dataset.size, dataset.size, 3), np.uint8)
    return out, dataset.fill(Visit(row, seed), out)


def test_labels_follow_what_is_shown(blended):
    """A real crop stays real where it shows the picture that fakes are blended onto, and is a fake where it is one."""
    stored, labels = blended.read(0), []
    for seed in range(60):
        crop, label = show(blended, 0, seed)
        expected = self_blend(stored, blended._landmarks_of_crop(0), seed) if label else blend_target(stored, seed)
        np.testing.assert_array_equal(crop, expected)
        labels.append(label)
    assert 15 <= sum(labels) <= 45


def test_a_fake_is_never_blended_but_changes_as_a_whole_as_often_as_real_crops_do(blended):
    for seed in range(20):
        crop, label = show(blended, 1, seed)
        assert label == 1
        np.testing.assert_array_equal(crop, blend_target(blended.read(1), seed))


def test_what_a_visit_shows_follows_from_its_seed_alone(blended):
    for seed in (3, 4, 5, 6):
        (one, label), (again, label_again) = show(blended, 0, seed), show(blended, 0, seed)
        np.testing.assert_array_equal(one, again)
        assert label == label_again


@pytest.mark.parametrize(("sbi", "fakes"), [(0.0, 0.5), (0.25, 0.5), (0.5, 0.5), (0.8, 0.8)])
def test_classes_stay_balanced_as_long_as_there_are_forged_videos_to_leave_out(sbi, fakes, tmp_path):
    places = [(frame, 0) for frame in range(10)]
    crops = make_folder(tmp_path, 32, {"r": (0, places), "s": (0, places), "f": (1, places), "g": (1, places)})
    settings = DataConfig(
        image_size=32, augmentation="none", sbi=sbi, num_workers=0, frames_per_video=10, videos_per_class=15
    )
    loader = training_loader(crops, settings, seed=7, rank=0, world_size=1)
    labels = [label for _, batch in loader for label in batch.tolist()]
    assert len(labels) == 300
    assert np.mean(labels) == pytest.approx(fakes, abs=0.08)


# --- what is refused ------------------------------------------------------------------------------------------------

NEEDS = [({"augmentation": "selim"}, "--data.augmentation selim"), ({"sbi": 0.25}, "--sbi 0.25")]


@pytest.mark.parametrize(("settings", "option"), NEEDS, ids=["a preset", "sbi"])
@pytest.mark.parametrize("value", [0.0, np.nan, 31.0], ids=["zeros", "not a number", "one point"])
def test_crops_without_landmarks_are_refused_by_the_option_that_needs_them(value, settings, option, tmp_path):
    crops = make_folder(tmp_path, 96, {"r": (0, [(0, 0), (1, 0)])})
    crops.faces.iloc[1] = value
    with pytest.raises(ValueError, match=r"1 of 2 have none; the first: r_1_0\.png") as caught:
        make_dataset(crops, image_size=96, **settings)
    assert option in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("settings", "option"), NEEDS, ids=["a preset", "sbi"])
def test_crops_of_another_program_are_refused_where_landmarks_are_needed(settings, option, tmp_path):
    crops = make_folder(tmp_path, 96, {"r": (0, [(0, 0)])})
    write_recipe(CropRecipe(size=96, template="another"), tmp_path)
    with pytest.raises(ValueError, match="another program") as caught:
        make_dataset(crops, image_size=96, **settings)
    assert option in str(caught.value)
    make_dataset(crops, image_size=96, augmentation="paper")
