"""Finished submissions -> one: folders of ours, which say how they were made, and files `filename,label` of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from multiattn.datasets.manifest import folder_ids
from multiattn.inference.outside import beside, card_of, read_held_out
from multiattn.inference.submit.inputs import describe_submission
from multiattn.runtime import layout
from multiattn.runtime.files import exclusive_folder
from multiattn.runtime.progress import progress_bar
from multiattn.scoring.aggregators import DEFAULT_CLIP, Aggregator, complete_videos
from multiattn.scoring.ensembling import Ensemble, experiment_of
from multiattn.scoring.metrics import video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.scoring.tuning import EXACT, closing_line, describe_rule, describe_tuning, num_steps, tune
from multiattn.tables import FOLDS, FRAME_PREDICTIONS, OUT_OF_FOLD, VIDEO_PREDICTIONS


@dataclass(frozen=True)
class BlendRule:
    """A rule that makes one submission of several."""

    rule: ScoringRule
    words: str
    """How it came about."""
    held_out: pd.DataFrame | None
    """Its answers to held-out videos, an `out-of-fold` table; None where they are not known."""
    frames: pd.DataFrame | None = None
    """Frame predictions of ours that it blends; None: it blends submissions, as if each were an outside model."""

    def write_frames(self, path: Path) -> dict[str, Any]:
        """As `write_submission` has it; the card gets nothing more."""
        FRAME_PREDICTIONS.write(self.frames, path)
        return {}


def weigh(
    files: Mapping[str, Path],
    weights: Sequence[float],
    clip: float | None,
    held_out: Mapping[str, Path],
    folds: Path | None,
) -> BlendRule:
    """The clipped mean of the submissions' logits by given weights, with its figures where all `held_out` answers are
    there.

    Args:
        files: name -> a submission.
        weights: at least 0, in the order of the files; they are divided by their sum.
        held_out: name -> `out-of-fold` table.
        folds: the `folds` table that these are held against, if any.
    """
    named = {name: weight / sum(weights) for name, weight in zip(files, weights, strict=True)}
    ensemble = Ensemble(method="weighted", space="logit", weights=named)
    aggregator = Aggregator(clip=DEFAULT_CLIP if clip is None else clip)
    rule, table = ScoringRule(aggregator=aggregator, ensemble=ensemble, outside=tuple(sorted(files))), None
    words = f"weights as given: {describe_rule(rule)}"
    if held_out.keys() == files.keys():
        videos, answers = _read_held_out(held_out, folds)
        table = videos.assign(probability=rule.answer(answers.to_numpy(), tuple(answers)))
        found = video_metrics(table["label"].to_numpy(), table["probability"].to_numpy(), clip=EXACT)
        figures = {name: getattr(found, name) for name in ("log_loss", "balanced_log_loss", "auc")}
        rule = replace(rule, out_of_fold=figures)
        words += f"\nout of fold: log loss {found.log_loss:.4f} over {found.num_videos} videos"
    return BlendRule(rule, words, table)


def fit(
    files: Mapping[str, Path], held_out: Mapping[str, Path], folds: Path | None, test_prior: float | None
) -> BlendRule:
    """The rule that `tune` finds on the submissions' out-of-fold answers: weights, calibration and clip, nested.

    Args:
        files: name -> a submission.
        held_out: name -> `out-of-fold` table of each.
        folds: the `folds` table they were made from, which says what videos are alike; None: none are.
        test_prior: as of `tune`; None: what the cards of the submissions state, where they agree.

    Raises:
        ValueError: a submission without such a table; tables that do not fit together.
    """
    if lacking := [name for name in files if name not in held_out]:
        raise ValueError(
            f"{', '.join(lacking)}: expected out-of-fold answers to fit the blend on, found none. Pass "
            f"--out-of-fold {lacking[0]}=OOF.csv, or weights: --weights{' 1' * len(files)}."
        )
    videos, answers = _read_held_out(held_out, folds)
    stated = {(card_of(file).get("out_of_fold") or {}).get("test_prior") for file in files.values()} - {None}
    if test_prior is None and len(stated) == 1:
        test_prior = stated.pop()
    with progress_bar(num_steps(videos), "blend", "steps") as bar:
        tuned = tune(FRAME_PREDICTIONS.empty(), videos, outside=answers, test_prior=test_prior, advance=bar.update)
    alike = "" if folds is not None else "each video counts as a group of its own; --folds says which are alike"
    words = filter(None, [describe_tuning(tuned.rule, tuned.report), alike, closing_line(tuned.report)])
    return BlendRule(tuned.rule, "\n".join(words), tuned.out_of_fold())


def follow(files: Mapping[str, Path], scoring: Path) -> BlendRule:
    """A rule of `multiattn tune`, and the frame predictions in the submissions' folders that it is for.

    Raises:
        ValueError: a submission without frame predictions, or of other runs or views than the rule's, or two with those
            of one model.
    """
    from multiattn.inference.scoring_file import read_scoring_file  # with torch, which takes seconds

    rule, frames, holder = read_scoring_file(scoring).rule, [], {}
    for name, file in files.items():
        path, views = beside(file, layout.PREDICTIONS_FILE), (card_of(file).get("scoring") or {}).get("tta", "none")
        if path is None or views != rule.tta:
            raise ValueError(
                f"{name}: expected a folder of `multiattn submit` with {layout.PREDICTIONS_FILE} of --tta {rule.tta}, "
                f"which {scoring} is for, found {'none' if path is None else f'those of --tta {views}'}. Answers of "
                "outside models go by --outside."
            )
        frames.append(FRAME_PREDICTIONS.read(path))
        for model in frames[-1]["model"].unique():
            if holder.setdefault(model, name) != name:
                raise ValueError(
                    f"{name}: expected predictions of other models than in {holder[model]}, found those of {model} in "
                    "both. Name one folder of the two."
                )
    together = pd.concat(frames, ignore_index=True)
    names = sorted(set(map(experiment_of, together["model"].unique())))
    if rule.experiments and names != sorted(rule.experiments):
        raise ValueError(
            f"{scoring}: tuned for {', '.join(rule.experiments)}, not for {', '.join(names)} of the folders."
        )
    table = layout.tuned_held_out_file(scoring)
    held_out = OUT_OF_FOLD.read(table) if table.is_file() else None
    return BlendRule(rule, f"rule of {scoring}: {describe_rule(rule)}", held_out, together)


def deliver(blend: BlendRule, files: Mapping[str, Path], answers: pd.DataFrame, sample: pd.DataFrame, out: Path) -> str:
    """Write the submission folder of a blend, checked as `multiattn submit` checks its own; returns it in words.

    Args:
        answers: of the models that the rule calls outside, as of `read_answers`.
        sample: the rows to answer.
    """
    from multiattn.inference.submit.delivery import Submission, write_submission  # with torch, which takes seconds

    rule, cards = blend.rule, [card_of(file) for file in files.values()]
    frames = FRAME_PREDICTIONS.empty() if blend.frames is None else blend.frames
    ids = pd.Series(folder_ids(sample["filename"]))
    scored = complete_videos(ids, rule.score(frames, answers if rule.outside else None), rule.prior)
    submission = pd.DataFrame({"filename": sample["filename"].to_numpy(), "label": scored["probability"].to_numpy()})
    videos = _coverage(files, ids).merge(scored[["video_id", "probability"]], on="video_id")
    seen = [card.get("seen_in_training") for card in cards]
    least = max((count for count in seen if count is not None), default=0)  # cards say how many, not which
    card = {
        "runs": sorted({run for card in cards for run in card.get("runs", ())}),
        "blend": list(dict.fromkeys([*files, *rule.outside])),
        "seen_in_training": least if least or None not in seen else None,
        "out_of_fold": rule.out_of_fold,
    }
    with exclusive_folder(out):
        (out / layout.UNFINISHED_BLEND).touch()
        write_frames = None if blend.frames is None else blend.write_frames
        write_submission(Submission(submission, videos, rule), sample, out, card, write_frames)
        if blend.held_out is not None:
            OUT_OF_FOLD.write(blend.held_out, out / layout.VIDEO_HELD_OUT_FILE)
        (out / layout.UNFINISHED_BLEND).unlink()
    return f"{out / layout.SUBMISSION_FILE}: {describe_submission(submission, fits_sample=True)}"


def _read_held_out(held_out: Mapping[str, Path], folds: Path | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The held-out videos as rows of a `folds` table, and the answers to them as of `read_held_out`."""
    source = next(iter(held_out.values()))
    videos = OUT_OF_FOLD.read(source)
    videos["group"] = videos["video_id"]
    if folds is not None:
        table, source = FOLDS.read(folds), folds
        videos = table[table["fold"].isin(set(videos["fold"]))].reset_index(drop=True)
    return videos[["video_id", "label", "group", "fold"]], read_held_out(held_out, videos, source)


def _coverage(files: Mapping[str, Path], ids: pd.Series) -> pd.DataFrame:
    """Rows of `video_predictions`, of each video those of the submission that answers it best; no rows where one of
    the submissions does not say how it came about."""
    from multiattn.inference.submit.delivery import STATUSES

    paths = [beside(file, layout.VIDEO_PREDICTIONS_FILE) for file in files.values()]
    known = [VIDEO_PREDICTIONS.read(path, allow_empty=True) for path in paths if path is not None]
    if len(known) < len(files) or any(set(table["video_id"]) != set(ids) for table in known):
        return VIDEO_PREDICTIONS.empty().drop(columns="probability")
    table = pd.concat(known).sort_values("status", key=lambda status: status.map(STATUSES.index), kind="stable")
    return table.drop_duplicates("video_id").set_index("video_id").loc[ids].reset_index().drop(columns="probability")
