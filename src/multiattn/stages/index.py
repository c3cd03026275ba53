"""Official data set tree -> videos.csv (and videos.json: where each data set lies).

multiattn index dfdc --root /data/dfdc --out data/videos.csv
multiattn index ffpp --root /data/ffpp --compression c23 --splits /data/splits --out data/videos.csv --append
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from multiattn.command_line import parse, results
from multiattn.datasets.dfdc import read_dfdc
from multiattn.datasets.ffpp import read_ffpp
from multiattn.datasets.manifest import Listing, write_manifest


@dataclass(frozen=True, kw_only=True)
class Dfdc:
    """DFDC: training parts, validation and test folders, Kaggle's folders; whatever of them is there."""

    root: Path
    """The folder that holds dfdc_train_part_*, test_videos, ..."""
    out: Path
    """The videos.csv to write."""
    append: bool = False
    """Keep the other data sets already in the table."""

    def list(self) -> Listing:
        """The clips of the tree."""
        return read_dfdc(self.root)


@dataclass(frozen=True, kw_only=True)
class Ffpp:
    """FaceForensics++: pristine clips and the five manipulation methods at one compression level."""

    root: Path
    """The folder that holds original_sequences and manipulated_sequences."""
    out: Path
    """The videos.csv to write."""
    compression: Literal["raw", "c23", "c40"] = "c23"
    splits: Path | None = None
    """The folder of the official train.json, val.json, test.json; without it the split stays empty."""
    append: bool = False
    """Keep the other data sets already in the table."""

    def list(self) -> Listing:
        """The clips of the tree."""
        return read_ffpp(self.root, compression=self.compression, splits=self.splits)


Options = Annotated[Dfdc, tyro.conf.subcommand("dfdc")] | Annotated[Ffpp, tyro.conf.subcommand("ffpp")]


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="index", doc=__doc__)
    listing = options.list()
    table = write_manifest(listing, options.out, append=options.append)
    counts = table.assign(label=table["label"].map({0: "real", 1: "fake", -1: "unknown"}))
    counts = counts.groupby(["dataset", "split", "label"]).size().unstack(fill_value=0)
    results(
        counts.to_string(),
        f"{len(table)} videos in {options.out}; {len(listing.absent)} listed but absent, "
        f"{len(listing.unlisted)} present but unlisted.",
    )
