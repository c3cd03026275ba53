"""Log loss after each step of scoring: the constant, one fold, all folds by their mean, all folds tuned."""

from pathlib import Path

import pandas as pd

from multiattn.datasets.manifest import video_id
from multiattn.evaluation.leaderboard import read_groups
from multiattn.runtime.files import read_json
from multiattn.runtime.layout import PREDICTIONS_FILE
from multiattn.scoring.metrics import bootstrap_log_loss, video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.scoring.tuning import EXACT, TUNED, UNTUNED
from multiattn.tables import FRAME_PREDICTIONS, LABELS

NAMES = {UNTUNED: "all folds, mean", TUNED: "all folds, tuned (nested)"}
COLUMNS = ("name", "log_loss", "low", "high", "balanced_log_loss", "auc", "num_videos", "num_groups")


def steps_out_of_fold(scoring: Path) -> pd.DataFrame:
    """The steps over held-out videos, each by the model of its fold, from the `scoring.json` of `multiattn tune`.

    Returns:
        name, log_loss with the 95 % interval low and high (NaN with fewer than 5 groups), balanced_log_loss, auc,
        num_videos; num_groups, those of the folds table, which the bootstrap draws whole.

    Raises:
        FileNotFoundError, ValueError: not such a file.
    """
    if not scoring.is_file():
        raise FileNotFoundError(f"{scoring}: no scoring rule here. Make it with `multiattn tune`.")
    report = read_json(scoring)["report"]
    videos = report["videos"]
    rows = [
        {**row, "name": NAMES[row["name"]], "num_videos": videos["number"], "num_groups": videos["groups"]}
        for row in report["figures"]
        if row["name"] in NAMES
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def steps_on_test(submission: Path, labels: Path, groups: Path, rule: ScoringRule) -> pd.DataFrame:
    """The same steps over the videos of a submission, from the frame predictions it kept; nothing is predicted again.

    `labels` and `groups` are `filename,label` and `filename,group` of the submission folder's videos, `rule` the tuned
    one.

    Raises:
        FileNotFoundError, ValueError: not such files, or a labelled video without a group.
    """
    predictions = FRAME_PREDICTIONS.read(submission / PREDICTIONS_FILE, allow_empty=True)
    table = LABELS.read(labels).sort_values("filename", ignore_index=True)
    drawn = read_groups(groups, table)
    ids = table["filename"].map(lambda name: video_id("folder", name))
    first = sorted(predictions["model"].unique())[:1]
    plain = ScoringRule()
    steps = {
        "one fold": (predictions[predictions["model"].isin(first)], plain),
        "all folds, mean": (predictions, plain),
        "all folds, tuned": (predictions, rule),
    }
    rows = []
    for name, (given, of) in steps.items():
        answers = of.score_videos(ids, given)["probability"].to_numpy()
        metrics = video_metrics(table["label"].to_numpy(), answers, clip=EXACT)
        interval = bootstrap_log_loss(table["label"].to_numpy(), answers, drawn, clip=EXACT)
        figures = (metrics.log_loss, interval.low, interval.high, metrics.balanced_log_loss, metrics.auc)
        rows.append((name, *figures, metrics.num_videos, len(set(drawn))))
    return pd.DataFrame(rows, columns=list(COLUMNS))
