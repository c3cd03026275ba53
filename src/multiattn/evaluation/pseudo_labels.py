"""Confident answers for unlabelled videos -> rows of a folds table that are trained on and never validated on.

The model of fold k has seen the labels of all folds but k. A label that all models of a run give together therefore
knows the labels of fold k, and whoever trains fold k on it and validates there measures them again. So a video is taken
only where the models of each fold by themselves are confident, and of one opinion: to no fold comes a label that its
own model, which never saw the fold, would not have given. What the others add is the choice among these labels. For it,
and because each fold's epoch was chosen on the fold, out-of-fold figures with pseudo-labels are a little too good; test
on other videos.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from multiattn.config.choices import Grouping
from multiattn.datasets.folds import check_folds, group_videos, read_folds, read_grouping, write_folds
from multiattn.evaluation.run import predict_kept
from multiattn.evaluation.selection import common_name
from multiattn.inference.runs import find_models, with_tta
from multiattn.inference.scoring_file import choose_scoring, require_rule_fits
from multiattn.runtime.devices import pick_devices
from multiattn.runtime.files import read_json
from multiattn.runtime.text_tables import counted
from multiattn.tables import FAKE, FOLDS, REAL, UNKNOWN
from multiattn.video.extraction.faces_folder import read_faces_folder


def pseudo_label(
    runs: Sequence[Path],
    faces: Path,
    folds: Path,
    out: Path,
    *,
    confidence: float,
    balance: bool = True,
    scoring: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> tuple[pd.DataFrame, str]:
    """Write the folds with a row more for each video that was answered confidently; returns these rows, and in words
    which videos were left out. Predictions are kept beside the table.

    Args:
        faces: holds the faces of labelled and of unlabelled videos, as the training will need them.
        folds: those the runs were trained with.
        confidence: least P of a label, above a half.
        balance: as many fakes as reals, the surest of either.

    Raises:
        FileNotFoundError: no runs, faces or folds.
        ValueError: runs of other folds, no unlabelled video that may be trained on, or no confident answer.
    """
    videos, grouping, rule = read_faces_folder(faces)[2], read_grouping(folds), choose_scoring(runs, scoring)
    table, models = read_folds(folds, videos=videos), with_tta(find_models(*runs), rule.tta)
    require_rule_fits(rule, models)
    if not 0.5 < confidence <= 1 - rule.clip:
        limit = f"more than 0.5 and at most {1 - rule.clip:g}, where the scoring rule clips"
        raise ValueError(f"--confidence: expected {limit}, found {confidence:g}.")
    if other := [model.name for model in models if not model.folds().equals(table)]:
        raise ValueError(f"{folds}: expected the folds that {other[0]} was trained with, found others.")
    candidates, left_out = find_candidates(videos, table, grouping)
    if candidates.empty:
        raise ValueError(
            f"{faces}: expected unlabelled videos that may be trained on, found none{left_out and ', but '}{left_out}. "
            "Index them (`multiattn index folder`), and extract their faces into this folder."
        )
    path, how = out.with_name(f"{out.stem}_predictions.parquet"), {"device": pick_devices(device)}
    predictions = predict_kept(models, {faces: candidates["video_id"].tolist()}, path, precision=precision, **how)
    numbers = sorted({model.fold for model in models})
    scores = [rule.score(predictions[predictions["fold"] == number]) for number in numbers]
    answers = [of.set_index("video_id")["probability"].reindex(candidates["video_id"]) for of in scores]
    rows = choose_labels(candidates, np.column_stack(answers), confidence, balance=balance)
    if rows.empty:
        raise ValueError(
            f"expected videos of which the models of each fold are sure to {confidence:g}, found none among "
            f"{len(candidates)}{' of one label' if balance else ''}. Lower --confidence{', or --no-balance' * balance}."
        )
    rows = rows.assign(fold=-1, label_source=" ".join(["pseudo", *map(str, numbers)]))
    table = FOLDS.validate(pd.concat([table, rows]).sort_values("video_id"), out)
    check_folds(table, source=out, videos=videos, grouping=grouping)
    recipe = read_json(folds.with_suffix(".json"))["recipe"] if folds.with_suffix(".json").is_file() else {}
    made = {"models": [model.name for model in models], "confidence": confidence, "balance": balance}
    write_folds(table, out, {**recipe, "group": grouping, "pseudo_labels": made})
    return rows, left_out


def find_candidates(videos: pd.DataFrame, folds: pd.DataFrame, grouping: Grouping) -> tuple[pd.DataFrame, str]:
    """video_id and group of the unlabelled videos that may be trained on, and in words how many others there are.

    Left out is what belongs to a test split, what shares an original, a person or, by `part`, a part with a video that
    is validated or tested on, and what bears the name of a video of the folds or a test split.
    """
    known = set(folds["video_id"])
    held_out = {*folds.loc[folds["fold"] >= 0, "video_id"], *videos.loc[videos["split"] == "test", "video_id"]}
    names = {common_name(video) for video in known | held_out}
    table = videos[(videos["label"] == UNKNOWN) | videos["video_id"].isin(known | held_out)].reset_index(drop=True)
    table["group"] = group_videos(table, grouping)
    spans = set(table.loc[table["video_id"].isin(held_out), "group"])
    table = table[(table["label"] == UNKNOWN) & ~table["video_id"].isin(known)]
    reasons = pd.Series("", index=table.index)
    reasons[table["video_id"].map(common_name).isin(names)] = "of the name of a video of the folds or a test split"
    reasons[table["group"].isin(spans)] = "in a group with a video that is validated or tested on"
    reasons[table["split"] == "test"] = "of a test split"
    counts = reasons[reasons != ""].value_counts(sort=False)
    words = ", ".join(f"{counted(number, 'video')} {reason}" for reason, number in counts.items())
    return table.loc[reasons == "", ["video_id", "group"]].reset_index(drop=True), words


def choose_labels(candidates: pd.DataFrame, answers: np.ndarray, confidence: float, *, balance: bool) -> pd.DataFrame:
    """The candidates (N rows) with a `label`, of which each column of the (N, K) answers P(fake) is sure; NaN is not.

    With `balance` as many of either label, the surest by their least sure column; of equally sure ones the first.
    """
    sure = {FAKE: answers.min(axis=1), REAL: (1 - answers).min(axis=1)}
    chosen = {label: np.flatnonzero(of >= confidence) for label, of in sure.items()}
    most = min(map(len, chosen.values())) if balance else len(candidates)
    ranked = {label: places[np.argsort(-sure[label][places], kind="stable")][:most] for label, places in chosen.items()}
    return pd.concat([candidates.iloc[places].assign(label=label) for label, places in ranked.items()])
