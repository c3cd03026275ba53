"""Run folders + faces -> pictures: attention maps, runs side by side, training curves, sheets of faces, augmentation.

multiattn figures attention --run runs/ffpp_b4 --faces data/faces/ffpp_c23 --out figures/ffpp_b4
multiattn figures compare --runs runs/none runs/ril --labels none RIL --faces data/faces/ffpp_c23 --out figures/ril
multiattn figures curves --runs runs/ffpp_b4 runs/ffpp_b4_baseline --out figures/ffpp_b4
multiattn figures faces --faces data/faces/ffpp_c23 --out figures/ffpp_c23.html
multiattn figures augment --faces data/faces/ffpp_c23 --presets selim strong --out figures/augment
"""

import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

from multiattn.command_line import parse, require_at_least, results
from multiattn.config.choices import Preset
from multiattn.figures.options import ContactSheet, Curves, FaceOptions
from multiattn.runtime.devices import pick_device
from multiattn.runtime.files import write_text
from multiattn.runtime.text_tables import counted

if TYPE_CHECKING:
    from multiattn.inference.runs import TrainedModel


@dataclass(frozen=True, kw_only=True)
class Attention(FaceOptions):
    """The attention maps of one run over a face of each manipulation type: attention.png and attention.html."""

    run: Path
    """runs/<experiment> (its first fold), or one of its folds."""

    def draw(self) -> list[Path]:
        from multiattn.inference.attention_maps import attention_model

        model = attention_model(self.run)
        return _draw_faces(self, [model], [model.name], "attention")


@dataclass(frozen=True, kw_only=True)
class Compare(FaceOptions):
    """The same faces through several runs side by side: compare.png and compare.html."""

    runs: tuple[Path, ...]
    """Runs, as for `attention`."""
    labels: tuple[str, ...] = ()
    """A name for each run (default: the run's own)."""

    def draw(self) -> list[Path]:
        from multiattn.inference.attention_maps import attention_model

        if not self.runs:
            raise ValueError("--runs: expected at least one run, found none.")
        models = [attention_model(run) for run in self.runs]
        labels = list(self.labels) or [model.name for model in models]
        if len(labels) != len(models):
            raise ValueError(f"--labels: expected one for each of {counted(len(models), 'run')}, found {len(labels)}.")
        return _draw_faces(self, models, labels, "compare")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """A few crops as each preset and self-blending show them, draw by draw: PRESET.png and sbi.png."""

    faces: Path
    """A faces folder."""
    out: Path
    """The folder the pictures go to."""
    presets: tuple[Literal[Preset, "sbi"], ...] = (*get_args(Preset), "sbi")
    """Which ones, a picture each; `sbi` is self-blending, of real crops."""
    crops: int = 4
    draws: int = 8
    size: int | None = None
    """Side the crops are shown to the preset at; None is the folder's."""
    seed: int = 0
    strength: float = 1.0
    """As `train --data.strength`, 0 to 1."""

    def draw(self) -> list[Path]:
        from multiattn.figures.augment import FolderCrops, augmentations_figure
        from multiattn.figures.page import write_png
        from multiattn.training.data.augment import PRESETS, self_blend

        require_at_least(self, 1, "crops", "draws", "size")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"--strength: expected 0 to 1, found {self.strength}.")
        for preset in self.presets:
            blended = preset == "sbi"
            chosen = FolderCrops.of(self.faces, count=self.crops, size=self.size, real_only=blended)
            draw = chosen.self_blended if blended else partial(chosen.through_preset, preset, strength=self.strength)
            rows = draw(draws=self.draws, seed=self.seed)
            note = inspect.cleandoc((self_blend if blended else PRESETS[preset]).__doc__).split("\n\n")[0]
            write_png(augmentations_figure(rows, preset, note=note), self.out / f"{preset}.png")
        return [self.out / f"{preset}.png" for preset in self.presets]


Options = (
    Annotated[Attention, tyro.conf.subcommand("attention")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Curves, tyro.conf.subcommand("curves")]
    | Annotated[ContactSheet, tyro.conf.subcommand("faces")]
    | Annotated[Augment, tyro.conf.subcommand("augment")]
)


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="figures", doc=__doc__)
    results(*(f"written: {path}" for path in options.draw()))


def _draw_faces(options: FaceOptions, models: "list[TrainedModel]", labels: list[str], name: str) -> list[Path]:
    from multiattn.figures.attention import Row, RunMaps, attention_page, draw_attention
    from multiattn.inference.attention_maps import (
        faces_of,
        held_out_faces,
        predict_maps,
        representative_crops,
        spread_crops,
    )

    require_at_least(options, 1, "per_type", "crops")
    if options.videos:
        faces = faces_of(list(options.videos), models, options.faces)
    else:
        faces = held_out_faces(models, options.faces)
    shown = representative_crops(faces, per_type=None if options.videos else options.per_type)
    measured = spread_crops(faces, options.crops)
    device = pick_device(options.device)
    runs = [
        RunMaps(label, *predict_maps(model, options.faces, shown, measured, device=device))
        for model, label in zip(models, labels, strict=True)
    ]
    rows = [Row(face.type, face.video_id, face.frame_index) for face in shown.itertuples()]
    which = "shown" if options.videos else "not trained on"
    note = (
        f"Statistics over {counted(len(measured), 'crop')} of "
        f"{counted(measured['video_id'].nunique(), 'video')} {which}."
    )
    picture, page = options.out / f"{name}.png", options.out / f"{name}.html"
    draw_attention(rows, runs, picture, note=note, scale=options.scale)
    title = f"Attention maps: {', '.join(labels)}"
    write_text(page, attention_page(title, rows, runs, note=note, scale=options.scale))
    results(*(f"{run.label}: {run.describe()}" for run in runs))
    return [picture, page]
