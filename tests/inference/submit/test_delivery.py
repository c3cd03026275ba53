"""The submission: the sample's rows in its order, the prior where nothing was seen, every fault refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiattn.figures.submission import draw_probabilities
from multiattn.inference.submit.delivery import (
    Submission,
    build_submission,
    check_submission,
    write_submission,
)
from multiattn.scoring.aggregators import Aggregator
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION, VIDEO_PREDICTIONS, VIDEO_STATUS

SHARED = Path(__file__).resolve().parents[4] / "shared"
STATUS_OF = {"good": "ok", "empty": "no_face", "broken": "unreadable"}


def make_sample(*names: str) -> pd.DataFrame:
    return (
        SUBMISSION.validate(pd.DataFrame({"filename": names, "label": 0.0}), "sample") if names else SUBMISSION.empty()
    )


def make_statuses(**status_of: str) -> pd.DataFrame:
    rows = [(f"folder/{name}", status, 1, int(status == "ok"), "") for name, status in status_of.items()]
    return VIDEO_STATUS.validate(pd.DataFrame(rows, columns=list(VIDEO_STATUS.columns)), "statuses")


def make_predictions(**probability_of: float) -> pd.DataFrame:
    rows = [("m/fold0", 0, f"folder/{name}", 0, 0, 0.0, value) for name, value in probability_of.items()]
    if not rows:
        return FRAME_PREDICTIONS.empty()
    return FRAME_PREDICTIONS.validate(pd.DataFrame(rows, columns=list(FRAME_PREDICTIONS.columns)), "predictions")


def build(predictions: pd.DataFrame, statuses: pd.DataFrame, sample: pd.DataFrame, rule: ScoringRule) -> Submission:
    return build_submission(rule.score(predictions), statuses, sample, rule)


@pytest.fixture
def four():
    """A sample whose four videos have the four statuses, and the submission for it."""
    sample = make_sample("missing.mp4", "good.mp4", "broken.mp4", "empty.mp4")
    return sample, build(make_predictions(good=0.9), make_statuses(**STATUS_OF), sample, ScoringRule())


def test_the_rows_are_the_samples_in_its_order_with_the_prior_where_nothing_was_seen(four):
    sample, result = four
    assert result.submission["filename"].tolist() == sample["filename"].tolist()
    assert result.submission["label"].tolist() == [0.5, 0.9, 0.5, 0.5]
    assert result.videos["status"].tolist() == ["missing", "ok", "unreadable", "no_face"]
    assert result.videos["num_crops"].tolist() == [0, 1, 0, 0]
    check_submission(result.submission, sample, ScoringRule(), Path("s.csv"))


def test_another_prior_is_the_answer_and_what_was_seen_is_not():
    sample = make_sample("a.mp4", "b.mp4")
    rule = ScoringRule(aggregator=Aggregator(prior=0.3))
    result = build(make_predictions(a=0.9), make_statuses(a="ok"), sample, rule)
    assert result.submission["label"].tolist() == [0.9, 0.3]


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0.01), (1.0, 0.99), (0.01, 0.01), (0.5, 0.5)])
def test_probabilities_are_clipped(probability, expected):
    sample = make_sample("a.mp4")
    result = build(make_predictions(a=probability), make_statuses(a="ok"), sample, ScoringRule())
    assert result.submission["label"].tolist() == [expected]
    check_submission(result.submission, sample, ScoringRule(), Path("s.csv"))


def test_nothing_seen_at_all_is_the_prior_everywhere():
    sample = make_sample("a.mp4", "b.mp4")
    result = build(FRAME_PREDICTIONS.empty(), VIDEO_STATUS.empty(), sample, ScoringRule())
    assert result.submission["label"].tolist() == [0.5, 0.5]
    assert result.coverage == {"ok": 0, "no_face": 0, "unreadable": 0, "missing": 2}


def test_videos_that_the_sample_does_not_ask_for_are_left_out():
    result = build(make_predictions(a=0.9, z=0.1), make_statuses(a="ok", z="ok"), make_sample("a.mp4"), ScoringRule())
    assert result.submission["filename"].tolist() == ["a.mp4"]


def test_two_names_that_differ_in_extension_only_are_refused():
    with pytest.raises(ValueError, match="share theirs"):
        build(make_predictions(a=0.9), make_statuses(a="ok"), make_sample("a.mp4", "a.mov"), ScoringRule())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda table: table.iloc[:-1], r"found 3; missing \['empty.mp4'\]", id="a row missing"),
        pytest.param(lambda table: table.iloc[:0], "found 0", id="no rows"),
        pytest.param(
            lambda table: pd.concat([table, make_sample("new.mp4").assign(label=0.5)], ignore_index=True),
            r"found 5; missing \[\], added \['new.mp4'\]",
            id="a row added",
        ),
        pytest.param(lambda table: table.iloc[::-1].reset_index(drop=True), "in its order", id="another order"),
        pytest.param(
            lambda table: table.assign(filename=table["filename"].str.removesuffix(".mp4")),
            "missing",
            id="no extension",
        ),
        pytest.param(lambda table: pd.concat([table, table.iloc[:1]]), "share theirs", id="a row twice"),
        pytest.param(lambda table: table.rename(columns={"label": "p"}), "'label'", id="another column"),
        pytest.param(lambda table: table.assign(label=np.nan), "4 of 4 rows", id="NaN"),
        pytest.param(lambda table: table.assign(label=1.2), "4 of 4 rows", id="above 1"),
        pytest.param(
            lambda table: table.assign(label=0.999), r"\[0.01, 0.99\], found 4 outside", id="outside the clip"
        ),
        pytest.param(lambda table: table.assign(label=[0.5, 0.001, 0.5, 0.5]), "first: good.mp4", id="names the first"),
        pytest.param(
            lambda table: table.assign(label=[0.5, 0.001, 0.5, 0.5]).set_index(pd.Index([3, 5, 7, 9])),
            "first: good.mp4",
            id="names the first by position",
        ),
    ],
)
def test_every_fault_of_a_submission_is_refused(change, expected, four):
    sample, result = four
    with pytest.raises(ValueError, match=expected) as caught:
        check_submission(change(result.submission), sample, ScoringRule(), Path("submissions/x/submission.csv"))
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
    assert card["scoring"] == ScoringRule().as_dict()
    assert card["commit"]


def test_a_submission_that_is_refused_is_not_written(four, tmp_path):
    _, result = four
    with pytest.raises(ValueError, match="in its order"):
        write_submission(result, make_sample("other.mp4"), tmp_path / "mine", {})
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("", "not a readable submission table", id="empty"),
        pytest.param("filename,label\n", "no rows", id="no rows"),
        pytest.param("file,label\na.mp4,0\n", "'filename'", id="another column"),
        pytest.param("filename,label\na.mp4,0\na.mp4,0\n", "share theirs", id="a name twice"),
        pytest.param("filename,label\na.mp4,-1\n", "label", id="a label out of range"),
    ],
)
def test_a_file_that_is_no_sample_is_refused(content, expected, tmp_path):
    (tmp_path / "sample.csv").write_text(content)
    with pytest.raises(ValueError, match=expected):
        SUBMISSION.read(tmp_path / "sample.csv")


@pytest.mark.shared
def test_kaggles_own_sample_is_answered_row_by_row(tmp_path):
    path = SHARED / "data" / "lists" / "kaggle_sample_submission.csv"
    if not path.is_file():
        pytest.skip("needs ../shared/data/lists/kaggle_sample_submission.csv")
    sample = SUBMISSION.read(path)
    assert len(sample) == 400
    stems = [Path(name).stem for name in sample["filename"]]
    rng = np.random.default_rng(0)
    predictions = pd.concat(
        [
            make_predictions(**dict(zip(stems[:390], rng.random(390), strict=True))).assign(
                frame_index=frame, model=f"m/fold{fold}"
            )
            for frame in range(3)
            for fold in range(2)
        ],
        ignore_index=True,
    )
    result = build(predictions, make_statuses(**dict.fromkeys(stems[:390], "ok")), sample, ScoringRule())
    write_submission(result, sample, tmp_path, {})
    assert result.coverage == {"ok": 390, "no_face": 0, "unreadable": 0, "missing": 10}
    theirs, ours = path.read_text().splitlines(), (tmp_path / "submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in ours] == [line.split(",")[0] for line in theirs]


@pytest.mark.parametrize("rows", [0, 1, 4], ids=["no videos", "one video", "every status"])
def test_the_histogram_of_a_submission_is_drawn(rows, four, tmp_path):
    figure = draw_probabilities(four[1].videos.iloc[:rows])
    figure.savefig(tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000
