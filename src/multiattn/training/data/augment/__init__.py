"""Changes of a crop before the network sees it: presets, and fakes made of real crops (self-blending)."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for a newer version

from multiattn.training.data.augment.presets import PRESETS, Augmentation
from multiattn.training.data.augment.self_blend import blend_target, self_blend
from multiattn.training.data.augment.steps import EARLIER_CROPS, CropContext

__all__ = ["EARLIER_CROPS", "PRESETS", "Augmentation", "CropContext", "blend_target", "self_blend"]
