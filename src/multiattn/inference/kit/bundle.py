"""Everything an offline machine needs for a submission, in one folder that Kaggle attaches as one data set.

    bundle.json              what it holds, how each fold's weights are stored, sizes, digests of code and wheels
    README.txt               what to attach and click
    dataset-metadata.json    for Kaggle's uploader
    inference.ipynb          the notebook
    pyproject.toml, LICENSE, src/multiattn/...
    runs/<experiment>/folds.csv, fold<k>/{best.safetensors, experiment.json, faces.json}
    runs/<experiment>/fold<k>/exported/*.onnx   with --runtime onnxruntime
    runs/<first>/scoring.json   the rule, what it was tuned on, and the out-of-fold figures for a submission's card
    weights/...              the detector's, where it needs some
    wheels/*.whl, requirements.txt

An experiment is called there what the path given calls it (`experiment_name`), for so do the rule's weights.

Neither `oof.parquet` (its figures are in scoring.json) nor what training needs to go on comes along, and the folds
table that all folds of an experiment share is there once: of DFDC it has 119,154 rows.
"""

import contextlib
import dataclasses
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiattn.inference.kit.half_weights import StoredWeights, crops_to_compare, store_weights
from multiattn.inference.kit.options import BundleOptions
from multiattn.inference.predictor import out_of_fold_figures
from multiattn.inference.runs import TrainedModel, find_models, folds_table
from multiattn.inference.runtimes import exported_network
from multiattn.inference.scoring_file import (
    ScoringFile,
    default_scoring_path,
    find_scoring,
    require_rule_fits,
    write_scoring,
)
from multiattn.runtime import layout
from multiattn.runtime.devices import pick_device
from multiattn.runtime.environment import git_commit
from multiattn.runtime.files import exclusive_folder, file_digest, read_json, write_json, write_text
from multiattn.runtime.paths import names_only
from multiattn.runtime.progress import progress_bar
from multiattn.scoring.rule import ScoringRule

KIND = "multiattn bundle"
PACKAGE = Path(__file__).resolve().parents[2]
REPOSITORY = PACKAGE.parents[1]
NOTEBOOK = "inference.ipynb"
NOTEBOOKS = Path("notebooks")
LOCK = ".lock"
REQUIREMENTS_FILE = "requirements.txt"
"""Also beside the wheels, for `pip install --requirement`."""
KAGGLE_HAS = {
    *("torch", "torchvision", "timm", "huggingface-hub", "safetensors", "numpy", "scipy", "pandas", "pyarrow"),
    *("scikit-learn", "scikit-image", "numba", "joblib", "opencv-python-headless", "matplotlib", "tqdm"),
    *("albumentations", "tensorboard", "nbformat", "nbclient", "ipykernel"),
}
"""Packages of requirements.txt that Kaggle's image brings (OpenCV under another name), or inference does not need."""
SMALL_DEPENDENCIES = ("docstring-parser>=0.16", "typeguard>=4", "typing-inspect>=0.6", "mypy-extensions")
"""Dependencies of tyro and pandera, beside packages the image surely has; tens of kilobytes."""
GLIBC_MINORS = (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
"""Versions 2.x: wheels for these run on the image (Ubuntu 22.04, glibc 2.35)."""


@dataclass(frozen=True)
class Bundle:
    folder: Path
    weights: list[StoredWeights]
    sizes: dict[str, int]
    """Bytes by part: code, weights, tables, wheels, detector, notebook and notes."""


def build_bundle(options: BundleOptions, scoring: ScoringFile) -> Bundle:
    """Build beside `out` and put the finished folder in its place; a bundle that was there before is replaced.

    Its submissions follow the rule of `scoring`. After an error `out` is as it was.
    """
    require_sound(options)
    out = options.out.resolve()
    models = find_models(*options.runs, any_recipes=True)
    require_rule_fits(scoring.rule, models)
    figures = out_of_fold_figures(models, options.runs, scoring.rule)
    rule = dataclasses.replace(scoring.rule, experiments=tuple(_experiments(models)), out_of_fold=figures)
    scoring = dataclasses.replace(scoring, rule=rule)  # for exactly these experiments
    with built_beside(out) as building:
        weights = _fill(building, options, models, scoring)
        parts = {"wheels": "wheels", "runs": "tables", "src": "code", "weights": "detector"}
        sizes = bytes_by_part(building, parts, "notebook and notes")
        _require_fits(sizes, options, weights)
        write_json(building / layout.BUNDLE_FILE, _manifest(building, options, models, weights, sizes))
        _require_runs(building, rule)
        (building / LOCK).unlink()
        put_in_place(building, out)
    return Bundle(out, weights, sizes)


@contextlib.contextmanager
def built_beside(out: Path, *, keep: str = "") -> Iterator[Path]:
    """A folder beside `out` to build in, empty but for its lock; it is gone when the block ends, however it does.

    A run that was killed may have left a folder named `keep`: that stays too.
    """
    building = out.parent / f".{out.name}.building"
    if building.is_symlink():
        raise ValueError(f"{building}: expected a folder to build in, found a link. Remove it.")
    with exclusive_folder(building):
        try:
            for leftover in building.iterdir():  # of a run that was killed
                if leftover.name not in (LOCK, keep):
                    _remove(leftover)
            yield building
        finally:
            if building.is_dir():
                shutil.rmtree(building)


def is_bundle(folder: Path) -> bool:
    """True for a folder that `build_bundle` wrote."""
    try:
        values = read_json(folder / layout.BUNDLE_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("kind") == KIND


def require_sound(options: BundleOptions) -> None:
    """Raise `ValueError` or `FileNotFoundError` for options that contradict each other, or another folder at `out`."""
    if options.wheels is not None and options.download_wheels:
        raise ValueError("expected --wheels DIR or --download-wheels, found both.")
    if options.packages and options.wheels is None and not options.download_wheels:
        raise ValueError("--packages: expected --wheels DIR or --download-wheels beside it, found neither.")
    if options.wheels is not None and not options.wheels.is_dir():
        raise FileNotFoundError(f"--wheels {options.wheels}: expected a folder of wheels, found none.")
    if options.check_crops < 1:
        raise ValueError(f"--check-crops: expected at least 1, found {options.check_crops}.")
    out = options.out.resolve()
    if out.exists() and not (out.is_dir() and (is_bundle(out) or not any(out.iterdir()))):
        raise ValueError(f"{out}: expected a bundle to replace or a new folder, found something else. Choose another.")


def _experiments(models: list[TrainedModel]) -> list[str]:
    return sorted({layout.experiment_name(model.path) for model in models})


def _require_runs(building: Path, rule: ScoringRule) -> None:
    """Check the finished folder as a submission does, before anybody carries it to a machine without network."""
    runs = sorted((building / "runs").iterdir())
    models = find_models(*runs, any_recipes=True)
    found = find_scoring(runs)
    if found is None or found[1].rule != rule:
        names = ", ".join(path.name for path in runs)
        raise ValueError(
            f"the finished bundle: expected a scoring rule for its runs {names}, found one for "
            f"{', '.join(rule.experiments)}. Nothing was written."
        )
    require_rule_fits(rule, models)
    out_of_fold_figures(models, runs, rule)


def _fill(
    building: Path, options: BundleOptions, models: list[TrainedModel], scoring: ScoringFile
) -> list[StoredWeights]:
    """Write everything but the manifest; returns how the weights were stored."""
    copy_code(building, NOTEBOOK)
    add_wheels(options, building / "wheels")  # before the minutes of comparing: this fails when it does
    if options.weights is not None:
        if not options.weights.is_file():
            raise FileNotFoundError(f"{options.weights}: no such weights file of a detector.")
        (building / "weights").mkdir()
        shutil.copyfile(options.weights, building / "weights" / options.weights.name)
    weights = store_runs(building / "runs", options, models)
    first = building / "runs" / _experiments(models)[0]
    write_scoring(scoring.rule, default_scoring_path([first]), {"made_by": "multiattn bundle"}, scoring.tuned_on)
    write_json(building / "dataset-metadata.json", dataset_metadata(_experiments(models)))
    write_text(building / "README.txt", _readme(models, has_wheels=(building / "wheels").is_dir()))
    return weights


def copy_code(building: Path, *notebooks: str) -> None:
    """Copy the package, without the runs that come with it, its licence, and these notebooks."""
    for name in ("pyproject.toml", "LICENSE", *(NOTEBOOKS / notebook for notebook in notebooks)):
        if not (REPOSITORY / name).is_file():
            raise FileNotFoundError(f"{REPOSITORY / name}: not there. Run from a clone of the repository.")
        shutil.copyfile(REPOSITORY / name, building / Path(name).name)
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.json")]):
        if layout.PRETRAINED in path.parents:  # the bundle has runs of its own
            continue
        target = building / "src" / "multiattn" / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def store_runs(runs: Path, options: BundleOptions, models: list[TrainedModel]) -> list[StoredWeights]:
    """Write the models' folders below `runs`: settings, recipe, folds table and weights, but no rule."""
    device = pick_device(options.device)
    weights = []
    with progress_bar(len(models), "weights", "folds") as bar:
        for model in models:
            folder = runs / model.name
            folder.mkdir(parents=True)
            for name in (layout.EXPERIMENT_FILE, layout.RECIPE_FILE, layout.IMPORT_FILE):
                if (model.path / name).is_file():
                    write_json(folder / name, names_only(read_json(model.path / name)))
            if (distance := model.path / layout.DISTANCE_FILE).is_file():
                shutil.copyfile(distance, folder / layout.DISTANCE_FILE)
            _copy_folds(folds_table(model.path), folder)
            count = 1 if options.precision == "float32" else options.check_crops
            crops = crops_to_compare(model, options.check_faces, count)
            limits = {"precision": options.precision, "largest_change": options.largest_change}
            weights.append(store_weights(model, folder, crops, **limits, device=device))
            if options.runtime != "torch":  # of weights and settings as they are stored, which give the file its name
                exported = exported_network(*find_models(folder))
                (exported.parent / LOCK).unlink()
            bar.update()
    return weights


def _copy_folds(table: Path, folder: Path) -> None:
    """Copy it once for all folds of an experiment, or beside the weights of a fold that was made from another table."""
    if not table.is_file():  # of an imported checkpoint
        return
    shared = folder.parent / table.name
    if not shared.exists():
        shutil.copyfile(table, shared)
    elif shared.read_bytes() != table.read_bytes():
        shutil.copyfile(table, folder / table.name)


def dataset_metadata(experiments: Sequence[str]) -> dict[str, Any]:
    """Kaggle's `dataset-metadata.json`: title (at most 50 characters), id and licence; the user's name is to be filled
    in. The licence is `other`: the code is MIT, the weights come with the terms of the videos they were trained on."""
    title = f"multiattn {' '.join(experiments)}"[:50].strip()
    slug = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    return {"title": title, "id": f"INSERT_USERNAME/{slug.strip('-')}", "licenses": [{"name": "other"}]}


def _readme(models: list[TrainedModel], *, has_wheels: bool) -> str:
    names = ", ".join(model.name for model in models)
    wheels = (
        "The notebook installs what wheels/requirements.txt names and the image lacks, from wheels/."
        if has_wheels
        else "No wheels are in here: the image must have all packages. Make the bundle again with --download-wheels."
    )
    return f"""Offline inference: {names}

1. Put your Kaggle name into dataset-metadata.json and upload this folder as a private data set:
       kaggle datasets create --path . --dir-mode zip
   (or drag the folder onto Kaggle's "New Dataset" page; Kaggle unpacks zipped folders).
2. New notebook: File > Import Notebook > inference.ipynb of this folder.
3. Add Input: this data set, and the competition's data (test_videos and sample_submission.csv).
4. Settings: accelerator GPU, internet off. {wheels}
5. Save Version > Save & Run All. The submission is /kaggle/working/submission.csv.

Licences: the code's is in LICENSE; the weights come with the terms of the videos they were trained on.
"""


def bytes_by_part(folder: Path, parts: Mapping[str, str], others: str) -> dict[str, int]:
    """Bytes of the `weights` of folds, in any form, and of all other files by the part that their first folder is of,
    else of `others`."""
    sizes = dict.fromkeys(("weights", *parts.values(), others), 0)
    for path in folder.rglob("*"):
        if path.is_file():
            part = parts.get(path.relative_to(folder).parts[0], others)
            is_network = path.name == layout.BEST_WEIGHTS or path.suffix == ".onnx"
            sizes["weights" if is_network else part] += path.stat().st_size
    return {name: size for name, size in sizes.items() if size}


def _require_fits(sizes: dict[str, int], options: BundleOptions, weights: list[StoredWeights]) -> None:
    total = sum(sizes.values())
    if total <= options.max_gb * 1e9:
        return
    parts = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))
    ways = ["bundle fewer runs or folds (--runs runs/a/fold0 runs/a/fold1)"]
    if in_full := [stored.model for stored in weights if stored.stored == "float32"]:
        ways.append(f"store {', '.join(in_full[:3])} in float16 (--precision float16 with a larger --largest-change)")
    if "wheels" in sizes:
        ways.append("name only the packages that the image lacks (--packages)")
    raise ValueError(
        f"the bundle would take {total / 1e9:.3f} GB, more than --max-gb {options.max_gb:g}: {parts}. Nothing was "
        f"written. To make it smaller: {'; '.join(ways)}; or allow more with --max-gb."
    )


def _manifest(
    building: Path, options: BundleOptions, models: list[TrainedModel], weights: list[StoredWeights], sizes: dict
) -> dict[str, Any]:
    infinite = {"difference": None}  # which JSON does not have
    stored = [{**vars(one), **(infinite if one.difference == float("inf") else {})} for one in weights]
    return {
        **code_manifest(building),
        "runs": _experiments(models),
        "weights": stored,
        "runtime": options.runtime,
        "compared_on": ", ".join(path.resolve().name for path in options.check_faces) or "drawn pictures",
        "detector_weights": options.weights and options.weights.name,
        "bytes": sizes,
    }


def code_manifest(building: Path) -> dict[str, Any]:
    """Entries of any bundle's `bundle.json`: among it the digests that the notebook compares before it installs or
    imports."""
    checked = sorted(path for name in ("src", "wheels") for path in (building / name).rglob("*") if path.is_file())
    digests = {path.relative_to(building).as_posix(): file_digest(path) for path in checked}
    return {"kind": KIND, "commit": git_commit(), "sha256": digests}


def put_in_place(building: Path, out: Path) -> None:
    """Rename twice: a kill in between leaves the old bundle under its hidden name, and the next run takes it away."""
    old = out.parent / f".{out.name}.old"
    _remove(old)
    if out.exists():
        out.rename(old)
    building.rename(out)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def add_wheels(options: BundleOptions, folder: Path) -> None:
    """Copy or fetch the wheels that are asked for, and list what is to be installed of them; none where none are."""
    if options.wheels is None and not options.download_wheels:
        return
    requirements = read_requirements(REPOSITORY / REQUIREMENTS_FILE)
    packages = with_bounds(options.packages, requirements) or default_packages(requirements)
    if options.runtime != "torch" and options.runtime not in map(package_name, packages):
        packages.append(read_requirements(REPOSITORY / REQUIREMENTS_FILE, extra="onnx")[options.runtime])
    if options.download_wheels:
        download_wheels(packages, folder, python=options.python)
    else:
        collect_wheels(packages, options.wheels, folder)
    write_text(folder / REQUIREMENTS_FILE, "".join(f"{word}\n" for word in packages))


def package_name(requirement: str) -> str:
    """Normalised name of a requirement: `Facenet_PyTorch==2.5.3` -> `facenet-pytorch`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;@]", requirement.strip(), maxsplit=1)[0]).lower()


def read_requirements(path: Path, *, extra: str | None = None) -> dict[str, str]:
    """Name -> requirement of the repository's requirements file, without comments: those that stand before all extras,
    or those of one."""
    needed, *extras = path.read_text(encoding="utf-8").split("# Extra: ")
    if extra is not None:
        needed = next(part for part in extras if part.splitlines()[0] == extra).split("\n\n")[0].removeprefix(extra)
    lines = (line.split("#")[0].strip() for line in needed.splitlines())
    return {package_name(line): line for line in lines if line}


def default_packages(requirements: dict[str, str]) -> list[str]:
    """Requirements that Kaggle's image lacks and inference needs."""
    return [*(line for name, line in requirements.items() if name not in KAGGLE_HAS), *SMALL_DEPENDENCIES]


def with_bounds(packages: Sequence[str], requirements: dict[str, str]) -> list[str]:
    """Packages named without a version get the bounds of the requirements, where these name them."""
    return [requirements.get(package_name(word), word) if package_name(word) == word else word for word in packages]


def download_wheels(packages: Sequence[str], folder: Path, *, python: str) -> None:
    """Fetch the wheels of exactly these packages, without their dependencies, for Linux (x86_64) and this Python.

    Raises:
        ValueError: no package index is reachable, or it has no wheel that fits; holds pip's own words.
    """
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    words += ["--disable-pip-version-check", "--dest", str(folder)]
    words += ["--implementation", "cp", "--python-version", python]
    words += [word for platform in platforms for word in ("--platform", platform)]
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run([*words, *packages], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = " ".join(result.stderr.split())[-600:]
        raise ValueError(
            f"--download-wheels: pip could not fetch {', '.join(packages)} for Python {python}: {said}. Fetch them "
            "on a machine with a network and pass their folder as --wheels."
        )


def collect_wheels(packages: Sequence[str], source: Path, folder: Path) -> None:
    """Copy the wheels of these packages out of a folder of wheels; several builds of one are all copied.

    Raises:
        FileNotFoundError: a package has no wheel there; names all that are missing.
    """
    builds = {word: [] for word in map(package_name, packages)}
    for path in sorted(source.glob("*.whl")):
        builds.get(package_name(path.name.split("-")[0]), []).append(path)
    if missing := [word for word in packages if not builds[package_name(word)]]:
        raise FileNotFoundError(
            f"{source}: no wheel of {', '.join(missing)}. Fetch them with "
            f"`pip download --no-deps --only-binary=:all: --dest {source} {' '.join(missing)}`, or name the packages "
            "that the image really lacks with --packages."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in itertools.chain.from_iterable(builds.values()):
        shutil.copyfile(path, folder / path.name)
