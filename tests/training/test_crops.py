"""The training table of a fold, what a visit of a crop shows, and the loaders."""

import dataclasses
import os
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from multiattn.bench.train_sides import never_waiting
from multiattn.config import DataConfig
from multiattn.tables import BOX, FACES, FOLDS, LANDMARKS, VIDEO_STATUS, VIDEOS
from multiattn.training.data.augment import EARLIER_CROPS, Augmentation, CropContext, blend_target, self_blend
from multiattn.training.data.crops import (
    FoldCrops,
    TrainingCrops,
    _spread_frames,
    class_weights,
    split_crops,
    training_loader,
    validation_loader,
)
from multiattn.training.data.sampling import Visit
from multiattn.training.folds import read_training_data
from multiattn.video.crops.images import read_crop
from multiattn.video.crops.recipe import CropRecipe, cut_crop, write_recipe

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
    rows = [(f"d/{name}", label, f"d/{name}", fold, "") for name, (label, fold) in videos.items()]
    return FOLDS.validate(pd.DataFrame(rows, columns=list(FOLDS.columns)), "folds")


FOLDS_OF_FIVE = {"r0": (0, 0), "f0": (1, 0), "r1": (0, 1), "f1": (1, 1), "extra": (1, -1)}
CROPS_OF_FIVE = {"d/r0": 2, "d/f0": 3, "d/r1": 1, "d/f1": 4, "d/extra": 1}


def test_one_fold_validates_and_all_others_train(tmp_path):
    """A video without a face is held out all the same; crops of videos outside the folds are left out."""
    faces, folds = make_faces({**CROPS_OF_FIVE, "d/test": 3}), make_folds(**FOLDS_OF_FIVE, faceless=(1, 1))
    crops = split_crops(faces, folds, 1, tmp_path)
    assert crops.training.groupby(["video_id", "label"]).size().to_dict() == {
        ("d/extra", 1): 1, ("d/f0", 1): 3, ("d/r0", 0): 2
    }  # fmt: skip
    assert crops.validation.groupby(["video_id", "label"]).size().to_dict() == {("d/f1", 1): 4, ("d/r1", 0): 1}
    assert crops.held_out["video_id"].tolist() == ["d/r1", "d/f1", "d/faceless"]


def test_every_row_knows_its_place_among_the_faces_and_rows_stay_sorted_by_key(tmp_path):
    faces = make_faces({"d/test": 3, **CROPS_OF_FIVE})
    crops = split_crops(faces, make_folds(**FOLDS_OF_FIVE), 0, tmp_path, validation_frames=1)
    for table in (crops.training, crops.validation):
        assert faces["crop"].to_numpy()[table["face"]].tolist() == table["crop"].tolist()
        keys = table[list(FACES.key)]
        pd.testing.assert_frame_equal(keys, keys.sort_values(list(FACES.key), ignore_index=True))


def test_the_first_column_may_be_categories_as_millions_of_rows_are_read(tmp_path):
    faces, folds = make_faces(CROPS_OF_FIVE), make_folds(**FOLDS_OF_FIVE)
    categories = split_crops(faces.astype({"video_id": "category"}), folds, 1, tmp_path, validation_frames=2)
    texts = split_crops(faces, folds, 1, tmp_path, validation_frames=2)
    for name in ("training", "validation"):
        expected = getattr(texts, name)
        pd.testing.assert_frame_equal(getattr(categories, name).astype({"video_id": str}), expected)
    assert categories.validation["video_id"].dtype == texts.validation["video_id"].dtype


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"d/r0": 0, "d/f0": 0}, r"validation crops .* labels none in 0 crops", id="nothing to validate"),
        pytest.param({"d/r0": 0}, r"validation crops .* labels 1 in 3 crops", id="validation of fakes only"),
        pytest.param({"d/f0": 0}, r"validation crops .* labels 0 in 2 crops", id="validation of reals only"),
        pytest.param({"d/r1": 0}, r"training crops .* labels 1 in 5 crops", id="training of fakes only"),
        pytest.param({"d/f1": 0, "d/extra": 0}, r"training .* labels 0 in 1 crop", id="training of reals only"),
        pytest.param(dict.fromkeys(CROPS_OF_FIVE, 0), r"training crops .* in 0 crops", id="no faces"),
    ],
)
def test_what_cannot_be_trained_or_validated_is_refused(changes, expected, tmp_path):
    with pytest.raises(ValueError, match=expected) as caught:
        split_crops(make_faces({**CROPS_OF_FIVE, **changes}), make_folds(**FOLDS_OF_FIVE), 0, tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.fixture
def crops(tmp_path):
    """Five videos whose crops on disk say in their red channel which row of `faces` they are."""
    faces = make_faces(CROPS_OF_FIVE)
    for row, name in enumerate(faces["crop"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (10 * row, 0, 0)).save(tmp_path / name)
    FACES.write(faces, tmp_path / "faces.parquet")
    write_recipe(CropRecipe(size=SIZE), tmp_path)
    return split_crops(faces, make_folds(**FOLDS_OF_FIVE), 0, tmp_path)


CONFIG = {"image_size": SIZE, "augmentation": "none", "frames_per_video": 1, "batch_size": 2, "num_workers": 0}


def config(**changes) -> DataConfig:
    return DataConfig(**CONFIG | changes)


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


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_lie_in_pinned_memory_and_reach_the_gpu_while_it_computes(crops, num_workers):
    loader = training_loader(crops, config(num_workers=num_workers), seed=7, rank=0, world_size=1)
    for images, labels in loader:
        assert images.is_pinned() and labels.is_pinned()
        with never_waiting(torch.device("cuda")):
            on_gpu = images.to("cuda", non_blocking=True)
        assert torch.equal(on_gpu.cpu(), images)


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": "standard"},
        {"augmentation": "wild", "strength": 0.8, "strength_epochs": 5.0},
        {"cache": "memory"},
        {"cache": "disk"},
    ],
    ids=str,
)
def test_training_batches_do_not_depend_on_the_workers(changes, crops):
    def epoch(num_workers: int) -> list[np.ndarray]:
        settings = config(num_workers=num_workers, frames_per_video=9, **changes)
        loader = training_loader(crops, settings, seed=7, rank=0, world_size=1)
        found = []
        for number in (3, 4):
            loader.batch_sampler.epoch = number
            found += [images.numpy() for images, _ in loader]
        return found

    one, *others = (epoch(num_workers) for num_workers in (0, 1, 2))
    assert len(one) == 2 * 18
    for other in others:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "workers"),
    [(2, "1", 8, 2), (8, "4", 8, 2), (1, "3", 2, 1), (8, "1", 3, 3)],
    ids=str,
)
def test_workers_are_never_more_than_a_process_has_cores(crops, monkeypatch, cores, processes, asked, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    training = training_loader(crops, config(num_workers=asked), seed=7, rank=0, world_size=1)
    validation = validation_loader(crops, config(num_workers=asked), rank=0, world_size=1)
    assert training.num_workers == validation.num_workers == workers


def test_a_loader_begins_inside_an_epoch_and_is_whole_again_in_the_next(crops):
    loader = training_loader(crops, config(num_workers=1, frames_per_video=4), seed=7, rank=0, world_size=1)

    def epoch(number: int, first_batch: int = 0) -> list[np.ndarray]:
        loader.batch_sampler.epoch, loader.batch_sampler.first_batch = number, first_batch
        return [images.numpy() for images, _ in loader]

    whole, second = epoch(0), epoch(1)
    assert len(whole) == len(loader) == 8
    np.testing.assert_array_equal(epoch(0, 3), whole[3:])
    assert epoch(0, 8) == []
    np.testing.assert_array_equal(epoch(1), second)


def test_an_epoch_that_is_left_early_does_no_harm_to_the_next(crops):
    loader = training_loader(crops, config(num_workers=2, frames_per_video=8), seed=7, rank=0, world_size=1)
    whole = [images.numpy() for images, _ in loader]
    for _ in range(6):
        next(iter(loader))
    np.testing.assert_array_equal([images.numpy() for images, _ in loader], whole)


def test_batches_stay_as_they_came_while_others_follow(crops):
    """The places that workers write into are used again; a batch that was handed out is not one of them."""
    loader = training_loader(crops, config(num_workers=1, frames_per_video=20), seed=7, rank=0, world_size=1)
    kept = [(images, images.clone()) for images, _ in loader]
    assert len(kept) == 40
    assert all(torch.equal(images, copy) for images, copy in kept)


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [(1, {}), (2, {}), (3, {}), (7, {}), (2, {"num_workers": 1}), (3, {"cache": "memory"})],
    ids=str,
)
def test_validation_takes_every_crop_once_over_all_ranks(crops, world_size, changes):
    found = []
    for rank in range(world_size):
        loader = validation_loader(crops, config(**changes), rank=rank, world_size=world_size)
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


@pytest.mark.parametrize(
    ("reals", "fakes", "sbi", "expected"),
    [
        pytest.param(1, 1, 0.0, (1.0, 1.0), id="as many of each"),
        pytest.param(1, 3, 0.0, (2.0, 2 / 3), id="one real in four"),
        pytest.param(1, 3, 0.5, (4.0, 4 / 7), id="half of the reals shown as fakes"),
    ],
)
def test_class_weights_are_what_the_classes_lack_and_one_on_average(reals, fakes, sbi, expected):
    videos = [(f"r{number}", 0) for number in range(reals)] + [(f"f{number}", 1) for number in range(fakes)]
    rows = [(name, label) for name, label in videos for _ in range(5)]  # each video counts once, whatever its crops
    table = pd.DataFrame(rows, columns=["video_id", "label"])
    crops = FoldCrops(Path("f"), table, table, table)
    found = class_weights(crops, config(sampling="weighted", sbi=sbi))
    assert found == pytest.approx(expected)
    share = reals / (reals + fakes) * (1 - sbi)
    assert share * found[0] + (1 - share) * found[1] == pytest.approx(1)
    assert class_weights(crops, config(sampling="balanced", sbi=sbi)) is None


def test_weighted_batches_hold_every_training_video_once(crops):
    loader = training_loader(crops, config(sampling="weighted", batch_size=3), seed=7, rank=0, world_size=1)
    labels = torch.cat([labels for _, labels in loader]).tolist()
    assert sorted(labels) == [0, 1, 1]  # r1, f1 and extra


def test_pairs_stand_side_by_side_and_move_alike(tmp_path):
    """A real crop and its fakes show the same arrow: mirrored, if at all, together."""
    videos = {"d/r0": 3, "d/f0": 3, "d/g0": 3, "d/r1": 2, "d/f1": 2}
    faces = make_faces(videos)
    arrow = np.zeros((SIZE, SIZE, 3), np.uint8)
    arrow[:, : SIZE // 2] = 200
    for name in faces["crop"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrow).save(tmp_path / name)
    folds = make_folds(r0=(0, 1), f0=(1, 1), g0=(1, 1), r1=(0, 0), f1=(1, 0))
    table = pd.DataFrame({"video_id": list(videos), "original": ["", "d/r0", "d/r0", "", "d/r1"]})
    crops = split_crops(faces, folds, 0, tmp_path, videos=table)
    settings = config(sampling="paired", augmentation="paper", batch_size=4, frames_per_video=2)
    loader = training_loader(crops, settings, seed=7, rank=0, world_size=1)
    flips = []
    for epoch in range(6):
        loader.batch_sampler.epoch = epoch
        for images, labels in loader:
            assert labels.tolist() == [0, 1, 0, 1]
            assert torch.equal(images[::2], images[1::2])
            flips += (images[::2, 0, 0, 0] == 0).tolist()
    assert 0.2 < np.mean(flips) < 0.8


def memory_mb(kind: str) -> float:
    """VmRSS or VmHWM, the most it has been, of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024 / 1e6


def test_a_hundred_thousand_rows_are_indexed_within_their_share_of_three_gigabytes_and_twenty_seconds(tmp_path):
    """All of DFDC, 3.8 million rows of 119,154 videos, takes 2.40 GB (1.03 GB of it before anything is read) and 9.3 s
    of CPU time (4 s of it imports) on 2 cores of an AMD EPYC. 100,000 rows took 0.12 to 0.18 s and 78 MB; the limits
    leave room for a slower core, and none for a loop over all pairs."""
    make_large_folder(tmp_path, num_videos=3_125)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the most memory it has been, from now on
    before, started = memory_mb("VmRSS"), time.process_time()
    data = read_training_data(tmp_path, tmp_path / "folds.csv")
    crops = split_crops(data.faces, data.folds, 0, tmp_path, validation_frames=8, videos=data.videos)
    loader = training_loader(crops, DataConfig(num_workers=0), seed=7, rank=0, world_size=1)
    seconds, megabytes = time.process_time() - started, memory_mb("VmHWM") - before
    assert len(crops.training) == 80_000
    assert len(loader) > 0
    assert seconds < 2
    assert megabytes < 160


def make_large_folder(folder: Path, *, num_videos: int) -> None:
    """A faces folder without crops: videos of 32 crops named as DFDC's, one real one in six, ten parts, five folds."""
    number = np.arange(num_videos)
    part = number * 10 // num_videos
    names = [f"dfdc/dfdc_train_part_{p}/{n * 7919 % 10**10:010}" for p, n in zip(part, number, strict=True)]
    videos = pd.DataFrame(dict.fromkeys(("method", "compression", "original", "target_id", "source_id"), ""), number)
    videos = videos.assign(video_id=names, path=names, dataset="dfdc", label=number % 6 > 0, split="train", part=part)
    videos = videos.astype({"label": int, "part": str}).sort_values("video_id", ignore_index=True)
    VIDEOS.write(videos, folder / "videos.csv")
    statuses = pd.DataFrame({"video_id": videos["video_id"], "status": "ok", "num_frames": 32, "num_crops": 32})
    VIDEO_STATUS.write(statuses.assign(message=""), folder / "video_status.csv")
    folds = videos[["video_id", "label"]].assign(group=videos["part"], fold=videos["part"].astype(int) // 2)
    FOLDS.write(folds, folder / "folds.csv")
    ids, frames = np.repeat(videos["video_id"].to_numpy(dtype=object), 32), np.tile(np.arange(32) * 9, num_videos)
    faces = pd.DataFrame(dict.fromkeys(FACES.columns, 0.5), index=np.arange(len(ids)))
    crops = [f"crops/{video}/{frame:06}_0.jpg" for video, frame in zip(ids, frames, strict=True)]
    FACES.write(faces.assign(video_id=ids, frame_index=frames, track=0, crop=crops), folder / "faces.parquet")
    write_recipe(CropRecipe(), folder)


FACE = np.array([[140, 120], [185, 112], [165, 150], [150, 180], [190, 175]], dtype=np.float64)
"""Eyes, nose and mouth corners in a frame of 320 x 300 pixels: a face that tilts."""


def make_folder(folder: Path, size: int, videos: dict[str, tuple[int, list[tuple[int, int]]]], **cut) -> FoldCrops:
    """video -> (label, [(frame, track)]): each crop shows a dot at each landmark, and its row in the first pixel."""
    rows, faces, recipe = [], [], CropRecipe(size=size, **cut)
    for video, (label, places) in videos.items():
        for frame, track in places:
            points = FACE + (frame, track)
            image = np.full((300, 320, 3), 60, np.uint8)
            for x, y in points:
                cv2.circle(image, (round(16 * x), round(16 * y)), 16 * 2, (255, 255, 255), -1, cv2.LINE_AA, 4)
            box = np.concatenate([points.min(axis=0) - 20, points.max(axis=0) + 20])
            crop = cut_crop(image, recipe, box_xyxy=box, landmarks=points)
            crop[:2, :2] = len(rows)
            rows.append((video, frame, track, f"{video}_{frame}_{track}.png", label, len(rows)))
            faces.append([*box, *points.reshape(-1)])
            cv2.imwrite(str(folder / rows[-1][3]), crop)
    write_recipe(recipe, folder)
    table = pd.DataFrame(rows, columns=["video_id", "frame_index", "track", "crop", "label", "face"])
    return FoldCrops(folder, table, table, table, pd.DataFrame(faces, columns=[*BOX, *LANDMARKS], dtype="float32"))


def make_dataset(crops: FoldCrops, **settings) -> TrainingCrops:
    return TrainingCrops(crops.folder, crops.training, crops.faces, DataConfig(**settings))


class Recorder:
    """Stands where the augmentation stands, and keeps what it is given."""

    needs_landmarks = needs_clip = True

    def __call__(self, crop: np.ndarray, seed: int, context: CropContext, *, geometry_seed: int | None) -> np.ndarray:
        self.crop, self.seed, self.context, self.geometry_seed = crop, seed, context, geometry_seed
        return crop


def visit_recorded(dataset: TrainingCrops, visit: Visit) -> tuple[Recorder, np.ndarray, int]:
    recorder = dataset.augmentation = Recorder()
    out = np.zeros((dataset.size, dataset.size, 3), np.uint8)
    label = dataset.fill(visit, out)
    return recorder, out, label


@pytest.mark.parametrize("cut", [{}, {"alignment": "box", "margin": 1.1, "shift": 0.05}], ids=["aligned", "box"])
@pytest.mark.parametrize(("stored", "size"), [(96, 96), (96, 64), (128, 64), (200, 50)], ids=str)
def test_landmarks_lie_where_the_crop_shows_them(stored, size, cut, tmp_path):
    crops = make_folder(tmp_path, stored, {"r": (0, [(0, 0)]), "f": (1, [(7, 3)])}, **cut)
    dataset = make_dataset(crops, image_size=size, augmentation="selim")
    for row in (0, 1):
        recorder, out, _ = visit_recorded(dataset, Visit(row, 5))
        assert (recorder.context.landmarks.shape, recorder.context.landmarks.dtype) == ((5, 2), np.float32)
        bright = np.clip(out[..., 0].astype(float) - 70, 0, None)
        bright[:3, :3] = 0
        y, x = np.mgrid[:size, :size]
        reach = size / 12
        for point in recorder.context.landmarks:
            near = bright * (np.hypot(x - point[0], y - point[1]) < reach)
            centre = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
            assert np.abs(centre - point).max() < 0.35


def test_a_clip_is_the_earlier_crops_of_the_same_face_oldest_first(tmp_path):
    places = [(frame, track) for frame in range(6) for track in (0, 1)]
    crops = make_folder(tmp_path, 96, {"a": (0, places), "b": (1, [(0, 0), (1, 0)])})
    dataset = make_dataset(crops, image_size=96, augmentation="ntech")

    def earlier(row: int) -> list[tuple]:
        recorder, out, _ = visit_recorded(dataset, Visit(row, 5))
        assert int(out[0, 0, 0]) == row
        rows = [int(crop[0, 0, 0]) for crop in recorder.context.clip()]
        return list(crops.training.loc[rows, ["video_id", "frame_index", "track"]].itertuples(index=False, name=None))

    assert earlier(0) == []
    assert earlier(1) == []
    assert earlier(4) == [("a", 0, 0), ("a", 1, 0)]
    assert earlier(11) == [("a", frame, 1) for frame in range(5 - EARLIER_CROPS, 5)]
    assert earlier(12) == []
    assert earlier(13) == [("b", 0, 0)]


def test_a_preset_without_landmarks_is_given_seeds_and_reads_no_landmarks(tmp_path):
    crops = make_folder(tmp_path, 96, {"r": (0, [(0, 0)])})
    (tmp_path / "faces.json").unlink()
    dataset = TrainingCrops(tmp_path, crops.training, None, DataConfig(image_size=96, augmentation="paper"))
    for visit in (Visit(0, 11), Visit(0, 11, 3)):
        recorder, *_ = visit_recorded(dataset, visit)
        assert (recorder.seed, recorder.geometry_seed) == (11, visit.geometry_seed)
        assert recorder.context.landmarks is None and dataset.landmarks is None


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_preset_that_degrades_sees_crops_as_they_are_stored_and_is_averaged_down_afterwards(cache, tmp_path):
    crops = make_folder(tmp_path, 96, {"r": (0, [(0, 0)]), "f": (1, [(0, 0)])})
    FACES.write(make_faces({"r": 1, "f": 1}), tmp_path / "faces.parquet")  # by which a cache knows the folder
    crops = dataclasses.replace(crops, faces=crops.faces.assign(crop=crops.training["crop"]))
    settings = DataConfig(image_size=40, augmentation="wild", strength=0.6, cache=cache, num_workers=0, batch_size=2)
    dataset = training_loader(crops, settings, seed=7, rank=0, world_size=1).dataset.source
    wild, stored = Augmentation("wild", 96), read_crop(tmp_path / crops.training["crop"][1], 96)
    for _ in range(2):  # from its file, then from the cache if there is one
        for seed in range(6):
            out = np.zeros((40, 40, 3), np.uint8)
            dataset.fill(Visit(1, seed, strength=0.6), out)
            expected = wild(stored, seed, CropContext(strength=0.6))
            np.testing.assert_array_equal(out, cv2.resize(expected, (40, 40), interpolation=cv2.INTER_AREA))
    (images,) = validation_loader(crops, settings, rank=0, world_size=1)
    np.testing.assert_array_equal(images[1].numpy(), read_crop(tmp_path / crops.training["crop"][1], 40))


@pytest.fixture
def blended(tmp_path) -> TrainingCrops:
    """One real and one fake crop, the real one shown as a self-blended fake in half of its visits."""
    crops = make_folder(tmp_path, 96, {"r": (0, [(0, 0)]), "f": (1, [(0, 0)])})
    return make_dataset(crops, image_size=96, augmentation="none", sbi=0.5)


def show(dataset: TrainingCrops, row: int, seed: int) -> tuple[np.ndarray, int]:
    out = np.zeros((dataset.size, dataset.size, 3), np.uint8)
    return out, dataset.fill(Visit(row, seed), out)


def test_labels_follow_what_is_shown_and_that_follows_from_the_seed(blended):
    """A real crop stays real where it shows the picture that fakes are blended onto, and is a fake where it is one. A
    fake is never blended, but changes as a whole as often as real crops do."""
    stored, forged, labels = blended.read(0), blended.read(1), []
    for seed in range(60):
        crop, label = show(blended, 0, seed)
        expected = self_blend(stored, blended.landmarks.at(0, 96), seed) if label else blend_target(stored, seed)
        np.testing.assert_array_equal(crop, expected)
        labels.append(label)
        fake, label = show(blended, 1, seed)
        assert label == 1
        np.testing.assert_array_equal(fake, blend_target(forged, seed))
    assert 15 <= sum(labels) <= 45
    assert [show(blended, 0, seed)[1] for seed in range(60)] == labels


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


@pytest.mark.parametrize("value", [0.0, np.nan, 31.0, None], ids=["zeros", "no number", "one point", "a foreign crop"])
def test_crops_without_landmarks_go_without_the_steps_that_need_them_and_are_counted(value, tmp_path, caplog):
    crops = make_folder(tmp_path, 96, {"r": (0, [(0, 0), (1, 0)])})
    if value is None:
        write_recipe(CropRecipe(size=96, template="another"), tmp_path)
    else:
        crops.faces.iloc[1] = value
    dataset = make_dataset(crops, image_size=96, augmentation="selim", sbi=0.0)
    (record,) = caplog.records
    first = "2 of 2 .*: r_0_0.png" if value is None else "1 of 2 .*: r_1_0.png"
    assert re.search(f"{tmp_path}: {first}", record.getMessage()) and "--data.augmentation selim" in record.getMessage()
    assert dataset.landmarks.at(1, 96) is None and (dataset.landmarks.at(0, 96) is None) == (value is None)
    show(dataset, 1, 0)
    if value is None:
        with pytest.raises(ValueError, match=rf"{tmp_path}: --sbi 0.25 .* none of 2 .*--landmarks mtcnn"):
            make_dataset(crops, image_size=96, sbi=0.25)
    else:
        blended = make_dataset(crops, image_size=96, augmentation="none", sbi=0.5)
        assert {show(blended, 1, seed)[1] for seed in range(20)} == {0}, "never blended, so it stays real"
        assert {show(blended, 0, seed)[1] for seed in range(20)} == {0, 1}
