"""Evaluation: which videos, which figures, and what it refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from multiattn.datasets.manifest import video_row
from multiattn.evaluation import run as kept_predictions
from multiattn.evaluation.ablations import CELEB, HQ, LQ
from multiattn.evaluation.measures import (
    SINGLE,
    Answers,
    Figures,
    answer_videos,
    compare_with_paper,
    dataset_tables,
    measure,
    paper_rows,
    parts,
    summary_table,
)
from multiattn.evaluation.run import choose_run, predict_kept, require_choosable
from multiattn.evaluation.selection import (
    common_name,
    find_faces,
    held_out_pairs,
    require_unseen,
    seen_originals,
    select_videos,
    trained_datasets,
)
from multiattn.figures.evaluation import CROPS_EACH, predicted_crops, worst_videos
from multiattn.inference.runs import TrainedModel, find_models, with_tta
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FOLDS, VIDEOS
from multiattn.video.extraction.faces_folder import read_faces_folder
from pipeline import Pipeline

CPU = torch.device("cpu")


def table_of(*rows: dict) -> pd.DataFrame:
    return VIDEOS.validate(pd.DataFrame(list(rows), columns=list(VIDEOS.columns)), "made for a test")


def video(dataset: str, name: str, label: int, **values) -> dict:
    return video_row(dataset, f"{name}.mp4", label=label, **values)


MIXED = table_of(
    video("a", "1", 0, split="train"),
    video("a", "2", 1, split="test"),
    video("a", "3", -1, split="test"),
    video("a", "4", 0, split="val"),
    video("b", "1", 1),
    video("b", "2", 0),
    video("c", "1", 1, split="train"),
)


@pytest.mark.parametrize(
    ("split", "taken", "left_out", "unsplit"),
    [
        pytest.param("test", {"a": ["a/2"], "b": ["b/1", "b/2"]}, {"c"}, ("b",), id="test, whole where there is none"),
        pytest.param("val", {"a": ["a/4"]}, {"b", "c"}, (), id="val, nothing where there is none"),
    ],
)
def test_each_data_set_gives_its_split(split, taken, left_out, unsplit):
    selection = select_videos(MIXED.sample(frac=1, random_state=0), split)
    assert {name: rows["video_id"].tolist() for name, rows in selection.datasets.items()} == taken
    assert set(selection.left_out) == left_out
    assert selection.unsplit == unsplit
    assert selection.unlabelled == ({"a": 1} if split == "test" else {})


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(MIXED.head(0), id="empty"),
        pytest.param(MIXED[MIXED["dataset"] == "c"], id="no such split"),
        pytest.param(MIXED[MIXED["label"] == -1], id="no labels"),
    ],
)
def test_nothing_to_evaluate_is_an_error_that_says_why(table):
    with pytest.raises(ValueError, match="nothing to evaluate: "):
        select_videos(table, "test")


def training_selection(pipeline: Pipeline):
    """The miniature's training videos, called a data set without splits."""
    _, _, videos = read_faces_folder(pipeline.faces)
    return select_videos(videos.assign(split=""), "test")


def test_faces_of_some_videos_only_are_an_error_and_of_none_a_data_set_left_out(pipeline: Pipeline):
    selection = training_selection(pipeline)
    extra = table_of(video("dfdc", "not_there", 1))
    some = dataclasses.replace(selection, datasets={"dfdc": pd.concat([selection.datasets["dfdc"], extra])})
    with pytest.raises(ValueError, match="1 are not extracted; the first: dfdc/not_there"):
        find_faces(some, [pipeline.faces])
    other = dataclasses.replace(selection, datasets={**selection.datasets, "x": table_of(video("x", "1", 1))})
    kept, extracted = find_faces(other, [pipeline.faces])
    assert list(kept.datasets) == ["dfdc"]
    assert "none of its 1 video" in kept.left_out["x"]
    assert set(extracted.by_folder[pipeline.faces]) == set(selection.videos["video_id"])
    with pytest.raises(ValueError, match="none of the 1 selected"):
        find_faces(dataclasses.replace(selection, datasets={"x": extra}), [pipeline.faces])


def made_answers(
    labels: list[int],
    probabilities: list[float],
    *,
    methods: list[str] | None = None,
    compressions: list[str] | None = None,
    tracks: list[int] | None = None,
    num_models: int = 2,
    name: str = "data",
) -> Answers:
    """Videos of two frames a track; the second model answers 0.1 less. 0 tracks: a video without a face."""
    count = len(labels)
    tracks = tracks if tracks is not None else [1] * count
    ids = [f"{name}/{number}" for number in range(count)]
    videos = table_of(
        *(
            video(
                name, str(number), labels[number],
                method=(methods or [""] * count)[number], compression=(compressions or [""] * count)[number],
            )
            for number in range(count)
        )
    )  # fmt: skip
    videos = videos.assign(
        group=ids,
        status=["ok" if number else "no_face" for number in tracks],
        message="",
        num_frames=2,
        num_tracks=tracks,
        probability=probabilities,
        num_crops=[2 * number for number in tracks],
    )
    rows = [
        (f"run/fold{model}", ids[number], frame, track, max(0.0, probabilities[number] - 0.1 * model), labels[number])
        for model in range(num_models)
        for number in range(count)
        for track in range(tracks[number])
        for frame in range(2)
    ]
    columns = ["model", "video_id", "frame_index", "track", "probability", "label"]
    frames = pd.DataFrame(rows, columns=columns).astype({"probability": "float64"})
    return Answers(name, videos, frames, ScoringRule())


LABELS = [0, 0, 0, 1, 1, 1, 1, 1]
PROBABILITIES = [0.1, 0.2, 0.7, 0.3, 0.6, 0.9, 0.8, 0.95]


def test_figures_equal_those_of_scikit_learn():
    figures = Figures(measure(made_answers(LABELS, PROBABILITIES)))

    def of(level: str, metric: str) -> float:
        return figures.of("data", "all videos", "", level, metric)[0]

    assert of("video", "log_loss") == pytest.approx(metrics.log_loss(LABELS, PROBABILITIES), abs=1e-12)
    assert of("video", "auc") == pytest.approx(metrics.roc_auc_score(LABELS, PROBABILITIES), abs=1e-12)
    blended = np.repeat(PROBABILITIES, 2) - 0.05
    assert of("frame", "log_loss") == pytest.approx(metrics.log_loss(np.repeat(LABELS, 2), blended), abs=1e-12)
    single = [np.mean((np.array(PROBABILITIES) - shift > 0.5) == LABELS) for shift in (0, 0.1)]
    assert of(SINGLE, "accuracy") == pytest.approx(np.mean(single), abs=1e-12)
    assert of("coverage", "n_crops") == 16


def test_intervals_hold_the_figure_and_stand_at_losses_auc_and_balanced_accuracy_only():
    table = measure(made_answers(LABELS, PROBABILITIES))
    bounded = table[table["low"].notna()]
    assert set(zip(bounded["level"], bounded["metric"], strict=True)) == {
        (level, metric)
        for level in ("video", "frame")
        for metric in ("log_loss", "balanced_log_loss", "auc", "balanced_accuracy")
    }
    assert (bounded["low"] <= bounded["figure"]).all()
    assert (bounded["figure"] <= bounded["high"]).all()


@pytest.mark.parametrize(
    ("labels", "tracks"),
    [
        pytest.param([1, 1, 1], [1, 2, 1], id="one class"),
        pytest.param([0], [1], id="one video"),
        pytest.param([0, 1], [0, 0], id="no face in any"),
        pytest.param([1], [0], id="one video, no face"),
    ],
)
def test_few_videos_are_measured_and_shown_without_what_they_lack(labels, tracks):
    probabilities = [0.5 if track == 0 else 0.8 for track in tracks]
    answers = made_answers(labels, probabilities, tracks=tracks)
    table = measure(answers)
    figures = Figures(table)
    assert np.isfinite(figures.of("data", "all videos", "", "video", "log_loss")[0])
    auc = figures.of("data", "all videos", "", "video", "auc")[0]
    assert np.isnan(auc) == (len(set(labels)) == 1)
    assert figures.of("data", "all videos", "", "coverage", "n_no_face")[0] == tracks.count(0)
    text = "\n".join(
        found.markdown() for found in [summary_table([answers], figures), *dataset_tables(answers, figures, [])]
    )
    assert ("none" in text) == (len(set(labels)) == 1 or not any(tracks))
    assert "nan" not in text


@pytest.mark.parametrize(
    ("originals", "said"),
    [
        pytest.param([""] * 8, "over single videos: the table names no originals", id="none is named"),
        pytest.param(["", "", "", *["data/0"] * 4, ""], "over 4 originals", id="too few"),
        pytest.param(
            ["", "", "", "data/0", "data/1", "data/2", "", ""],
            "over 5 originals with their fakes; 2 fakes without originals count alone",
            id="some are named",
        ),
    ],
)
def test_a_report_says_which_videos_its_intervals_take_for_alike(originals, said):
    answers = made_answers(LABELS, PROBABILITIES)
    videos = answers.videos.assign(original=originals)
    videos["group"] = videos["original"].where(videos["original"] != "", videos["video_id"])
    answers = dataclasses.replace(answers, videos=videos)
    figures = Figures(measure(answers))
    notes = " ".join(dataset_tables(answers, figures, [])[0].notes)
    low = figures.of("data", "all videos", "", "video", "log_loss")[1]
    assert (said in notes) != np.isnan(low) and ("fewer than 5 groups of videos" in notes) == np.isnan(low)


def test_a_method_is_measured_beside_all_real_videos():
    answers = made_answers(
        [0, 0, 1, 1, 1], [0.1, 0.2, 0.9, 0.8, 0.7], methods=["", "", "A", "B", "B"], tracks=[1, 1, 1, 4, 3]
    )
    found = {(by, value): rows["video_id"].tolist() for by, value, rows in parts(answers.videos)}
    assert found[("method", "A")] == ["data/0", "data/1", "data/2"]
    assert found[("method", "B")] == ["data/0", "data/1", "data/3", "data/4"]
    assert found[("faces", "3 or more")] == ["data/3", "data/4"]
    assert not any(by == "compression" for by, _ in found)


def test_clips_of_one_name_in_two_methods_stay_two_videos():
    made = made_answers([0, 1, 1], [0.1, 0.9, 0.3], methods=["", "Deepfakes", "FaceSwap"], num_models=1, name="ffpp")
    names = dict(
        zip(made.videos["video_id"], ["ffpp/o/000", "ffpp/Deepfakes/000_003", "ffpp/FaceSwap/000_003"], strict=True)
    )
    tables = [table.assign(video_id=table["video_id"].map(names)) for table in (made.videos, made.frames)]
    found = measure(dataclasses.replace(made, videos=tables[0], frames=tables[1]))
    accuracy = found[(found["metric"] == "accuracy") & (found["by"] == "method")]
    for level in ("video", "frame"):
        rows = accuracy[accuracy["level"] == level].set_index("value")
        assert rows["figure"].to_dict() == {"Deepfakes": 1.0, "FaceSwap": 0.5}
        assert set(rows["num_fake"]) == {1 if level == "video" else 2}


@pytest.fixture(scope="module")
def predicted(pipeline: Pipeline) -> tuple:
    """Selection, faces and frame predictions of the miniature's training videos."""
    models = find_models(pipeline.experiment)
    predictions = kept_predictions.predict_faces(models, pipeline.faces, device=CPU, precision="fp32")
    return *find_faces(training_selection(pipeline), [pipeline.faces]), predictions


def test_the_order_of_predictions_changes_nothing(predicted):
    selection, extracted, predictions = predicted
    tables = []
    for mixed in (predictions, predictions.sample(frac=1, random_state=1)):
        (answers,) = answer_videos(selection, extracted, mixed, ScoringRule())
        tables.append(measure(answers))
    pd.testing.assert_frame_equal(*tables)


def test_videos_without_predictions_are_answered_with_the_prior(predicted):
    selection, extracted, predictions = predicted
    gone = predictions["video_id"].iloc[0]
    left = predictions[predictions["video_id"] != gone]
    (answers,) = answer_videos(selection, extracted, left, ScoringRule())
    row = answers.videos.set_index("video_id").loc[gone]
    assert (row["probability"], row["num_crops"], row["num_tracks"]) == (0.5, 0, 0)
    assert len(answers.videos) == len(selection.videos)
    worst = worst_videos(answers, count=3)
    assert worst["loss"].is_monotonic_decreasing
    assert len(worst) == 3
    crops = predicted_crops(answers.videos, answers, extracted)
    assert gone not in crops
    counts = answers.blended_frames().groupby("video_id").size().clip(upper=CROPS_EACH)
    assert {video: len(rows) for video, rows in crops.items()} == counts.to_dict()


def test_the_papers_own_figures_stand_in_the_tables():
    """Tables 2 and 4 of arXiv:2103.02406, as printed."""
    hq, lq, celeb = (paper_rows(data) for data in (HQ, LQ, CELEB))
    assert {
        (row.table, row.accuracy, row.auc) for row in hq if row.method.endswith("B4") and "plain" not in row.method
    } == {("Table 2", 97.60, 99.29)}
    assert any((row.accuracy, row.auc) == (88.69, 90.40) for row in lq)
    assert {row.table for row in celeb} == {"Table 4"}
    assert celeb[0].auc == 67.44
    assert np.isnan(celeb[0].accuracy)
    assert paper_rows("dfdc") == ()


def test_what_departs_from_the_papers_protocol_is_said():
    four = ["", "Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures"]
    answers = made_answers(
        [0, 1, 1, 1, 1], [0.1, 0.9, 0.9, 0.9, 0.4], methods=four, compressions=["c23"] * 5, num_models=1, name="ffpp"
    )
    (found,) = compare_with_paper(answers, trained=("ffpp",), split="test", unsplit=False)
    assert (found.data, found.accuracy, found.auc, found.departures) == (HQ, 80.0, 100.0, ())
    two = made_answers([0, 1], [0.1, 0.9], compressions=["c23", "c40"], methods=["", "Deepfakes"], name="ffpp")
    both = compare_with_paper(two, trained=("dfdc", "ffpp"), split="val", unsplit=False)
    assert [one.data for one in both] == [HQ, LQ]
    words = " ".join(both[0].departures)
    for said in ("split val", "trained on dfdc, ffpp", "2 models", "fakes of no method"):
        assert said in words
    (celeb,) = compare_with_paper(
        made_answers([0, 1], [0.1, 0.9], name="celebdf-v2"), trained=("ffpp",), split="test", unsplit=True
    )
    assert "names no split" in " ".join(celeb.departures)
    other = made_answers([0, 1], [0.1, 0.9], name="dfdc")
    assert compare_with_paper(other, trained=("ffpp",), split="test", unsplit=False) == []


def model_of(pipeline: Pipeline, folder: Path, folds: dict[str, int], fold: int = 0) -> TrainedModel:
    """A model whose run has these folds: video_id -> fold."""
    path = folder / "made" / f"fold{fold}"
    rows = [{"video_id": name, "label": 0, "group": name, "fold": number} for name, number in sorted(folds.items())]
    FOLDS.write(pd.DataFrame(rows), path / "folds.csv")
    return dataclasses.replace(find_models(pipeline.experiment)[0], path=path, fold=fold)


@pytest.mark.parametrize(
    ("known", "asked", "leaks"),
    [
        pytest.param("dfdc/p/aaaaaaaaaa", "dfdc/p/aaaaaaaaaa", True, id="the same video"),
        pytest.param("dfdc/dfdc_train_part_0/aaaaaaaaaa", "dfdc/test/aaaaaaaaaa", True, id="a Kaggle 400 in part 0"),
        pytest.param("dfdc/p/aaaaaaaaaa", "kaggle/aaaaaaaaaa", True, id="DFDC's name in another data set"),
        pytest.param(
            "ffpp/x/Deepfakes/c23/videos/033_097", "ffpp/x/Deepfakes/c40/videos/033_097", True, id="compression"
        ),
        pytest.param("ffpp/x/Deepfakes/c23/videos/033_097", "ffpp/x/Deepfakes/c23/videos/044_945", False, id="another"),
        pytest.param("celebdf-v2/real/00012", "mine/real/00012", False, id="a number in two data sets"),
    ],
)
def test_a_test_video_that_a_run_knows_is_an_error(pipeline, tmp_path, known, asked, leaks):
    model = model_of(pipeline, tmp_path, {known: 0})  # held out is no excuse: the checkpoint was chosen on it
    table = table_of({**video("any", "x", 1), "video_id": asked})
    if not leaks:
        require_unseen([model], table, table)
        return
    with pytest.raises(ValueError, match=f"leak: 1 of 1 video to be tested on in the folds of made/fold0.*{asked}"):
        require_unseen([model], table, table)


def test_a_run_that_knows_a_test_split_is_an_error_whatever_is_evaluated(pipeline, tmp_path):
    model = model_of(pipeline, tmp_path, {"a/2": 1, "z/9": 0})
    mine = table_of(video("b", "1", 1))
    require_unseen([model], mine, mine)
    with pytest.raises(ValueError, match="leak: 1 of 2 videos of a test split"):
        require_unseen([model], mine, MIXED)


def test_to_choose_each_video_is_predicted_by_who_held_it_out(pipeline, tmp_path):
    folds = {"a/1": 0, "a/2": 1, "a/3": -1}
    models = [model_of(pipeline, tmp_path, folds, fold) for fold in (0, 1)]
    videos = table_of(video("a", "1", 1), video("a", "2", 0), video("b", "new", 0))
    assert held_out_pairs(models, videos) == {"made/fold0": {"a/1", "b/new"}, "made/fold1": {"a/2", "b/new"}}
    with pytest.raises(ValueError, match="trained on by every model of made; the first: a/3"):
        held_out_pairs(models, table_of(video("a", "3", 1)))


def test_fakes_of_known_originals_are_counted_and_data_sets_named(pipeline, tmp_path):
    model = model_of(pipeline, tmp_path, {"a/1": 0, "b/1": 1})
    videos = table_of(video("a", "7", 1, original="a/1"), video("a", "8", 1, original="a/9"), video("a", "9", 0))
    assert seen_originals([model], videos) == 1
    assert trained_datasets([model]) == ("a", "b")
    assert common_name("a/1") == "a/1"


def test_a_run_without_folds_cannot_be_evaluated(pipeline, tmp_path):
    model = dataclasses.replace(find_models(pipeline.experiment)[0], path=tmp_path / "x" / "fold0")
    with pytest.raises(FileNotFoundError, match="nothing says which videos x/fold0 was trained on"):
        require_unseen([model], MIXED, MIXED)


def test_a_test_split_chooses_nothing():
    two = [Path("runs/a"), Path("runs/b")]
    require_choosable(two, "val", "log_loss")
    with pytest.raises(ValueError, match="a test split never selects"):
        require_choosable(two, "test", "log_loss")
    for runs in (two[:1], [two[0], two[0]]):
        with pytest.raises(ValueError, match="expected two experiments or more"):
            require_choosable(runs, "val", "log_loss")


def test_the_best_run_has_the_lowest_loss_or_the_highest_auc():
    ranks_well = measure(made_answers([0, 0, 1, 1], [0.9, 0.9, 0.95, 0.95]))
    fits_well = measure(made_answers([0, 0, 1, 1], [0.1, 0.6, 0.55, 0.9]))
    measured = {"ranks": ranks_well, "fits": fits_well}
    assert choose_run(measured, "log_loss").best == "fits"
    choice = choose_run(measured, "auc")
    assert choice.best == "ranks"
    assert choice.table["run"].tolist() == ["ranks", "fits"]
    assert "chosen by auc of videos: ranks" in choice.describe()
    one_class = {"a": measure(made_answers([1], [0.5])), "b": measure(made_answers([1], [0.6]))}
    assert choose_run(one_class, "log_loss").best == "b"
    with pytest.raises(ValueError, match="one class only"):
        choose_run(one_class, "auc")


def test_predictions_are_made_again_only_for_what_changed(pipeline: Pipeline, tmp_path, monkeypatch):
    models = find_models(pipeline.experiment)
    videos = training_selection(pipeline).videos["video_id"].tolist()[:3]
    asked = []
    original = kept_predictions.predict_faces

    def counted(given, folder, **options):
        asked.extend(model.name for model in given)
        return original(given, folder, **options)

    monkeypatch.setattr(kept_predictions, "predict_faces", counted)

    def predict(which=models, ids=videos, precision="fp32") -> pd.DataFrame:
        asked.clear()
        path = tmp_path / "frame_predictions.parquet"
        return predict_kept(which, {pipeline.faces: ids}, path, device=CPU, precision=precision)

    first = predict(models[:1])
    assert asked == ["demo_tiny/fold0"]
    both = predict()
    assert asked == ["demo_tiny/fold1"]
    pd.testing.assert_frame_equal(both[both["model"] == "demo_tiny/fold0"].reset_index(drop=True), first)
    again = predict(ids=videos[::-1])
    assert asked == []
    pd.testing.assert_frame_equal(again, both)
    assert set(predict(ids=videos[:2])["video_id"]) <= set(videos[:2])
    assert len(asked) == 2
    predict(ids=videos[:2], precision="bf16")
    assert len(asked) == 2
    changed = tmp_path / "other" / "demo_tiny" / "fold0"
    changed.mkdir(parents=True)
    (changed / "best.safetensors").write_bytes((models[1].path / "best.safetensors").read_bytes())
    predict([dataclasses.replace(models[0], path=changed)], ids=videos[:2], precision="bf16")
    assert asked == ["demo_tiny/fold0"]
    predict(with_tta(models[1:], "flip"), ids=videos[:2], precision="bf16")
    assert asked == ["demo_tiny/fold1"], "predictions with other views are others"
