"""The released network's eval forward written a second time: `torch.nn.functional` on tensors in their original names.

Written from the layers of the released checkpoints (`multiattn/model/README.md`, profile `official`); nothing here
comes from `multiattn`. The backbones are those of `reference_backbones.py`.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from model.reference_backbones import efficientnet_maps, efficientnet_state, xception_maps, xception_state

HIDDEN = 256


@functools.cache
def official_state(kind: str, *, num_maps: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a whole released checkpoint.

    Args:
        kind: `b0`, `b1`, `b4` or `xception`.

    Returns:
        The same dict at every call; not to be changed.
    """
    backbone = xception_state(seed=seed) if kind == "xception" else efficientnet_state(kind, seed=seed)
    texture, attention, last = {
        "b0": (24, 112, 1280),
        "b1": (24, 112, 1280),
        "b4": (32, 160, 1792),
        "xception": (256, 728, 2048),
    }[kind]
    state = {f"net.{name}": tensor for name, tensor in backbone.items()}
    random = torch.Generator().manual_seed(seed + 1)

    def weight(name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> None:
        state[f"{name}.weight"] = gain * torch.randn(*shape, generator=random) * math.sqrt(2 / math.prod(shape[1:]))
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=random)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 0.8 + 0.4 * torch.rand(width, generator=random)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=random)
        state[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=random)
        state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=random)
        state[f"{name}.num_batches_tracked"] = torch.tensor(11)

    state["attentions.mask"] = torch.zeros(1, 1, 24, 24)
    state["attentions.mask"][:, :, 2:22, 2:22] = 1
    weight("attentions.conv_extract", attention, attention, 3, 3)
    norm("attentions.bn1", attention)
    weight("attentions.conv2", num_maps, attention, 1, 1, bias=False)
    norm("attentions.bn2", num_maps)
    width = num_maps * texture
    weight("texture_enhance.conv_extract", texture, texture, 3, 3)
    weight("texture_enhance.conv0", width, texture, 5, 5)
    for step in (1, 2, 3):
        weight(f"texture_enhance.conv{step}", width, step * texture, 3, 3)
        norm(f"texture_enhance.bn{step}", step * width)
    weight("texture_enhance.conv_last", width, 4 * texture, 1, 1)
    norm("texture_enhance.bn4", 4 * width)
    norm("texture_enhance.bn_last", width)
    # Large enough that two images differ by far more than the tolerance: P has unit rows, and hardswish halves.
    weight("projection_local.0", HIDDEN, width, gain=16)
    weight("projection_local.2", HIDDEN, HIDDEN, gain=2)
    weight("project_final", HIDDEN, last, gain=4)
    weight("ensemble_classifier_fc.0", HIDDEN, 2 * HIDDEN)
    weight("ensemble_classifier_fc.2", 2, HIDDEN)
    state["auxiliary_loss.feature_centers"] = torch.randn(num_maps, texture, generator=random)
    state["auxiliary_loss.alpha"] = torch.tensor(0.0125)
    state["auxiliary_loss.inner_margin"] = torch.tensor([0.2, -0.8])
    return state


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
    x = functional.relu(_norm(state, "attentions.bn1", _conv(state, "attentions.conv_extract", features)))
    x = functional.elu(_norm(state, "attentions.bn2", _conv(state, "attentions.conv2", x))) + 1
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
            made.append(_conv(own, f"conv{step}", functional.relu(_norm(own, f"bn{step}", torch.cat(made, dim=1)))))
        x = _conv(own, "conv_last", functional.relu(_norm(own, "bn4", torch.cat(made, dim=1))))
        branches.append(functional.relu(_norm(own, "bn_last", x)))
    return torch.stack(branches, dim=1)


def _conv(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return functional.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    scale = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
    return (x - state[f"{name}.running_mean"][:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][
        :, None, None
    ]


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
