"""Official data set tree -> videos.csv (and videos.json: where each data set lies).

multiattn index dfdc --root /data/dfdc --out data/videos.csv
multiattn index crops --root /data/crops --labels crops.csv --faces data/faces/crops --out data/crops.csv
multiattn index ffpp --root /data/ffpp --compression c23 --splits /data/splits --out data/videos.csv --append
"""

from collections.abc import Callable
from functools import partial, reduce
from operator import or_
from typing import Annotated, Any

from tyro.conf import subcommand

from multiattn.command_line import parse, results
from multiattn.datasets.readers import READERS
from multiattn.runtime.layout import LANDMARKS_FILE
from multiattn.runtime.text_tables import counted


def main(argv: list[str]) -> None:
    choices = reduce(or_, (Annotated[options, subcommand(name)] for name, options in READERS.items()))
    options = parse(choices, argv, stage="index", doc=__doc__)
    from multiattn.datasets.manifest import write_manifest
    from multiattn.tables import left_out_lines

    find = _landmark_search(options)
    if getattr(options, "recipe", None) is not None:
        from multiattn.video.crops.recipe import read_recipe_file

        read_recipe_file(options.recipe)  # refused before anything is written
    listing = options.read()
    table = write_manifest(listing, options.out, append=options.append)
    counts = table.assign(label=table["label"].map({0: "real", 1: "fake", -1: "unknown"}))
    counts = counts.groupby(["dataset", "split", "label"]).size().unstack(fill_value=0)
    results(
        counts.to_string(),
        f"{counted(len(table), 'video')} in {options.out}; {len(listing.absent)} listed but absent, "
        f"{len(listing.unlisted)} present but unlisted.",
        *left_out_lines(table, options.out),
    )
    faces = getattr(options, "faces", None)
    if find is None and faces is not None and (faces / LANDMARKS_FILE).is_file():
        results("The landmarks of an earlier search are left out; the same command with --landmarks has them at once.")
    if find is not None:
        found, total = find()
        results(f"Landmarks in {found} of {total} crops; the others go without the steps that need them.")


def _landmark_search(options: Any) -> "Callable[[], tuple[int, int]] | None":
    """The search for landmarks in the crops of `index crops --landmarks`; None where none is asked for."""
    if getattr(options, "landmarks", None) is None:
        return None
    from multiattn.runtime.devices import pick_device
    from multiattn.video.crops.landmarks import find_landmarks
    from multiattn.video.detectors.registry import get_detector, require_weights

    detector = get_detector(options.landmarks, "--landmarks")  # refused before anything is written
    require_weights(detector, options.weights)
    return partial(find_landmarks, options.faces, detector, weights=options.weights, device=str(pick_device("auto")))
