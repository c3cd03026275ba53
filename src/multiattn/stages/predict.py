"""Runs + faces or videos -> frame_predictions.parquet: every fold's best checkpoint on every crop.

multiattn predict --runs runs/dfdc_b4 --faces data/faces/test --out data/frame_predictions.parquet
multiattn predict --runs runs/dfdc_b4 --videos-dir /data/test_videos --out data/frame_predictions.parquet
multiattn predict --runs runs/dfdc_b4 --faces data/faces/dfdc --held-out --tta flip      # for `multiattn tune`
multiattn predict --runs runs/dfdc_b4 --videos-dir /data/videos --out data/p.parquet --backend ray
"""

from dataclasses import dataclass, replace
from pathlib import Path

from multiattn.command_line import Devices, Jobs, PredictPrecision, RuntimeName, parse, require_apart, results
from multiattn.config.choices import SplitName, Tta
from multiattn.runtime.devices import pick_devices, runtime_precision
from multiattn.runtime.layout import FACES_FILE, PREDICTIONS_FILE, named_run
from multiattn.runtime.text_tables import counted
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.video.extraction.engine import Backend


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
    backend: Backend = "local"
    """With --videos-dir, where videos are predicted: this machine, or a dask or ray cluster that sees the same files at
    the same paths, as by `multiattn submit`, also those of folders below; <out>.submission keeps what is done."""
    scheduler: str | None = None
    """The cluster's address, as of `multiattn submit`."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="predict", doc=__doc__)
    _require_sound(options)
    if options.backend != "local":
        _predict_on_cluster(options)
        return
    precision = runtime_precision(options.runtime, options.precision)
    from multiattn.inference.distances import keep_distances
    from multiattn.inference.predictor import predict_faces, predict_held_out
    from multiattn.inference.runs import find_models, with_tta
    from multiattn.inference.runtimes import with_runtime
    from multiattn.inference.score_files import extract_folder_faces
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


def _predict_on_cluster(options: Options) -> None:
    """Write the frame predictions of a submission: its driver keeps each video's in a journal, and goes on there."""
    from multiattn.inference.submit.inputs import SubmitInputs

    inputs = SubmitInputs(
        runs=(options.runs,), videos_dir=options.videos_dir, out=options.out.with_suffix(".submission"), scoring="none",
        tta=options.tta, device=options.device, precision=options.precision, runtime=options.runtime,
        weights=options.weights, backend=options.backend, scheduler=options.scheduler,
    )  # fmt: skip
    from multiattn.inference.submit.frames import copy_frames
    from multiattn.inference.submit.run import run_submit  # with torch, which takes seconds

    videos = run_submit(inputs, for_frames=True).coverage["ok"]
    rows = 0
    if videos:
        rows = copy_frames(inputs.out / PREDICTIONS_FILE, options.out)
    else:  # what lies in the submission may be of former videos
        FRAME_PREDICTIONS.write(FRAME_PREDICTIONS.empty(), options.out)
    results(f"{counted(rows, 'prediction')} on {counted(videos, 'video')} in {options.out}")


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
    on_cluster = options.backend != "local"
    if not on_cluster and options.scheduler is not None:
        raise ValueError(f"--scheduler {options.scheduler}: expected --backend dask or ray beside it, found local.")
    here = ("faces", "splits", "any_recipe", "fit_distance", "held_out", "jobs")
    if on_cluster and (given := [name for name in here if getattr(options, name)]):
        given = given[0].replace("_", "-")
        raise ValueError(f"--backend {options.backend}: takes videos to their predictions, found --{given} beside it.")
    if on_cluster and not (options.videos_dir and options.out):
        raise ValueError(f"--backend {options.backend}: expected --videos-dir DIR and --out FILE, found not both.")
    if on_cluster or options.faces is not None:
        kept = options.out.with_suffix(".submission") if on_cluster else options.faces / FACES_FILE
        require_apart({"--out": options.out}, [kept])
