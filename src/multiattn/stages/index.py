"""Official data set tree -> videos.csv (and videos.json: where each data set lies).

multiattn index dfdc --root /data/dfdc --out data/videos.csv
multiattn index ffpp --root /data/ffpp --compression c23 --splits /data/splits --out data/videos.csv --append
"""

from functools import reduce
from operator import or_
from typing import Annotated

from tyro.conf import subcommand

from multiattn.command_line import parse, results
from multiattn.datasets.readers import READERS


def main(argv: list[str]) -> None:
    """Run the stage."""
    choices = reduce(or_, (Annotated[options, subcommand(name)] for name, options in READERS.items()))
    options = parse(choices, argv, stage="index", doc=__doc__)
    from multiattn.datasets.manifest import write_manifest

    listing = options.read()
    table = write_manifest(listing, options.out, append=options.append)
    counts = table.assign(label=table["label"].map({0: "real", 1: "fake", -1: "unknown"}))
    counts = counts.groupby(["dataset", "split", "label"]).size().unstack(fill_value=0)
    results(
        counts.to_string(),
        f"{len(table)} videos in {options.out}; {len(listing.absent)} listed but absent, "
        f"{len(listing.unlisted)} present but unlisted.",
    )
