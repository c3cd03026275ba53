"""The multi-attention network and what trains it; torch and timm, nothing from the other rooms.

preprocess.py        uint8 crops -> the network's input
backbone.py          a timm network that hands out its stages L1, L2, ... and its last map
backbone_stages.py   which stages a network has, and how each family is run
backbone_weights.py  its weights: a local file in one of three namings, or timm's hub; strict
weight_names.py      efficientnet_pytorch and Cadene names -> timm's
activation_checkpointing.py  blocks that compute their activations again in backward
static_padding.py    the authors' zero padding, fixed by the nominal image size
attention.py         M attention maps from one stage
texture.py           Eq. (1): the high-frequency part of an early stage, enhanced
pooling.py           Eq. (2): bilinear attention pooling with unit rows
network.py           the parts put together: images -> logits, attention maps, part vectors; the plain twin
official.py          names and sizes of a released checkpoint -> ours
predict.py           batches of crops -> logits
independence.py      Eqs. (3) and (4): the regional independence loss
losses.py            cross entropy, additive margin softmax, match loss
agda.py              Eqs. (6) and (7): attention-guided data augmentation
diagnostics.py       whether the attention maps differ
describe.py          shapes, parameters and FLOPs
folding.py           fast inference on a CPU
checkpoints.py       weights to and from safetensors, strict

Source of all equations: Zhao et al., Multi-attentional Deepfake Detection, CVPR 2021, arXiv:2103.02406v3.
"""
