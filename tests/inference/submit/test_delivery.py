"""The submission: the sample's rows in its order, the prior where nothing was seen, every fault refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from multiattn.config import to_json
from multiattn.datasets.manifest import folder_ids
from multiattn.figures.submission import draw_probabilities
from multiattn.inference.submit import delivery as delivery_module
from multiattn.inference.submit.delivery import (
    Delivery,
    Submission,
    build_submission,
    check_submission,
    write_submission,
)
from multiattn.inference.submit.frames import FrameFiles, frame_table
from multiattn.inference.submit.results import VideoResult, overall
from multiattn.scoring.aggregators import Aggregator
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION, VIDEO_PREDICTIONS

SHARED = Path(__file__).resolve().parents[4] / "shared"
UNTUNED = ScoringRule()


def make_sample(*names: str) -> pd.DataFrame:
    return SUBMISSION.validate(pd.DataFrame({"filename": names, "label": 0.0}), "sample")


def make_predictions(**probability_of: float) -> pd.DataFrame:
    rows = [("m/fold0", 0, f"folder/{name}", 0, 0, 0.0, value) for name, value in probability_of.items()]
    if not rows:
        return FRAME_PREDICTIONS.empty()
    frame = pd.DataFrame(rows, columns=list(FRAME_PREDICTIONS.columns)[: len(rows[0])])
    return FRAME_PREDICTIONS.validate(frame.assign(distance=np.nan, distance_reason=""), "predictions")


def build(sample: pd.DataFrame, predictions: pd.DataFrame, rule: ScoringRule = UNTUNED, **status_of: str) -> Submission:
    """Videos with predictions are `ok`."""
    status_of = {**dict.fromkeys(predictions["video_id"].str.removeprefix("folder/"), "ok"), **status_of}
    statuses = {f"folder/{name}": (status, "") for name, status in status_of.items()}
    return build_submission(rule.score(predictions), statuses.get, sample, rule)


def with_row(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: pd.concat([table, make_sample(name).assign(label=0.5)], ignore_index=True)


def one_too_low(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(label=[0.5, 0.001, 0.5, 0.5])


@pytest.fixture
def four():
    """A sample whose four videos have the four statuses, and the submission for it."""
    sample = make_sample("missing.mp4", "good.mp4", "broken.mp4", "empty.mp4")
    return sample, build(sample, make_predictions(good=0.9), empty="no_face", broken="unreadable")


def test_the_rows_are_the_samples_in_its_order_with_the_prior_where_nothing_was_seen(four):
    sample, result = four
    assert result.submission["filename"].tolist() == sample["filename"].tolist()
    assert result.submission["label"].tolist() == [0.5, 0.9, 0.5, 0.5]
    assert result.videos["status"].tolist() == ["missing", "ok", "unreadable", "no_face"]
    assert result.videos["num_crops"].tolist() == [0, 1, 0, 0]
    check_submission(result.submission, sample, UNTUNED, Path("s.csv"))


@pytest.mark.parametrize(
    ("seen", "prior", "expected"),
    [
        pytest.param({"a": 0.9}, 0.3, [0.9, 0.3], id="another prior"),
        pytest.param({"a": 0.0, "b": 1.0}, 0.5, [0.01, 0.99], id="clipped"),
        pytest.param({"a": 0.01, "b": 0.5}, 0.5, [0.01, 0.5], id="within the clip"),
        pytest.param({}, 0.5, [0.5, 0.5], id="nothing seen"),
        pytest.param({"a": 0.9, "z": 0.1}, 0.5, [0.9, 0.5], id="a video that is not asked for"),
    ],
)
def test_each_row_is_the_clipped_probability_or_the_prior(seen, prior, expected):
    sample, rule = make_sample("a.mp4", "b.mp4"), ScoringRule(aggregator=Aggregator(prior=prior))
    result = build(sample, make_predictions(**seen), rule)
    assert result.submission["filename"].tolist() == ["a.mp4", "b.mp4"]
    assert result.submission["label"].tolist() == expected
    answered = len(seen.keys() & {"a", "b"})
    assert result.coverage == {"ok": answered, "no_face": 0, "unreadable": 0, "missing": 2 - answered}
    check_submission(result.submission, sample, rule, Path("s.csv"))


def test_names_that_differ_in_their_ending_are_two_videos_and_what_is_no_name_goes_by_its_row():
    assert folder_ids(["a.mp4", "a.mov", "b.mp4"]) == ["folder/a.mp4", "folder/a.mov", "folder/b"]
    odd = ["../a.mp4", "/a.mp4", "n" * 300, "a//b.mp4", "a\0.mp4"]
    assert folder_ids(odd) == [f"folder/row {row}" for row in range(5)]
    assert folder_ids([]) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda table: table.iloc[:-1], "found 3; missing 'empty.mp4'", id="a row missing"),
        pytest.param(lambda table: table.iloc[:0], "found 0", id="no rows"),
        pytest.param(with_row("new.mp4"), "found 5; missing none, added 'new.mp4'", id="a row added"),
        pytest.param(lambda table: table.iloc[::-1].reset_index(drop=True), "in its order", id="another order"),
        pytest.param(lambda table: table.replace(".mp4", "", regex=True), "missing", id="no extension"),
        pytest.param(with_row("good.mp4"), "share theirs", id="a row twice"),
        pytest.param(lambda table: table.rename(columns={"label": "p"}), "'label'", id="another column"),
        pytest.param(lambda table: table.assign(label=np.nan), "4 of 4 rows", id="NaN"),
        pytest.param(lambda table: table.assign(label=1.2), "4 of 4 rows", id="above 1"),
        pytest.param(
            lambda table: table.assign(label=0.999), r"\[0.01, 0.99\], found 4 outside", id="outside the clip"
        ),
        pytest.param(
            lambda table: one_too_low(table).set_index(pd.Index([3, 5, 7, 9])), "first: good.mp4", id="the first"
        ),
    ],
)
def test_every_fault_of_a_submission_is_refused(change, expected, four):
    sample, result = four
    with pytest.raises(ValueError, match=expected) as caught:
        check_submission(change(result.submission), sample, UNTUNED, Path("submissions/x/submission.csv"))
    assert str(caught.value).startswith("submissions/x/submission.csv: ")


def test_a_submission_folder_holds_submission_predictions_and_card(four, tmp_path):
    sample, result = four
    write_submission(result, sample, tmp_path / "mine", {"runs": ["m/fold0"]})
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "card.json",
        "submission.csv",
        "video_predictions.csv",
    ]
    assert (tmp_path / "mine" / "submission.csv").read_text() == (
        "filename,label\nmissing.mp4,0.5\ngood.mp4,0.9\nbroken.mp4,0.5\nempty.mp4,0.5\n"
    )
    pd.testing.assert_frame_equal(VIDEO_PREDICTIONS.read(tmp_path / "mine" / "video_predictions.csv"), result.videos)
    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert card["runs"] == ["m/fold0"]
    assert card["coverage"] == {"ok": 1, "no_face": 1, "unreadable": 1, "missing": 1}
    assert card["scoring"] == to_json(UNTUNED)
    assert card["commit"]


def stay(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.*") if path.suffix != ".parquet"}


def no_frames(path: Path) -> dict:
    FRAME_PREDICTIONS.write(FRAME_PREDICTIONS.empty(), path)
    return {}


def deliver(folder: Path, sample: pd.DataFrame, seen: dict[str, float], **status_of: str) -> bool:
    """Of a new run at its end."""
    delivery = Delivery(sample, UNTUNED, folder)
    delivery.begin()
    result = build(sample, make_predictions(**seen), **status_of)
    delivery.try_to_write(result, {"complete": False})
    return delivery.deliver(result, {"complete": True}, no_frames)


def test_former_answers_stay_until_a_run_has_as_many_or_comes_to_its_end(tmp_path, caplog):
    sample = make_sample("a.mp4", "b.mp4", "c.mp4")
    assert deliver(tmp_path, sample, {"a": 0.9, "b": 0.8}, c="no_face")
    first = stay(tmp_path)
    assert json.loads(first["card.json"])["complete"] is True
    Delivery(sample, UNTUNED, tmp_path).begin()
    assert stay(tmp_path) == first, "a killed run leaves them too"
    assert not deliver(tmp_path, sample, {"a": 0.1}, b="late", c="late")
    assert not deliver(tmp_path, sample, {}, a="failed", b="failed", c="failed")
    assert stay(tmp_path) == first and "former answers to 2 videos stay" in caplog.text
    assert deliver(tmp_path, sample, {"a": 0.2, "b": 0.3}, c="late")
    assert "a.mp4,0.2" in stay(tmp_path)["submission.csv"] and len(stay(tmp_path)) == len(first)
    assert deliver(tmp_path, sample, {"a": 0.4}, b="unreadable", c="no_face")
    found = stay(tmp_path)
    assert "b.mp4,0.5" in found["submission.csv"] and "b.mp4,0.3" in found["submission.1.csv"]
    assert json.loads(found["card.1.json"])["coverage"]["ok"] == 2, "what answered more is set aside, with its card"


def test_an_outside_model_answers_with_ours_and_alone_where_ours_have_no_answer(tmp_path):
    sample, rule = make_sample("a.mp4", "b.mp4", "c.mp4"), ScoringRule(outside=("x",))
    outside = pd.DataFrame({"x": [0.5, 0.3, 0.2]}, index=pd.Index(folder_ids(sample["filename"]), name="video_id"))
    delivery = Delivery(sample, rule, tmp_path, outside)
    crop = {"file": "", "crops": [[0, 0]], "models": ["m/fold0"], "fingerprints": ["f"], "precisions": ["fp32"]}
    seen = VideoResult(video_id="folder/a", status="ok", frames=1, logits=[[logit(0.9)]], **crop)
    blank = VideoResult(video_id="folder/b", status="no_face", file="", message="dark")
    statuses = {"folder/c": ("late", "")}
    for result, expected in ((None, [0.5, 0.3, 0.2]), (seen, [0.7, 0.3, 0.2]), (blank, [0.7, 0.3, 0.2])):
        if result is not None:
            delivery.add(result.video_id, [result])
            statuses[result.video_id] = overall([result])
        answer = delivery.build(statuses.get)
        assert answer.submission["label"].tolist() == pytest.approx(expected, abs=1e-12)
    assert answer.videos["message"].tolist() == ["", "dark; answered by outside models", "answered by outside models"]
    assert answer.coverage == {"ok": 1, "no_face": 1, "unreadable": 0, "missing": 0, "late": 1}


@pytest.mark.parametrize("outside", [None, "x"], ids=["ours alone", "an outside model"])
@pytest.mark.parametrize("per_frame", [False, True], ids=["videos", "frames"])
def test_scores_are_those_of_the_table_that_is_written(per_frame, outside):
    rng, folds = np.random.default_rng(0), {"m/fold0": 0, "m/fold1": 1, "n/fold0": 0}
    made = []
    for number in range(9):  # by two recipes, of which the second saw fewer faces of every third video
        for models, crops in ((["m/fold0", "m/fold1"], 4), (["n/fold0"], 4 - number % 3 // 2)):
            logits = rng.normal(size=(len(models), crops))
            how = {"models": models, "fingerprints": models, "precisions": ["fp32"] * len(models)}
            places = [[frame // 2, frame % 2] for frame in range(crops)]
            made.append(
                VideoResult(video_id=f"folder/{number}", file="", status="ok", crops=places, logits=logits, **how)
            )
    rule = ScoringRule(per_frame=per_frame, outside=() if outside is None else (outside,))
    ids = pd.Index([f"folder/{number}" for number in range(10)], name="video_id")
    answers = None if outside is None else pd.DataFrame({outside: rng.random(10)}, index=ids)
    expected = rule.score(frame_table(made, folds), answers)
    pd.testing.assert_frame_equal(rule.score(frame_table(made[::-1]), answers), expected, check_exact=True)
    assert len(expected) == 9 + (outside is not None)


@pytest.mark.parametrize("at_once", [1, 2, 9], ids=["a video", "two videos", "all"])
def test_a_table_that_is_written_in_pieces_is_the_one_of_all_videos(at_once, tmp_path):
    rng, folds = np.random.default_rng(0), {"n/fold1": 1, "m/fold0": 0, "o/fold0": 0}
    made = []
    for number, models in enumerate((["m/fold0", "n/fold1"], ["n/fold1"], ["m/fold0"], ["m/fold0", "n/fold1"], [])):
        crops = [[frame, 0] for frame in range(1 + number)] if models else []
        shape, name = (len(models), len(crops)), f"folder/{number}"
        numbers = {"logits": rng.normal(size=shape).tolist(), "distances": rng.random(shape).tolist()}
        numbers["reasons"] = np.full(shape, "blur").tolist()
        how = {"models": models, "fingerprints": models, "precisions": ["fp32"] * len(models), "crops": crops}
        made.append(VideoResult(video_id=name, file="", status="ok" if models else "no_face", **how, **numbers))
    files = FrameFiles(tmp_path, list(folds))
    for start in range(0, len(made), at_once):
        files.add(frame_table(made[start : start + at_once], folds))
    files.write(tmp_path / "pieces.parquet")
    FRAME_PREDICTIONS.write(frame_table(made, folds), tmp_path / "whole.parquet")
    found, expected = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("pieces", "whole"))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    FrameFiles(tmp_path, list(folds)).write(tmp_path / "none.parquet")
    assert FRAME_PREDICTIONS.read(tmp_path / "none.parquet", allow_empty=True).empty


def test_answers_to_another_sample_are_set_aside_and_priors_beside_an_old_card_are_no_answers(tmp_path):
    deliver(tmp_path, make_sample("a.mp4"), {"a": 0.9})
    delivery = Delivery(make_sample("b.mp4"), UNTUNED, tmp_path)
    delivery.begin()
    assert set(stay(tmp_path)) == {"submission.csv", "submission.1.csv", "card.1.json", "video_predictions.1.csv"}
    (tmp_path / "card.json").write_text('{"coverage": {"ok": 1}}')
    delivery = Delivery(make_sample("b.mp4"), ScoringRule(aggregator=Aggregator(prior=0.3)), tmp_path)
    delivery.begin()
    assert delivery.predicted == 0
    assert "card.json" not in stay(tmp_path) and "b.mp4,0.3" in stay(tmp_path)["submission.csv"]


def test_no_card_lies_beside_answers_it_does_not_describe(four, tmp_path, monkeypatch):
    sample, result = four
    write_submission(result, sample, tmp_path, {}, no_frames)
    monkeypatch.setattr(delivery_module, "git_commit", lambda: pytest.fail("killed before the card is written"))
    with pytest.raises(BaseException, match="killed"):
        write_submission(result, sample, tmp_path, {})
    assert {path.name for path in tmp_path.iterdir()} == {"submission.csv", "video_predictions.csv"}


def test_a_submission_that_is_refused_is_not_written(four, tmp_path):
    _, result = four
    with pytest.raises(ValueError, match="in its order"):
        write_submission(result, make_sample("other.mp4"), tmp_path / "mine", {})
    assert not (tmp_path / "mine").exists()


@pytest.mark.shared
def test_kaggles_own_sample_is_answered_row_by_row(tmp_path):
    path = SHARED / "data" / "lists" / "kaggle_sample_submission.csv"
    if not path.is_file():
        pytest.skip("needs ../shared/data/lists/kaggle_sample_submission.csv")
    sample = SUBMISSION.read(path)
    assert len(sample) == 400
    stems = [Path(name).stem for name in sample["filename"]]
    rng = np.random.default_rng(0)
    tables = [
        make_predictions(**dict(zip(stems[:390], rng.random(390), strict=True))).assign(frame_index=frame, model=model)
        for frame in range(3)
        for model in ("m/fold0", "m/fold1")
    ]
    predictions = pd.concat(tables, ignore_index=True)
    result = build(sample, predictions)
    write_submission(result, sample, tmp_path, {})
    assert result.coverage == {"ok": 390, "no_face": 0, "unreadable": 0, "missing": 10}
    theirs, ours = path.read_text().splitlines(), (tmp_path / "submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in ours] == [line.split(",")[0] for line in theirs]


@pytest.mark.parametrize("rows", [0, 1, 4], ids=["no videos", "one video", "every status"])
def test_the_histogram_of_a_submission_is_drawn(rows, four, tmp_path):
    figure = draw_probabilities(four[1].videos.iloc[:rows])
    figure.savefig(tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000
