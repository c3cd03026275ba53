"""EfficientNet, Xception and the released network written a second time: a state dict and `torch.nn.functional` alone.

Sources: the layer tables of Tan & Le (arXiv:1905.11946, Table 1) and Chollet (arXiv:1610.02357, Figure 5), the tensor
names of efficientnet_pytorch and of Cadene's Xception, and the layers of the released checkpoints
(`multiattn/model/README.md`, profile `official`). Nothing here comes from timm or from `multiattn`: a state dict in the
authors' naming goes in, the maps a correct import must reproduce come out. The backbones were compared once with the
packages themselves (efficientnet_pytorch 0.5.1 static and 0.7.1 dynamic, pretrainedmodels 0.7.4): 1e-6 and less.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

EFFICIENTNET_GROUPS = (
    # kernel, stride, expansion, channels, repeats of B0
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
EFFICIENTNET_SCALES = {"b0": (1.0, 1.0, 224), "b1": (1.0, 1.1, 240), "b4": (1.4, 1.8, 380)}
"""Variant -> width, depth, nominal image size."""

XCEPTION_BLOCKS = (
    # channels in, channels out, stride, separable convolutions as (index in `rep`, in, out)
    (64, 128, 2, ((0, 64, 128), (3, 128, 128))),  # the only block that does not open with a ReLU
    (128, 256, 2, ((1, 128, 256), (4, 256, 256))),
    (256, 728, 2, ((1, 256, 728), (4, 728, 728))),
    *[(728, 728, 1, ((1, 728, 728), (4, 728, 728), (7, 728, 728)))] * 8,
    (728, 1024, 2, ((1, 728, 728), (4, 728, 1024))),
)

BRANCH_GAIN = 0.5
"""Of the last batch norm in a residual branch: sums over many blocks stay near 1, where 1e-4 says something."""


class _RandomState(dict):
    """Random weights that keep activations near unit scale, batch-norm statistics included."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def conv(self, name: str, out: int, width: int, kernel: int, *, bias: bool = False) -> None:
        scale = math.sqrt(2 / (width * kernel * kernel))
        self[f"{name}.weight"] = scale * torch.randn(out, width, kernel, kernel, generator=self.generator)
        if bias:
            self[f"{name}.bias"] = 0.1 * torch.randn(out, generator=self.generator)

    def norm(self, name: str, width: int, *, gain: float = 1.0) -> None:
        self[f"{name}.weight"] = gain * (0.8 + 0.4 * torch.rand(width, generator=self.generator))
        self[f"{name}.bias"] = 0.1 * torch.randn(width, generator=self.generator)
        self[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=self.generator)
        self[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.generator)
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, name: str, out: int, width: int, *, gain: float = 1.0) -> None:
        self[f"{name}.weight"] = gain * torch.randn(out, width, generator=self.generator) / math.sqrt(width)
        self[f"{name}.bias"] = torch.zeros(out)


def efficientnet_state(variant: str, *, seed: int = 0, num_classes: int = 2) -> dict[str, Tensor]:
    """Random weights of an EfficientNet in efficientnet_pytorch's naming, classifier `_fc` included."""
    state = _RandomState(seed)
    width_in = _width(32, variant)
    state.conv("_conv_stem", width_in, 3, 3)
    state.norm("_bn0", width_in)
    for index, (_, kernel, _, expansion, width_out) in enumerate(_efficientnet_blocks(variant)):
        block, width = f"_blocks.{index}", width_in * expansion
        if expansion > 1:
            state.conv(f"{block}._expand_conv", width, width_in, 1)
            state.norm(f"{block}._bn0", width)
        state.conv(f"{block}._depthwise_conv", width, 1, kernel)
        state.norm(f"{block}._bn1", width)
        squeezed = max(1, int(width_in * 0.25))
        state.conv(f"{block}._se_reduce", squeezed, width, 1, bias=True)
        state.conv(f"{block}._se_expand", width, squeezed, 1, bias=True)
        state.conv(f"{block}._project_conv", width_out, width, 1)
        state.norm(f"{block}._bn2", width_out, gain=BRANCH_GAIN)
        width_in = width_out
    state.conv("_conv_head", _width(1280, variant), width_in, 1)
    state.norm("_bn1", _width(1280, variant))
    state.linear("_fc", num_classes, _width(1280, variant))
    return dict(state)


def efficientnet_maps(state: dict[str, Tensor], images: Tensor, variant: str, *, static: bool) -> dict[str, Tensor]:
    """Eval-mode maps "L1", ..., "L7" and "last" of an EfficientNet in efficientnet_pytorch's naming.

    `static` pads for the variant's nominal size instead of each layer's input.
    """
    nominal = EFFICIENTNET_SCALES[variant][2] if static else None

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        x = _pad_same(x, weight.shape[-1], stride, nominal)
        return functional.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, groups=groups)

    norm = functools.partial(_norm, state, epsilon=1e-3)
    x = functional.silu(norm(conv(images, "_conv_stem", 2), "_bn0"))
    maps = {}
    for index, (group, _, stride, _, _) in enumerate(_efficientnet_blocks(variant)):
        block, shortcut = f"_blocks.{index}", x
        if f"{block}._expand_conv.weight" in state:
            x = functional.silu(norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0"))
        x = functional.silu(norm(conv(x, f"{block}._depthwise_conv", stride, x.shape[1]), f"{block}._bn1"))
        squeezed = functional.silu(conv(x.mean((2, 3), keepdim=True), f"{block}._se_reduce"))
        x = torch.sigmoid(conv(squeezed, f"{block}._se_expand")) * x
        x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
        if x.shape == shortcut.shape and stride == 1:
            x = x + shortcut
        maps[f"L{group}"] = x  # the last block of a group stays
    return {**maps, "last": functional.silu(norm(conv(x, "_conv_head"), "_bn1"))}


def xception_state(*, seed: int = 0, num_classes: int = 2, flat_pointwise: bool = False) -> dict[str, Tensor]:
    """Random weights of an Xception in Cadene's naming, classifier `last_linear` included."""
    state = _RandomState(seed)

    def separable(name: str, width_in: int, width_out: int) -> None:
        state.conv(f"{name}.conv1", width_in, 1, 3)
        state.conv(f"{name}.pointwise", width_out, width_in, 1)
        if flat_pointwise:
            state[f"{name}.pointwise.weight"] = state[f"{name}.pointwise.weight"].flatten(1)

    state.conv("conv1", 32, 3, 3)
    state.norm("bn1", 32)
    state.conv("conv2", 64, 32, 3)
    state.norm("bn2", 64)
    for number, (width_in, width_out, _, separables) in enumerate(XCEPTION_BLOCKS, start=1):
        if width_in != width_out:
            state.conv(f"block{number}.skip", width_out, width_in, 1)
            state.norm(f"block{number}.skipbn", width_out, gain=BRANCH_GAIN)
        for index, *widths in separables:
            separable(f"block{number}.rep.{index}", *widths)
            is_last = index == separables[-1][0]
            state.norm(f"block{number}.rep.{index + 1}", widths[1], gain=BRANCH_GAIN if is_last else 0.5)
    separable("conv3", 1024, 1536)
    state.norm("bn3", 1536)
    separable("conv4", 1536, 2048)
    state.norm("bn4", 2048)
    state.linear("last_linear", num_classes, 2048)
    return dict(state)


def xception_maps(state: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Eval-mode maps of an Xception in Cadene's naming: L1..L12 as the blocks give them (no ReLU), and "last"."""

    norm = functools.partial(_norm, state)

    def separable(x: Tensor, name: str) -> Tensor:
        depthwise, pointwise = state[f"{name}.conv1.weight"], state[f"{name}.pointwise.weight"]
        x = functional.conv2d(x, depthwise, padding=1, groups=len(depthwise))
        return functional.conv2d(x, pointwise.reshape(*pointwise.shape[:2], 1, 1))

    x = functional.relu(norm(functional.conv2d(images, state["conv1.weight"], stride=2), "bn1"))
    x = functional.relu(norm(functional.conv2d(x, state["conv2.weight"]), "bn2"))
    maps = {}
    for number, (_, _, stride, separables) in enumerate(XCEPTION_BLOCKS, start=1):
        block, branch = f"block{number}", x
        for index, *_ in separables:
            branch = functional.relu(branch) if index else branch
            branch = norm(separable(branch, f"{block}.rep.{index}"), f"{block}.rep.{index + 1}")
        if stride > 1:
            branch = functional.max_pool2d(branch, 3, stride, 1)
        if f"{block}.skip.weight" in state:
            x = norm(functional.conv2d(x, state[f"{block}.skip.weight"], stride=stride), f"{block}.skipbn")
        x = maps[f"L{number}"] = x + branch
    x = functional.relu(norm(separable(x, "conv3"), "bn3"))
    return {**maps, "last": functional.relu(norm(separable(x, "conv4"), "bn4"))}


def _norm(state: dict[str, Tensor], x: Tensor, name: str, epsilon: float = 1e-5) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(variance + epsilon)
    shift = state[f"{name}.bias"] - mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


def _pad_same(x: Tensor, kernel: int, stride: int, nominal: int | None) -> Tensor:
    height, width = (nominal, nominal) if nominal else x.shape[-2:]
    rows, columns = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (height, width))
    return functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _width(channels: int, variant: str) -> int:
    """Scaled channels, rounded to a multiple of 8, never below 90 %."""
    scaled = channels * EFFICIENTNET_SCALES[variant][0]
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _efficientnet_blocks(variant: str) -> list[tuple[int, int, int, int, int]]:
    """(group from 1, kernel, stride, expansion, channels) of every block."""
    blocks = []
    for group, (kernel, stride, expansion, channels, repeats) in enumerate(EFFICIENTNET_GROUPS, start=1):
        for repeat in range(math.ceil(repeats * EFFICIENTNET_SCALES[variant][1])):
            blocks.append((group, kernel, stride if repeat == 0 else 1, expansion, _width(channels, variant)))
    return blocks


HIDDEN = 256


@functools.cache
def official_state(kind: str, *, num_maps: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a whole released checkpoint of `b0`, `b1`, `b4` or `xception`; not to be changed."""
    backbone = xception_state(seed=seed) if kind == "xception" else efficientnet_state(kind, seed=seed)
    texture, attention, last = {
        "b0": (24, 112, 1280),
        "b1": (24, 112, 1280),
        "b4": (32, 160, 1792),
        "xception": (256, 728, 2048),
    }[kind]
    state = _RandomState(seed + 1)
    state.update({f"net.{name}": tensor for name, tensor in backbone.items()})
    state["attentions.mask"] = torch.zeros(1, 1, 24, 24)
    state["attentions.mask"][:, :, 2:22, 2:22] = 1
    state.conv("attentions.conv_extract", attention, attention, 3, bias=True)
    state.norm("attentions.bn1", attention)
    state.conv("attentions.conv2", num_maps, attention, 1)
    state.norm("attentions.bn2", num_maps)
    width = num_maps * texture
    state.conv("texture_enhance.conv_extract", texture, texture, 3, bias=True)
    state.conv("texture_enhance.conv0", width, texture, 5, bias=True)
    for step in (1, 2, 3):
        state.conv(f"texture_enhance.conv{step}", width, step * texture, 3, bias=True)
        state.norm(f"texture_enhance.bn{step}", step * width)
    state.conv("texture_enhance.conv_last", width, 4 * texture, 1, bias=True)
    state.norm("texture_enhance.bn4", 4 * width)
    state.norm("texture_enhance.bn_last", width)
    # Large enough that two images differ by far more than the tolerance: P has unit rows, and hardswish halves.
    state.linear("projection_local.0", HIDDEN, width, gain=22)
    state.linear("projection_local.2", HIDDEN, HIDDEN, gain=3)
    state.linear("project_final", HIDDEN, last, gain=6)
    state.linear("ensemble_classifier_fc.0", HIDDEN, 2 * HIDDEN, gain=1.4)
    state.linear("ensemble_classifier_fc.2", 2, HIDDEN, gain=1.4)
    state["auxiliary_loss.feature_centers"] = torch.randn(num_maps, texture, generator=state.generator)
    state["auxiliary_loss.alpha"] = torch.tensor(0.0125)
    state["auxiliary_loss.inner_margin"] = torch.tensor([0.2, -0.8])
    return dict(state)


def official_forward(
    state: dict[str, Tensor], images: Tensor, kind: str, *, static: bool = False, attention_stage: str = "L5"
) -> tuple[Tensor, Tensor]:
    """Logits (B, 2) and attention maps (B, M, h, w) of images (B, 3, H, W)."""
    trunk = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
    maps = xception_maps(trunk, images) if kind == "xception" else efficientnet_maps(trunk, images, kind, static=static)
    attention = _attention(state, maps[attention_stage])
    textures = _textures(state, maps["L2"], attention)  # (B, M, N, H, W)

    weights = functional.interpolate(attention, textures.shape[-2:], mode="bilinear", align_corners=True)
    local = (textures * weights[:, :, None]).sum((-2, -1))
    local = local / local.norm(dim=-1, keepdim=True)
    total = attention.sum(1, keepdim=True)
    total = functional.interpolate(total, maps["last"].shape[-2:], mode="bilinear", align_corners=True) + 1e-8
    final = (maps["last"] * total).sum((-2, -1)) / total.sum((-2, -1))

    local = functional.hardswish(_linear(state, "projection_local.0", local.flatten(1)))
    local = functional.hardswish(_linear(state, "projection_local.2", local))
    final = functional.hardswish(_linear(state, "project_final", final))
    joint = functional.hardswish(_linear(state, "ensemble_classifier_fc.0", torch.cat([local, final], dim=1)))
    return _linear(state, "ensemble_classifier_fc.2", joint), attention


def _attention(state: dict[str, Tensor], features: Tensor) -> Tensor:
    x = functional.relu(_norm(state, _conv(state, "attentions.conv_extract", features), "attentions.bn1"))
    x = functional.elu(_norm(state, _conv(state, "attentions.conv2", x), "attentions.bn2")) + 1
    return x * functional.interpolate(state["attentions.mask"], x.shape[-2:], mode="nearest")


def _textures(state: dict[str, Tensor], features: Tensor, attention: Tensor) -> Tensor:
    """One branch a map, each with its own slice of the grouped weights."""
    num_maps = attention.shape[1]
    extracted = _conv(state, "texture_enhance.conv_extract", features)
    pooled = functional.adaptive_avg_pool2d(extracted, attention.shape[-2:])
    residual = extracted - functional.interpolate(pooled, extracted.shape[-2:], mode="nearest")
    weights = torch.tanh(functional.interpolate(attention, extracted.shape[-2:], mode="bilinear", align_corners=True))
    branches = []
    for number in range(num_maps):
        own = {
            name.removeprefix("texture_enhance."): tensor.chunk(num_maps)[number]
            for name, tensor in state.items()
            if name.startswith("texture_enhance.") and "conv_extract" not in name and tensor.ndim
        }
        made = [_conv(own, "conv0", residual * weights[:, number : number + 1])]
        for step in (1, 2, 3):
            made.append(_conv(own, f"conv{step}", functional.relu(_norm(own, torch.cat(made, dim=1), f"bn{step}"))))
        x = _conv(own, "conv_last", functional.relu(_norm(own, torch.cat(made, dim=1), "bn4")))
        branches.append(functional.relu(_norm(own, x, "bn_last")))
    return torch.stack(branches, dim=1)


def _conv(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return functional.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
