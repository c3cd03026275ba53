"""Names of the files in a run folder, a faces folder, a submission folder and a bundle, and of the folders of folds.

runs/<experiment>/fold<k>/   one trained fold
<faces>/                     crops and their tables
submissions/<name>/          a submission and what is behind it
"""

from pathlib import Path

from multiattn.runtime.files import changed_files

# A run folder: how it was made,
EXPERIMENT_FILE = "experiment.json"
INPUTS_FILE = "inputs.json"
CHANGES_FILE = "changes.json"
ENVIRONMENT_FILE = "environment.json"
FOLDS_FILE = "folds.csv"
IMPORT_FILE = "import.json"
"""In a run folder that `multiattn import-checkpoint` wrote: no folds, no out-of-fold predictions."""
# how it went,
EPOCHS_FILE = "epochs.csv"
TRAIN_LOG = "train.log"
TENSORBOARD_FOLDER = "tensorboard"
TRACKER_FILE = "tracker.json"
"""The id by which an experiment tracker knows the run."""
STATE_FILE, PREVIOUS_STATE_FILE = "resume.pt", "resume.previous.pt"
# and what came out.
BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"
EXPORTED_FOLDER = "exported"
"""The network in other libraries' form, made again where it is not there."""
CANDIDATES_FOLDER = "candidates"
"""Weights of the best validations so far, for their average."""
HELD_OUT_FILE, LAST_HELD_OUT_FILE = "oof.parquet", "oof_last.parquet"
"""Frame predictions of the held-out fold by the best weights, and by the latest ones, which nobody chose."""
DISTANCE_FILE = "distance.safetensors"
"""The measure of how far faces lie from those it was trained on; a run of an earlier version has none."""
RESULT_FILES = (
    *(STATE_FILE, PREVIOUS_STATE_FILE, EPOCHS_FILE, BEST_WEIGHTS, LAST_WEIGHTS, HELD_OUT_FILE, LAST_HELD_OUT_FILE),
    IMPORT_FILE,
)
"""Files that training, or an import, leaves: a run folder without any of them holds settings alone."""
BATCH_SIZES_FILE = "batch_sizes.json"
"""In the folder of all runs: batches that fitted a device, and that did not."""
SCORING_FILE = "scoring.json"
"""In the folder of an experiment, beside its folds."""
VIDEO_HELD_OUT_FILE = "oof.csv"
"""Likewise: its answers to held-out videos by the untuned rule. In a submission folder those of the rule it went by."""
MODEL_CARD_FILE = "card.md"
"""Likewise."""
LICENCE_FILE, DIGESTS_FILE = "LICENSE.md", "files.sha256"
"""Likewise, of a packaged run or one of the hub: the terms of its weights, and the SHA-256 of all its other files."""
DATA_TERMS = "## Licence of the data"
"""The section of the card that this licence repeats."""

# A faces folder.
RECIPE_FILE = "faces.json"
"""Also in a run folder: how the crops it was trained on were made."""
FACES_FILE = "faces.parquet"
STATUS_FILE = "video_status.csv"
VIDEOS_FILE = "videos.csv"
CROPS_FOLDER = "crops"
SHARDS_FOLDER = "shards"
"""Tar files of packed crops."""
FACES_JOURNAL = "journal.jsonl"
FINGERPRINTS_FILE = "fingerprints.jsonl"
LANDMARKS_FILE = "landmarks.jsonl"
"""Landmarks found in crops that another program cut."""

# A submission folder, and the bundle that makes one offline.
SUBMISSION_FILE = "submission.csv"
CARD_FILE = "card.json"
PREDICTIONS_FILE = "frame_predictions.parquet"
VIDEO_PREDICTIONS_FILE = "video_predictions.csv"
ROBUSTNESS_FILE = "robustness.csv"
"""In the folder that `multiattn robustness` writes."""
SUBMISSION_JOURNAL = "kernel_results.jsonl"
UNFINISHED_BLEND = ".unfinished-blend"
"""In the folder of a blend while it is written, which the same command may then write again."""
BUNDLE_FILE = "bundle.json"

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
"""Runs that come with the package, a folder each."""
DEFAULT_RUN = "dfdc_lite"
"""The packaged run that `score` and `DeepfakeDetector.load` take where none is named."""

_FOLD = "fold"
ANY_FOLD = f"{_FOLD}*"
"""A glob pattern of folds' folders."""


def crops_folder(faces: Path, video_id: str) -> Path:
    """The folder of a video's crops, resolved: whoever writes or deletes there does it nowhere else.

    Raises:
        ValueError: the id, or a link on its way, leads out of the faces folder's crops.
    """
    root = (Path(faces) / CROPS_FOLDER).resolve()
    folder = (root / video_id).resolve()
    if root not in folder.parents:
        raise ValueError(
            f"video {video_id!r}: expected its crops below {root}, found that they would lie in {folder}. Correct the "
            "id in videos.csv, or remove the link."
        )
    return folder


def crop_path(video_id: str, frame_index: int, track: int) -> str:
    """`crops/<video_id>/<frame>_<track>.jpg`: a crop's path below the faces folder, or in a shard of it."""
    return f"{CROPS_FOLDER}/{video_id}/{frame_index:06d}_{track}.jpg"


def fold_folder(experiment: Path, fold: int) -> Path:
    """`<experiment>/fold<k>`."""
    return Path(experiment) / f"{_FOLD}{fold}"


def held_out_file(tta: str) -> str:
    """The file of a run's frame predictions of the held-out fold by the best weights, with these views of each crop."""
    return HELD_OUT_FILE if tta == "none" else HELD_OUT_FILE.replace(".", f"_{tta}.")


def tuned_held_out_file(scoring: Path) -> Path:
    """The table beside a scoring rule: its answers to held-out videos, each by the rule found without its fold."""
    return scoring.with_name(f"{scoring.stem}_{VIDEO_HELD_OUT_FILE}")


def fold_number(folder: Path) -> int:
    """The number of a fold's folder; a run folder taken by itself may be named by the number alone.

    Raises:
        ValueError: it is not named like one.
    """
    digits = folder.name.removeprefix(_FOLD)
    if not digits.isdecimal():
        raise ValueError(f"{folder}: expected a run folder named fold0, fold1, ..., found {folder.name!r}.")
    return int(digits)


def folds_below(experiment: Path, file: str = "") -> list[Path]:
    """The fold folders in an experiment's folder that hold this file, by number; empty where there are none."""
    folders = (path for path in Path(experiment).glob(ANY_FOLD) if path.name.removeprefix(_FOLD).isdecimal())
    return sorted((folder for folder in folders if (folder / file).exists()), key=fold_number)


def is_run_folder(folder: Path) -> bool:
    """True for the folder of one fold (or of a single run), False for that of an experiment."""
    return (Path(folder) / EXPERIMENT_FILE).is_file()


def fold_folders(runs: Path) -> list[Path]:
    """The fold folders of an experiment's folder (or the one fold folder given), by number; at least one.

    Raises:
        FileNotFoundError: no such folder, or no fold in it.
    """
    folders = [Path(runs)] if is_run_folder(runs) else folds_below(runs)
    if not folders:
        raise FileNotFoundError(
            f"{runs}: expected runs (fold0, fold1, ...), found none. Make them with `multiattn train`."
        )
    return folders


def folds_of_runs(runs: Path) -> list[Path]:
    """The folders of all folds that have begun, of a folder of experiments or of one; errors as `fold_folders`."""
    if is_run_folder(runs) or folds_below(runs):
        return fold_folders(runs)
    folds = [fold for experiment in sorted(Path(runs).glob("*/")) for fold in folds_below(experiment, EXPERIMENT_FILE)]
    return folds or fold_folders(runs)


def packaged_run(name: str = DEFAULT_RUN) -> Path:
    """The folder of a run that comes with the package, its files as they were packed.

    Raises:
        FileNotFoundError: this installation has none of that name.
        ValueError: as `require_unchanged`.
    """
    if not (PRETRAINED / name).is_dir():
        held = ", ".join(sorted(path.name for path in PRETRAINED.glob("*/"))) or "none"
        raise FileNotFoundError(
            f"{name}: expected a run folder, or a run that comes with the package, found neither (in {PRETRAINED}: "
            f"{held}). Name the folder of a run of your own: --runs RUN, or DeepfakeDetector.load(RUN)."
        )
    require_unchanged(PRETRAINED / name)
    return PRETRAINED / name


def require_unchanged(experiment: Path) -> None:
    """Raise `ValueError` where a file of a packaged run is gone or another than its `files.sha256` says."""
    path = Path(experiment) / DIGESTS_FILE
    try:
        changed = changed_files(path)
    except (OSError, UnicodeDecodeError) as error:
        fault = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: expected the digests of a packaged run, found none ({fault}).") from error
    if changed:
        raise ValueError(
            f"{experiment}: expected the files whose SHA-256 {DIGESTS_FILE} lists, found {', '.join(changed)}. Install "
            "the package again, or in a clone `git checkout` that folder; one of `multiattn pull` is pulled anew."
        )


def named_run(run: str | Path) -> Path:
    """The folder of a run: as it is given, or where that is no more than a name and no folder is called so, the
    packaged run of that name; errors as `packaged_run`."""
    run = Path(run)
    is_name = len(run.parts) == 1 and not run.exists()
    return packaged_run(run.name) if is_name and (run.name == DEFAULT_RUN or (PRETRAINED / run).is_dir()) else run


def experiment_folder(run: Path) -> Path:
    """The folder of the experiment that a folder, its own or that of one of its folds, belongs to."""
    return Path(run).parent if is_run_folder(run) else Path(run)


def experiment_name(run: Path) -> str:
    """The name of that experiment. Links are not followed: it is called what the path given calls it, in predictions,
    weights of a scoring rule and bundles alike."""
    return _own_name(experiment_folder(run))


def fold_name(folder: Path) -> str:
    """`<experiment>/fold<k>` of a fold's folder, the experiment named as by `experiment_name`."""
    return f"{_own_name(folder.parent)}/{folder.name}"


def _own_name(folder: Path) -> str:
    """The last part of the path, or what the folder is called on the disk where that part is no name."""
    return folder.resolve().name if folder.name in ("", "..") else folder.name
