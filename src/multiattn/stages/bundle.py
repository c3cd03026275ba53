"""Runs + wheels -> a folder that Kaggle attaches as one data set: code, weights, scoring rule, wheels, notebook.

    multiattn bundle --runs runs/dfdc_b4 --out bundle/ --download-wheels --check-faces data/faces/dfdc
    multiattn bundle --package --runs runs/dfdc_lite --out src/multiattn/pretrained/dfdc_lite --check-faces FACES
    multiattn bundle --training dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --out bundle/ --download-wheels

With `--training` it holds crops and an experiment in place of runs, and training.ipynb trains from it. With `--package`
a run becomes one that comes with the package, which a wheel takes along and `score` knows by its name.

Weights are stored in float16 where that changes no prediction by more than 1e-3: the same crops go through both forms.
"""

from typing import TYPE_CHECKING

from multiattn.command_line import parse, results
from multiattn.inference.kit.options import BundleOptions

if TYPE_CHECKING:
    from multiattn.inference.kit.bundle import Bundle


def main(argv: list[str]) -> None:
    options = parse(BundleOptions, argv, stage="bundle", doc=__doc__)
    if options.training is not None:
        results(*_lines(_training_bundle(options), options))
        return
    from multiattn.inference.kit.bundle import build_bundle
    from multiattn.inference.kit.package import build_package
    from multiattn.inference.scoring_file import choose_scoring_file

    build = build_package if options.package else build_bundle
    results(*_lines(build(options, choose_scoring_file(options.runs, options.scoring)), options))


def _training_bundle(options: BundleOptions) -> "Bundle":
    from multiattn.inference.kit.training_bundle import build_training_bundle, read_experiment
    from multiattn.training.folds import read_training_data

    experiment = read_experiment(options)
    read_training_data(options.faces, options.folds).require_crops_for(experiment)
    return build_training_bundle(options, experiment)


def _lines(bundle: "Bundle", options: BundleOptions) -> list[str]:
    lines = []
    for one in bundle.weights:
        if one.difference is None:
            lines.append(f"{one.model}: {one.stored}")
        else:
            what = "crops" if options.check_faces else "drawn pictures"
            lines.append(
                f"{one.model}: {one.stored}; float16 changes P(fake) by at most {one.difference:.1e} on {one.crops} "
                f"{what}"
            )
    lines += [f"{name:<18} {size / 1e6:10.2f} MB" for name, size in bundle.sizes.items()]
    total = sum(bundle.sizes.values())
    if options.package:
        return [*lines, f"{total / 1e6:.2f} MB in {bundle.folder}: look at its card.md and LICENSE.md, and commit it"]
    if "wheels" not in bundle.sizes:
        lines.append("no wheels: add --download-wheels, or --wheels DIR, for an image that lacks packages")
    return [*lines, f"{total / 1e6:.2f} MB of {options.max_gb:g} GB in {bundle.folder}; see its README.txt"]
