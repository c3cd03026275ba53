"""The paper's ablation tables, cell by cell: the experiment of each, and the figure that the paper prints for it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from multiattn.config import DataConfig, Experiment
from multiattn.config.settings import look_up
from multiattn.experiments import baseline, demo, ffpp_b4, ffpp_xception, shrink

HQ, LQ, CELEB = "FF++ HQ", "FF++ LQ", "Celeb-DF"
XCEPTION_STAND_IN = "test_resnet"
"""Backbone of the tiny Xception cells, as far from the B4 cells' test_efficientnet as Xception is from B4. Xception
itself has 21 million parameters, too many for a trial."""
EMA_DECAY, SBI_SHARE = 0.98, 0.3
"""Settings of the table `demo-training`: the average reaches back over about 50 updates, some two epochs of the demo;
three in ten visits of a real crop show a self-blended one."""
TINY_VIDEOS_PER_CLASS, TINY_VALIDATION_FRAMES = 4, 2

Metric = Literal["accuracy", "auc"]


@dataclass(frozen=True)
class PaperColumn:
    """A column of figures as the paper prints it, in per cent of frames."""

    data: str
    """Data it was measured on: `FF++ HQ` (c23), `FF++ LQ` (c40) or `Celeb-DF`."""
    metric: Metric

    @property
    def name(self) -> str:
        """`FF++ HQ ACC %`."""
        return f"{self.data} {'ACC' if self.metric == 'accuracy' else 'AUC'} %"


HQ_ACCURACY, HQ_AUC = PaperColumn(HQ, "accuracy"), PaperColumn(HQ, "auc")
LQ_ACCURACY, LQ_AUC = PaperColumn(LQ, "accuracy"), PaperColumn(LQ, "auc")
CELEB_AUC = PaperColumn(CELEB, "auc")


@dataclass(frozen=True)
class Cell:
    label: str
    experiment: Experiment | None
    """Its training; None for a method that is only quoted."""
    paper: dict[PaperColumn, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    table: str
    """Its name on the command line."""
    title: str
    columns: tuple[PaperColumn, ...]
    cells: tuple[Cell, ...]
    is_tiny: bool = False

    @property
    def is_demo(self) -> bool:
        """True where its figures only show that it runs."""
        return self.is_tiny or self.table.startswith("demo")

    @property
    def trained(self) -> list[Cell]:
        """The cells that are trained here; the paper alone has a figure in the others."""
        return [cell for cell in self.cells if cell.experiment is not None]

    @property
    def name(self) -> str:
        """File name of the table without its ending."""
        return f"table_{self.table.replace('-', '_')}{'_tiny' if self.is_tiny else ''}"


def variant(
    experiment: Experiment,
    prefix: str,
    *,
    auxiliary: str,
    agda: str,
    num_maps: int = 4,
    texture: str | None = None,
    attention: str | None = None,
) -> Experiment:
    """The experiment with other switches, named after them and a prefix for all that they leave as it is:
    `b4_ril_soft_m4_L2L5`; stages of None are the experiment's."""
    texture = texture or experiment.model.texture_stage
    attention = attention or experiment.model.attention_stage
    switches = {"num_maps": num_maps, "texture_stage": texture, "attention_stage": attention}
    return dataclasses.replace(
        experiment,
        name=f"{prefix}_{auxiliary}_{agda}_m{num_maps}_{texture}{attention}",
        model=dataclasses.replace(experiment.model, **switches),
        loss=dataclasses.replace(experiment.loss, auxiliary=auxiliary),
        agda=dataclasses.replace(experiment.agda, mode=agda),
    )


def plain(experiment: Experiment, prefix: str) -> Experiment:
    """The twin without attention, named `<prefix>_plain`."""
    return dataclasses.replace(baseline(experiment), name=f"{prefix}_plain")


def _b4(auxiliary: str = "ril", agda: str = "soft", **changes: object) -> Experiment:
    return variant(ffpp_b4(), "b4", auxiliary=auxiliary, agda=agda, **changes)


def _one_map(texture: str = "L2", attention: str = "L5") -> Experiment:
    """M = 1 uses neither auxiliary loss nor AGDA (section 4.4.1), which its name says."""
    return _b4("none", "none", num_maps=1, texture=texture, attention=attention)


def _paper_table(
    table: str, title: str, columns: tuple[PaperColumn, ...], *rows: tuple[str, Experiment | None, float]
) -> Ablation:
    """An ablation of rows (label, experiment, the paper's figure for each column)."""
    cells = [Cell(label, experiment, dict(zip(columns, row, strict=True))) for label, experiment, *row in rows]
    return Ablation(table, title, columns, tuple(cells))


def stages() -> Ablation:
    """Table 1: texture and attention stage, at M = 1."""
    figures = {("L2", "L4"): 96.38, ("L2", "L5"): 97.26, ("L3", "L4"): 96.14, ("L3", "L5"): 96.81}
    rows = [(f"SL_t {texture}, SL_a {at}", _one_map(texture, at), figure) for (texture, at), figure in figures.items()]
    return _paper_table("1", "Texture and attention stage, M = 1", (HQ_ACCURACY,), *rows)


def backbones() -> Ablation:
    """Table 2: the method and its plain twin on two backbones, at two compressions."""
    xception = variant(ffpp_xception(), "xception", auxiliary="ril", agda="soft")
    return _paper_table(
        "2",
        "Comparison on FaceForensics++",
        (LQ_ACCURACY, LQ_AUC, HQ_ACCURACY, HQ_AUC),
        ("this method, Xception", xception, 86.95, 87.26, 96.37, 98.97),
        ("this method, EfficientNet-B4", _b4(), 88.69, 90.40, 97.60, 99.29),
        ("plain EfficientNet-B4", plain(ffpp_b4(), "b4"), 86.67, 88.20, 96.63, 99.18),
        ("plain Xception", plain(ffpp_xception(), "xception"), 86.86, 89.30, 95.73, 96.30),
        ("F3-Net (quoted)", None, 90.43, 93.30, 97.52, 98.10),
    )


def cross_dataset() -> Ablation:
    """Table 4: trained on FF++, AUC there and on Celeb-DF."""
    return _paper_table(
        "4",
        "Trained on FF++, tested on Celeb-DF",
        (HQ_AUC, CELEB_AUC),
        ("this method", _b4(), 99.80, 67.44),
        ("plain EfficientNet-B4", plain(ffpp_b4(), "b4"), 99.70, 64.29),
        ("plain Xception (Xception-c23)", plain(ffpp_xception(), "xception"), 99.70, 65.30),
        ("Two Branch (quoted)", None, 93.18, 73.41),
        ("F3-Net (quoted)", None, 98.10, 65.17),
    )


def number_of_maps() -> Ablation:
    """Table 5: M = 1..5."""
    return _paper_table(
        "5",
        "Number of attention maps",
        (HQ_ACCURACY, CELEB_AUC),
        ("M = 1", _one_map(), 97.26, 67.30),
        ("M = 2", _b4(num_maps=2), 97.51, 65.74),
        ("M = 3", _b4(num_maps=3), 97.35, 66.86),
        ("M = 4", _b4(num_maps=4), 97.60, 67.44),
        ("M = 5", _b4(num_maps=5), 97.39, 66.82),
    )


def losses_and_agda() -> Ablation:
    """Table 6: auxiliary loss and AGDA."""
    return _paper_table(
        "6",
        "Auxiliary loss and attention-guided augmentation",
        (HQ_ACCURACY, CELEB_AUC),
        ("loss none, AGDA none", _b4("none", "none"), 96.74, 64.86),
        ("loss AMS, AGDA none", _b4("ams", "none"), 96.49, 64.23),
        ("loss RIL, AGDA none", _b4("ril", "none"), 97.38, 65.85),
        ("loss AMS, AGDA hard", _b4("ams", "hard"), 96.53, 63.73),
        ("loss RIL, AGDA hard", _b4("ril", "hard"), 97.24, 64.40),
        ("loss AMS, AGDA soft", _b4("ams", "soft"), 96.78, 66.42),
        ("loss RIL, AGDA soft", _b4("ril", "soft"), 97.60, 67.44),
    )


def demo_cells() -> Ablation:
    """Ours: what each part brings on the embedded clips, beside the plain twin.

    With balanced sampling: with pairs all of them solve these clips, and no two differ.
    """
    base = demo_balanced()
    cells = (
        Cell("full method", variant(base, "demo", auxiliary=base.loss.auxiliary, agda=base.agda.mode)),
        Cell("RIL without AGDA", variant(base, "demo", auxiliary="ril", agda="none")),
        Cell("neither RIL nor AGDA", variant(base, "demo", auxiliary="none", agda="none")),
        Cell("plain twin", plain(base, "demo")),
    )
    return Ablation("demo", "What each part brings on the embedded clips", (), cells)


def demo_balanced() -> Experiment:
    """`demo` with balanced sampling, which any crops will do for."""
    base = demo()
    return dataclasses.replace(base, data=dataclasses.replace(base.data, sampling="balanced"))


def demo_training() -> Ablation:
    """Ours: what ways of training change on the embedded clips; everything else as in `demo`."""
    base = demo_balanced()
    balanced, average = base.data, base.average

    def cell(label: str, name: str, data: DataConfig = balanced, **changes: object) -> Cell:
        return Cell(label, dataclasses.replace(base, name=f"demo_{name}", data=data, **changes))

    cells = (
        cell("balanced sampling", "balanced"),
        cell("paired sampling (`demo`)", "paired", demo().data),
        cell("balanced, EMA of the weights", "ema", average=dataclasses.replace(average, ema_decay=EMA_DECAY)),
        cell("balanced, augmentation `strong`", "strong", dataclasses.replace(balanced, augmentation="strong")),
        cell("balanced, self-blended images", "sbi", dataclasses.replace(balanced, sbi=SBI_SHARE)),
    )
    return Ablation("demo-training", "What ways of training change on the embedded clips", (), cells)


ABLATIONS: dict[str, Callable[[], Ablation]] = {
    "1": stages,
    "2": backbones,
    "4": cross_dataset,
    "5": number_of_maps,
    "6": losses_and_agda,
    "demo": demo_cells,
    "demo-training": demo_training,
}


def get_ablation(table: str, *, tiny: bool = False) -> Ablation:
    """The table of that name; `tiny`: every cell on a small untrained network, 64 px crops and one epoch.

    Raises:
        ValueError: there is none; names the nearest.
    """
    ablation = look_up(ABLATIONS, table, "ablation table")()
    if not tiny:
        return ablation
    shrunk = [cell.experiment and shrink_cell(cell.experiment) for cell in ablation.cells]
    cells = [dataclasses.replace(cell, experiment=of) for cell, of in zip(ablation.cells, shrunk, strict=True)]
    return dataclasses.replace(ablation, cells=tuple(cells), is_tiny=True)


def shrink_cell(experiment: Experiment) -> Experiment:
    """The tiny variant of a cell. Stages, maps, loss and AGDA stay, so cells differ in what they differed in."""
    tiny = shrink(experiment)
    model = tiny.model
    if "xception" in experiment.model.backbone:
        model = dataclasses.replace(model, backbone=XCEPTION_STAND_IN)
    few = {"videos_per_class": TINY_VIDEOS_PER_CLASS, "validation_frames": TINY_VALIDATION_FRAMES}
    return dataclasses.replace(tiny, model=model, data=dataclasses.replace(tiny.data, **few))


def seeded(
    experiment: Experiment, repetition: int, *, suffix: str = "", start_from: str | Path | None = None
) -> Experiment:
    """The run of one seed, `<name><suffix>_seed<repetition>`, its seed the experiment's plus `repetition`; `suffix` is
    that of other data (`_c40`), `start_from` the run folder it starts from."""
    name, start = f"{experiment.name}{suffix}_seed{repetition}", str(start_from) if start_from is not None else None
    return dataclasses.replace(experiment, name=name, seed=experiment.seed + repetition, start_from=start)


def name_data(videos: pd.DataFrame) -> str:
    """Name of the videos of a table by their data sets and compressions (c23 is the paper's HQ, c40 its LQ):
    `FF++ HQ`, `FF++ LQ`, `Celeb-DF`, else the names of its data sets."""
    datasets, compressions = sorted(set(videos["dataset"])), sorted(set(videos["compression"]))
    if datasets == ["ffpp"] and len(compressions) == 1:
        return {"c23": HQ, "c40": LQ}.get(compressions[0], f"FF++ {compressions[0]}")
    if len(datasets) == 1 and datasets[0].lower().replace("-", "").replace("_", "").startswith("celeb"):
        return CELEB
    return " and ".join(datasets)
