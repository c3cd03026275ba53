"""Weights of a backbone from a local file, in the naming of timm, efficientnet_pytorch or Cadene's Xception; strict."""

import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.xception import Xception
from torch import Tensor, nn

from multiattn.runtime.tensor_files import in_dtype_of, read_tensors, state_problems

logger = logging.getLogger(__name__)

Naming = Literal["timm", "efficientnet_pytorch", "cadene_xception"]

WRAPPERS = ("module.", "net.", "backbone.")
"""Prefixes that a wrapper (DistributedDataParallel, a larger network) puts before every name."""

TENSORFLOW_EPSILON = 1e-3
_TRUNK = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_EITHER = {"_depthwise_conv": "conv_dw", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EXPANDED = _EITHER | {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = _EITHER | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The first group's blocks, which expand nothing."""


@dataclass(frozen=True, kw_only=True)
class RenamedState:
    """A state dict in timm's names, and the fate of every source tensor."""

    naming: Naming
    state: dict[str, Tensor]
    """Target name -> tensor with the network's dtype; the source's shape, but for 2-D pointwise weights."""
    targets: dict[str, str]
    """Source name -> target name, of every tensor in `state`."""
    unused: tuple[str, ...]
    """Source names of the classifier, which the network does not have."""
    problems: tuple[str, ...]
    """As `state_problems` has them, without counters; empty when the state fills the network."""

    def __str__(self) -> str:
        left_out = f"left out: {', '.join(self.unused)} (classifier)" if self.unused else "nothing left out"
        return f"{self.naming} naming, {len(self.targets)} tensors matched, {left_out}"


def rename_to_timm(state: Mapping[str, Tensor], net: nn.Module) -> RenamedState:
    """Match a state dict, in any of three namings, with a timm network; neither is changed.

    A `module.`, `net.` or `backbone.` (or several) that every name begins with is taken off first. The network may have
    its classifier or not; weights of efficientnet_pytorch are refused where it would compute something else with them.
    Those of a vision transformer go through timm's own conversion, which resizes positions of another grid and knows
    the names of its first release.
    """
    prefix = _wrapper(state, net)
    families = [family for family in (VisionTransformer, Eva) if isinstance(net, family)]
    if families:
        convert = sys.modules[families[0].__module__].checkpoint_filter_fn
        state, prefix = convert({name.removeprefix(prefix): tensor for name, tensor in state.items()}, net), ""
    naming = _naming({name.removeprefix(prefix): tensor for name, tensor in state.items()}, net)
    if naming == "efficientnet_pytorch":
        _require_tensorflow_style(net)
    expected = net.state_dict()
    found = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    classifiers = (found,) if isinstance(found, str) else found
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
    problems = tuple(state_problems(expected, {**renamed, **unexpected}, counters=False))
    return RenamedState(naming=naming, state=renamed, targets=targets, unused=tuple(unused), problems=problems)


def _wrapper(state: Mapping[str, Tensor], net: nn.Module) -> str:
    own = tuple(f"{name}." for name, _ in net.named_children())
    prefix = ""
    while state:
        longer = (prefix + wrapper for wrapper in WRAPPERS if wrapper not in own)
        found = next((start for start in longer if all(name.startswith(start) for name in state)), None)
        if found is None:
            break
        prefix = found
    return prefix


def _naming(state: Mapping[str, Tensor], net: nn.Module) -> Naming:
    if any(name.startswith(("_conv_stem.", "_blocks.")) for name in state):
        return "efficientnet_pytorch"
    flat = any(name.endswith("pointwise.weight") and tensor.ndim == 2 for name, tensor in state.items())
    if isinstance(net, Xception) and (flat or any(name.startswith("last_linear.") for name in state)):
        return "cadene_xception"
    return "timm"


def _require_tensorflow_style(net: nn.Module) -> None:
    epsilon = getattr(net.bn1, "eps", None) if isinstance(net, EfficientNet) else None
    if epsilon != TENSORFLOW_EPSILON:
        found = f"has {epsilon}" if isinstance(net, EfficientNet) else f"is a {type(net).__name__}"
        raise ValueError(
            "the weights are an EfficientNet's in efficientnet_pytorch naming: they need TensorFlow's SAME padding and "
            f"a batch-norm epsilon of {TENSORFLOW_EPSILON}, the network {found}. Name a tf_efficientnet_b0 to b7."
        )


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
    return in_dtype_of(expected, tensor)


WAYS_OUT = (
    "Pass `--model.weights FILE` with a local copy, or `--model.no-pretrained` to start from random weights (train; "
    "ablation has no such options and needs the weights in the cache of Hugging Face)."
)


def load_backbone_file(net: nn.Module, path: str | Path) -> RenamedState:
    """Fill a timm network from a file in the naming of timm, efficientnet_pytorch or Cadene's Xception.

    A classifier in the file is left out when the network has none, and the log says so; nothing else may differ,
    except `num_batches_tracked` counters, which older files do not have. The network is untouched unless all fits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_tensors` and `rename_to_timm`, or tensors that do not fit.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such backbone weights file.")
    state = read_tensors(path)
    try:
        renamed = rename_to_timm(state, net)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if renamed.problems:
        raise ValueError(
            f"{path}: these are not the weights of the backbone: {'; '.join(renamed.problems)} "
            f"({renamed.naming} naming). Expected the model that `--model.backbone` names, in the naming of timm, "
            "efficientnet_pytorch or Cadene's Xception, and nothing beside it."
        )
    net.load_state_dict(renamed.state, strict=False)  # what may be missing was settled above
    logger.info("Backbone starts from %s: %s.", path, renamed)
    return renamed
