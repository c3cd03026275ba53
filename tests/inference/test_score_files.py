"""Files by name: what is found, and the scores of each, down to the crops."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from multiattn.inference.attention_maps import deciding_crops, extreme_crops, model_with_maps, predict_maps
from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import find_models
from multiattn.inference.score_files import FEW, extract_folder_faces, find_files, score_files
from multiattn.scoring.rule import ScoringRule
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.decoding.frames import FrameReader
from pipeline import Pipeline, run

CPU = torch.device("cpu")


def clips(pipeline: Pipeline) -> list[Path]:
    return sorted((pipeline.dataset / "test_videos").glob("*.mp4"))


def score(files: list[Path], pipeline: Pipeline, folder: Path, **options):
    models = find_models(pipeline.experiment)
    return score_files(files, models, ScoringRule(), folder / "faces", device=CPU, **options)


def test_folders_give_their_videos_and_pictures_each_once_and_what_is_left_out_is_named(tmp_path, caplog):
    for name in ("b.mp4", "a/b.mp4", "a/c.JPG", "a/notes.txt", ".hidden/d.mp4", "a/.e.png", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "b.mp4")
    named = find_files([tmp_path / "odd", tmp_path, tmp_path / "a"])
    assert [path.relative_to(tmp_path).as_posix() for path in named] == ["odd", "a/b.mp4", "a/c.JPG", "b.mp4"]
    assert f"{tmp_path}: 1 file is left out: odd" in caplog.text


def test_a_folder_of_pictures_is_one_clip_where_that_is_asked_for(tmp_path):
    for name in ("clip/1.png", "clip/2.png", "all/x/1.png", "all/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = find_files([tmp_path / "clip", tmp_path / "all"], frame_folders=True)
    assert found == [tmp_path / "clip", tmp_path / "all/b.mp4", tmp_path / "all/x"]
    assert len(find_files([tmp_path / "clip"])) == 2


def test_what_is_not_there_is_an_error_before_any_work(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found none named: multiattn score"):
        find_files([])
    with pytest.raises(FileNotFoundError, match=r"b\.mp4: no such file or folder \(1 of 2 named"):
        find_files([tmp_path / "a.mp4", tmp_path / "b.mp4"])
    with pytest.raises(ValueError, match="expected videos or pictures in this folder"):
        find_files([tmp_path / "empty"])


def test_a_clip_scores_as_in_a_submission(pipeline: Pipeline, tmp_path):
    """As `predict` does: a folder of videos, its faces, predictions, the rule."""
    files = clips(pipeline)
    assert len(files) > FEW
    models = find_models(pipeline.experiment)
    videos = extract_folder_faces(
        files[0].parent, tmp_path / "folder", models[0].recipe, jobs=1, device=CPU, filenames=[p.name for p in files]
    )
    predictions = predict_faces(models, tmp_path / "folder", device=CPU, precision="fp32")
    expected = ScoringRule().score(predictions).set_index("video_id")["probability"]
    expected = [expected.get(video, np.nan) for video in videos["video_id"]]
    isolated = score(files, pipeline, tmp_path, jobs=1)
    np.testing.assert_allclose(isolated.files["probability"], expected, atol=1e-9)
    here = score(files[:FEW], pipeline, tmp_path / "few")
    np.testing.assert_allclose(here.files["probability"], expected[:FEW], atol=1e-9)
    pd.testing.assert_frame_equal(here.files, isolated.files.head(FEW))
    (tmp_path / "frames").mkdir()
    for frame in FrameReader(files[0], 1000):
        cv2.imwrite(str(tmp_path / f"frames/{frame.index}.png"), frame.image[..., ::-1])
    pictures = score([tmp_path / "frames"], pipeline, tmp_path / "of frames", fps=25)
    np.testing.assert_allclose(pictures.files["probability"], expected[:1], atol=1e-9)


@pytest.mark.slow
def test_runs_of_different_crops_answer_together_for_the_persons_of_the_first(pipeline: Pipeline, box_run, tmp_path):
    files = [*clips(pipeline), tmp_path / "broken.mp4"]
    files[-1].write_bytes(b"nothing")
    models, how = find_models(pipeline.experiment, box_run, any_recipes=True), {"device": CPU, "precision": "fp32"}
    parts = [
        score_files(files, models[:2], ScoringRule(), tmp_path / "first", jobs=1, **how),
        score_files(files, models[2:], ScoringRule(), tmp_path / "second", jobs=1, **how),
    ]
    here = score_files(files[:FEW], models, ScoringRule(), tmp_path / "here", **how)
    apart = score_files(files, models, ScoringRule(), tmp_path / "apart", jobs=1, **how)
    pd.testing.assert_frame_equal(here.files, apart.files.head(FEW))
    expected = (parts[0].files["probability"] + parts[1].files["probability"]) / 2
    np.testing.assert_allclose(apart.files["probability"], expected, atol=1e-9)
    assert apart.files["status"].tolist() == parts[0].files["status"].tolist()
    persons = (
        parts[0].faces.set_index(["video_id", "track"])["probability"],
        apart.faces.set_index(["video_id", "track"]),
    )
    assert persons[0].index.equals(persons[1].index), "nobody is seen by the second alone, and nobody twice"
    assert (apart.faces["crops"] > parts[0].faces["crops"]).all(), "at other frames too"
    assert all((tmp_path / "apart" / name).is_file() for name in apart.crops["crop"])
    assert apart.first_crops["crop"].tolist() == parts[0].crops["crop"].tolist()
    key = ["video_id", "track", "frame_index"]
    nothing = score_files(files[-1:], models, ScoringRule(), tmp_path / "nothing", **how)
    assert nothing.crops.empty and nothing.files["status"].tolist() == ["unreadable"]
    both = apart.crops.merge(parts[0].crops, on=key).merge(parts[1].crops, on=key)
    np.testing.assert_allclose(both["probability_x"], (both["probability_y"] + both["probability"]) / 2, atol=1e-9)


def test_files_of_one_name_unreadable_ones_and_pictures_each_get_their_row(pipeline: Pipeline, shared, tmp_path):
    clip = shared / "videos" / "dfdc" / "dfdc_train_part_0" / "brtujopkby.mp4"
    frame = next(iter(FrameReader(clip, 1))).image
    names = ("a/x.png", "b/x.png", "broken.mp4", "text.jpg", "blank.png")
    files = [tmp_path / name for name in names]
    for path in files[:2]:
        path.parent.mkdir()
    cv2.imwrite(str(files[0]), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    cv2.imwrite(str(files[1]), cv2.cvtColor(np.fliplr(frame), cv2.COLOR_RGB2BGR))
    files[2].write_bytes(clip.read_bytes()[:3000])
    files[3].write_text("no picture")
    cv2.imwrite(str(files[4]), np.full((100, 100, 3), 90, np.uint8))
    scored = score(files, pipeline, tmp_path, jobs=1)
    table = scored.files
    assert table["file"].tolist() == [str(path) for path in files]
    assert table["status"].tolist() == ["ok", "ok", "unreadable", "unreadable", "no_face"]
    assert table["frames"].tolist() == [1, 1, 0, 0, 1]
    assert table["faces"].tolist() == [1, 1, 0, 0, 0]
    assert np.isfinite(table["probability"]).tolist() == [True, True, False, False, False]
    assert table["probability"][0] != table["probability"][1]
    assert (table.loc[[2, 3], "reason"] != "").all()
    assert scored.num_readable == 3
    assert scored.crops["video_id"].tolist() == table["video_id"].tolist()[:2]
    lines = scored.describe().splitlines()
    assert len(lines) == 6, "pictures of one face have no line a face"
    assert lines[3].split()[1:] == ["-", "0", "0", "0", "unreadable", *table["reason"][2].split()]


def test_an_odd_name_or_link_costs_its_own_row_and_is_named(pipeline: Pipeline, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    clip = clips(pipeline)[0]
    names = [b"good.mp4", b"not utf-8 \xff\xfe.mp4", b"broken \xff.mp4", b"loop.mp4", b"nowhere.mp4", b"pipe.png"]
    paths = [Path(os.fsdecode(os.fsencode(folder) + b"/" + name)) for name in names]
    for path in paths[:2]:
        shutil.copy(clip, path)
    paths[2].write_bytes(b"no video")
    paths[3].symlink_to("loop.mp4")
    paths[4].symlink_to("gone.mp4")
    os.mkfifo(paths[5])
    for files in (find_files([folder]), find_files([paths[0], paths[5]])):
        table = score(files, pipeline, tmp_path / str(len(files)), jobs=1).files.set_index("file")
        readable = {str(folder / "good.mp4"), f"{folder}/not utf-8 \\udcff\\udcfe.mp4"} & set(table.index)
        assert set(table.index[table["status"] == "ok"]) == readable != set()
        assert (table.loc[table["status"] != "ok", "reason"] != "").all() and len(table) == len(files) in (2, 6)


def test_only_files_without_a_face_leave_no_crops(pipeline: Pipeline, tmp_path):
    path = tmp_path / "blank.png"
    cv2.imwrite(str(path), np.full((100, 100, 3), 90, np.uint8))
    scored = score([path], pipeline, tmp_path)
    assert scored.crops.empty and scored.num_readable == 1
    assert extreme_crops(scored.crops).empty and deciding_crops(scored.crops).empty
    model = model_with_maps(find_models(pipeline.experiment))
    assert predict_maps(model, tmp_path / "faces", scored.crops, device=CPU) == ([], {})
    assert model_with_maps([]) is None


def made_crops(*probabilities: float, video: str = "file/00000") -> pd.DataFrame:
    frames = range(len(probabilities))
    return pd.DataFrame({"video_id": video, "track": 0, "frame_index": frames, "probability": probabilities})


@pytest.mark.parametrize(
    ("probabilities", "shown"),
    [
        pytest.param([], [], id="none"),
        pytest.param([0.3], [0], id="one"),
        pytest.param([0.1, 0.9, 0.5, 0.5], [1, 2, 3, 0], id="all of few, equal ones in time"),
        pytest.param([0.1, 0.9, 0.5, 0.4, 0.2], [1, 2, 4, 0], id="both ends of many"),
    ],
)
def test_the_frames_that_decided_are_the_most_fake_and_the_most_real(probabilities, shown):
    crops = made_crops(*probabilities)
    for order in (crops, crops.iloc[::-1]):
        assert deciding_crops(order, each_side=2)["frame_index"].tolist() == shown


def test_each_file_gives_its_two_extremes():
    crops = pd.concat([made_crops(0.2, 0.9, 0.4), made_crops(0.5, video="file/00001")])
    extremes = extreme_crops(crops)
    assert extremes["video_id"].tolist() == ["file/00000", "file/00000", "file/00001"]
    assert extremes["probability"].tolist() == [0.9, 0.2, 0.5]


def test_a_faces_folder_belongs_to_one_folder_of_videos(pipeline: Pipeline, tmp_path):
    recipe = find_models(pipeline.experiment)[0].recipe
    shutil.copytree(pipeline.dataset / "test_videos", tmp_path / "other")
    words = ["predict", "--runs", pipeline.experiment, "--videos-dir", pipeline.dataset / "test_videos"]
    run(*words, "--faces", tmp_path / "faces", "--out", tmp_path / "p.parquet", "--jobs", 1)
    with pytest.raises(ValueError, match="Choose another --faces folder"):
        extract_folder_faces(tmp_path / "other", tmp_path / "faces", recipe, jobs=1, device=CPU)


FOREIGN = CropRecipe(detector="dlib", template="deepfakebench, dlib 81 points, margin 1.3", size=256)
RETINAFACE = CropRecipe(detector="retinaface", weights="0123456789abcdef")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        pytest.param(FOREIGN, "cut by another program", id="another program's"),
        pytest.param(RETINAFACE, "retinaface needs its weights file, .* Pass --weights FILE", id="no weights"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_before_anything_is_written(recipe, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        extract_folder_faces(tmp_path, tmp_path / "faces", recipe, jobs=1, device=CPU)
    assert list(tmp_path.iterdir()) == []
