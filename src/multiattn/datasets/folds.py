"""Leak-free folds: groups are connected components of original, identity and part, and never span folds."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multiattn.config.choices import Grouping
from multiattn.runtime.files import exclusive_folder, read_json, write_json
from multiattn.runtime.text_tables import counted
from multiattn.tables import FAKE, FOLDS, REAL, UNKNOWN

logger = logging.getLogger(__name__)


def group_videos(videos: pd.DataFrame, grouping: Grouping) -> pd.Series:
    """The group of each video: the smallest video_id of its connected component.

    Two videos are connected when one is the other's original, when they name the same original (on disk or not),
    when they show the same person (target_id or source_id of one data set), and, with `part`, when they lie in the
    same part of the same data set.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(videos)
    if count == 0:
        return videos["video_id"].copy()
    # One node a video or original, one a person of a data set, one a part of a data set; an edge from each row to its
    # nodes. The names are numbered column by column: a loop over the rows of DFDC takes seconds.
    dataset, _ = pd.factorize(videos["dataset"])
    families = [["video_id", "original"], ["target_id", "source_id"]] + ([["part"]] if grouping == "part" else [])
    rows, nodes, size = [], [], count
    for columns in families:
        names = pd.concat([videos[column] for column in columns], ignore_index=True)
        number, unique = pd.factorize(names)
        if columns[0] != "video_id":  # a video_id holds its data set's name, other names are prefixed with it
            number = number + np.tile(dataset, len(columns)) * len(unique)
        named = np.flatnonzero(names != "")
        number, unique = pd.factorize(number[named])
        rows.append(named % count)
        nodes.append(size + number)
        size += len(unique)
    edges = (np.concatenate(rows), np.concatenate(nodes))
    _, component = connected_components(
        coo_matrix((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(size, size)), directed=False
    )
    order = videos["video_id"].argsort().to_numpy()  # the first of a component in this order is its smallest
    _, first, member = np.unique(component[:count][order], return_index=True, return_inverse=True)
    smallest = np.empty(count, dtype=np.int64)
    smallest[order] = order[first[member]]
    return videos["video_id"].iloc[smallest].set_axis(videos.index)


def make_folds(videos: pd.DataFrame, *, num_folds: int, seed: int, grouping: Grouping) -> pd.DataFrame:
    """A `folds` table of every labelled video outside the test split, sorted by video_id.

    Source: scikit-learn's StratifiedGroupKFold (shuffled), stratified by label over the groups of `group_videos`.

    Raises:
        ValueError: fewer groups than folds, or a fold that would hold one class only.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes seconds to import, for this alone

    if num_folds < 2:
        raise ValueError(f"--num-folds: expected at least 2, found {num_folds}.")
    usable = videos[(videos["split"] != "test") & (videos["label"] != UNKNOWN)].sort_values(
        "video_id", ignore_index=True
    )
    if usable.empty:
        raise ValueError("No labelled video outside the test split, so there is nothing to fold.")
    groups = group_videos(usable, grouping)
    real, fake = _groups_by_class(usable, groups)
    if (most := min(real, fake)) < num_folds:
        finer = min(_groups_by_class(usable, group_videos(usable, "original")))
        ways = [f"--num-folds {most}"] * (most > 1) + ["--group original"] * (finer >= num_folds)
        raise ValueError(
            f"--num-folds {num_folds}: expected at least as many groups with real videos and as many with fakes, found "
            f"{real} and {fake}. " + (f"Pass {' or '.join(ways)}." if ways else "Index more videos.")
        )
    folds = pd.DataFrame({"video_id": usable["video_id"], "label": usable["label"], "group": groups, "fold": -1})
    splitter = StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(folds, folds["label"], folds["group"])):
        folds.loc[held_out, "fold"] = fold
    folds = FOLDS.validate(folds, "folds")
    check_folds(folds, source="folds", videos=videos, grouping=grouping)
    return folds


def _groups_by_class(videos: pd.DataFrame, groups: pd.Series) -> tuple[int, int]:
    """Number of groups with real and with fake videos; a fold that can be scored takes one of either."""
    real, fake = (groups[videos["label"] == label].nunique() for label in (REAL, FAKE))
    return real, fake


def check_folds(
    folds: pd.DataFrame, *, source: str | Path, videos: pd.DataFrame | None = None, grouping: Grouping = "original"
) -> None:
    """Raise `ValueError` for folds that leak or cannot be scored; run when they are written and whenever they are read.

    Args:
        videos: when given, labels must agree, and groups are formed anew from it, whatever the folds table says.
        grouping: what the folds were grouped by, for these groups.
    """
    spread = folds[folds.groupby("group")["fold"].transform("nunique") > 1]
    if len(spread):
        number = counted(spread["group"].nunique(), "group spans", "groups span")
        first = _first_of(spread, "group")
        raise ValueError(f"{source}: leak: {number} folds; the first: {first}. Make the folds again.")
    validated = folds[(folds["label_source"] != "") & (folds["fold"] >= 0)]
    if len(validated):
        number = counted(len(validated), "pseudo-labelled video is", "pseudo-labelled videos are")
        raise ValueError(f"{source}: leak: {number} validated on; the first: {validated['video_id'].iloc[0]}.")
    numbers = sorted(set(folds["fold"]) - {-1})
    if numbers != list(range(len(numbers))) or not numbers:
        found = ", ".join(map(str, numbers)) or "none"
        raise ValueError(f"{source}: expected folds numbered 0, 1, 2, ..., found {found}.")
    for fold, labels in folds[folds["fold"] >= 0].groupby("fold")["label"]:
        if labels.nunique() < 2:
            name = {REAL: "real", FAKE: "fake"}[labels.iloc[0]]
            raise ValueError(
                f"{source}: fold {fold} holds {name} videos only ({len(labels)}), so it cannot be scored. "
                f"{'Use fewer folds' if len(numbers) > 2 else 'Index more videos'}, or another --seed or --group."
            )
    if videos is not None:
        _check_against_videos(folds, videos, source, grouping)


def _check_against_videos(folds: pd.DataFrame, videos: pd.DataFrame, source: str | Path, grouping: Grouping) -> None:
    joined = folds.merge(videos, on="video_id", suffixes=("", "_video"))
    tested = joined[joined["split"] == "test"]
    if len(tested):
        number = counted(len(tested), "video is", "videos are")
        raise ValueError(f"{source}: leak: {number} of a test split; {tested['video_id'].iloc[0]}.")
    is_pseudo = (joined["label_source"] != "") & (joined["label_video"] == UNKNOWN)
    wrong = joined[(joined["label"] != joined["label_video"]) & ~is_pseudo]
    if len(wrong):
        number = counted(len(wrong), "label differs", "labels differ")
        raise ValueError(f"{source}: {number} from the videos table; {wrong['video_id'].iloc[0]}.")
    joined["component"] = group_videos(joined, grouping)
    spread = joined[joined.groupby("component")["fold"].transform("nunique") > 1]
    if len(spread):
        raise ValueError(
            f"{source}: leak: {counted(len(spread), 'video shares', 'videos share')} an original, a person or a part "
            f"with one of another fold; the first: {_first_of(spread, 'component')}. Make the folds again."
        )


def _first_of(spread: pd.DataFrame, key: str) -> list[dict[str, Any]]:
    """video_id and fold of up to three videos of the first group, one a fold."""
    together = spread[spread[key] == spread[key].iloc[0]]
    return together.drop_duplicates("fold").head(3)[["video_id", "fold"]].to_dict("records")


def count_pseudo_labels(folds: pd.DataFrame, fold: int, source: str | Path) -> int:
    """Number of pseudo-labelled videos that the training of a fold takes.

    Raises:
        ValueError: labels that the models of this fold did not give: other models have seen the labels of its videos.
    """
    pseudo = folds[folds["label_source"] != ""]
    foreign = pseudo[~pseudo["label_source"].str.split().map(lambda words: str(fold) in words)]
    if len(foreign):
        first = foreign.iloc[0]
        raise ValueError(
            f"{source}: leak: {counted(len(foreign), 'pseudo-label')} for fold {fold} by models that have seen its "
            f"labels; the first: {first['video_id']} ({first['label_source']}). Train the folds that are named there, "
            "or make the labels again with the runs of this one too (`multiattn pseudo-label`)."
        )
    return len(pseudo)


def read_folds(path: Path, *, videos: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read and check a `folds` table, by the grouping its recipe names (`original` where there is no recipe)."""
    folds = FOLDS.read(path)
    check_folds(folds, source=path, videos=videos, grouping=read_grouping(path))
    return folds


def read_grouping(path: Path) -> Grouping:
    """Grouping that the recipe beside a folds CSV names; `original` where there is none."""
    recipe_path = Path(path).with_suffix(".json")
    recipe = read_json(recipe_path).get("recipe", {}) if recipe_path.is_file() else {}
    return recipe.get("group", "original")


def write_folds(folds: pd.DataFrame, path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Write the table, and `<name>.json` beside it with the recipe and the counts of each fold; returns the latter."""
    counts = folds.groupby("fold").agg(videos=("label", "size"), fake=("label", "sum"), groups=("group", "nunique"))
    counts["real"] = counts["videos"] - counts["fake"]
    described = {
        "recipe": recipe,
        "folds": [{"fold": int(fold), **{k: int(v) for k, v in row.items()}} for fold, row in counts.iterrows()],
    }
    with exclusive_folder(path.parent):  # the two belong together
        FOLDS.write(folds, path)
        write_json(path.with_suffix(".json"), described)
    return described
