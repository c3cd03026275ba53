"""Choices that an option and the package behind it share; here, so that options are read before anything heavy."""

from typing import Literal

Grouping = Literal["part", "original"]
"""Videos that never span folds: those of one part too, or of one original or person only."""
Alignment = Literal["template", "box"]
"""The ways a crop is cut: landmarks brought to a template, or a plain square around the detector's box."""
FacePolicy = Literal["all-tracks", "largest", "forged-mask"]
"""Faces of a video that become crops."""
Preset = Literal["none", "paper", "light", "standard", "wm", "selim", "ntech", "strong", "box", "wild"]
"""Augmentations of `training/data/augment`."""
DEGRADING_PRESETS: tuple[Preset, ...] = ("wild",)
"""Those that lower a crop's quality by a strength that can be set, before it is averaged down to the network's size."""
SplitName = Literal["train", "val", "test"]
"""The splits that a data set may have."""
Split = Literal["test", "val"]
"""The videos of a data set that `evaluate` takes."""
Criterion = Literal["log_loss", "auc"]
"""The figure that the best of several runs is chosen by."""
ScaleName = Literal["auto", "released", "public", "private", "none"]
"""The test videos of a leaderboard, and so the published figures it may stand beside."""
MapScale = Literal["run", "map"]
"""The maps of a figure that share a colour scale: all of a run, or none."""
Tta = Literal["none", "flip", "scales", "flip+scales"]
"""Views of a crop whose logits are averaged at test time; `model/predict.py` makes them."""
Runtime = Literal["torch", "onnxruntime"]
"""Libraries that networks predict by; `inference/runtimes.py` loads them."""
ExportFormat = Literal["onnx", "torch-export"]
"""Files of networks that run without this package."""
ExportPrecision = Literal["float32", "float16", "int8"]
"""Numbers that an exported network computes with."""
Tracking = Literal["wandb"]
"""Experiment trackers beside TensorBoard."""
StoredPrecision = Literal["auto", "float16", "float32"]
"""The form of a bundle's weights."""
