"""Which crops the attention figures show, and that their maps and probabilities are the network's own."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from multiattn.inference.attention_maps import (
    attention_model,
    faces_of,
    held_out_faces,
    predict_maps,
    representative_crops,
    spread_crops,
    video_types,
)
from multiattn.inference.predictor import predict_faces
from multiattn.model.diagnostics import AttentionStatistics
from multiattn.model.predict import normalize_crops
from multiattn.tables import FOLDS
from pipeline import Pipeline

CPU = torch.device("cpu")


def table(*rows: tuple) -> pd.DataFrame:
    """(video, type, track, frame) a crop."""
    faces = pd.DataFrame(rows, columns=["video_id", "type", "track", "frame_index"])
    return faces.assign(label=(faces["type"] != "real").astype(int))


def chosen(faces: pd.DataFrame, per_type: int | None) -> list[tuple]:
    rows = representative_crops(faces, per_type=per_type)
    return list(rows[["video_id", "track", "frame_index"]].itertuples(index=False, name=None))


def test_types_are_real_the_method_or_fake():
    videos = pd.DataFrame({"label": [0, 1, 1, -1, 0], "method": ["", "Deepfakes", "", "", "original"]})
    assert video_types(videos).tolist() == ["real", "Deepfakes", "fake", "unknown", "real"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([("a", "real", 0, f) for f in (4, 9, 30)], [("a", 0, 9)], id="the middle of three frames"),
        pytest.param([("a", "real", 0, f) for f in (4, 9, 30, 31)], [("a", 0, 30)], id="the later of two middles"),
        pytest.param([("a", "real", 3, 5)], [("a", 3, 5)], id="one crop"),
        pytest.param(
            [("a", "real", 0, 0), ("a", "real", 1, 0), ("a", "real", 1, 8)], [("a", 1, 8)], id="the longest track"
        ),
        pytest.param([("a", "real", 1, 0), ("a", "real", 0, 7)], [("a", 0, 7)], id="of equal tracks the first"),
        pytest.param(
            [("a", "FaceSwap", 0, 0), ("b", "Deepfakes", 0, 1), ("c", "real", 0, 2), ("d", "Deepfakes", 0, 3)],
            [("c", 0, 2), ("b", 0, 1), ("a", 0, 0)],
            id="real first, then the methods by name, the first video of each",
        ),
        pytest.param([], [], id="no crops"),
    ],
)
def test_the_representative_crop_by_hand(rows, expected):
    assert chosen(table(*rows), 1) == expected


def test_more_rows_of_a_type_and_every_video_in_the_given_order():
    faces = table(("b", "fake", 0, 1), ("a", "real", 0, 2), ("c", "fake", 0, 3), ("d", "fake", 0, 4))
    assert [row[0] for row in chosen(faces, 2)] == ["a", "b", "c"]
    assert [row[0] for row in chosen(faces, None)] == ["b", "a", "c", "d"]


@pytest.mark.parametrize(
    ("length", "number", "expected"),
    [(10, 3, [0, 4, 9]), (10, 1, [0]), (3, 10, [0, 1, 2]), (0, 4, [])],
    ids=["spread", "one", "fewer than asked", "none"],
)
def test_measured_crops_are_spread(length, number, expected):
    assert spread_crops(pd.DataFrame({"row": range(length)}), number)["row"].tolist() == expected


def test_faces_are_those_of_the_held_out_fold(pipeline: Pipeline):
    folds = FOLDS.read(pipeline.folds)
    for number in (0, 1):
        faces = held_out_faces([attention_model(pipeline.experiment / f"fold{number}")], pipeline.faces)
        assert set(faces["video_id"]) == set(folds.loc[folds["fold"] == number, "video_id"])
        assert set(faces["type"]) == {"real", "fake"}


def test_no_video_is_held_out_by_both_folds(pipeline: Pipeline):
    models = [attention_model(pipeline.experiment / f"fold{number}") for number in (0, 1)]
    with pytest.raises(ValueError, match=r"held out by demo_tiny/fold0 and demo_tiny/fold1.*--videos"):
        held_out_faces(models, pipeline.faces)


def test_a_run_without_folds_has_seen_nothing_we_know_of(pipeline: Pipeline, tmp_path):
    shutil.copytree(pipeline.experiment / "fold0", tmp_path / "official" / "fold0")
    (tmp_path / "official/fold0/folds.csv").unlink()
    faces = held_out_faces([attention_model(tmp_path / "official")], pipeline.faces)
    assert set(faces["video_id"]) == set(FOLDS.read(pipeline.folds)["video_id"])


def test_named_videos_come_in_their_order_and_training_videos_are_named(pipeline: Pipeline, caplog):
    model = attention_model(pipeline.experiment)
    folds = FOLDS.read(pipeline.folds)
    seen, unseen = (folds.loc[folds["fold"] == fold, "video_id"].iloc[0] for fold in (1, 0))
    assert faces_of([unseen, seen], [model], pipeline.faces)["video_id"].unique().tolist() == [unseen, seen]
    assert f"was trained on {seen}:" in caplog.text and unseen not in caplog.text
    with pytest.raises(ValueError, match=f"no crops of this video .* nearest is '{seen}'"):
        faces_of([seen + "x"], [model], pipeline.faces)


def test_an_experiment_folder_stands_for_its_first_fold(pipeline: Pipeline, tmp_path):
    shutil.copytree(pipeline.experiment, tmp_path / "demo_tiny")
    (tmp_path / "demo_tiny/fold1/best.safetensors").unlink()  # still in its first epoch
    assert attention_model(tmp_path / "demo_tiny").name == "demo_tiny/fold0"


def test_a_baseline_and_crops_made_another_way_are_refused(pipeline: Pipeline, tmp_path):
    model = attention_model(pipeline.experiment)
    other = dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, size=96))
    with pytest.raises(ValueError, match="size: expected 96, found 64"):
        held_out_faces([model, other], pipeline.faces)
    shutil.copytree(model.path, tmp_path / "twin" / "fold0")
    path = tmp_path / "twin/fold0/experiment.json"
    path.write_text(path.read_text().replace('"network": "multi-attention"', '"network": "baseline"'))
    with pytest.raises(ValueError, match="found a baseline, which has none"):
        attention_model(tmp_path / "twin")


def test_maps_and_probabilities_are_the_networks_own(pipeline: Pipeline):
    model = attention_model(pipeline.experiment)
    rows = held_out_faces([model], pipeline.faces)
    shown = representative_crops(rows, per_type=1)
    faces, statistics = predict_maps(model, pipeline.faces, shown, rows, device=CPU)

    predictions = predict_faces([model], pipeline.faces, device=CPU, precision="fp32")
    expected = shown.merge(predictions, on=["video_id", "frame_index", "track"])["probability"]
    assert [face.probability for face in faces] == pytest.approx(expected.tolist(), abs=1e-5)

    network = model.load(CPU)
    with torch.no_grad():
        grid = network(normalize_crops(torch.from_numpy(np.stack([face.crop for face in faces])))).attention
    expected = F.interpolate(grid, size=(64, 64), mode="bilinear")
    assert np.stack([face.maps for face in faces]) == pytest.approx(expected.numpy(), abs=1e-4)

    alone = AttentionStatistics()
    alone.update(grid)
    assert statistics["map_cosine"] != pytest.approx(alone.compute()["map_cosine"]), "measured over all rows"
    again = predict_maps(model, pipeline.faces, shown, shown, device=CPU)[1]
    assert again == pytest.approx(alone.compute(), abs=1e-5)
