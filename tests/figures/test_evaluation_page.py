"""The page of a test: whole, loading nothing, right for whatever the data lacks; and its panels."""

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn import metrics

from multiattn.evaluation.measures import Answers, TextTable
from multiattn.evaluation.run import Evaluation
from multiattn.evaluation.selection import Extracted, Selection
from multiattn.figures.evaluation import draw_class_histogram, draw_reliability, draw_roc, evaluation_page
from multiattn.scoring.rule import ScoringRule
from page_reader import Reader


def evaluation(labels: list[int], folder, *, with_crops: bool = True) -> Evaluation:
    """One data set; each video with a crop that is there and, on another track, one that is gone."""
    ids = [f"data/{number}" for number in range(len(labels))]
    probabilities = np.linspace(0.2, 0.9, len(labels))
    videos = pd.DataFrame(
        {
            "video_id": ids,
            "path": "somewhere/<odd>.mp4",
            "label": labels,
            "method": ["A&B" if label else "" for label in labels],
            "compression": "c23",
            "status": "ok" if with_crops else "no_face",
            "message": "" if with_crops else "no <face> in any frame",
            "probability": probabilities,
        }
    )
    frames = pd.DataFrame(
        [
            ("run/fold0", video, frame, track, probability, label)
            for video, probability, label in zip(ids, probabilities, labels, strict=True)
            for frame, track in ((3, 0), (17, 1))
        ],
        columns=["model", "video_id", "frame_index", "track", "probability", "label"],
    )
    frames = frames if with_crops else frames.head(0)
    cv2.imwrite(str(folder / "crop.jpg"), np.full((100, 100, 3), 120, np.uint8))
    faces = frames[["video_id", "frame_index", "track"]].assign(folder=str(folder), seconds=0.0)
    faces["crop"] = np.where(faces["track"] == 0, "crop.jpg", "gone.jpg")
    table = TextTable("Videos", pd.DataFrame({"part": ["all"], "AUC": ["0.9"]}), ("a <note>",))
    return Evaluation(
        title="A <title>",
        selection=Selection("test", {}),
        extracted=Extracted({}, pd.DataFrame(), faces),
        answers=[Answers("data", videos, frames, ScoringRule())] if labels else [],
        metrics=pd.DataFrame(),
        summary=table if labels else TextTable("Data sets", pd.DataFrame()),
        tables={"data": [table]},
        notes=("a note",),
        warnings=("beware",),
    )


@pytest.mark.parametrize(
    ("labels", "with_crops"),
    [
        pytest.param([0, 1, 1], True, id="both classes"),
        pytest.param([1, 1], True, id="one class"),
        pytest.param([0], True, id="one video"),
        pytest.param([0, 1], False, id="no crop at all"),
    ],
)
def test_the_page_is_whole_and_loads_nothing(tmp_path, labels, with_crops):
    read = Reader(evaluation_page(evaluation(labels, tmp_path, with_crops=with_crops)))
    assert read.loaded == []
    assert len(read.images) == 1 + len(labels) * with_crops  # the panels, and the crop that is there of each video
    assert all(image["alt"] for image in read.images)
    for words in ("A <title>", "a <note>", "beware", "data/0", "somewhere/<odd>.mp4"):
        assert words in read.text
    assert ("A&B c23" in read.text) == (1 in labels)
    assert ("no crop gone.jpg" in read.text) == with_crops
    assert ("17 t1" in read.text) == with_crops
    assert ("the answer is the prior" in read.text) != with_crops
    assert ("no <face> in any frame" in read.text) != with_crops


def test_a_page_without_data_sets_says_none(tmp_path):
    read = Reader(evaluation_page(evaluation([], tmp_path)))
    assert "Data sets None." in read.text


def test_reliability_draws_share_over_mean_of_each_bin():
    axes = Figure().subplots()
    draw_reliability(axes, np.array([0, 1, 1, 1]), np.array([0.11, 0.19, 0.85, 1.0]))
    points = axes.lines[-1].get_xydata()
    np.testing.assert_allclose(points, [[0.15, 0.5], [0.85, 1.0], [1.0, 1.0]])
    assert [text.get_text() for text in axes.texts] == ["2", "1", "1"]
    low, high = axes.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.0945, 0.9055), abs=1e-4), "Wilson's interval of one in two"


def test_the_roc_is_named_with_its_area_and_left_out_for_one_class():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 2, 60), rng.random(60)
    axes = Figure().subplots()
    draw_roc(axes, {"videos": (labels, probabilities), "frames": (np.ones(3, int), np.full(3, 0.4))})
    area = metrics.roc_auc_score(labels, probabilities)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"videos, AUC {area:.4f}"]
    axes = Figure().subplots()
    draw_roc(axes, {"videos": (np.zeros(2, int), np.array([0.1, 0.2])), "frames": (np.zeros(0, int), np.zeros(0))})
    assert axes.get_legend() is None
    assert [text.get_text() for text in axes.texts] == ["no ROC: one class only"]


@pytest.mark.parametrize("labels", [[0, 0, 1], [1], []])
def test_the_histogram_holds_every_video(labels):
    axes = Figure().subplots()
    draw_class_histogram(axes, np.array(labels, int), np.linspace(0, 1, len(labels)))
    heights = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
    assert heights == [labels.count(0), -labels.count(1)]
