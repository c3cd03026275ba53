"""`multiattn submit` beside a straightforward loop: the same videos and models, videos a second, memory, probabilities.

The loop is what one writes first: it decodes every frame up to the last wanted one, the detector sees one frame at a
time, the crops of a video go through each network in float32, and the next video comes after that, all libraries with
the threads they take by themselves. So that probabilities can be compared, it cuts crops by the same recipe: frames,
size of the searched copy, tracks and JPEG. Where threads or batches move a crop by a fraction of a pixel, a second
figure says what the networks alone differ by, on some videos' crops as `submit` cuts them.

Timed from the first video's start to the last one's end, the start of workers and the loading of networks included.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import av
import numpy as np
import pandas as pd
import torch

from multiattn.bench.harness import find_videos, run_alone, take_turns
from multiattn.bench.options import SubmitBench
from multiattn.config import to_json
from multiattn.datasets.manifest import video_id
from multiattn.experiments import get_experiment
from multiattn.inference.runs import find_models, with_tta
from multiattn.inference.scoring_file import UNTUNED
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.run import run_submit
from multiattn.model.checkpoints import save_weights
from multiattn.model.network import make_network
from multiattn.model.predict import predict_logits
from multiattn.runtime.devices import pick_device, seed_everything
from multiattn.runtime.environment import describe_machine
from multiattn.runtime.files import write_json
from multiattn.runtime.layout import BEST_WEIGHTS, EXPERIMENT_FILE, IMPORT_FILE, RECIPE_FILE, fold_folder
from multiattn.runtime.text_tables import terminal_table
from multiattn.scoring.aggregators import frame_predictions
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION
from multiattn.video.crops.images import decode_crop
from multiattn.video.crops.recipe import CropRecipe, write_recipe
from multiattn.video.decoding.frames import Frame, UnreadableVideoError, evenly_spaced_indices, to_image
from multiattn.video.detectors.registry import Detector, Faces
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask, encode_crops
from multiattn.video.extraction.policy import choose_faces
from multiattn.video.extraction.scan import FaceCrop, scan_faces

KAGGLE_VIDEOS = 4000
"""Videos of the competition's hidden test set."""
LOOP_BATCH = 32
COMPARED_VIDEOS = 8


@dataclass(frozen=True)
class Side:
    """One run of one side."""

    seconds: float
    probabilities: dict[str, float]
    """video_id -> P(fake), of videos with faces."""
    on_same_crops: dict[str, float] = dataclasses.field(default_factory=dict)
    """The loop's networks on the crops that `submit` cuts of the first videos; not timed."""
    peak_bytes: int = 0
    """Memory of the process and its children."""
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    workers: int = 1
    threads: int = 1


def measure(options: SubmitBench) -> list[str]:
    """Lines for a terminal; raises as `compare_sides`."""
    return compare_sides(options)[1]


def compare_sides(options: SubmitBench) -> tuple[tuple[Sequence[Side], Sequence[Side]], list[str]]:
    """Runs of submit and of the loop, one a turn; lines of their rates, shares of time and differing probabilities.

    Raises:
        FileNotFoundError, ValueError: no videos, or no runs.
    """
    paths = find_videos(options.videos_dir)
    count = options.videos or len(paths)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = _inputs(options, folder, [paths[number % len(paths)] for number in range(count)])
        models = find_models(*inputs.runs)
        outs = (folder / f"out{turn}" for turn in itertools.count())
        ours, loop = take_turns(
            [
                lambda: _measured("submit", run_ours, dataclasses.replace(inputs, out=next(outs))),
                lambda: _measured("loop", run_loop, inputs),
            ],
            options.turns,
        )
        ours, loop = ours[1:], loop[1:]  # the first turn warms up the system's memory of files
    recipe = models[0].recipe
    return (ours, loop), [
        f"{count} videos, {recipe.num_frames} frames each, {recipe.detector}, {len(models)} models",
        f"{describe_machine(pick_device(options.device))}; submit {options.precision}, loop float32",
        "",
        *table(ours, loop, count),
    ]


def _inputs(options: SubmitBench, folder: Path, paths: list[Path]) -> SubmitInputs:
    """The videos under names of their own, and a sample that asks for them."""
    (folder / "videos").mkdir()
    names = [f"{number:05d}{path.suffix.lower()}" for number, path in enumerate(paths)]
    for name, path in zip(names, paths, strict=True):
        (folder / "videos" / name).symlink_to(path.resolve())
    SUBMISSION.write(pd.DataFrame({"filename": names, "label": 0.5}), folder / "sample.csv")
    runs = options.runs
    if options.untrained is not None:
        runs = (untrained_run(folder / "runs", options.untrained, folds=options.untrained_folds),)
    if options.num_frames is not None:
        runs = tuple(_with_frames(run, folder / "resampled", options.num_frames) for run in runs)
    return SubmitInputs(
        runs=runs,
        videos_dir=folder / "videos",
        sample_submission=folder / "sample.csv",
        out=folder / "out",
        scoring=UNTUNED if options.untrained else None,
        tta=options.tta,
        device=str(pick_device(options.device)),  # the loop has one
        precision=options.precision,
        jobs=options.jobs,
        weights=options.weights,
    )


def table(ours: Sequence[Side], loop: Sequence[Side], count: int) -> list[str]:
    """Lines for a terminal, of a run a turn of each side, with `count` videos in each."""
    rows = [("", "videos/s", f"hours for {KAGGLE_VIDEOS:,}", "peak memory")]
    for name, runs in (("submit", ours), ("loop", loop)):
        rate = median(count / run.seconds for run in runs)
        peak = max(run.peak_bytes for run in runs)
        rows.append((name, f"{rate:.3f}", f"{KAGGLE_VIDEOS / rate / 3600:.2f}", f"{peak / 1e9:.2f} GB"))
    ratios = [theirs.seconds / mine.seconds for mine, theirs in zip(ours, loop, strict=True)]
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    mine, theirs = ours[-1].probabilities, loop[-1].probabilities
    alone = len(mine.keys() ^ theirs.keys())
    return [
        *terminal_table(rows, right=(1, 2, 3)).splitlines(),
        "",
        *_busy_shares(ours[-1]),
        "",
        f"{median(ratios):.2f} times the loop's videos/s{spread}",
        f"probabilities of {len(mine.keys() & theirs.keys())} videos differ by at most {_largest(mine, theirs):.1e}"
        + (f"; {alone} that only one side answered" if alone else ""),
        f"on the same crops, those of {len(loop[-1].on_same_crops)} videos differ by at most "
        f"{_largest(mine, loop[-1].on_same_crops):.1e}",
    ]


def _largest(first: dict[str, float], second: dict[str, float]) -> float:
    return max((abs(first[video] - second[video]) for video in first.keys() & second.keys()), default=0.0)


def _busy_shares(side: Side) -> list[str]:
    """Shares of their time that the workers and threads of `submit` spent on what."""
    wall = side.stages["wall"]
    shares = {name: side.stages[name] / (side.workers * wall) for name in ("decode", "search")}
    classify = side.stages["classify"] / (side.threads * wall)
    return [
        f"{side.workers} workers: decode {shares['decode']:.0%}, detect {shares['search']:.0%}, "
        f"waiting {max(0.0, 1 - sum(shares.values())):.0%}",
        f"{side.threads} threads: classify {classify:.0%}, waiting {max(0.0, 1 - classify):.0%}",
    ]


def untrained_run(folder: Path, experiment: str, *, folds: int = 1) -> Path:
    """`folder/<experiment>`, an experiment's network with random weights as an imported run: to be timed alone."""
    settings = get_experiment(experiment)
    for fold in range(folds):
        seed_everything(fold)
        run = fold_folder(folder / settings.name, fold)
        run.mkdir(parents=True)
        save_weights(make_network(settings.model, load_weights=False), run / BEST_WEIGHTS, {"untrained": "yes"})
        write_json(run / EXPERIMENT_FILE, to_json(settings))
        write_json(run / IMPORT_FILE, {"untrained": True})
        write_recipe(CropRecipe(size=settings.data.image_size), run)
    return folder / settings.name


def _with_frames(run: Path, folder: Path, num_frames: int) -> Path:
    """The run with another number of frames: links to its files, and a recipe of its own."""
    for model in find_models(run):
        fold = folder / model.path.parent.name / model.path.name
        fold.mkdir(parents=True)
        for path in model.path.iterdir():
            if path.name != RECIPE_FILE:
                (fold / path.name).symlink_to(path.resolve())
        write_recipe(dataclasses.replace(model.recipe, num_frames=num_frames), fold)
    return folder / find_models(run)[0].path.parent.name


def _measured(name: str, work: Callable[[SubmitInputs], Side], inputs: SubmitInputs) -> Side:
    measured = run_alone(name, work, inputs)
    return dataclasses.replace(measured.result, peak_bytes=measured.peak_bytes)


def run_ours(inputs: SubmitInputs) -> Side:
    result = run_submit(inputs)
    predicted = result.videos[result.videos["status"] == "ok"]
    probabilities = dict(zip(predicted["video_id"], predicted["probability"], strict=True))
    seconds = result.stage_seconds
    return Side(seconds["wall"], probabilities, stages=seconds, workers=result.workers, threads=result.threads)


def _one_by_one(detector: Detector, images: list[np.ndarray], *, thorough: bool = False) -> list[Faces]:
    """The detector's faces, one frame at a time."""
    return [faces for image in images for faces in detector([image], thorough=thorough)]


def run_loop(inputs: SubmitInputs) -> Side:
    started = time.perf_counter()
    device = pick_device(inputs.device)
    models = with_tta(find_models(*inputs.runs), inputs.rule.tta)
    networks = [model.load(device) for model in models]
    recipe = models[0].recipe.for_prediction()
    settings = ExtractionSettings(recipe=recipe, device=str(device), weights=inputs.weights)
    detector = partial(_one_by_one, settings.load_detector())
    tables = [FRAME_PREDICTIONS.empty()]
    paths = sorted(inputs.videos_dir.iterdir())

    def predict(path: Path, crops: Sequence[FaceCrop]) -> Iterator[pd.DataFrame]:
        places = [(video_id("folder", path.name), crop.frame_index, crop.track) for crop in crops]
        rows = pd.DataFrame(places, columns=["video_id", "frame_index", "track"])
        for model, network in zip(models, networks, strict=True) if crops else ():
            size = model.experiment.data.image_size
            batch = torch.from_numpy(np.stack([decode_crop(crop.jpeg, size, path) for crop in crops]))
            how = {"device": device, "precision": "fp32", "tta": model.tta}
            logits = predict_logits(network, batch.split(LOOP_BATCH), **how)
            yield frame_predictions(rows, logits, model=model.name, fold=model.fold)

    for path in paths:
        try:
            crops = _loop_crops(path, detector, recipe)
        except (UnreadableVideoError, av.FFmpegError):
            continue
        tables += predict(path, crops)
    seconds = time.perf_counter() - started
    same = [FRAME_PREDICTIONS.empty()]
    for path in paths[:COMPARED_VIDEOS]:
        same += predict(path, encode_crops(VideoTask(video_id=path.name, path=path), settings)[0].crops)
    return Side(seconds, _probabilities(inputs.rule, tables), _probabilities(inputs.rule, same))


def _probabilities(rule: ScoringRule, tables: list[pd.DataFrame]) -> dict[str, float]:
    scored = rule.score(pd.concat(tables, ignore_index=True))
    return dict(zip(scored["video_id"], scored["probability"], strict=True))


def _loop_crops(path: Path, detector: Detector, recipe: CropRecipe) -> list[FaceCrop]:
    scan = scan_faces(_every_frame(path, recipe.num_frames), detector, recipe)
    if not scan.crops:
        scan = scan_faces(_every_frame(path, recipe.num_frames), detector, recipe, thorough=True)
    return choose_faces(scan, recipe.policy, label=-1, mask=None, num_frames=recipe.num_frames)[0]


def _every_frame(path: Path, num_frames: int) -> Iterator[Frame]:
    """Decode each frame up to the last wanted one, as a plain reader does, and give the wanted ones."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        wanted = evenly_spaced_indices(stream.frames, num_frames)
        if not wanted:
            raise UnreadableVideoError("no frames")
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                yield Frame(index=index, seconds=float(frame.time or 0.0), image=to_image(frame))
            if index >= wanted[-1]:
                return
