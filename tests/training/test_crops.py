"""The training table of a fold and its loaders."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from multiattn.config import DataConfig
from multiattn.tables import FACES, FOLDS
from multiattn.training.crops import FoldCrops, _spread_frames, split_crops, training_loader, validation_loader

SIZE = 32


def make_faces(crops: dict[str, int]) -> pd.DataFrame:
    """video_id -> number of crops."""
    rows = [
        dict.fromkeys(FACES.columns, 0.0)
        | {"video_id": video, "frame_index": frame, "track": 0, "crop": f"crops/{video}/{frame}.png", "score": 0.9}
        for video, count in crops.items()
        for frame in range(count)
    ]
    return FACES.validate(pd.DataFrame(rows, columns=list(FACES.columns)), "faces").sort_values(
        list(FACES.key), ignore_index=True
    )


def make_folds(**videos: tuple[int, int]) -> pd.DataFrame:
    """name -> (label, fold)."""
    rows = [(f"d/{name}", label, f"d/{name}", fold) for name, (label, fold) in videos.items()]
    return FOLDS.validate(pd.DataFrame(rows, columns=list(FOLDS.columns)), "folds")


FOLDS_OF_FIVE = {"r0": (0, 0), "f0": (1, 0), "r1": (0, 1), "f1": (1, 1), "extra": (1, -1)}
CROPS_OF_FIVE = {"d/r0": 2, "d/f0": 3, "d/r1": 1, "d/f1": 4, "d/extra": 1}


def test_one_fold_validates_and_all_others_train(tmp_path):
    crops = split_crops(make_faces(CROPS_OF_FIVE), make_folds(**FOLDS_OF_FIVE), 1, tmp_path)
    assert crops.training.groupby("video_id").size().to_dict() == {"d/extra": 1, "d/f0": 3, "d/r0": 2}
    assert crops.validation.groupby("video_id").size().to_dict() == {"d/f1": 4, "d/r1": 1}
    assert crops.held_out["video_id"].tolist() == ["d/r1", "d/f1"]
    assert dict(zip(crops.training["video_id"], crops.training["label"], strict=True)) == {
        "d/r0": 0,
        "d/f0": 1,
        "d/extra": 1,
    }
    assert set(crops.training["video_id"]).isdisjoint(crops.validation["video_id"])


def test_rows_stay_sorted_by_key(tmp_path):
    crops = split_crops(make_faces(CROPS_OF_FIVE), make_folds(**FOLDS_OF_FIVE), 0, tmp_path)
    for table in (crops.training, crops.validation):
        keys = table[list(FACES.key)]
        pd.testing.assert_frame_equal(keys, keys.sort_values(list(FACES.key), ignore_index=True))


def test_videos_without_a_face_are_held_out_all_the_same(tmp_path):
    folds = make_folds(**FOLDS_OF_FIVE, faceless=(1, 0))
    crops = split_crops(make_faces(CROPS_OF_FIVE), folds, 0, tmp_path)
    assert "d/faceless" in set(crops.held_out["video_id"])
    assert "d/faceless" not in set(crops.validation["video_id"])


def test_crops_of_videos_outside_the_folds_are_left_out(tmp_path):
    crops = split_crops(make_faces({**CROPS_OF_FIVE, "d/test": 3}), make_folds(**FOLDS_OF_FIVE), 0, tmp_path)
    assert "d/test" not in set(crops.training["video_id"]) | set(crops.validation["video_id"])


@pytest.mark.parametrize(
    ("changes", "fold", "expected"),
    [
        pytest.param({}, 2, r"--fold 2: no such fold; folds present: \[0, 1\], or all", id="no such fold"),
        pytest.param({}, -1, r"--fold -1: no such fold", id="-1 is no fold"),
        pytest.param(
            {"d/r0": 0, "d/f0": 0}, 0, r"validation crops .* labels \[\] in 0 crops", id="nothing to validate"
        ),
        pytest.param({"d/r0": 0}, 0, r"validation crops .* labels \[1\] in 3 crops", id="validation of fakes only"),
        pytest.param({"d/f0": 0}, 0, r"validation crops .* labels \[0\] in 2 crops", id="validation of reals only"),
        pytest.param({"d/r1": 0}, 0, r"training crops .* labels \[1\] in 5 crops", id="training of fakes only"),
        pytest.param(
            {"d/f1": 0, "d/extra": 0}, 0, r"training crops .* labels \[0\] in 1 crops", id="training of reals only"
        ),
        pytest.param(dict.fromkeys(CROPS_OF_FIVE, 0), 0, r"training crops .* in 0 crops", id="no faces"),
    ],
)
def test_what_cannot_be_trained_or_validated_is_refused(changes, fold, expected, tmp_path):
    with pytest.raises(ValueError, match=expected) as caught:
        split_crops(make_faces({**CROPS_OF_FIVE, **changes}), make_folds(**FOLDS_OF_FIVE), fold, tmp_path)
    assert fold not in (0, 1) or str(tmp_path) in str(caught.value)


@pytest.fixture
def crops(tmp_path):
    """Five videos whose crops on disk say in their red channel which row of `faces` they are."""
    faces = make_faces(CROPS_OF_FIVE)
    for row, name in enumerate(faces["crop"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (10 * row, 0, 0)).save(tmp_path / name)
    return split_crops(faces, make_folds(**FOLDS_OF_FIVE), 0, tmp_path)


def config(**changes) -> DataConfig:
    return DataConfig(
        **{"image_size": SIZE, "augmentation": "none", "frames_per_video": 1, "batch_size": 2, "num_workers": 0}
        | changes
    )


def test_training_batches_are_crops_with_the_labels_of_their_videos(crops):
    loader = training_loader(crops, config(), seed=7, rank=0, world_size=1)
    faces = make_faces(CROPS_OF_FIVE)
    label_of = {f"d/{name}": label for name, (label, _) in FOLDS_OF_FIVE.items()}
    seen = []
    for images, labels in loader:
        assert (tuple(images.shape), images.dtype, labels.dtype) == ((2, SIZE, SIZE, 3), torch.uint8, torch.int64)
        for image, label in zip(images, labels, strict=True):
            video = faces["video_id"][int(image[0, 0, 0]) // 10]
            assert label_of[video] == int(label)
            seen.append(int(label))
    assert seen.count(0) == seen.count(1) == 2


def test_training_batches_do_not_depend_on_the_workers(crops):
    def epoch(num_workers: int) -> list[np.ndarray]:
        settings = config(num_workers=num_workers, augmentation="standard")
        loader = training_loader(crops, settings, seed=7, rank=0, world_size=1)
        loader.batch_sampler.epoch = 3
        return [images.numpy() for images, _ in loader]

    for one, other in zip(epoch(0), epoch(1), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_validation_takes_every_crop_once_over_all_ranks(crops, world_size):
    found = []
    for rank in range(world_size):
        loader = validation_loader(crops, config(), rank=rank, world_size=world_size)
        rows = [int(image[0, 0, 0]) // 10 for images in loader for image in images]
        expected = crops.validation["crop"].iloc[rank::world_size].tolist()
        assert [make_faces(CROPS_OF_FIVE)["crop"][row] for row in rows] == expected
        found += rows
    assert len(found) == len(set(found)) == len(crops.validation)


@pytest.mark.parametrize(
    ("frames", "wanted", "kept"),
    [
        pytest.param(range(0, 100, 10), 5, [0, 20, 40, 60, 80], id="every second"),
        pytest.param([3], 4, [3], id="one frame"),
        pytest.param([1, 5, 9], 3, [1, 5, 9], id="as many as there are"),
        pytest.param([1, 5, 9], 8, [1, 5, 9], id="fewer than wanted"),
        pytest.param(range(7), 2, [0, 4], id="uneven"),
        pytest.param(range(7), 1, [0], id="one wanted"),
    ],
)
def test_validation_frames_are_spread_over_each_video_and_keep_all_its_tracks(frames, wanted, kept):
    rows = [(video, frame, track) for video in "ab" for frame in frames for track in (0, 1)]
    table = pd.DataFrame(rows, columns=["video_id", "frame_index", "track"])
    spread = _spread_frames(table, wanted)
    expected = [(video, frame, track) for video in "ab" for frame in kept for track in (0, 1)]
    assert list(spread.itertuples(index=False, name=None)) == expected


def test_the_fingerprint_changes_with_the_crops():
    table = pd.DataFrame({"crop": ["a", "b"]})
    first = FoldCrops(Path("f"), table, table[:1], table)
    assert first.fingerprint() == FoldCrops(Path("elsewhere"), table, table[:1], table).fingerprint()
    assert first.fingerprint() != FoldCrops(Path("f"), table[:1], table, table).fingerprint()
    assert first.fingerprint() != FoldCrops(Path("f"), table, table, table).fingerprint()
