"""The experiments: one function each. Its docstring says the command, what it costs and what to expect.

Every experiment has a tiny variant (`--tiny`): the same path through the code, on a small untrained backbone, small
crops and one epoch, to see in seconds whether data and settings hold together.
"""

import dataclasses
import difflib
from collections.abc import Callable

from multiattn.config import AgdaConfig, DataConfig, Experiment, ModelConfig, OptimConfig


def dfdc_b4() -> Experiment:
    """The paper's network and settings on DFDC: EfficientNet-B4, 380 px, M = 4, L2 and L5.

    multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold all

    Adam 1e-3, weight decay 1e-6, global batch 48 = 12 on each of the paper's 4 GPUs. The paper reports a log loss of
    0.1679 on the DFDC test set (Table 3); this code has not been trained on DFDC yet.
    """
    return Experiment(
        name="dfdc_b4",
        data=DataConfig(
            image_size=380, batch_size=12, frames_per_video=2, videos_per_class=16_000, validation_frames=8
        ),
        epochs=20,
    )


def demo() -> Experiment:
    """A small network from scratch on the embedded clips, for a laptop without a GPU.

    multiattn train demo --faces data/demo/faces --folds folds/demo.csv --fold all

    timm's smallest EfficientNet, whose early stages are plain convolutions: tinynet_e, deeper and depthwise, took 1.4
    times as long to learn less from 150 clips (one fold on unseen actors: AUC 0.88 against 0.93). AGDA comes last,
    when there is something to guide it, and erases instead of blurring: blur is one of the traces of the embedded
    forgeries, and would stand in crops labelled real.

    Takes 3 to 4 minutes for all folds on 2 CPU cores. Expect an out-of-fold log loss of about 0.20.
    """
    return Experiment(
        name="demo",
        model=ModelConfig(
            backbone="test_efficientnet",
            pretrained=False,
            attention_stage="L3",
            global_dropout=0.5,
            drop_path_rate=0.0,
        ),
        agda=AgdaConfig(mode="hard", first_epoch=9),
        data=DataConfig(image_size=112, augmentation="paper", frames_per_video=3, batch_size=16, num_workers=0),
        optim=OptimConfig(name="adam", lr=2e-3, schedule="cosine", warmup_epochs=0.5, clip_grad_norm=5.0),
        epochs=12,
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {function.__name__: function for function in (dfdc_b4, demo)}


def get_experiment(name: str, *, tiny: bool = False) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no experiment {name!r}.{hint} There are: {', '.join(EXPERIMENTS)}.")
    experiment = EXPERIMENTS[name]()
    return shrink(experiment) if tiny else experiment


def shrink(experiment: Experiment) -> Experiment:
    """The tiny variant of an experiment, named `<name>_tiny`."""
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}_tiny",
        model=dataclasses.replace(experiment.model, backbone="tinynet_e", pretrained=False, weights=None),
        agda=dataclasses.replace(experiment.agda, first_epoch=0),
        data=dataclasses.replace(
            experiment.data, image_size=64, frames_per_video=2, batch_size=4, num_workers=0, videos_per_class=None
        ),
        epochs=1,
    )
