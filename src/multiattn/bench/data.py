"""Crops a second that reach the training, beside a plainly written dataset and beside what the training takes.

The plain dataset is the one most training scripts have: PIL opens and converts, torchvision resizes, makes a float
tensor and normalises it, and the default collation puts the tensors together. It reads the same files in the same
number of workers. Batches that were made ahead while the other side had its turn are not counted.

With --packed one process reads crops from loose files and from shards of the same crops, as `faces --pack` makes them.
"""

import dataclasses
import itertools
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from multiattn.bench.harness import take_turns
from multiattn.bench.options import DataBench
from multiattn.bench.train import training_rate
from multiattn.bench.train_sides import endless, labelled_faces
from multiattn.config import DataConfig
from multiattn.config.choices import DEGRADING_PRESETS
from multiattn.datasets.embedded.actors import make_actor
from multiattn.experiments import get_experiment
from multiattn.runtime.crop_files import crops_root, read_stored, stored_file
from multiattn.runtime.devices import pick_device
from multiattn.runtime.environment import describe_machine
from multiattn.runtime.layout import CROPS_FOLDER, FACES_FILE, STATUS_FILE, VIDEOS_FILE, crop_path
from multiattn.runtime.text_tables import terminal_table
from multiattn.tables import FACES, FAKE, REAL, VIDEO_STATUS, VIDEOS
from multiattn.training.data.augment.degrade import DEGRADATIONS
from multiattn.training.data.augment.faces import CropLandmarks
from multiattn.training.data.crops import FoldCrops, reading_side, training_loader
from multiattn.video.crops.images import (
    PREFETCH,
    read_crop,
    require_shared_memory,
    settle_worker,
    start_method,
)
from multiattn.video.crops.recipe import CropRecipe, align_crop, read_recipe, write_recipe
from multiattn.video.extraction.packing import pack_crops

MAX_CROPS = 512
"""Crops taken of a faces folder, evenly spaced: enough to differ, few enough to lie in the page cache on both sides."""
DRAWN_ACTORS, DRAWN_FRAMES, DRAWN_BLUR, DRAWN_NOISE = 8, 32, 2.0, 1.0
TURNS = 3
DEGRADED_CROPS = 24
CROPS_AN_EPOCH = 20_000
"""Both sides', so that the pause between two epochs does not count."""
BLENDED = 0.5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure(options: DataBench) -> list[str]:
    """Lines for a terminal; raises as `compare_loaders`."""
    return compare_loaders(options)[1] if options.packed is None else _compare_packed(options)


def compare_loaders(options: DataBench) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Each way to read the crops -> its crops a second and the plain dataset's between its turns; lines for a terminal.

    Self-blending is one only where the crops have landmarks.

    Raises:
        FileNotFoundError, ValueError: no such experiment or faces folder, or crops smaller than the image size.
    """
    experiment, device = get_experiment(options.experiment), pick_device(options.device)
    config = dataclasses.replace(
        experiment.data,
        image_size=options.image_size or experiment.data.image_size,
        batch_size=options.batch_size or experiment.data.batch_size,
        num_workers=options.num_workers,
    )
    stored = (CropRecipe() if options.faces is None else read_recipe(options.faces)).size
    if config.image_size > stored:
        raise ValueError(
            f"--image-size: expected at most {stored}, the side of the crops in {options.faces or 'drawn faces'}, "
            f"found {config.image_size}."
        )
    fed = dataclasses.replace(experiment.data, batch_size=config.batch_size)
    rate = options.training_rate or training_rate(dataclasses.replace(experiment, data=fed), device=device)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        place, source = Path(folder), options.faces
        crops = _drawn_faces(place) if source is None else _some_faces(source, place, MAX_CROPS)
        real = np.flatnonzero(crops.training["label"] == REAL)
        can_blend = CropLandmarks.of(crops.folder, crops.faces, real).known.any()
        ways = [(name, way) for name, way in _ways(config, options.presets).items() if can_blend or way.sbi == 0]
        rates = {name: _compare(crops, way, seconds=options.seconds) for name, way in ways}
        costs = _degradations(crops, config) if set(options.presets) & set(DEGRADING_PRESETS) else []
        kilobytes = np.mean([len(read_stored(crops.folder / name)) for name in crops.training["crop"]]) / 1000
    source = "given" if options.training_rate else f"a step of {config.batch_size} crops, measured on {device}"
    return rates, [
        f"{len(crops.training)} crops of {stored} pixels, {kilobytes:.0f} KB each, read at {config.image_size} in "
        f"batches of {config.batch_size} by {options.num_workers} workers, from the page cache",
        f"{describe_machine(device)}; load {load:.1f} before",
        "",
        *_table(rates, max(1, options.num_workers), rate),
        "",
        *costs,
        f"{options.experiment} takes {rate:.1f} crops/s ({source})",
    ]


def _ways(config: DataConfig, presets: tuple[str, ...]) -> dict[str, DataConfig]:
    """Settings that are measured: every preset, self-blended images, both caches."""
    plain = dataclasses.replace(
        config,
        augmentation="none",
        strength=1.0,
        strength_epochs=0.0,
        sbi=0.0,
        sampling="balanced",
        cache="none",
        frames_per_video=DRAWN_FRAMES,
        videos_per_class=CROPS_AN_EPOCH // (2 * DRAWN_FRAMES),
    )
    return {
        **{name: dataclasses.replace(plain, augmentation=name) for name in presets},
        f"none, --sbi {BLENDED}": dataclasses.replace(plain, sbi=BLENDED),
        "none, cached in memory": dataclasses.replace(plain, cache="memory"),
        "none, cached on disk": dataclasses.replace(plain, cache="disk"),
    }


def _compare(crops: FoldCrops, config: DataConfig, *, seconds: float) -> tuple[float, float]:
    """Crops a second of one way to read them, and of the plain dataset in the turns between."""
    ours = _Turns(training_loader(crops, config, seed=0, rank=0, world_size=1))
    plain = _Turns(_plain_loader(crops, config))
    if config.cache != "none":
        ours.run(crops=4 * len(crops.training))  # fills it: each crop comes twice in so many, a few four times
    rates = take_turns([partial(side.run, seconds=seconds) for side in (ours, plain)], TURNS)
    return statistics.median(rates[0]), statistics.median(rates[1])


class _Turns:
    """A loader that runs for a while, waits, and runs on."""

    def __init__(self, loader: DataLoader) -> None:
        self.ahead = loader.num_workers * (loader.prefetch_factor or 0)
        self.batches = endless(loader)

    def run(self, *, seconds: float = 0.0, crops: int = 1) -> float:
        """Crops a second, over at least so many of both; those that lay ready are not counted."""
        for _ in range(self.ahead + 1):
            next(self.batches)
        started, passed, number = time.perf_counter(), 0.0, 0
        while passed < seconds or number < crops:
            number += len(next(self.batches)[0])
            passed = time.perf_counter() - started
        return number / passed


class PlainCrops(Dataset):
    """The usual dataset: (3, size, size) float32, normalised by ImageNet's mean and deviation, and the label."""

    def __init__(self, crops: FoldCrops, size: int) -> None:
        from torchvision.transforms import Compose, Normalize, Resize, ToTensor

        self.paths = [crops.folder / name for name in crops.training["crop"]]
        self.labels = crops.training["label"].tolist()
        self.transform = Compose([Resize((size, size)), ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[row]).convert("RGB")), self.labels[row]


def _plain_loader(crops: FoldCrops, config: DataConfig) -> DataLoader:
    dataset, ahead = PlainCrops(crops, config.image_size), config.num_workers * PREFETCH * config.batch_size
    what = f"--num-workers {config.num_workers}: the plain data set's batches of {config.batch_size} float32 crops"
    require_shared_memory(ahead * config.image_size**2 * 3 * 4, what)
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=CROPS_AN_EPOCH),
        drop_last=True,
        num_workers=config.num_workers,
        multiprocessing_context=start_method(config.num_workers),
        persistent_workers=config.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=settle_worker,
    )


def _compare_packed(options: DataBench) -> list[str]:
    """A table of crops a second, and a second of the processor, from loose files and from the same crops in shards."""
    load = os.getloadavg()[0]
    rows = [("", "files", "shards", "", "a CPU second: files", "shards", "")]
    with tempfile.TemporaryDirectory() as folder:
        (loose := Path(folder, "loose")).mkdir()
        crops = _drawn_faces(loose) if options.faces is None else _some_faces(options.faces, loose, options.packed)
        side, paths = read_recipe(loose).size, [loose / name for name in crops.training["crop"]]
        sides = paths, _packed(crops, Path(folder, "packed"))
        kilobytes = np.mean([path.stat().st_size for path in paths]) / 1000
        for what, read in (("read", read_stored), ("read and decoded", partial(read_crop, size=side))):
            for where in ("not in", "from") if hasattr(os, "posix_fadvise") else ("from",):
                runs = [partial(_read_all, of_side, read, dropped=where == "not in") for of_side in sides]
                files, shards = (np.median(of_side, axis=0) for of_side in take_turns(runs, TURNS))
                cells = ((f"{a:,.0f}", f"{b:,.0f}", f"{b / a:.2f}x") for a, b in zip(files, shards, strict=True))
                rows.append((f"{what}, {where} the page cache", *itertools.chain(*cells)))
    return [
        f"{len(paths)} crops of {side} pixels, {kilobytes:.0f} KB each, read in random order by one process, in "
        f"{tempfile.gettempdir()}: crops/s, medians of {TURNS} turns",
        f"{describe_machine(torch.device('cpu'))}; load {load:.1f} before",
        "",
        *terminal_table(rows, right=range(1, 7)).splitlines(),
    ]


def _packed(crops: FoldCrops, folder: Path) -> list[Path]:
    """The places of the same crops in a folder of their own, packed there."""
    shutil.copytree(crops.folder, folder)
    videos = crops.training.groupby("video_id", sort=False).agg(label=("label", "first"), num_crops=("crop", "size"))
    videos = videos.reset_index().assign(dataset="bench", path=videos.index, status="ok", num_frames=1)
    for table, name in ((VIDEOS, VIDEOS_FILE), (VIDEO_STATUS, STATUS_FILE)):
        table.write(videos.reindex(columns=list(table.columns), fill_value=""), folder / name)
    pack_crops(folder)
    return [folder / address for address in FACES.read(folder / FACES_FILE)["crop"]]


def _read_all(paths: list[Path], read: Callable[[Path], object], *, dropped: bool) -> tuple[float, float]:
    """Crops a second, and a second of the processor; `dropped` from the page cache before, or as they lie there."""
    for path in {stored_file(os.fspath(path)) for path in paths} if dropped else ():
        with Path(path).open("rb") as file:
            os.fsync(file.fileno())  # what is not on the disk yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    order = np.random.default_rng(0).permutation(len(paths))
    started, cpu = time.perf_counter(), time.process_time()
    for place in order:
        read(paths[place])
    return len(paths) / (time.perf_counter() - started), len(paths) / (time.process_time() - cpu)


def _table(rates: dict[str, tuple[float, float]], num_workers: int, training_rate: float) -> list[str]:
    plain = statistics.median(beside for _, beside in rates.values())
    rows = [("", "crops/s", "per worker", "beside plain", "workers to feed training")]
    for name, (rate, beside) in {"plain dataset": (plain, plain), **rates}.items():
        each = rate / num_workers
        rows.append((name, f"{rate:.0f}", f"{each:.0f}", f"{rate / beside:.2f}x", math.ceil(training_rate / each)))
    return terminal_table(rows, right=range(1, 5)).splitlines()


def _degradations(crops: FoldCrops, config: DataConfig) -> list[str]:
    """A line with the milliseconds that each degradation of a preset takes for a crop at half its strength."""
    side = reading_side(crops.folder, dataclasses.replace(config, augmentation=DEGRADING_PRESETS[0]))
    some = [read_crop(crops.folder / name, side) for name in crops.training["crop"][:DEGRADED_CROPS]]
    costs = {}
    for name, (degrade, _) in DEGRADATIONS.items():
        degrade(some[0], 0.5, np.random.default_rng(0))  # fonts and codecs are loaded
        started = time.perf_counter()
        for number, crop in enumerate(some):
            degrade(crop, 0.5, np.random.default_rng(number))
        costs[name] = 1000 * (time.perf_counter() - started) / len(some)
    slowest_first = sorted(costs.items(), key=lambda cost: -cost[1])
    listed = ", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in slowest_first)
    return [f"degradations of {', '.join(DEGRADING_PRESETS)}, ms for a crop of {side} pixels: {listed}", ""]


def _drawn_faces(folder: Path) -> FoldCrops:
    """Faces of the embedded data set's actors, enlarged to 380 pixels, with a camera's noise: 37 KB each."""
    recipe, rows = CropRecipe(), []
    generator = np.random.default_rng(0)
    for number in range(DRAWN_ACTORS):
        actor, video = make_actor((0, number)), f"drawn/{number}"
        (folder / CROPS_FOLDER / video).mkdir(parents=True)
        for frame in range(DRAWN_FRAMES):
            landmarks = actor.landmarks + generator.normal(0, 0.5, (5, 2))
            crop = align_crop(np.ascontiguousarray(actor.rgba[..., :3]), landmarks, recipe.size)
            crop = cv2.GaussianBlur(crop, (0, 0), DRAWN_BLUR)  # video compression leaves no more detail
            crop = np.clip(crop + generator.normal(0, DRAWN_NOISE, crop.shape), 0, 255).astype(np.uint8)
            name = crop_path(video, frame, 0)
            settings = [cv2.IMWRITE_JPEG_QUALITY, recipe.jpeg_quality]
            settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
            cv2.imwrite(str(folder / name), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), settings)
            box = (*landmarks.min(axis=0), *landmarks.max(axis=0))
            rows.append((video, frame, frame / 30, 0, name, *box, 1.0, *landmarks.reshape(-1)))
    faces = FACES.validate(pd.DataFrame(rows, columns=list(FACES.columns)), "drawn faces")
    labels = pd.Series([REAL, FAKE] * (DRAWN_ACTORS // 2)).repeat(DRAWN_FRAMES).to_numpy()
    return _as_fold(folder, recipe, faces, labels)


def _some_faces(source: Path, folder: Path, most: int) -> FoldCrops:
    """Copies of so many crops of a faces folder, as many real as fake ones where it has so many."""
    faces, labels, _ = labelled_faces(source)
    chosen = []
    for label in (REAL, FAKE):
        rows = np.flatnonzero(labels == label)
        if not len(rows):
            raise ValueError(
                f"--faces {source}: expected crops of real (0) and fake (1) videos, found no crop of label {label} "
                f"among {len(faces)}."
            )
        chosen.append(rows[np.unique(np.linspace(0, len(rows) - 1, most // 2).round().astype(int))])
    kept = np.sort(np.concatenate(chosen))
    faces = faces.iloc[kept].reset_index(drop=True).assign(seconds=0.0, score=1.0)
    root, keys = crops_root(source), faces[list(FACES.key)].itertuples(index=False, name=None)
    names = [crop_path(*key) for key in keys]
    for address, name in zip(faces["crop"], names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(read_stored(root / address))
    faces["crop"] = names
    return _as_fold(folder, read_recipe(source), FACES.validate(faces, source), labels[kept])


def _as_fold(folder: Path, recipe: CropRecipe, faces: pd.DataFrame, labels: np.ndarray) -> FoldCrops:
    write_recipe(recipe, folder)
    FACES.write(faces, folder / FACES_FILE)
    table = faces[["video_id", "frame_index", "track", "crop"]].assign(label=labels, face=np.arange(len(faces)))
    return FoldCrops(folder, table, table, table, faces)
