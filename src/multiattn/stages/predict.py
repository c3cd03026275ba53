"""Runs + faces or videos -> frame_predictions.parquet: every fold's best checkpoint on every crop.

multiattn predict --runs runs/dfdc_b4 --faces data/faces/test --out data/frame_predictions.parquet
multiattn predict --runs runs/dfdc_b4 --videos-dir /data/test_videos --out data/frame_predictions.parquet
multiattn predict --runs runs/dfdc_b4 --faces data/faces/dfdc --held-out --tta flip      # for `multiattn tune`
"""

from dataclasses import dataclass, replace
from pathlib import Path

from multiattn.command_line import Devices, Jobs, PredictPrecision, RuntimeName, parse, require_apart, results
from multiattn.config.choices import SplitName, Tta
from multiattn.runtime.devices import pick_devices, runtime_precision
from multiattn.runtime.layout import FACES_FILE, named_run
from multiattn.runtime.text_tables import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: Path
    """runs/<experiment>, one of its folds, or a packaged run by its name."""
    out: Path | None = None
    """The frame_predictions.parquet to write."""
    faces: Path | None = None
    """A faces folder; with --videos-dir, where its faces are kept (default: <out>.faces)."""
    splits: tuple[SplitName, ...] = ()
    """With --faces, only videos of these splits, as `--splits val` (default: all)."""
    videos_dir: Path | None = None
    """A folder of videos, whose faces are extracted first."""
    weights: Path | None = None
    """With --videos-dir, the weights file of the detector the run's faces were found with, where it needs one."""
    tta: Tta = "none"
    """Views of each crop whose logits are averaged: flip, with its mirror image; scales, three sizes; or both, six."""
    any_recipe: bool = False
    """Predict crops that were made another way than the run's; the difference becomes a warning."""
    fit_distance: bool = False
    """Instead of predicting, write what the faces of their training look like to the runs into their folders, as
    `multiattn train` does at the end of a fold; --faces is the folder they were trained on."""
    held_out: bool = False
    """Instead of --out, write the predictions with these views of each run's held-out fold into its folder, where
    `multiattn tune` finds them and decides if they pay; --faces is the folder the runs were trained on."""
    device: Devices = "auto"
    precision: PredictPrecision = "auto"
    runtime: RuntimeName = "torch"
    jobs: Jobs = None


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="predict", doc=__doc__)
    _require_sound(options)
    precision = runtime_precision(options.runtime, options.precision)
    from multiattn.inference.distances import keep_distances
    from multiattn.inference.predictor import predict_faces, predict_held_out
    from multiattn.inference.runs import find_models, with_tta
    from multiattn.inference.runtimes import with_runtime
    from multiattn.inference.score_files import extract_folder_faces
    from multiattn.tables import FRAME_PREDICTIONS
    from multiattn.video.extraction.faces_folder import read_faces_folder

    models = with_tta(find_models(named_run(options.runs)), options.tta)
    if options.any_recipe:
        models = [replace(model, any_crops=True) for model in models]
    devices = pick_devices(options.device)
    models = with_runtime(models, options.runtime, *devices)
    if options.held_out:
        kept = predict_held_out(models, options.faces, device=devices, precision=precision)
        results(
            f"{counted(kept, 'fold')} with out-of-fold predictions of --tta {options.tta}; now `multiattn tune --runs "
            f"{options.runs}` says if they pay"
        )
        return
    if options.fit_distance:
        kept = keep_distances(models, options.faces, device=devices[0])
        results(
            f"{kept} of {len(models)} models know how far faces lie from those of their training",
            "oof.parquet, submissions and tables made before keep the distances they have",
        )
        return
    if options.out is None:
        raise ValueError("expected --out FILE, the frame_predictions.parquet to write, found none.")
    faces = options.faces or options.out.with_suffix(".faces")
    if options.videos_dir is not None:
        recipe, weights = models[0].recipe, options.weights
        extract_folder_faces(options.videos_dir, faces, recipe, jobs=options.jobs, device=devices, weights=weights)
    elif options.faces is None:
        raise ValueError("expected --faces FACES or --videos-dir DIR, found neither.")
    chosen = None
    if options.splits:
        videos = read_faces_folder(faces)[2]
        chosen = videos.loc[videos["split"].isin(options.splits), "video_id"]
        if chosen.empty:
            raise ValueError(f"{faces}: no video of split {' or '.join(options.splits)}.")
    predictions = predict_faces(models, faces, device=devices, precision=precision, video_ids=chosen)
    FRAME_PREDICTIONS.write(predictions, options.out)
    videos = predictions["video_id"].nunique()
    results(
        f"{counted(len(predictions), 'prediction')} of {counted(len(models), 'model')} "
        f"on {counted(videos, 'video')} in {options.out}"
    )


def _require_sound(options: Options) -> None:
    """Raise `ValueError` for options that do not go together."""
    unused = [name for name in ("out", "splits", "videos_dir", "weights") if getattr(options, name)]
    if options.fit_distance and options.held_out:
        raise ValueError("--held-out: expected no --fit-distance beside it. Run the two one after the other.")
    aside = "fit-distance" if options.fit_distance else "held-out" if options.held_out else ""
    if aside and unused:
        raise ValueError(f"--{aside}: takes --runs and --faces, found --{unused[0].replace('_', '-')} beside it.")
    if aside and options.faces is None:
        raise ValueError(f"--{aside}: expected --faces, the folder the runs were trained on, found none.")
    if options.held_out and options.tta == "none":
        raise ValueError("--held-out: expected --tta beside it, found none: training keeps those of each crop alone.")
    if options.faces is not None:
        require_apart({"--out": options.out}, [options.faces / FACES_FILE])
