"""Models that others trained: their out-of-fold answers in tuning, and their answers for test videos, as CSV files.

Without torch, and without pandas until a table is read: what is missing is refused at once.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiattn.runtime import layout
from multiattn.runtime.files import read_json

if TYPE_CHECKING:
    import pandas as pd


def named_files(words: Iterable[str], option: str, *, taken: Collection[str] = ()) -> dict[str, Path]:
    """Name -> file of words `NAME=FILE`.

    Args:
        taken: names that others have already.

    Raises:
        ValueError: a word of another form, or a name twice.
        FileNotFoundError: no such file.
    """
    named: dict[str, Path] = {}
    for word in words:
        name, _, file = word.partition("=")
        if not name or not file:
            raise ValueError(f"{option}: expected NAME=FILE, found {word!r}.")
        if name in named or name in taken:
            raise ValueError(f"{option} {word}: expected a name of its own, found {name} twice. Choose another.")
        if not Path(file).is_file():
            raise FileNotFoundError(f"{option} {word}: expected a CSV file, found none.")
        named[name] = Path(file)
    return named


def require_outside(needed: Iterable[str], given: Iterable[str], source: str | Path) -> None:
    """Raise `ValueError` unless the outside models of a scoring rule are those whose answers are given."""
    missing, unknown = sorted(set(needed) - set(given)), sorted(set(given) - set(needed))
    if missing:
        files = " ".join(f"--outside {name}=TEST.csv" for name in missing)
        raise ValueError(
            f"{source}: the rule blends outside models, expected the answers of {', '.join(missing)} for these videos, "
            f"found none. Pass them to `multiattn submit` or `blend` ({files}, rows filename,label), tune a rule "
            "without them, or pass --scoring none."
        )
    if unknown:
        raise ValueError(
            f"{source}: expected answers of the outside models {', '.join(sorted(needed)) or '(none)'}, found those of "
            f"{', '.join(unknown)}. Tune a rule with them: `multiattn tune --outside {unknown[0]}=OOF.csv`."
        )


def require_answers(runs: Sequence[Path] | None, scoring: str | Path | None, given: Collection[str]) -> None:
    """`require_outside` of the rule that `choose_scoring` will take for these runs (None: any), before anything is
    imported that takes seconds; what else is wrong with the rule is left to that."""
    names = sorted({layout.experiment_name(run) for run in runs or ()})
    folders = dict.fromkeys(layout.experiment_folder(run) for run in runs or ())
    for path in [folder / layout.SCORING_FILE for folder in folders] if scoring is None else [Path(scoring)]:
        try:
            rule = read_json(path)["rule"]
            fits = runs is None or sorted(rule["experiments"]) in ([], names)
            needed = rule.get("outside", ())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if fits:
            require_outside(needed, given, path)
            return


def beside(file: Path, name: str) -> Path | None:
    """A file of the submission folder that a submission.csv lies in; None where there is none."""
    path = file.with_name(name)
    return path if file.name == layout.SUBMISSION_FILE and path.is_file() else None


def card_of(file: Path) -> dict[str, Any]:
    """The card beside a submission.csv, empty where there is none."""
    path = beside(file, layout.CARD_FILE)
    card = {} if path is None else read_json(path)
    return card if isinstance(card, dict) else {}


def read_held_out(named: Mapping[str, Path], videos: "pd.DataFrame", source: str | Path) -> "pd.DataFrame":
    """Out-of-fold P(fake) of outside models for held-out videos: rows by video_id, a column for each model.

    Args:
        named: name -> `out-of-fold` table. It may have other folds too.
        videos: the held-out videos, rows of a `folds` table or of another `out-of-fold` table.
        source: where these come from.

    Raises:
        FileNotFoundError, ValueError: no such table, or one of other videos, folds or labels.
    """
    import pandas as pd

    from multiattn.tables import OUT_OF_FOLD

    expected, found = videos.set_index("video_id"), {}
    for name, path in named.items():
        table = OUT_OF_FOLD.read(path).set_index("video_id")
        mine = table.reindex(expected.index)
        others = table.index[table["fold"].isin(set(videos["fold"])) & ~table.index.isin(expected.index)]
        problems = {
            "an answer to each video": expected.index[mine["probability"].isna()],
            "no other videos than those": others,
            "for each video the fold": expected.index[mine["fold"] != expected["fold"]],
            "for each video the label": expected.index[mine["label"] != expected["label"]],
        }
        for wanted, wrong in problems.items():
            if len(wrong):
                raise ValueError(
                    f"{path}: expected {wanted} of {source} ({len(expected)} videos in folds "
                    f"{', '.join(map(str, sorted(set(videos['fold']))))}), found {len(wrong)} that differ; the first: "
                    f"{wrong[0]}. Out-of-fold tables go together where they were made from one folds table."
                )
        found[name] = mine["probability"]
    return pd.DataFrame(found, index=expected.index)


def read_answers(named: Mapping[str, Path], filenames: "pd.Series") -> "pd.DataFrame":
    """P(fake) of test videos as files `filename,label` have it, in any order of their rows: rows by video_id
    (`folder_ids`) in the order of the sample's filenames, a column for each file.

    Raises:
        FileNotFoundError, ValueError: no such file, or other rows than the sample's.
    """
    import pandas as pd

    from multiattn.datasets.manifest import folder_ids
    from multiattn.inference.submit.inputs import require_rows
    from multiattn.tables import SUBMISSION

    found, expected = {}, filenames.to_frame("filename").sort_values("filename")
    for name, path in named.items():
        table = SUBMISSION.read(path)
        require_rows(table.sort_values("filename"), expected, path)
        found[name] = table.set_index("filename")["label"].reindex(filenames).to_numpy()
    return pd.DataFrame(found, index=pd.Index(folder_ids(filenames), name="video_id"))
