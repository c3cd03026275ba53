"""What happens to a crop before the network sees it: presets, and fakes made of real crops.

library.py      albumentations, offline and in a known version
steps.py        what a preset is made of, and where its random numbers come from
presets.py      the presets, each with its source
pipeline.py     a preset as a function of crop and seeds
auto_policy.py  AutoAugment's policy for ImageNet
blackout.py     features and halves of the face made black
reencode.py     the clip around a crop through H.264
face_shape.py   the face's outline from five landmarks
self_blend.py   self-blended images
examples.py     crops of a faces folder through a preset, to be looked at
"""

from multiattn.training.data.augment.faces import crop_landmarks
from multiattn.training.data.augment.presets import PRESETS, Augmentation
from multiattn.training.data.augment.self_blend import blend_target, self_blend
from multiattn.training.data.augment.steps import EARLIER_CROPS, CropContext

__all__ = ["EARLIER_CROPS", "PRESETS", "Augmentation", "CropContext", "blend_target", "crop_landmarks", "self_blend"]
