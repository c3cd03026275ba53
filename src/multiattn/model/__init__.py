"""The multi-attention network and what trains it; torch and timm, nothing from the other rooms.

preprocess.py    uint8 crops -> the network's input
backbone.py      a timm EfficientNet that hands out its stages L1..L7 and its last map
attention.py     M attention maps from one stage
texture.py       Eq. (1): the high-frequency part of an early stage, enhanced
pooling.py       Eq. (2): bilinear attention pooling with unit rows
network.py       the parts put together: images -> logits, attention maps, part vectors
predict.py       batches of crops -> logits
losses.py        Eqs. (3) to (5): regional independence loss, cross entropy
agda.py          Eqs. (6) and (7): attention-guided data augmentation
checkpoints.py   weights to and from safetensors, strict

Source of all equations: Zhao et al., Multi-attentional Deepfake Detection, CVPR 2021, arXiv:2103.02406v3.
"""
