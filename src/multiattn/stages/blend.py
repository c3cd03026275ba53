"""Finished submissions -> one: by weights given, fitted on out-of-fold answers, or by a rule of `tune`.

multiattn blend submissions/dfdc_b4 submissions/dfdc_b5 --out submissions/blend
multiattn blend submissions/dfdc_b4 theirs.csv --weights 0.6 0.4 --out submissions/blend
multiattn blend submissions/dfdc_b4 theirs.csv --out-of-fold theirs=their_oof.csv --out submissions/blend
multiattn blend submissions/dfdc_b4 --scoring runs/dfdc_b4/scoring.json --outside theirs=theirs.csv --out BLEND
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Named, Outside, Positional, parse, results
from multiattn.inference.outside import beside, card_of, named_files, require_answers
from multiattn.runtime import layout


@dataclass(frozen=True, kw_only=True)
class Options:
    submissions: Positional[tuple[str, ...]]
    """Submission folders, or files filename,label; NAME=PATH for another name than the folder's or the file's."""
    out: Path
    """The submission folder to write, submissions/NAME."""
    sample_submission: Path | None = None
    """The competition's sample: its rows, in its order, are answered (default: those of the first submission)."""
    weights: tuple[float, ...] = ()
    """Weights of the mean of logits, one for each submission, in their order (default: fitted)."""
    clip: float | None = None
    """Beside --weights: answers lie in [clip, 1 - clip] (default: 0.01; what is fitted has a clip of its own)."""
    out_of_fold: Named = ()
    """NAME=OOF.csv: the out-of-fold answers (video_id,fold,label,probability) of the submission of that name; once for
    each (default: the oof.csv in its folder, which `multiattn submit` leaves there)."""
    folds: Path | None = None
    """The folds CSV that these were made from: which videos are alike (default: none are)."""
    test_prior: float | None = None
    """The share of fakes expected at test time, as for `tune` (default: that of the submissions' own rules)."""
    scoring: Path | None = None
    """Follow this rule of `multiattn tune`, from the frame predictions in the submission folders."""
    outside: Outside = ()


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="blend", doc=__doc__)
    files = submission_files(options.submissions)
    given = named_files(options.out_of_fold, "--out-of-fold")
    outside = named_files(options.outside, "--outside", taken=files)
    _require_sound(options, files, given, outside)
    from multiattn.inference import blending
    from multiattn.inference.outside import read_answers
    from multiattn.tables import SAMPLE

    sample = SAMPLE.read(options.sample_submission or next(iter(files.values())))
    answers = read_answers(files | outside, sample["filename"])  # all of them, for all have the same rows
    blended = files if options.scoring is None else outside
    kept = {name: beside(file, layout.VIDEO_HELD_OUT_FILE) for name, file in files.items()} | given
    held_out = {name: path for name, path in kept.items() if path is not None}
    if options.scoring is not None:
        blend = blending.follow(files, options.scoring)
    elif options.weights:
        blend = blending.weigh(files, options.weights, options.clip, held_out, options.folds)
    else:
        blend = blending.fit(files, held_out, options.folds, options.test_prior)
    results(blend.words, blending.deliver(blend, files, answers[list(blended)], sample, options.out))


def submission_files(words: tuple[str, ...]) -> dict[str, Path]:
    """Name -> submission.csv, or another file of that form, of words PATH or NAME=PATH.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: two of one name.
    """
    files: dict[str, Path] = {}
    for word in words:
        name, _, path = ("", "", word) if Path(word).exists() else word.rpartition("=")
        file = Path(path) / layout.SUBMISSION_FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{path}: expected a submission folder or a file filename,label, found none.")
        name = name or (file.resolve().parent.name if file.name == layout.SUBMISSION_FILE else file.stem)
        if name in files:
            raise ValueError(f"{path}: expected submissions of different names, found {name} twice. Write NAME={path}.")
        files[name] = file
    return files


def _require_sound(options: Options, files: dict[str, Path], given: dict[str, Path], outside: dict[str, Path]) -> None:
    """Raise `ValueError` for options that do not go together, before anything is read."""
    if not files:
        raise ValueError("expected submission folders, or files filename,label, found none: multiattn blend A B.csv")
    if options.scoring is not None:
        if options.weights or given or options.folds or options.test_prior is not None:
            raise ValueError("--scoring: the rule is fitted already; leave out the options of another way to blend.")
        require_answers(None, options.scoring, outside)
    elif outside:
        raise ValueError("--outside: expected --scoring beside it, a rule of `multiattn tune` that names these models.")
    if unknown := sorted(given.keys() - files.keys()):
        raise ValueError(f"--out-of-fold: expected names of {', '.join(files)}, found {', '.join(unknown)}.")
    weights = options.weights
    if weights and not (len(weights) == len(files) and min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        found = " ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"--weights: expected {len(files)} numbers of at least 0, one above it, found {found}.")
    if options.clip is not None and not (weights and 0 < options.clip < 0.5):
        raise ValueError(f"--clip: expected a number in (0, 0.5) and --weights beside it, found {options.clip:g}.")
    path = options.out / layout.SUBMISSION_FILE
    is_ours = "blend" in card_of(path) or beside(path, layout.UNFINISHED_BLEND) is not None
    if path.is_file() and (path.resolve() in map(Path.resolve, files.values()) or not is_ours):
        raise ValueError(f"--out {options.out}: expected a new folder or an earlier blend, found another submission.")
