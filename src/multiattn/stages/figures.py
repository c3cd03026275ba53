"""Run folders + faces -> pictures: attention maps over faces, runs side by side, training curves, contact sheets.

multiattn figures attention --run runs/ffpp_b4 --faces data/faces/ffpp_c23 --out figures/ffpp_b4
multiattn figures compare --runs runs/none runs/ril --labels none RIL --faces data/faces/ffpp_c23 --out figures/ril
multiattn figures curves --run runs/ffpp_b4 --out figures/ffpp_b4
multiattn figures faces --faces data/faces/ffpp_c23 --out figures/ffpp_c23.html
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from multiattn.command_line import parse, results
from multiattn.figures.attention import Row, RunMaps, Scale, draw_attention
from multiattn.figures.curves import draw_curves, read_epochs
from multiattn.figures.faces import ContactSheet
from multiattn.figures.page import attention_page
from multiattn.inference.attention_maps import (
    attention_model,
    faces_of,
    held_out_faces,
    look_at,
    representative_crops,
    spread_crops,
)
from multiattn.inference.runs import TrainedModel, fold_folders
from multiattn.runtime import pick_device, write_text


@dataclass(frozen=True, kw_only=True)
class _Faces:
    faces: Path
    """A faces folder. Without --videos, only videos the run was not trained on are looked at."""
    out: Path
    """The folder the picture and the page go to."""
    videos: tuple[str, ...] = ()
    """video_ids to show, a row each, instead of the first ones of each type."""
    per_type: int = 1
    """Rows of each manipulation type."""
    crops: int = 64
    """At most so many crops, evenly spaced, are measured for the statistics."""
    scale: Scale = "run"
    """One colour scale for all pictures of a run, or one for every map."""
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Attention(_Faces):
    """The attention maps of one run over a face of each manipulation type: attention.png and attention.html."""

    run: Path
    """runs/<experiment> (its first fold), or one of its folds."""

    def draw(self) -> list[Path]:
        """Draw; returns the files."""
        model = attention_model(self.run)
        return _draw_faces(self, [model], [model.name], "attention")


@dataclass(frozen=True, kw_only=True)
class Compare(_Faces):
    """The same faces through several runs side by side: compare.png and compare.html."""

    runs: tuple[Path, ...]
    """Runs, as for `attention`."""
    labels: tuple[str, ...] = ()
    """A name for each run (default: the run's own)."""

    def draw(self) -> list[Path]:
        """Draw; returns the files."""
        models = [attention_model(run) for run in self.runs]
        labels = list(self.labels) or [model.name for model in models]
        if len(labels) != len(models):
            raise ValueError(f"--labels: expected one for each of {len(models)} runs, found {len(labels)}.")
        return _draw_faces(self, models, labels, "compare")


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Losses, validation, learning rate and attention statistics by epoch: curves.png."""

    run: Path
    """runs/<experiment> (all folds that have finished an epoch), or one of its folds."""
    out: Path
    """The folder the picture goes to."""

    def draw(self) -> list[Path]:
        """Draw; returns the files."""
        folders = fold_folders(self.run)
        begun = [folder for folder in folders if (folder / "epochs.csv").is_file()] or folders[:1]
        path = self.out / "curves.png"
        draw_curves({folder.name: read_epochs(folder) for folder in begun}, begun[0].resolve().parent.name, path)
        return [path]


Options = (
    Annotated[Attention, tyro.conf.subcommand("attention")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Curves, tyro.conf.subcommand("curves")]
    | Annotated[ContactSheet, tyro.conf.subcommand("faces")]
)


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="figures", doc=__doc__)
    results(*(f"written: {path}" for path in options.draw()))


def _draw_faces(options: _Faces, models: list[TrainedModel], labels: list[str], name: str) -> list[Path]:
    for option in ("per_type", "crops"):
        if getattr(options, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')}: expected at least 1, found {getattr(options, option)}.")
    if options.videos:
        faces = faces_of(list(options.videos), models, options.faces)
    else:
        faces = held_out_faces(models, options.faces)
    shown = representative_crops(faces, per_type=None if options.videos else options.per_type)
    measured = spread_crops(faces, options.crops)
    runs = [_look(options, model, label, shown, measured) for model, label in zip(models, labels, strict=True)]
    rows = [Row(face.type, face.video_id, face.frame_index) for face in shown.itertuples()]
    which = "shown" if options.videos else "not trained on"
    note = f"Statistics over {len(measured)} crops of {measured['video_id'].nunique()} videos {which}."
    picture, page = options.out / f"{name}.png", options.out / f"{name}.html"
    draw_attention(rows, runs, picture, note=note, scale=options.scale)
    title = f"Attention maps: {', '.join(labels)}"
    write_text(page, attention_page(title, rows, runs, note=note, scale=options.scale))
    results(*(f"{run.label}: {run.describe()}" for run in runs))
    return [picture, page]


def _look(options: _Faces, model: TrainedModel, label: str, shown: pd.DataFrame, measured: pd.DataFrame) -> RunMaps:
    faces, statistics = look_at(model, options.faces, shown, measured, device=pick_device(options.device))
    return RunMaps(
        label,
        [face.crop for face in faces],
        [face.maps for face in faces],
        [face.probability for face in faces],
        statistics,
    )
