"""The run that comes with the package: it has seen no video it must not know, and its card says what it does."""

import re

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from multiattn.inference.runs import find_models, with_tta
from multiattn.runtime.layout import packaged_run
from multiattn.tables import FOLDS, FRAME_PREDICTIONS, VIDEOS
from pipeline import run

RUN = packaged_run()


def test_its_videos_are_real_and_fake_in_pairs_and_no_group_spans_folds():
    known = FOLDS.read(RUN / "folds.csv")
    assert known["video_id"].str.fullmatch(r"dfdc/[a-z]{10}").all()
    assert (known["label"].value_counts() / len(known)).eq(0.5).all()
    assert known.groupby("group")["fold"].nunique().eq(1).all()


@pytest.mark.shared
def test_its_fingerprint_is_that_of_the_version_it_came_with():
    """Kept results of submissions go by it: settings that came later leave it as it was."""
    (model,) = find_models(RUN)
    assert model.fingerprint() == "5ca1d65334b5d293"
    assert with_tta([model], "flip")[0].fingerprint() != model.fingerprint()


def test_kaggles_public_videos_and_the_parts_they_lie_in_stay_out(shared):
    names = FOLDS.read(RUN / "folds.csv")["video_id"].str.removeprefix("dfdc/")
    public = pd.read_csv(shared / "lists" / "kaggle_sample_submission.csv")["filename"].str.removesuffix(".mp4")
    assert len(public) == 400 and not set(public) & set(names)
    crops = pd.read_csv(shared / "dfdc_crops" / "crops.csv").set_index("video")
    known = crops.loc[names]
    assert set(known["split"]) == {"train"} and not {"part0", "part1", "part2"} & set(known["part"])


@pytest.mark.shared
@pytest.mark.slow
def test_the_auc_on_the_card_is_found_again(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # of the exported network
    crops, faces, videos = shared / "dfdc_crops", tmp_path / "faces", tmp_path / "videos.csv"
    table = pd.read_csv(crops / "crops.csv")
    table[table["split"] == "val"].to_csv(tmp_path / "val.csv", index=False)
    (tmp_path / "recipe.json").write_text((RUN / "fold0" / "faces.json").read_text())
    names = ("--column", "original=source_video", "--name", "dfdc", "--recipe", tmp_path / "recipe.json")
    run("index", "crops", "--root", crops, "--labels", tmp_path / "val.csv", *names, "--faces", faces, "--out", videos)
    fast = ("--runtime", "onnxruntime")  # a third of the time
    run("predict", "--runs", "dfdc_lite", "--faces", faces, "--out", tmp_path / "predictions.parquet", *fast)
    predicted = FRAME_PREDICTIONS.read(tmp_path / "predictions.parquet").set_index("video_id")["logit"]
    labels = VIDEOS.read(videos).set_index("video_id")["label"]
    (row,) = re.findall(r"^\| dfdc +\| all videos +\|.*$", (RUN / "card.md").read_text(), re.MULTILINE)
    on_card = float(row.strip("| ").split("|")[4].split()[0])
    assert roc_auc_score(labels, predicted[labels.index]) == pytest.approx(on_card, abs=0.002)
