"""The embedded data set: a plan of who plays in which clip, and the official DFDC tree of its files on disk."""

import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Literal

import av
import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from multiattn.datasets.embedded.actors import make_actor
from multiattn.datasets.embedded.clips import FRAME_RATE, RECIPES, make_forger, make_take, render_frames
from multiattn.runtime.files import exclusive_folder, write_text
from multiattn.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

RECIPE_VERSION = 1
"""Raise it whenever the same seed would give other pictures."""

PATIENCE_SECONDS = 300.0
"""Longest wait for another process that builds the set."""
_PARTIAL_MARK = ".unfinished"
_TEST_GROUP = 1000
_ACTORS, _NAMES, _TAKES, _FILES = range(4)  # independent random streams of one seed
# With a lookahead (macroblock tree, B-frames) libx264's assembly gave other bytes at every call for frames 288 wide,
# from identical input: it reads past the rows of its half-size pictures. Without one it repeats itself exactly.
_REPRODUCIBLE = {"x264-params": "bframes=0:rc-lookahead=0:mbtree=0"}


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """One video file. `part` is -1 for test clips; `source_id`, `original` and `recipe` are empty for real clips."""

    filename: str
    part: int
    label: int  # fake = 1, real = 0
    target_id: str  # the actor whose clip it is
    source_id: str  # the actor whose face was put in
    original: str  # file name of the clip that was forged
    recipe: str
    num_frames: int
    crf: int  # H.264 quality, lower is better
    take_seed: tuple[int, ...]  # shared by a fake and its original
    forgery_seed: tuple[int, ...]
    defect: Literal["", "truncated", "faceless"] = ""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Every clip of the set, and the seed of every actor."""

    clips: tuple[PlannedClip, ...]
    actor_seeds: dict[str, tuple[int, ...]]

    @property
    def training(self) -> tuple[PlannedClip, ...]:
        return tuple(clip for clip in self.clips if clip.part >= 0)

    @property
    def test(self) -> tuple[PlannedClip, ...]:
        return tuple(clip for clip in self.clips if clip.part < 0)


class _Writer:
    """Adds clips one by one."""

    def __init__(self, seed: int, seconds: tuple[float, float]) -> None:
        self.seed, self.seconds = seed, seconds
        self.clips: list[PlannedClip] = []
        self._names = np.random.default_rng((seed, _NAMES))

    def add(
        self, part: int, take_seed: tuple[int, ...], target: str, source: str = "", original: str = "", recipe: str = ""
    ) -> str:
        """Append a clip and return its file name; the length follows from the take, so a fake is as long."""
        seconds = np.random.default_rng((*take_seed, 2)).uniform(*self.seconds)
        own_seed = (self.seed, _FILES, len(self.clips))
        self.clips.append(
            PlannedClip(
                filename="".join(self._names.choice(list(ascii_lowercase), 10)) + ".mp4",
                part=part,
                label=int(bool(recipe)),
                target_id=target,
                source_id=source,
                original=original,
                recipe=recipe,
                num_frames=round(float(seconds) * FRAME_RATE),
                crf=int(np.random.default_rng((*own_seed, 0)).integers(17, 22)),
                take_seed=take_seed,
                forgery_seed=(*own_seed, 1),
            )
        )
        return self.clips[-1].filename


def _plan_group(writer: _Writer, part: int, actors: list[str], takes: int, fakes_a_take: int) -> None:
    """Real clips of every actor, each forged with the faces of the group's other actors, recipes in turn."""
    group = part if part >= 0 else _TEST_GROUP
    turn = max(part, 0)
    for take in range(takes):
        for place, target in enumerate(actors):
            take_seed = (writer.seed, _TAKES, group, take, place)
            original = writer.add(part, take_seed, target)
            for step in range(fakes_a_take):
                others = len(actors) - 1
                source = actors[(place + 1 + (take + step) % others) % len(actors)]
                writer.add(part, take_seed, target, source, original, list(RECIPES)[turn % len(RECIPES)])
                turn += 1


def plan_demo(seed: int = 7, small: bool = False) -> DemoPlan:
    """The clips of the embedded data set for a seed, in a fixed order.

    5 parts of 10 real and 20 fake clips with 10 actors each, and 18 real and 18 fake test clips with 9 actors of their
    own; the small one has 12 training clips of one second and 4 test clips. The first fake test clip is truncated, the
    last real one shows no face.
    """
    parts, actors_a_part, test_actors, takes_a_test_actor = (2, 2, 2, 1) if small else (5, 10, 9, 2)
    writer = _Writer(seed, (1.0, 1.0) if small else (2.0, 2.5))
    actor_seeds: dict[str, tuple[int, ...]] = {}

    def cast(group: int, prefix: str, count: int) -> list[str]:
        names = [f"{prefix}_actor{index}" for index in range(count)]
        actor_seeds.update({name: (seed, _ACTORS, group, index) for index, name in enumerate(names)})
        return names

    for part in range(parts):
        _plan_group(writer, part, cast(part, f"part{part}", actors_a_part), takes=1, fakes_a_take=2)
    _plan_group(writer, -1, cast(_TEST_GROUP, "test", test_actors), takes=takes_a_test_actor, fakes_a_take=1)
    fakes, reals = ([clip.filename for clip in writer.clips if clip.part < 0 and clip.label == n] for n in (1, 0))
    defect_of = {fakes[0]: "truncated", reals[-1]: "faceless"}
    clips = tuple(replace(clip, defect=defect_of.get(clip.filename, "")) for clip in writer.clips)
    return DemoPlan(clips=clips, actor_seeds=actor_seeds)


def build_demo_dataset(root: Path, *, seed: int = 7, jobs: int = 2, small: bool = False) -> None:
    """Write the embedded data set: the official DFDC training and test tree, made from one portrait.

    Args:
        root: the folder to make. A finished one of the same recipe, seed and size is left as it is, but for a missing
            groups.csv, which is added. The work is done in `<root>.partial` and renamed at the end, so a half-made set
            is never taken for a finished one.
        seed: the files depend on it and on nothing else.
        small: a miniature for tests.

    Raises:
        ValueError: `root` holds something else, which is not touched, or another process still builds beside it.
    """
    with exclusive_folder(Path(root).parent, patience_seconds=PATIENCE_SECONDS):
        _build(Path(root), seed, jobs, small)


def _build(root: Path, seed: int, jobs: int, small: bool) -> None:
    mark = {"recipe_version": RECIPE_VERSION, "seed": seed, "small": small}
    plan = plan_demo(seed, small)
    if _already_there(root, mark):
        logger.info("%s: embedded data set with seed %d is already there", root, seed)
        if not (root / "groups.csv").is_file():  # sets of the same clips were once made without it
            write_text(root / "groups.csv", _groups(plan))
        return
    partial = root.with_name(root.name + ".partial")
    _clear_partial(partial)
    partial.mkdir(parents=True)
    (partial / _PARTIAL_MARK).write_text("left by an unfinished multiattn demo; safe to delete\n")
    _write_videos(plan, partial, jobs)
    _write_tables(plan, partial)
    columns = {"recipe": "recipe", "target": "target_id", "source": "source_id", "defect": "defect"}
    # For reports after the fact only.
    clips = {clip.filename: {key: getattr(clip, name) for key, name in columns.items()} for clip in plan.clips}
    (partial / "demo.json").write_text(json.dumps({**mark, "clips": clips}, indent=1) + "\n")
    (partial / _PARTIAL_MARK).unlink()
    if root.exists():
        root.rmdir()  # empty, or _already_there had refused it
    partial.rename(root)
    logger.info("%s: wrote %d training and %d test clips", root, len(plan.training), len(plan.test))


def _already_there(root: Path, mark: dict[str, int | bool]) -> bool:
    """True for a finished set with that mark, False where there is nothing; anything else raises ValueError."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found: object = "no demo.json"
    if (root / "demo.json").is_file():
        try:
            content = json.loads((root / "demo.json").read_text())
        except json.JSONDecodeError as error:
            content = f"a demo.json that is no JSON ({error})"
        found = {key: content.get(key) for key in mark} if isinstance(content, dict) else content
        if found == mark:
            return True
    raise ValueError(
        f"{root}: expected an empty or new folder, or an embedded data set with {mark}; found {found}. "
        "Choose another folder, or move this one away."
    )


def _clear_partial(partial: Path) -> None:
    """Remove what an earlier, interrupted call left, and nothing else."""
    if partial.exists():
        if not (partial / _PARTIAL_MARK).is_file() and any(partial.iterdir()):
            raise ValueError(f"{partial}: expected nothing or an unfinished data set, found other files. Move it away.")
        shutil.rmtree(partial)


def _folder(clip: PlannedClip) -> str:
    return f"dfdc_train_part_{clip.part}" if clip.part >= 0 else "test_videos"


def _write_videos(plan: DemoPlan, root: Path, jobs: int) -> None:
    for folder in sorted({_folder(clip) for clip in plan.clips}):
        (root / folder).mkdir()
    calls = (delayed(write_clip)(clip, plan.actor_seeds, root / _folder(clip) / clip.filename) for clip in plan.clips)
    workers = Parallel(n_jobs=min(jobs, len(plan.clips)), return_as="generator_unordered", pre_dispatch="3*n_jobs")
    with progress_bar(len(plan.clips), "embedded clips", "clips") as bar:
        for _ in workers(calls):
            bar.update()


def write_clip(clip: PlannedClip, actor_seeds: dict[str, tuple[int, ...]], path: Path) -> None:
    """Draw and encode one clip; the file depends on the clip alone, not on the process that writes it."""
    cv2.setNumThreads(1)
    take = make_take(clip.take_seed, clip.num_frames)
    target = None if clip.defect == "faceless" else make_actor(actor_seeds[clip.target_id])
    forger = None
    if clip.recipe and target is not None:
        source = make_actor(actor_seeds[clip.source_id])
        forger = make_forger(clip.recipe, source, target, clip.forgery_seed, clip.num_frames)
    _encode(path, render_frames(take, target, forger), take.size_wh, clip.crf)
    if clip.defect == "truncated":
        os.truncate(path, path.stat().st_size * 2 // 3)  # the index (moov box) is at the end, so nothing can be read


def _encode(path: Path, frames: Iterable[np.ndarray], size_wh: tuple[int, int], crf: int) -> None:
    """Write (H, W, 3) uint8 RGB frames as H.264, yuv420p; one thread, so always the same bytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "veryfast", "tune": "grain", "threads": "1"} | _REPRODUCIBLE
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_tables(plan: DemoPlan, root: Path) -> None:
    """metadata.json of every part, labels.csv, groups.csv and sample_submission.csv."""
    parts: dict[str, dict[str, dict[str, str]]] = {}
    for clip in sorted(plan.training, key=lambda clip: clip.filename):
        entry = {"label": "FAKE" if clip.label else "REAL", "split": "train"}
        parts.setdefault(_folder(clip), {})[clip.filename] = entry | ({"original": clip.original} if clip.label else {})
    for folder, entries in parts.items():
        (root / folder / "metadata.json").write_text(json.dumps(entries))
    labels = pd.DataFrame({"filename": [c.filename for c in plan.test], "label": [c.label for c in plan.test]})
    labels = labels.sort_values("filename")
    labels.to_csv(root / "labels.csv", index=False, lineterminator="\n")
    write_text(root / "groups.csv", _groups(plan))
    labels.assign(label=0.5).to_csv(root / "sample_submission.csv", index=False, lineterminator="\n")


def _groups(plan: DemoPlan) -> str:
    """groups.csv: of each test clip the original it was made of, itself where it is one. They share a take."""
    rows = sorted((clip.filename, clip.original or clip.filename) for clip in plan.test)
    return "".join(f"{name},{group}\n" for name, group in [("filename", "group"), *rows])
