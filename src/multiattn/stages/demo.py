"""The whole pipeline on embedded data, in minutes, without a GPU: from videos to a scored submission.

    multiattn demo

Each step is printed as the command a user would type. A killed demo continues where it was.
"""

import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from multiattn.command_line import parse, results
from multiattn.experiments import get_experiment
from multiattn.runtime import layout
from multiattn.runtime.files import read_json
from multiattn.runtime.text_tables import terminal_table
from multiattn.stages import faces, folds, index, leaderboard, score, train, tune

if TYPE_CHECKING:
    import pandas as pd

NUM_FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Path = Path("data/demo")
    """Where the embedded data set and its faces go."""
    runs: Path = Path("runs")
    folds: Path = Path("folds/demo.csv")
    submissions: Path = Path("submissions")
    jobs: int = 2
    """Processes that make clips and extract faces."""
    tiny: bool = False
    """A miniature of the demo, to see in a minute that everything runs; its scores mean nothing."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="demo", doc=__doc__)
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")  # no bf16, in which the README's figures are others
    from multiattn.datasets.embedded import build_demo_dataset

    started = time.monotonic()
    experiment = get_experiment("demo", tiny=options.tiny)
    root, crops = options.data / "dfdc", options.data / "faces"
    results(f"\nEmbedded data set -> {root}")
    build_demo_dataset(root, jobs=options.jobs, small=options.tiny)
    videos = options.data / layout.VIDEOS_FILE
    _run(index, "dfdc", root=root, out=videos)
    # The real and the fake crop of a frame lie alike: the experiment trains on pairs of them.
    cut = {"num_frames": NUM_FRAMES, "size": experiment.data.image_size, "splits": "train", "jobs": options.jobs}
    _run(faces, "--reuse-original", videos=videos, out=crops, **cut)
    _run(folds, videos=videos, out=options.folds, num_folds=2 if options.tiny else 5, group="part")
    tiny = ["--tiny"] if options.tiny else []
    _run(train, "demo", *tiny, faces=crops, folds=options.folds, fold="all", runs=options.runs)
    _run(tune, runs=options.runs / experiment.name)
    out = options.submissions / experiment.name
    _submit(options, experiment.name, root, out)
    labels, groups = root / "labels.csv", root / "groups.csv"
    _run(leaderboard, submissions=options.submissions, labels=labels, groups=groups)
    _score_by_packaged_run(labels, root / "test_videos")
    results(_summary(options, experiment.name, root, out, minutes=(time.monotonic() - started) / 60))


def _run(stage: ModuleType, *words: str, **settings: object) -> None:
    """Show a stage's command line and run it."""
    argv = list(words)
    for name, value in settings.items():
        argv += [f"--{name.replace('_', '-')}", str(value)]
    results(f"\n$ multiattn {stage.__name__.rpartition('.')[2]} {shlex.join(argv)}")
    stage.main(argv)


def _submit(options: Options, name: str, root: Path, out: Path) -> None:
    """The notebook instead of `multiattn submit`: what Kaggle would run, on videos nothing was trained on."""
    from multiattn.inference.kit.notebook import NOTEBOOK, execute_notebook

    results(f"\n{NOTEBOOK.name}, headless, on {root / 'test_videos'}; the executed copy is {out / NOTEBOOK.name}")
    paths = {
        "RUNS": options.runs / name,
        "VIDEOS_DIR": root / "test_videos",
        "SAMPLE_SUBMISSION": root / "sample_submission.csv",
        "OUT": out,
    }
    environment = {f"MULTIATTN_{key}": str(path.resolve()) for key, path in paths.items()}
    execute_notebook(out / NOTEBOOK.name, environment)


def _score_by_packaged_run(labels: Path, clips: Path) -> None:
    """Score a real clip by the network that has seen other faces: it should not accuse it, but cannot tell."""
    from multiattn.tables import LABELS, REAL

    answers = LABELS.read(labels)
    results("\nA real one of these clips by the network that comes with the package, trained on faces of other people:")
    _run(score, str(clips / answers.loc[answers["label"] == REAL, "filename"].iloc[0]))


def _summary(options: Options, name: str, root: Path, out: Path, *, minutes: float) -> str:
    from multiattn.evaluation.scoring_steps import steps_on_test, steps_out_of_fold
    from multiattn.inference.kit.notebook import NOTEBOOK
    from multiattn.inference.scoring_file import default_scoring_path, read_scoring_file
    from multiattn.scoring.metrics import CONSTANT_LOG_LOSS

    scoring = default_scoring_path([options.runs / name])
    held_out = steps_out_of_fold(scoring)
    test = steps_on_test(out, root / "labels.csv", root / "groups.csv", read_scoring_file(scoring).rule)
    coverage = read_json(out / layout.CARD_FILE)["coverage"]
    lines = [
        f"\nDone in {minutes:.1f} minutes.\n",
        terminal_table(
            [
                ["", "log loss", "95 % interval", "balanced", "AUC", "videos"],
                ["constant 0.5", f"{CONSTANT_LOG_LOSS:.4f}", "", f"{CONSTANT_LOG_LOSS:.4f}", "0.5000", ""],
                *_figures(held_out, "out of fold"),
                *_figures(test, "test, unseen actors"),
            ],
            right=(1, 3, 4, 5),
        ),
        "",
        *_bootstrap_notes(held_out, test),
        f"Test videos without a face: {coverage['no_face']}; unreadable: {coverage['unreadable']}. "
        "They were answered with 0.5 and count above.\n",
        f"submission     {out / layout.SUBMISSION_FILE}",
        f"how it came    {out / layout.CARD_FILE}, {out / NOTEBOOK.name} (executed)",
        f"scoring rule   {scoring}",
        f"leaderboard    {options.submissions / 'leaderboard.html'}, .png, .md",
        f"runs           {options.runs / name}/{layout.ANY_FOLD}/{layout.EPOCHS_FILE}",
        f"faces          {options.data / 'faces'}/{layout.STATUS_FILE}",
        "\nNext, with real data (see README.md, 'From Kaggle to a submission'):",
        "  multiattn index dfdc --root /data/dfdc --out data/videos.csv",
        "  multiattn faces --videos data/videos.csv --out data/faces/dfdc",
        "  multiattn folds --videos data/videos.csv --out folds/dfdc.csv",
        "  multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold all",
    ]
    return "\n".join(lines)


def _bootstrap_notes(held_out: "pd.DataFrame", test: "pd.DataFrame") -> list[str]:
    """Lines that say what the bootstrap draws, of each table that has intervals."""
    out_of_fold, on_test = (bool(steps["low"].notna().any()) for steps in (held_out, test))
    drawn = [f"out of fold, the {held_out['num_groups'].iloc[0]} parts"] if out_of_fold else []
    drawn += [f"on test, the {test['num_groups'].iloc[0]} originals, each with its fake"] if on_test else []
    notes = [f"The bootstrap of the intervals draws, {'; '.join(drawn)}."] if drawn else []
    alike = "On test, actors come back in several originals, which the bootstrap takes for independent all the same."
    return notes + [alike] * on_test


def _figures(steps: "pd.DataFrame", where: str) -> list[list[str]]:
    from multiattn.scoring.metrics import Interval

    rows = []
    for row in steps.itertuples(index=False):
        log_loss, *figures = (f"{figure:.4f}" for figure in (row.log_loss, row.balanced_log_loss, row.auc))
        between = Interval.of(row.low, row.high).words()
        rows.append([f"{where}: {row.name}", log_loss, between, *figures, row.num_videos])
    return rows
