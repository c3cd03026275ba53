"""Foreign names of backbone weights -> timm's: efficientnet_pytorch and Cadene's Xception."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.efficientnet import EfficientNet
from timm.models.xception import Xception
from torch import Tensor, nn

from multiattn.model.checkpoints import state_problems

Naming = Literal["timm", "efficientnet_pytorch", "cadene_xception"]

WRAPPERS = ("module.", "net.", "backbone.")
"""Prefixes that a wrapper (DistributedDataParallel, a larger network) puts before every name."""

TENSORFLOW_EPSILON = 1e-3
_TRUNK = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""The first group's blocks, which expand nothing."""


@dataclass(frozen=True, kw_only=True)
class RenamedState:
    """A state dict in timm's names, and what became of every source tensor.

    Attributes:
        naming: the convention the source follows.
        state: target name -> tensor with the network's dtype; the source's shape, but for 2-D pointwise weights.
        targets: source name -> target name, of every tensor in `state`.
        unused: source names of the classifier, which the network does not have.
        problems: phrases on what is missing, unexpected or of another shape; empty when the state fills the network.
            `num_batches_tracked` counters may be missing, since older files do not have them.
    """

    naming: Naming
    state: dict[str, Tensor]
    targets: dict[str, str]
    unused: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        left_out = f"left out: {', '.join(self.unused)} (classifier)" if self.unused else "nothing left out"
        return f"{self.naming} naming, {len(self.targets)} tensors matched, {left_out}"


def rename_to_timm(state: Mapping[str, Tensor], net: nn.Module) -> RenamedState:
    """Match a state dict, in any of three namings, with a timm network; neither is changed.

    A `module.`, `net.` or `backbone.` (or several) that every name begins with is taken off first.

    Args:
        state: source name -> tensor, any float dtype (converted to the network's).
        net: the network to fill, with or without its classifier.

    Returns:
        The renamed state. It fills the network completely exactly if it has no `problems`.

    Raises:
        ValueError: efficientnet_pytorch weights for a network that would compute something else with them: no
            EfficientNet, or one with another batch-norm epsilon than TensorFlow's.
    """
    prefix = _wrapper(state, net)
    naming = _naming((name.removeprefix(prefix) for name in state), state, net)
    if naming == "efficientnet_pytorch":
        _require_tensorflow_style(net)
    expected = net.state_dict()
    classifiers = _classifiers(net)
    targets, renamed, unused, unexpected = {}, {}, [], {}
    for source, tensor in state.items():
        target = _target(source.removeprefix(prefix), naming, net)
        if target in expected:
            targets[source] = target
            renamed[target] = _fitted(tensor, expected[target], naming)
        elif target is not None and target.rpartition(".")[0] in classifiers:
            unused.append(source)
        else:
            unexpected[source] = tensor
    needed = {
        name: tensor for name, tensor in expected.items() if name in renamed or not name.endswith("num_batches_tracked")
    }
    problems = tuple(state_problems(needed, {**renamed, **unexpected}))
    return RenamedState(naming=naming, state=renamed, targets=targets, unused=tuple(unused), problems=problems)


def _wrapper(state: Mapping[str, Tensor], net: nn.Module) -> str:
    own = tuple(f"{name}." for name, _ in net.named_children())
    prefix = ""
    while state:
        found = [
            wrapper
            for wrapper in WRAPPERS
            if wrapper not in own and all(name.startswith(prefix + wrapper) for name in state)
        ]
        if not found:
            break
        prefix += found[0]
    return prefix


def _naming(names: object, state: Mapping[str, Tensor], net: nn.Module) -> Naming:
    names = list(names)
    if any(name.startswith(("_conv_stem.", "_blocks.")) for name in names):
        return "efficientnet_pytorch"
    flat = any(name.endswith("pointwise.weight") and tensor.ndim == 2 for name, tensor in state.items())
    if isinstance(net, Xception) and (flat or any(name.startswith("last_linear.") for name in names)):
        return "cadene_xception"
    return "timm"


def _require_tensorflow_style(net: nn.Module) -> None:
    if not isinstance(net, EfficientNet):
        raise ValueError(
            f"the weights are an EfficientNet's in efficientnet_pytorch naming; the network is a {type(net).__name__}. "
            "Name a tf_efficientnet_b0 to b7."
        )
    epsilon = getattr(net.bn1, "eps", None)
    if epsilon != TENSORFLOW_EPSILON:
        raise ValueError(
            "the weights are in efficientnet_pytorch naming: they need TensorFlow's SAME padding and a batch-norm "
            f"epsilon of {TENSORFLOW_EPSILON}, the network has {epsilon}. Name a tf_efficientnet_b0 to b7."
        )


def _classifiers(net: nn.Module) -> tuple[str, ...]:
    found = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _target(name: str, naming: Naming, net: nn.Module) -> str | None:
    """timm's name of a source tensor; None when the naming does not know it."""
    if naming == "timm":
        return name
    if naming == "cadene_xception":
        return re.sub(r"^last_linear\.", "fc.", name)
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if found is None:
        layer, _, kind = name.rpartition(".")
        layer = {**_TRUNK, "_fc": "classifier"}.get(layer)
        return f"{layer}.{kind}" if layer else None
    places = [(group, index) for group, blocks in enumerate(net.blocks) for index, _ in enumerate(blocks)]
    if int(found[1]) >= len(places):
        return None
    group, index = places[int(found[1])]
    layers = _EXPANDED if hasattr(net.blocks[group][index], "conv_pwl") else _SEPARABLE
    layer = layers.get(found[2])
    return f"blocks.{group}.{index}.{layer}.{found[3]}" if layer else None


def _fitted(tensor: Tensor, expected: Tensor, naming: Naming) -> Tensor:
    # Cadene's first files hold the pointwise convolutions as matrices (out, in).
    if naming == "cadene_xception" and tensor.ndim == 2 and expected.ndim == 4 and expected.shape[2:] == (1, 1):
        tensor = tensor[:, :, None, None]
    return tensor.to(expected.dtype) if expected.dtype.is_floating_point and _is_float(tensor) else tensor


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
