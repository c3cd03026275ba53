"""The seven real clips, from the official trees to a scored submission."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from multiattn.inference.predictor import score_out_of_fold
from multiattn.tables import FACES, LABELS, LANDMARKS, SUBMISSION, VIDEO_STATUS, VIDEOS
from multiattn.video.crops.recipe import TEMPLATE, similarity_transform
from pipeline import run

pytestmark = pytest.mark.shared
FRAMES = 3


@pytest.fixture(scope="module")
def made(shared: Path, build_once: Callable) -> Path:
    """Index, faces and folds of the real clips."""
    return build_once("real_clips", lambda folder: make(shared, folder))


def make(shared: Path, folder: Path) -> None:
    videos = folder / "videos.csv"
    run("index", "dfdc", "--root", shared / "videos/dfdc", "--out", videos)
    run("index", "ffpp", "--root", shared / "videos/ffpp", "--compression", "c23", "--out", videos, "--append")
    run("faces", "--videos", videos, "--out", folder / "faces", "--num-frames", FRAMES, "--size", 128, "--jobs", 1)
    run("folds", "--videos", videos, "--out", folder / "folds.csv", "--num-folds", 2, "--group", "original")


def test_every_clip_gives_a_face_in_every_sampled_frame(made):
    videos, statuses = VIDEOS.read(made / "videos.csv"), VIDEO_STATUS.read(made / "faces" / "video_status.csv")
    assert len(videos) == 7 and videos["label"].sum() == 5
    assert statuses["status"].tolist() == ["ok"] * 7
    assert statuses["num_frames"].tolist() == [FRAMES] * 7
    faces = FACES.read(made / "faces" / "faces.parquet")
    assert (faces.groupby("video_id")["frame_index"].nunique() == FRAMES).all()


def test_crops_are_upright_and_centred_with_the_eyes_on_one_line(made):
    faces = FACES.read(made / "faces" / "faces.parquet")
    main_track = faces[faces["track"] == 0]
    assert (main_track.groupby("video_id").size() >= FRAMES - 1).all()
    for row in main_track.itertuples():
        image = cv2.imread(str(made / "faces" / row.crop))
        assert image.shape == (128, 128, 3)
        landmarks = np.array([getattr(row, name) for name in LANDMARKS]).reshape(5, 2)
        matrix = similarity_transform(landmarks, TEMPLATE * 128)
        aligned = landmarks @ matrix[:, :2].T + matrix[:, 2]
        # The template is a frontal face; a profile, as in one of the clips, cannot meet it better than this.
        assert np.abs(aligned - TEMPLATE * 128).max() < 16
        assert abs(aligned[0, 1] - aligned[1, 1]) < 8
        assert aligned[:2, 1].mean() < aligned[2, 1] < aligned[3:, 1].mean()


def test_training_submitting_and_scoring_succeed(made, shared, tmp_path):
    runs = tmp_path / "runs"
    inputs = ["--faces", made / "faces", "--folds", made / "folds.csv"]
    run("train", "dfdc_b4", "--tiny", *inputs, "--fold", "all", "--runs", runs)
    assert score_out_of_fold(runs / "dfdc_b4_tiny").overall.num_videos == 7
    clips = shared / "videos/dfdc/dfdc_train_part_10"
    names = sorted(path.name for path in clips.glob("*.mp4"))
    SUBMISSION.write(pd.DataFrame({"filename": names, "label": 0.5}), tmp_path / "sample.csv")
    LABELS.write(pd.DataFrame({"filename": names, "label": 1}), tmp_path / "labels.csv")
    run(
        "submit", "--runs", runs / "dfdc_b4_tiny", "--videos-dir", clips,
        "--sample-submission", tmp_path / "sample.csv",
        "--out", tmp_path / "submissions/real", "--jobs", 1,
    )  # fmt: skip
    run("leaderboard", "--submissions", tmp_path / "submissions", "--labels", tmp_path / "labels.csv")
    page = (tmp_path / "submissions/leaderboard.md").read_text()
    assert "| real |" in page
    assert "Warning" in page, "both clips were trained on, and the leaderboard must say so"
