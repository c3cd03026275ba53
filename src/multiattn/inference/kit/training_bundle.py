"""Everything that training.ipynb trains from, in one folder that Kaggle attaches as one data set, or Colab mounts.

    bundle.json, README.txt, dataset-metadata.json, pyproject.toml, LICENSE, src/, wheels/    as of any bundle
    training.ipynb, inference.ipynb    the latter for the runs that the former leaves
    experiment.json          the experiment's settings; where the backbone starts from a file, it is weights/<file>
    folds.csv, folds.json    the folds table and its recipe
    faces/                   the crops of the videos in it, loose or in the archives they lie in, and their tables

Crops get a second name in the bundle where a disk has both folders, and are copied otherwise.
"""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import pandas as pd

from multiattn.config import Experiment, to_json
from multiattn.datasets.folds import read_folds
from multiattn.experiments import get_experiment
from multiattn.inference.kit.bundle import (
    LOCK,
    NOTEBOOK,
    Bundle,
    add_wheels,
    built_beside,
    bytes_by_part,
    code_manifest,
    copy_code,
    dataset_metadata,
    put_in_place,
    require_sound,
)
from multiattn.inference.kit.options import BundleOptions
from multiattn.model.network import make_network
from multiattn.runtime import layout
from multiattn.runtime.crop_files import ROOT_KEY, crops_root, stored_file
from multiattn.runtime.files import read_json, write_json, write_text
from multiattn.runtime.progress import progress_bar
from multiattn.tables import FACES, VIDEO_STATUS, VIDEOS
from multiattn.video.crops.images import names_digest
from multiattn.video.extraction.faces_folder import read_faces_folder

TRAINING_NOTEBOOK = "training.ipynb"
FACES_FOLDER, WEIGHTS_FOLDER = "faces", "weights"
README = """Training on Kaggle or Colab: {name}

1. Put your Kaggle name into dataset-metadata.json and upload this folder as a private data set:
       kaggle datasets create --path . --dir-mode zip
   On Colab: copy the folder into your Drive and mount it; runs are left beside it, where the next session goes on.
2. New notebook: File > Import Notebook > training.ipynb of this folder.
3. Add Input: this data set. Settings: accelerator GPU P100 or T4 x2, {internet}.
4. Save Version > Save & Run All. It says at its beginning how many hours the training takes.
5. Not finished? Add the output of that version as an input and save another version: it goes on. Other folds may be
   trained under other accounts (FOLD in the first cell); `multiattn merge` puts them together.
6. inference.ipynb answers test videos by the runs that are left: Add Input: this data set, the output of the training
   notebook, and the competition's data (on Colab: the latter's test_videos anywhere below /content).

Licences: the code's is in LICENSE; crops and weights come with the terms of the data they were made of.
"""


def read_experiment(options: BundleOptions) -> Experiment:
    """The experiment that `--training` names, as it is trained from the bundle.

    Raises:
        FileNotFoundError: no such file of weights.
        ValueError: no such experiment, weights of another network, or one that needs other files too.
    """
    experiment = get_experiment(options.training)
    weights = None if options.weights else experiment.model.weights
    if elsewhere := experiment.start_from or experiment.validation.guard or weights:
        raise ValueError(
            f"--training {options.training}: it needs {elsewhere}, which is not packed. Name the backbone's weights by "
            "--weights FILE; give a run to start from, or a guard, to the notebook: as an input, and by MORE."
        )
    if options.weights is None:
        return experiment
    model = dataclasses.replace(experiment.model, weights=str(options.weights))
    make_network(model)  # refuses what does not fill it
    place = f"{WEIGHTS_FOLDER}/{options.weights.name}"  # the same below every account's /kaggle/input
    return dataclasses.replace(experiment, model=dataclasses.replace(model, weights=place))


def build_training_bundle(options: BundleOptions, experiment: Experiment) -> Bundle:
    """Build beside `out` and put the finished folder in its place; a bundle that was there before is replaced.

    After an error `out` is as it was. A run that was killed goes on with the crops that are missing.

    Raises:
        ValueError: options that contradict each other, no crops of the folds' videos, or a bundle over `--max-gb`.
    """
    require_sound(options)
    out = options.out.resolve()
    folds = read_folds(options.folds)
    tables = [table[table["video_id"].isin(folds["video_id"])] for table in read_faces_folder(options.faces)]
    addresses = tables[0]["crop"]
    files, root = addresses.map(stored_file).drop_duplicates(), crops_root(options.faces).resolve()
    if files.empty:
        raise ValueError(f"{options.faces}: expected crops of the videos in {options.folds}, found none.")
    growing = f"{names_digest(addresses)[:16]}.faces"
    with built_beside(out, keep=growing) as building:
        copy_code(building, TRAINING_NOTEBOOK, NOTEBOOK)
        add_wheels(options, building / "wheels")
        if options.weights is not None:
            (building / WEIGHTS_FOLDER).mkdir()
            shutil.copyfile(options.weights, building / WEIGHTS_FOLDER / options.weights.name)
        for path in (options.folds, options.folds.with_suffix(".json")):
            if path.is_file():
                shutil.copyfile(path, building / Path(layout.FOLDS_FILE).with_suffix(path.suffix))
        write_json(building / layout.EXPERIMENT_FILE, to_json(experiment))
        write_json(building / "dataset-metadata.json", dataset_metadata(["training", experiment.name]))
        from_hub = experiment.model.pretrained and options.weights is None
        internet = "internet on (the backbone's weights are timm's)" if from_hub else "internet off"
        write_text(building / "README.txt", README.format(name=experiment.name, internet=internet))
        _require_fits(building, growing, root, files, options)
        below = _write_tables(options.faces, building / growing, *tables)
        with progress_bar(len(files), "crops", "files") as bar:
            for name in files:
                _give_place(root / name, below / name)
                bar.update()
        (building / growing).rename(building / FACES_FOLDER)
        parts = {"wheels": "wheels", "src": "code", WEIGHTS_FOLDER: "weights", FACES_FOLDER: "crops"}
        sizes = bytes_by_part(building, parts, "tables, notebooks and notes")
        manifest = code_manifest(building) | {"experiment": experiment.name, "bytes": sizes}
        write_json(building / layout.BUNDLE_FILE, manifest)
        (building / LOCK).unlink()
        put_in_place(building, out)
    return Bundle(out, [], sizes)


def _require_fits(building: Path, growing: str, root: Path, files: pd.Series, options: BundleOptions) -> None:
    """Raise `ValueError` where what lies in the bundle, but for crops of a run that was killed, and all crops together
    take more than they may."""
    crops = sum((root / name).stat().st_size for name in files)
    below = ((path, path.relative_to(building).parts[0]) for path in building.rglob("*") if path.is_file())
    total = crops + sum(path.stat().st_size for path, first in below if first != growing)
    if total > options.max_gb * 1e9:
        raise ValueError(
            f"the bundle would take {total / 1e9:.3f} GB, {crops / 1e9:.3f} of them crops, more than --max-gb "
            f"{options.max_gb:g}. Nothing was written. "
            "Take the folds of fewer videos, or smaller crops; or allow more with --max-gb."
        )


def _write_tables(
    source: Path, folder: Path, faces: pd.DataFrame, statuses: pd.DataFrame, videos: pd.DataFrame
) -> Path:
    """Write recipe and tables of a faces folder whose crops come with it, wherever those of its source lie; returns the
    folder that their addresses start from."""
    recipe = read_json(source / layout.RECIPE_FILE)
    root = {ROOT_KEY: layout.CROPS_FOLDER} if ROOT_KEY in recipe else {}
    write_json(folder / layout.RECIPE_FILE, recipe | root)
    for kind, table, name in (
        (FACES, faces, layout.FACES_FILE),
        (VIDEO_STATUS, statuses, layout.STATUS_FILE),
        (VIDEOS, videos, layout.VIDEOS_FILE),
    ):
        kind.write(table.reset_index(drop=True), folder / name)
    return folder / root.get(ROOT_KEY, "")


def _give_place(source: Path, target: Path) -> None:
    """Make a second name of a file or, on another disk, a copy; the one that a killed run left is taken."""
    source = source.resolve() if source.is_symlink() else source
    found = source.stat()
    with contextlib.suppress(FileNotFoundError):
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (found.st_size, found.st_mtime_ns):  # the time is copied last
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
