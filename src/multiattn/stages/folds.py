"""videos.csv -> folds/NAME.csv: folds that no original, person or part spans.

multiattn folds --videos data/videos.csv --out folds/dfdc.csv --num-folds 5 --seed 7 --group part
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import VideosTable, parse, results
from multiattn.config.choices import Grouping, SplitName
from multiattn.runtime.text_tables import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    videos: VideosTable
    out: Path
    """The folds CSV to write; its recipe goes into the JSON file beside it."""
    splits: tuple[SplitName, ...] = ()
    """Only videos of these splits, as `--splits train` (default: all but those of the test split)."""
    num_folds: int = 5
    seed: int = 7
    group: Grouping = "part"
    """`part`: parts, originals and people never span folds. `original`: originals and people only, for small sets."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="folds", doc=__doc__)
    import pandas as pd

    from multiattn.datasets.folds import make_folds, write_folds
    from multiattn.tables import VIDEOS, left_out_lines

    videos = VIDEOS.read(options.videos)
    if options.splits:
        videos = videos[videos["split"].isin(options.splits)].reset_index(drop=True)
        if videos.empty:
            raise ValueError(f"{options.videos}: no video of split {' or '.join(options.splits)}.")
    folds = make_folds(videos, num_folds=options.num_folds, seed=options.seed, grouping=options.group)
    recipe = {
        "splitter": "sklearn.model_selection.StratifiedGroupKFold(shuffle=True)",
        "num_folds": options.num_folds,
        "seed": options.seed,
        "group": options.group,
    }
    if options.splits:
        recipe["splits"] = list(options.splits)
    described = write_folds(folds, options.out, recipe)
    counts = pd.DataFrame(described["folds"]).to_string(index=False)
    results(counts, f"{counted(len(folds), 'video')} in {options.out}", *left_out_lines(videos, options.videos))
